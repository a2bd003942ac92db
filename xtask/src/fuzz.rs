//! `cargo xtask fuzz`: libFuzzer on the pure logic.
//!
//! The flags are those that cargo-fuzz passes, without a sanitizer: the code
//! under test has no unsafe block, and a panic is what is looked for. So the
//! stable toolchain does it, and nothing has to be installed. The layout of
//! `fuzz/` is cargo-fuzz's, for those who have it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{ctx::Ctx, setup::apt};

/// What cargo-fuzz adds to RUSTFLAGS.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to fuzz; everything if none is given.
    target: Option<Target>,

    /// How many inputs each target gets.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,

    /// Run one input, such as one that crashed, and nothing else.
    #[arg(
        long,
        value_name = "FILE",
        requires = "target",
        conflicts_with = "runs"
    )]
    input: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// Any bytes as a frame, through the header parser.
    Parser,
    /// Any sequence of segments on one TCP flow.
    Step,
    /// Any sequence of fragments of one datagram.
    Fragments,
    /// Any conversation on an FTP control connection, cut into any segments.
    Session,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Parser => "parser",
            Self::Step => "step",
            Self::Fragments => "fragments",
            Self::Session => "session",
        }
    }

    /// Bytes of the longest input: longer ones find nothing that these do not.
    const fn longest(self) -> u32 {
        match self {
            Self::Parser => 256,
            // The flow's begin, and twelve segments.
            Self::Step => 144,
            Self::Fragments => 64,
            // Log-in, TLS, CCC and a negotiation take about 50.
            Self::Session => 128,
        }
    }
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    compiler(ctx)?;
    let targets = match args.target {
        Some(target) => vec![target],
        None => Target::value_variants().to_vec(),
    };
    let binaries = build(ctx)?;
    let mut failed = Vec::new();
    for target in targets {
        let done = match &args.input {
            Some(input) => one(ctx, &binaries, target, input),
            None => many(ctx, &binaries, target, args.runs),
        };
        if let Err(error) = done {
            eprintln!("{}: {error:#}", target.name());
            failed.push(target.name());
        }
    }
    ctx.give_back(&ctx.target())?;
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

/// libFuzzer comes as C++ source.
pub(crate) fn compiler(ctx: &Ctx) -> Result<()> {
    if ctx.capture(ctx.user("c++").arg("--version")).is_ok() {
        return Ok(());
    }
    apt::packages(ctx, &["g++"], "cargo xtask fuzz")
}

/// Builds all targets; returns where they are.
fn build(ctx: &Ctx) -> Result<PathBuf> {
    let rustc = ctx.capture(ctx.user("rustc").arg("-vV"))?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it compiles for")?;
    let target_dir = ctx.target().join("fuzz");
    let mut cargo = ctx.cargo();
    cargo
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(ctx.root().join("fuzz/Cargo.toml"))
        // With a target named, build scripts and macros are spared the flags.
        .args(["--target", host, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    ctx.run_logged("Building", "fuzz targets with coverage", &mut cargo)?;
    Ok(target_dir.join(host).join("release"))
}

fn one(ctx: &Ctx, binaries: &Path, target: Target, input: &Path) -> Result<()> {
    let mut fuzzer = ctx.user(binaries.join(target.name()));
    ctx.run(fuzzer.arg(input))
}

fn many(ctx: &Ctx, binaries: &Path, target: Target, runs: u64) -> Result<()> {
    let name = target.name();
    ctx.status("Fuzzing", format!("{name}, {runs} executions"));
    let dir = ctx.target().join("fuzz");
    let corpus = dir.join("corpus").join(name);
    let crashes = dir.join("crashes").join(name);
    ctx.create_dir(&corpus)?;
    ctx.create_dir(&crashes)?;
    let log = dir.join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut fuzzer = ctx.user(binaries.join(name));
    fuzzer
        .args([
            format!("-runs={runs}"),
            format!("-max_len={}", target.longest()),
        ])
        // By the clock on the wall, and a busy machine may leave a run waiting: an input
        // takes microseconds, or for ever.
        .args(["-timeout=120", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg(&corpus)
        .args(known(ctx, target))
        .stdout(file.try_clone()?)
        .stderr(file);
    let begun = Instant::now();
    let passed = passes(&mut fuzzer)?;
    let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    let report = Report::read(&said);
    if !passed {
        bail!(report.crash(target, &log));
    }
    println!("{name}: {}", report.line(begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Inputs that once crashed, each named for what it showed: they are run first.
fn known(ctx: &Ctx, target: Target) -> Option<PathBuf> {
    let inputs = ctx.root().join("fuzz/inputs").join(target.name());
    inputs.is_dir().then_some(inputs)
}

fn passes(fuzzer: &mut Command) -> Result<bool> {
    let status = fuzzer.status().context("cannot run the fuzz target")?;
    Ok(status.success())
}

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    executions: Option<u64>,
    /// Edges that were reached, and all.
    reached: Option<u64>,
    edges: Option<u64>,
    inputs: Option<u64>,
    panic: Option<String>,
    kept: Option<String>,
}

impl Report {
    fn read(said: &str) -> Self {
        let number = |text: &str| {
            text.split(|c: char| !c.is_ascii_digit())
                .find(|t| !t.is_empty())?
                .parse()
                .ok()
        };
        let mut report = Self::default();
        let mut lines = said.lines();
        while let Some(line) = lines.next() {
            let after = |what: &str| line.split_once(what).map(|(_, rest)| rest);
            if let Some(rest) = after("inline 8-bit counters") {
                let all = line.strip_suffix(rest).and_then(|l| l.split_once('('));
                report.edges = all.and_then(|(_, count)| number(count)).or(report.edges);
            }
            if line.starts_with('#') {
                report.reached = after(" cov: ").and_then(number).or(report.reached);
                report.inputs = after(" corp: ").and_then(number).or(report.inputs);
            }
            if let Some(rest) = after("stat::number_of_executed_units:") {
                report.executions = number(rest);
            }
            if report.panic.is_none() && line.contains(" panicked at ") {
                let what = lines.next().unwrap_or_default();
                report.panic = Some(format!("{line} {what}"));
            }
            if let Some(path) = after("Test unit written to ") {
                report.kept = Some(path.to_owned());
            }
        }
        report
    }

    fn line(&self, seconds: f64) -> String {
        let shown = |number: Option<u64>| number.map_or("?".into(), |n| n.to_string());
        let executions = self.executions.unwrap_or(0);
        format!(
            "{executions} executions in {seconds:.1} s, {:.0} a second; {} of {} edges reached, \
             {} inputs kept",
            executions as f64 / seconds.max(0.001),
            shown(self.reached),
            shown(self.edges),
            shown(self.inputs)
        )
    }

    fn crash(&self, target: Target, log: &Path) -> String {
        let panic = self.panic.as_deref().unwrap_or("it did not end well");
        match &self.kept {
            Some(path) => format!(
                "{panic}\n  the input: {path}\n  again: cargo xtask fuzz {} --input {path}\n  \
                 log: {}",
                target.name(),
                log.display()
            ),
            None => format!("{panic}\n  log: {}", log.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: &str = "\
INFO: Loaded 1 modules   (1533 inline 8-bit counters): 1533 [0x55, 0x56), \n\
#2\tINITED cov: 3 ft: 3 corp: 1/1b exec/s: 0 rss: 26Mb\n\
#4096\tpulse  cov: 301 ft: 900 corp: 120/4Kb lim: 43 exec/s: 2048 rss: 27Mb\n\
#200000\tDONE   cov: 411 ft: 1500 corp: 330/12Kb lim: 256 exec/s: 100000 rss: 27Mb\n\
stat::number_of_executed_units: 200000\n";

    #[test]
    fn a_run_is_read() {
        let report = Report::read(DONE);
        assert_eq!(
            report.line(2.0),
            "200000 executions in 2.0 s, 100000 a second; 411 of 1533 edges reached, 330 inputs kept"
        );
        assert_eq!((report.panic, report.kept), (None, None));
    }

    #[test]
    fn a_crash_names_its_input() {
        let crashed = format!(
            "{DONE}thread '<unnamed>' (7) panicked at fuzz_targets/parser.rs:1:5:\nit broke\n\
             artifact_prefix='x/'; Test unit written to x/crash-1\n"
        );
        let text = Report::read(&crashed).crash(Target::Parser, Path::new("l"));
        assert!(text.contains("parser.rs:1:5: it broke"), "{text}");
        assert!(text.contains("fuzz parser --input x/crash-1"), "{text}");
    }
}

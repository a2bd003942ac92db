//! `cargo xtask test`: the unit tests as the user, then the end-to-end tests as root.

use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum as _;

use crate::{
    build,
    cargo_json::{self, Artifact},
    ctx::Ctx,
    differential::Check,
    harness::{self, Lab},
    setup::{self, Ebpf, Series},
    vm,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this.
    filter: Option<String>,

    /// List the tests instead of running them.
    #[arg(long)]
    list: bool,

    /// Leave the end-to-end tests out: nothing runs as root.
    #[arg(long, conflicts_with = "end_to_end")]
    unit: bool,

    /// Run the end-to-end tests only.
    #[arg(long)]
    end_to_end: bool,

    /// Passed on to the test harness, for example --nocapture or --test-threads=1.
    #[arg(last = true)]
    harness: Vec<String>,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    let ebpf = setup::ebpf(ctx)?;
    build::object(ctx, &ebpf)?;
    if !args.list && !args.unit {
        ctx.authenticate(harness::PURPOSE)?;
    }
    let (end_to_end, unit) = suites(ctx)?;
    if args.list {
        return list(ctx, unit.iter().chain(&end_to_end), args);
    }
    let mut failed = Vec::new();
    if !args.end_to_end {
        failed.extend(run_unit(ctx, &unit, args)?);
    }
    if !args.unit {
        failed.extend(run_end_to_end(ctx, &ebpf, &end_to_end, args)?);
    }
    ctx.give_back(&ctx.target())?;
    if failed.is_empty() {
        return Ok(());
    }
    bail!("tests failed in: {}", failed.join(", "))
}

impl Args {
    /// Is the test of this name to be run? The harness of a suite asks the same of its tests.
    fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    }

    fn apply(&self, command: &mut Command) {
        command.args(&self.filter).args(&self.harness);
    }
}

/// All test executables of the workspace: those that need root, and the others.
fn suites(ctx: &Ctx) -> Result<(Vec<Artifact>, Vec<Artifact>)> {
    let mut cargo = ctx.cargo();
    cargo.args(["test", "--workspace", "--no-run"]);
    let mut suites = cargo_json::executables(ctx, &mut cargo)?;
    suites.retain(|suite| suite.test);
    suites.sort_by_key(Artifact::label);
    let lab = ctx.root().join("tests");
    Ok(suites
        .into_iter()
        .partition(|suite| suite.kind == "test" && suite.package == lab))
}

fn run_unit(ctx: &Ctx, suites: &[Artifact], args: &Args) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    for suite in suites {
        ctx.status("Running", suite.label());
        let mut command = ctx.user(&suite.path);
        command.current_dir(&suite.package);
        args.apply(&mut command);
        if !harness::passes(&mut command)? {
            failed.push(suite.label());
        }
    }
    ctx.status("Running", "examples in the documentation");
    let mut documentation = ctx.cargo();
    documentation.args(["test", "--quiet", "--workspace", "--doc", "--"]);
    args.apply(&mut documentation);
    if !harness::passes(&mut documentation)? {
        failed.push("documentation".to_owned());
    }
    Ok(failed)
}

fn run_end_to_end(ctx: &Ctx, ebpf: &Ebpf, suites: &[Artifact], args: &Args) -> Result<Vec<String>> {
    setup::lab(ctx)?;
    for check in Check::value_variants() {
        if args.wants(&check.test()) {
            build::sabotaged_object(ctx, ebpf, *check)?;
        }
    }
    let pinhole = build::pinhole(ctx, false)?;
    let lab = Lab::new(ctx, &pinhole);
    let mut failed = Vec::new();
    for suite in suites {
        ctx.status("Running", format!("{} as root", suite.label()));
        let mut command = lab.command(ctx, &suite.path)?;
        args.apply(&mut command);
        if !harness::passes(&mut command)? {
            failed.push(suite.label());
        }
    }
    // The suites ran on this machine's kernel; here is the oldest that is supported.
    let smoke = vm::label(Series::OLDEST, vm::Job::Smoke);
    if args.wants(&smoke) && !vm::passes(ctx, Series::OLDEST, vm::Job::Smoke)? {
        failed.push(smoke);
    }
    Ok(failed)
}

/// Listing runs no test, and so needs no root.
fn list<'a>(ctx: &Ctx, suites: impl Iterator<Item = &'a Artifact>, args: &Args) -> Result<()> {
    for suite in suites {
        let mut command = ctx.user(&suite.path);
        args.apply(&mut command);
        command.args(["--list", "--format=terse"]);
        for test in ctx.capture(&mut command)?.lines() {
            println!("{}: {}", suite.label(), test.trim_end_matches(": test"));
        }
    }
    let smoke = vm::label(Series::OLDEST, vm::Job::Smoke);
    if args.wants(&smoke) {
        println!("{smoke}");
    }
    Ok(())
}

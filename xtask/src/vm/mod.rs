//! `cargo xtask vm`: programs of this workspace on the kernels of Debian, in virtual machines.

mod initramfs;
mod job;
mod machine;
mod modules;
mod report;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

pub(crate) use self::job::Job;
use crate::{
    build, cargo_json,
    ctx::Ctx,
    setup::{self, Series},
    verify,
    vm::machine::{Console, Machine},
};

/// Lines of the console that are shown of a machine that did not come to its end.
const TAIL: usize = 30;
/// The program that is process 1 of every machine; what each of its lines begins with, and
/// its last line when all is well.
pub(crate) const GUEST: &str = "guest";
pub(crate) const MARK: &str = "guest: ";
const PASSED: &str = "passed";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask vm --kernel 6.1 smoke
  cargo xtask vm --kernel 6.1 --kernel 6.12 verify
  cargo xtask vm --kernel 6.12 test
  cargo xtask vm pktgen             on all kernels
  cargo xtask vm --kernel 6.12 bench --json flowtable.json

The machines run under KVM where a kernel boots under it, and are emulated elsewhere,
which is slow; which of them it was is said.")]
pub(crate) struct Args {
    /// Kernel to boot; all that are supported when none is named.
    #[arg(long, value_enum)]
    kernel: Vec<Series>,

    /// What to do with it.
    #[arg(value_enum)]
    job: Job,

    /// Write what `bench` measures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Record what `bench` measures in bench/results, for docs/benchmark.md.
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    ensure!(
        args.job == Job::Bench || (args.json.is_none() && !args.write),
        "--json and --write are for `bench`"
    );
    let ebpf = setup::ebpf(ctx)?;
    build::object(ctx, &ebpf)?;
    let kernels = match args.kernel.as_slice() {
        [] => Series::value_variants(),
        named => named,
    };
    ensure!(
        args.json.is_none() || kernels.len() == 1,
        "--json takes the figures of one kernel: name it, as in `--kernel 6.12`"
    );
    if args.job == Job::Verify {
        return verify::on_machines(ctx, kernels);
    }
    let mut failed = Vec::new();
    for series in kernels {
        match lines(ctx, *series, args.job)? {
            None => failed.push(series.name()),
            Some(said) if args.job == Job::Bench => {
                report::keep(ctx, *series, &said, args.json.as_deref(), args.write)?;
            }
            Some(_) => {}
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "`{}` fails on kernel {}",
        args.job.name(),
        failed.join(" and ")
    )
}

/// A job's name on one kernel, among other tests.
pub(crate) fn label(series: Series, job: Job) -> String {
    format!("vm {} on Linux {}", job.name(), series.name())
}

/// Boots a kernel and does a job there; true when that went well. The object must have been
/// built.
pub(crate) fn passes(ctx: &Ctx, series: Series, job: Job) -> Result<bool> {
    Ok(lines(ctx, series, job)?.is_some())
}

/// As [`passes`]: what process 1 said, if all went well.
pub(crate) fn lines(ctx: &Ctx, series: Series, job: Job) -> Result<Option<Vec<String>>> {
    let kernel = setup::kernel(ctx, series)?;
    job::set_up(ctx, job)?;
    let program = cargo_json::binary(ctx, GUEST, false)?;
    let mut content = initramfs::build(ctx, &program)?;
    job.pack(ctx, &kernel.root, &mut content)?;
    // Two runs at a time must not share it.
    let archive = ctx
        .vm()
        .join(format!("{}-{}.cpio", series.name(), std::process::id()));
    ctx.write(&archive, content.finish())?;
    let machine = Machine {
        ctx,
        kernel: &kernel.image,
        initramfs: &archive,
        job,
        mark: MARK,
    };
    ctx.status("Booting", label(series, job));
    let begun = Instant::now();
    let told = |line: &str| {
        if !line.starts_with(report::REPORT) {
            ctx.status("", line);
        }
    };
    let ran = machine.run(job.limit(), told);
    crate::ctx::remove(&archive)?;
    let (accel, console) = ran?;
    let name = format!("{}-{}", job.name(), series.name());
    let log = machine::keep(ctx, &name, &console)?;
    let passed = console.init.last().is_some_and(|line| line == PASSED);
    let took = begun.elapsed().as_secs();
    ctx.status("", format!("… took {took} s with {}", accel.name()));
    if !passed {
        explain(&console, job.limit());
        ctx.status("", format!("console: {}", log.display()));
    }
    Ok(passed.then_some(console.init))
}

/// A program that fails has said why itself; one that never came to its end has not.
fn explain(console: &Console, limit: Duration) {
    if console.stopped {
        eprintln!(
            "the machine took over {} s: stopped. Its last lines:",
            limit.as_secs()
        );
    } else if console.init.last().is_some_and(|line| line == "failed") {
        return;
    } else {
        eprintln!("the machine ended early. Its last lines:");
    }
    let from = console.all.len().saturating_sub(TAIL);
    for line in &console.all[from..] {
        eprintln!("  | {line}");
    }
}

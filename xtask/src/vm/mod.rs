//! `cargo xtask vm`: programs of this workspace on the kernels of Debian, in virtual machines.

mod initramfs;
mod machine;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    build, cargo_json,
    ctx::Ctx,
    setup::{self, Series},
    vm::machine::{Console, Machine},
};

/// Emulation on a busy machine is slow; a machine that hangs is not waited for much longer.
const LIMIT: Duration = Duration::from_secs(300);
/// Lines of the console that are shown of a machine that did not come to its end.
const TAIL: usize = 30;
/// What every line of the smoke test begins with, and its last line when all is well.
const MARK: &str = "smoke: ";
const PASSED: &str = "passed";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel to boot; all that are supported when none is named.
    #[arg(long, value_enum)]
    kernel: Vec<Series>,

    /// What to do with it.
    #[arg(value_enum)]
    program: Program,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Program {
    /// Load every eBPF program, tell what each costs the verifier, and end.
    Smoke,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    let ebpf = setup::ebpf(ctx)?;
    build::object(ctx, &ebpf)?;
    let kernels = match args.kernel.as_slice() {
        [] => Series::value_variants(),
        named => named,
    };
    let Program::Smoke = args.program;
    let mut refused = Vec::new();
    for series in kernels {
        if !smoke(ctx, *series)? {
            refused.push(series.name());
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    bail!("the smoke test fails on kernel {}", refused.join(" and "))
}

/// The smoke test's name on one kernel, among other tests.
pub(crate) fn label(series: Series) -> String {
    format!("vm smoke on Linux {}", series.name())
}

/// Boots a kernel and has it load every program; true when it accepted them. The object must
/// have been built.
pub(crate) fn smoke(ctx: &Ctx, series: Series) -> Result<bool> {
    let kernel = setup::kernel(ctx, series)?;
    let program = cargo_json::binary(ctx, "smoke", false)?;
    // Two runs at a time must not share it.
    let archive = ctx
        .vm()
        .join(format!("{}-{}.cpio", series.name(), std::process::id()));
    ctx.write(&archive, initramfs::build(ctx, &program)?)?;
    let machine = Machine {
        ctx,
        kernel: &kernel,
        initramfs: &archive,
        mark: MARK,
    };
    ctx.status("Booting", label(series));
    let begun = Instant::now();
    let ran = machine.run(LIMIT, |line| ctx.status("", line));
    crate::ctx::remove(&archive)?;
    let (accel, console) = ran?;
    let log = machine::keep(ctx, &format!("smoke-{}", series.name()), &console)?;
    let passed = console.init.last().is_some_and(|line| line == PASSED);
    let took = begun.elapsed().as_secs();
    ctx.status("", format!("… took {took} s with {}", accel.name()));
    if !passed {
        explain(&console);
        ctx.status("", format!("console: {}", log.display()));
    }
    Ok(passed)
}

/// A program that fails has said why itself; one that never came to its end has not.
fn explain(console: &Console) {
    if console.stopped {
        eprintln!(
            "the machine took over {} s: stopped. Its last lines:",
            LIMIT.as_secs()
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

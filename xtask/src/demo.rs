//! `cargo xtask demo`: the story of an FTP listing that hangs, and of the helper that mends it.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    build, cargo_json,
    ctx::Ctx,
    harness::{self, Lab},
    setup,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Break one step on purpose, to see the demo notice (`helper`: it stays off).
    #[arg(long, value_name = "STEP")]
    sabotage: Option<String>,
}

/// Returns the demo's own exit code: non-zero when a step is not as told.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<ExitCode> {
    let ebpf = setup::ebpf(ctx)?;
    ctx.authenticate(harness::PURPOSE)?;
    setup::lab(ctx)?;
    build::object(ctx, &ebpf)?;
    let pinhole = build::pinhole(ctx, false)?;
    let demo = cargo_json::binary(ctx, "demo", false)?;
    let mut command = Lab::new(ctx, &pinhole).command(ctx, &demo)?;
    if let Some(step) = &args.sabotage {
        command.arg("--sabotage").arg(step);
    }
    let passed = harness::passes(&mut command)?;
    ctx.give_back(&ctx.target())?;
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

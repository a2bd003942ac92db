//! `cargo xtask demo`: the story of an FTP listing that hangs, and of the helper that mends it.

use std::{convert::Infallible, os::unix::process::CommandExt};

use anyhow::{Context, Result};

use crate::{
    build, cargo_json,
    ctx::{Ctx, show},
    harness::{self, Lab},
    setup,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Break one step on purpose, to see the demo notice (`helper`: it stays off).
    #[arg(long, value_name = "STEP")]
    sabotage: Option<String>,
}

/// Becomes the demo, so that its exit code is the task's, and Ctrl-C finds nobody but the demo,
/// which takes its namespaces down before it ends.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
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
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", show(&command)))
}

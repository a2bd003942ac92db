//! `cargo xtask race`: the race between data connections and the FTP helper, measured.

use std::{convert::Infallible, os::unix::process::CommandExt};

use anyhow::{Context, Result};

use crate::{
    build, cargo_json,
    ctx::{Ctx, show},
    harness::{self, Lab},
    setup,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask race
  cargo xtask race --transfers 1000 --json > race.json")]
pub(crate) struct Args {
    /// Transfers of each kind: passive and active, one after another and fifty at once.
    #[arg(long, default_value_t = 10_000)]
    transfers: usize,

    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Becomes the measurement, so that its exit code is the task's.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let ebpf = setup::ebpf(ctx)?;
    ctx.authenticate(harness::PURPOSE)?;
    setup::lab(ctx)?;
    build::object(ctx, &ebpf)?;
    // What is measured is what is shipped.
    let pinhole = build::pinhole(ctx, true)?;
    let race = cargo_json::binary(ctx, "race", false)?;
    let mut command = Lab::new(ctx, &pinhole).command(ctx, &race)?;
    command.args(["--transfers", &args.transfers.to_string()]);
    if args.json {
        command.arg("--json");
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", show(&command)))
}

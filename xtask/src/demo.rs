//! `cargo xtask demo`: the story of an FTP listing that hangs, and of the helper that mends it.

use std::convert::Infallible;

use anyhow::Result;

use crate::{ctx::Ctx, harness::Lab, setup};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Break one step on purpose, to see the demo notice (`helper`: it stays off).
    #[arg(long, value_name = "STEP")]
    sabotage: Option<String>,
}

/// Becomes the demo.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let lab = Lab::set_up(ctx, &setup::ebpf(ctx)?, false)?;
    let sabotage = args.sabotage.iter().flat_map(|step| ["--sabotage", step]);
    lab.become_program(ctx, "demo", sabotage)
}

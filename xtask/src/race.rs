//! `cargo xtask race`: the race between data connections and the FTP helper, measured.

use std::convert::Infallible;

use anyhow::Result;

use crate::{ctx::Ctx, harness::Lab, setup};

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

/// Becomes the measurement. What is measured is what is shipped.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let lab = Lab::set_up(ctx, &setup::ebpf(ctx)?, true)?;
    let transfers = args.transfers.to_string();
    let json = args.json.then_some("--json");
    let arguments = ["--transfers", &transfers].into_iter().chain(json);
    lab.become_program(ctx, "race", arguments)
}

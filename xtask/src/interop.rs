//! `cargo xtask interop`: real FTP servers and clients through firewalls at both ends.

use std::convert::Infallible;

use anyhow::Result;

use crate::{ctx::Ctx, harness::Lab, setup};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask interop
  cargo xtask interop proftpd curl ccc
  cargo xtask interop --transcripts clear vsftpd wget active v6 pinhole")]
pub(crate) struct Args {
    /// Run only cells whose line (protection, server, client, mode, family, column) has all of
    /// these words.
    words: Vec<String>,

    /// Write what was seen to tests/interop/expected.tsv and docs/interop.md.
    #[arg(long)]
    write: bool,

    /// Show what the clients said in every cell, not only where it is not as expected.
    #[arg(long)]
    transcripts: bool,
}

/// Becomes the matrix.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let lab = Lab::set_up(ctx, &setup::ebpf(ctx)?, false)?;
    let flags = [(args.write, "--write"), (args.transcripts, "--transcripts")];
    let flags = flags
        .into_iter()
        .filter_map(|(is_given, flag)| is_given.then_some(flag));
    lab.become_program(
        ctx,
        "interop",
        args.words.iter().map(String::as_str).chain(flags),
    )
}

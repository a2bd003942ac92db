//! `cargo xtask interop`: real FTP servers and clients through firewalls at both ends.

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

/// Becomes the matrix, so that its exit code is the task's, and Ctrl-C finds nobody but the
/// matrix, which takes its namespaces down before it ends.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let ebpf = setup::ebpf(ctx)?;
    ctx.authenticate(harness::PURPOSE)?;
    setup::lab(ctx)?;
    build::object(ctx, &ebpf)?;
    let pinhole = build::pinhole(ctx, false)?;
    let interop = cargo_json::binary(ctx, "interop", false)?;
    let mut command = Lab::new(ctx, &pinhole).command(ctx, &interop)?;
    command.args(&args.words);
    for (is_given, flag) in [(args.write, "--write"), (args.transcripts, "--transcripts")] {
        if is_given {
            command.arg(flag);
        }
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", show(&command)))
}

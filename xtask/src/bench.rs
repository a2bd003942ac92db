//! `cargo xtask bench`: pinhole against the kernel's own firewall, measured.

use std::{
    convert::Infallible,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{build, cargo_json, ctx::Ctx, harness::Lab, setup};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench --quick --json bench.json
  cargo xtask bench --only fwd_est_1k_vs_nft prog_tcp_est_ns
  cargo xtask bench --write
  cargo xtask bench --draw bench/results/2026-01-31-0123abc.json
  cargo xtask bench --list")]
pub(crate) struct Args {
    /// Measure everything three times instead of ten.
    #[arg(long)]
    quick: bool,

    /// Measure only these ids.
    #[arg(long, num_args = 1.., value_name = "ID")]
    only: Vec<String>,

    /// Name all ids.
    #[arg(long)]
    list: bool,

    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the results to bench/results, with machine and commit, and make
    /// docs/benchmark.md and its plots from them.
    #[arg(long)]
    write: bool,

    /// Make docs/benchmark.md and its plots from results of bench/results, and measure nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "only", "list", "json", "write"])]
    draw: Option<PathBuf>,
}

/// Becomes the measurement. What is measured is what is shipped.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let ebpf = setup::ebpf(ctx)?;
    let measures = !args.list && args.draw.is_none();
    let lab = measures
        .then(|| Lab::set_up(ctx, &ebpf, true))
        .transpose()?;
    let flags = [
        (args.quick, "--quick"),
        (args.list, "--list"),
        (args.write, "--write"),
    ];
    let mut arguments: Vec<OsString> = flags
        .into_iter()
        .filter(|(is_given, _)| *is_given)
        .map(|(_, flag)| flag.into())
        .collect();
    // The program runs in another directory.
    for (flag, file) in [("--json", &args.json), ("--draw", &args.draw)] {
        if let Some(file) = file {
            let file = std::path::absolute(file).context(flag)?;
            arguments.extend([flag.into(), file.into()]);
        }
    }
    arguments.extend(["--commit".into(), commit(ctx).into()]);
    if !args.only.is_empty() {
        arguments.push("--only".into());
        arguments.extend(args.only.iter().map(OsString::from));
    }
    if let Some(lab) = lab {
        return lab.become_program(ctx, "bench", arguments);
    }
    // No lab, no root, and no pinhole but what the program is made of.
    build::object(ctx, &ebpf)?;
    let mut program = ctx.user(cargo_json::binary(ctx, "bench", false)?);
    Err(program.args(arguments).exec()).context("cannot run the benchmark")
}

/// The commit that is checked out, with a `+` if files differ from it.
pub(crate) fn commit(ctx: &Ctx) -> String {
    let git = |arguments: &[&str]| {
        let mut git = ctx.user(Path::new("git"));
        let output = git.args(arguments).current_dir(ctx.root()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(head) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let is_clean = changed.is_some_and(|files| files.is_empty());
    if is_clean { head } else { head + "+" }
}

//! rustfmt and clippy, for the host's toolchain and for the one that compiles eBPF.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use super::{Ebpf, apt};
use crate::ctx::Ctx;

const LIMIT: Duration = Duration::from_secs(180);
const PURPOSE: &str = "cargo xtask check";

/// rustfmt and clippy of the toolchain that builds the host crates.
pub(crate) fn host(ctx: &Ctx) -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there = ctx.capture(ctx.cargo().args([subcommand, "--version"]));
        if there.is_err() {
            add(ctx, component, None)?;
        }
    }
    Ok(())
}

/// clippy of the toolchain that compiles eBPF: another compiler's would not know its `core`.
pub(crate) fn ebpf_clippy(ctx: &Ctx, ebpf: &Ebpf) -> Result<PathBuf> {
    let clippy = ebpf.toolchain.cargo.with_file_name("cargo-clippy");
    if !clippy.exists() {
        match ebpf.toolchain.rustup_name() {
            Some(name) => add(ctx, "clippy", Some(&name))?,
            None => apt::packages(ctx, &["rust-web-clippy"], PURPOSE)?,
        }
    }
    if !clippy.exists() {
        bail!("{} has no clippy beside it", ebpf.toolchain.cargo.display());
    }
    Ok(clippy)
}

fn add(ctx: &Ctx, component: &str, toolchain: Option<&str>) -> Result<()> {
    let mut rustup = ctx.user("rustup");
    rustup.args(["component", "add", component]);
    if let Some(name) = toolchain {
        rustup.args(["--toolchain", name]);
    }
    let what = format!("{component} (rustup), for {PURPOSE}");
    ctx.run_limited("Installing", &what, &mut rustup, LIMIT)
        .with_context(|| format!("install {component} for this toolchain and try again"))
}

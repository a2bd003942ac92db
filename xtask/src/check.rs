//! `cargo xtask check`: format, lints and documentation, of the host crates and the eBPF crate.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{
    build,
    ctx::Ctx,
    fuzz, harness,
    setup::{self, Ebpf, components},
};

const EBPF_MANIFEST: &str = "firewall-ebpf/Cargo.toml";
const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";

pub(crate) fn run(ctx: &Ctx) -> Result<()> {
    let ebpf = setup::ebpf(ctx)?;
    components::host(ctx)?;
    let clippy = components::ebpf_clippy(ctx, &ebpf)?;
    build::object(ctx, &ebpf)?;
    fuzz::compiler(ctx)?;
    let steps: [(&str, Command); 10] = [
        ("lock file", lock_file(ctx, "Cargo.toml")),
        ("lock file of the eBPF crate", lock_file(ctx, EBPF_MANIFEST)),
        ("lock file of the fuzz crate", lock_file(ctx, FUZZ_MANIFEST)),
        ("format", cargo(ctx, &["fmt", "--all", "--check"])),
        ("format of the eBPF crate", format(ctx, EBPF_MANIFEST)),
        ("format of the fuzz crate", format(ctx, FUZZ_MANIFEST)),
        ("clippy", host_clippy(ctx)),
        ("clippy of the eBPF crate", ebpf_clippy(ctx, &ebpf, &clippy)),
        ("clippy of the fuzz crate", fuzz_clippy(ctx)),
        ("documentation", documentation(ctx)),
    ];
    let mut unclean = Vec::new();
    for (name, mut command) in steps {
        ctx.status("Checking", name);
        if !harness::passes(&mut command)? {
            unclean.push(name);
        }
    }
    ctx.give_back(&ctx.target())?;
    if unclean.is_empty() {
        return Ok(());
    }
    bail!("not clean: {}", unclean.join(", "))
}

fn cargo(ctx: &Ctx, arguments: &[&str]) -> Command {
    let mut cargo = ctx.cargo();
    cargo.args(arguments);
    cargo
}

/// The committed lock file must be what cargo would write.
fn lock_file(ctx: &Ctx, manifest: &str) -> Command {
    let mut cargo = cargo(ctx, &["metadata", "--locked", "--format-version=1"]);
    cargo
        .args(["--manifest-path", manifest])
        .stdout(Stdio::null());
    cargo
}

fn format(ctx: &Ctx, manifest: &str) -> Command {
    cargo(ctx, &["fmt", "--check", "--manifest-path", manifest])
}

fn host_clippy(ctx: &Ctx) -> Command {
    let scope = ["clippy", "--workspace", "--all-targets"];
    let mut cargo = cargo(ctx, &scope);
    cargo.args(["--", "-D", "warnings"]);
    cargo
}

fn ebpf_clippy(ctx: &Ctx, ebpf: &Ebpf, clippy: &Path) -> Command {
    let mut cargo = build::ebpf_cargo(ctx, ebpf, clippy, "clippy");
    let target_dir = ctx.target().join("bpf/clippy");
    cargo.args(["--release", "--target-dir"]).arg(target_dir);
    cargo.args(["--", "-D", "warnings"]);
    cargo
}

fn fuzz_clippy(ctx: &Ctx) -> Command {
    let scope = ["clippy", "--manifest-path", FUZZ_MANIFEST, "--target-dir"];
    let mut cargo = cargo(ctx, &scope);
    cargo.arg(ctx.target().join("fuzz"));
    cargo.args(["--", "-D", "warnings"]);
    cargo
}

fn documentation(ctx: &Ctx) -> Command {
    let mut cargo = cargo(ctx, &["doc", "--workspace", "--no-deps"]);
    cargo.env("RUSTDOCFLAGS", "-Dwarnings");
    cargo
}

//! `cargo xtask build`: the eBPF object, then the binary that embeds it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{
    cargo_json,
    ctx::Ctx,
    differential::Check,
    setup::{self, Ebpf},
};

const TARGET: &str = "bpfel-unknown-none";
/// The eBPF crate's program, as its manifest names it.
const PROGRAM: &str = "pinhole";
/// The load generator of the tests.
const GENERATOR: &str = "generator";
/// What the object is made of; the build script of firewall-user compares the same files.
const SOURCES: [&str; 4] = [
    "firewall-ebpf/src",
    "firewall-ebpf/Cargo.toml",
    "firewall-ebpf/Cargo.lock",
    "firewall-common/src",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build the binary optimised, to be copied to other hosts.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    let ebpf = setup::ebpf(ctx)?;
    object(ctx, &ebpf)?;
    let binary = pinhole(ctx, args.release)?;
    ctx.status("Built", binary.display().to_string());
    Ok(())
}

/// Builds the eBPF object into `target/bpf`. cargo decides whether anything has to be done.
pub(crate) fn object(ctx: &Ctx, ebpf: &Ebpf) -> Result<PathBuf> {
    let object = object_with(ctx, ebpf, &[], &ctx.object());
    let object = object.context("the eBPF object does not build")?;
    publish_object(ctx, &built(ctx, GENERATOR), &ctx.generator())?;
    Ok(object)
}

/// Builds an object without one check into `target/bpf`, for tests that must notice.
pub(crate) fn sabotaged_object(ctx: &Ctx, ebpf: &Ebpf, check: Check) -> Result<PathBuf> {
    let feature = format!("sabotage-{}", check.name());
    let object = ctx.object().with_file_name(format!("{feature}.o"));
    object_with(ctx, ebpf, &["--features", &feature], &object)
        .with_context(|| format!("the eBPF object with {feature} does not build"))
}

fn object_with(ctx: &Ctx, ebpf: &Ebpf, features: &[&str], object: &Path) -> Result<PathBuf> {
    let build = ctx.target().join("bpf/build");
    ctx.create_dir(&build)?;
    let mut cargo = ebpf_cargo(ctx, ebpf, &ebpf.toolchain.cargo, "build");
    cargo.arg("--release").args(features);
    cargo.arg("--target-dir").arg(&build);
    ctx.run(&mut cargo)?;
    publish_object(ctx, &built(ctx, PROGRAM), object)?;
    Ok(object.to_owned())
}

/// Where cargo puts a program of the eBPF crate.
fn built(ctx: &Ctx, program: &str) -> PathBuf {
    let release = ctx.target().join("bpf/build").join(TARGET).join("release");
    release.join(program)
}

/// A command of cargo, or of a program that calls it, over the eBPF crate, which is a workspace
/// of its own: a feature that a host crate turns on must not drag std into it.
pub(crate) fn ebpf_cargo(ctx: &Ctx, ebpf: &Ebpf, program: &Path, subcommand: &str) -> Command {
    let mut cargo = ctx.user(program);
    cargo
        .arg(subcommand)
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .current_dir(ctx.root().join("firewall-ebpf"))
        .env("CARGO", &ebpf.toolchain.cargo)
        .env("RUSTC", &ebpf.toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&ebpf.linker.path))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN");
    cargo
}

/// `v3` brings 32-bit atomics, fetch-and-add and compare-and-swap; every kernel from 5.12 has it.
///
/// The linker makes LLVM copy in order unless told otherwise, and then LLVM inlines no memset
/// and no memmove: each becomes a call of a loop that goes byte by byte, one of them for every
/// packet. The verifier of 6.1 saw 771,000 instructions of ingress so, and 126,000 without.
///
/// Packets are not aligned, and structures of words stand at odd words: LLVM 22 can be told that
/// this does not matter, and then reads them in words instead of byte by byte. The verifier agrees,
/// but for the stack. (Older LLVM does not know the feature, says so and goes on.)
fn rustflags(linker: &Path) -> OsString {
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    for flag in [
        &arch,
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    ] {
        flags.push("\x1f");
        flags.push(flag);
    }
    flags
}

/// Replaces the object only when its content differs, so that nothing that embeds it is rebuilt
/// for nothing; but it must look newer than its sources, whose age `cargo build` checks.
fn publish_object(ctx: &Ctx, built: &Path, object: &Path) -> Result<()> {
    let content = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(object).is_ok_and(|present| present == content) {
        return refresh_time(ctx, object);
    }
    ctx.write(object, content)?;
    ctx.status("Built", object.display().to_string());
    Ok(())
}

fn refresh_time(ctx: &Ctx, object: &Path) -> Result<()> {
    let made = fs::metadata(object)?.modified()?;
    let root = ctx.root();
    let newest = SOURCES
        .iter()
        .filter_map(|source| newest(&root.join(source)))
        .max();
    if newest.is_some_and(|newest| newest > made) {
        File::options()
            .append(true)
            .open(object)?
            .set_modified(SystemTime::now())?;
    }
    Ok(())
}

/// The latest change of a file, or of anything in a directory.
fn newest(path: &Path) -> Option<SystemTime> {
    let meta = fs::metadata(path).ok()?;
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    inside
        .filter_map(|entry| newest(&entry.path()))
        .chain(meta.modified().ok())
        .max()
}

/// Builds the binary and says where it is.
pub(crate) fn pinhole(ctx: &Ctx, release: bool) -> Result<PathBuf> {
    cargo_json::binary(ctx, PROGRAM, release)
}

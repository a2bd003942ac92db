//! The Rust toolchain that compiles for eBPF: any rustc with the source of `core`, driven with
//! `RUSTC_BOOTSTRAP`, so that a stable one does.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{apt, linker::Linker};
use crate::{account::find_program, ctx::Ctx};

/// The oldest rustc that builds the workspace, eBPF crate included.
const OLDEST: Version = Version(1, 95);
/// A mirror that does not answer must not hold the set-up for long.
const COMPONENT_LIMIT: Duration = Duration::from_secs(180);
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const PURPOSE: &str = "compiling eBPF";

/// Where a toolchain may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Origin {
    /// rustup's first, then Debian's.
    #[default]
    Auto,
    /// Only toolchains of rustup.
    Rustup,
    /// Only Debian's packages.
    Debian,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// A cargo and the rustc that it drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// Release and commit, to tell an updated compiler from the one that was chosen.
    pub(crate) release: String,
    /// Major version of the LLVM that writes the bitcode.
    pub(crate) llvm: u32,
    sysroot: PathBuf,
}

/// Finds a toolchain, and a linker that understands its bitcode; installs what is missing.
pub(crate) fn find(ctx: &Ctx, origin: Origin) -> Result<(Toolchain, Linker)> {
    if origin != Origin::Debian {
        for toolchain in rustup_toolchains(ctx).iter().filter(|t| t.has_source()) {
            if let Some(linker) = Linker::find(ctx, toolchain)? {
                return Ok((toolchain.clone(), linker));
            }
        }
        if let Some(found) = add_source(ctx)? {
            return Ok(found);
        }
    }
    if origin == Origin::Rustup {
        bail!(
            "no rustup toolchain has, or can get, the component rust-src and a linker. \
             Run `rustup component add rust-src`, or `cargo xtask setup --toolchain debian`"
        );
    }
    let toolchain = debian(ctx)?;
    let linker = Linker::find(ctx, &toolchain)?;
    let linker = linker.context("no bpf-linker for Debian's rustc can be had: see above")?;
    Ok((toolchain, linker))
}

impl Toolchain {
    /// Describes the toolchain of `rustc`; `None` when it does not run, is too old or has no
    /// cargo beside it.
    pub(crate) fn at(ctx: &Ctx, rustc: &Path) -> Option<Self> {
        let verbose = ctx.capture(ctx.user(rustc).arg("-vV")).ok()?;
        let sysroot = ctx
            .capture(ctx.user(rustc).args(["--print", "sysroot"]))
            .ok()?;
        let cargo = rustc.with_file_name("cargo");
        let described = Self {
            release: verbose.lines().next()?.to_owned(),
            llvm: field(&verbose, "LLVM version: ")?.0,
            rustc: rustc.to_owned(),
            sysroot: PathBuf::from(sysroot.trim_end()),
            cargo,
        };
        let recent = field(&verbose, "release: ")? >= OLDEST;
        (recent && described.cargo.exists()).then_some(described)
    }

    /// Its name to rustup; `None` when it is not one of rustup's.
    pub(crate) fn rustup_name(&self) -> Option<String> {
        let toolchains = self.sysroot.parent()?;
        let name = self.sysroot.file_name()?.to_str()?;
        toolchains.ends_with("toolchains").then(|| name.to_owned())
    }

    pub(crate) fn has_source(&self) -> bool {
        self.sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
    }
}

/// rustup's toolchains, the active one first.
fn rustup_toolchains(ctx: &Ctx) -> Vec<Toolchain> {
    let active = ctx.capture(ctx.user("rustup").args(["which", "rustc"]));
    let Ok(active) = active else {
        return Vec::new();
    };
    let listed = ctx
        .capture(ctx.user("rustup").args(["toolchain", "list"]))
        .unwrap_or_default();
    let names = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let others = names.filter_map(|name| {
        ctx.capture(
            ctx.user("rustup")
                .args(["which", "--toolchain", name, "rustc"]),
        )
        .ok()
    });
    let mut paths = vec![active];
    paths.extend(others);
    let mut found: Vec<Toolchain> = Vec::new();
    for path in paths {
        let rustc = PathBuf::from(path.trim_end());
        if found.iter().all(|known| known.rustc != rustc) {
            found.extend(Toolchain::at(ctx, &rustc));
        }
    }
    found
}

/// Has rustup add the source to the active toolchain; `None` when it cannot.
fn add_source(ctx: &Ctx) -> Result<Option<(Toolchain, Linker)>> {
    let Some(active) = rustup_toolchains(ctx).into_iter().next() else {
        return Ok(None);
    };
    if active.has_source() {
        return Ok(None);
    }
    let mut rustup = ctx.user("rustup");
    rustup.args(["component", "add", "rust-src"]);
    if let Some(name) = active.rustup_name() {
        rustup.args(["--toolchain", &name]);
    }
    let what = format!("rust-src (rustup), for {PURPOSE}");
    if let Err(error) = ctx.run_limited("Installing", &what, &mut rustup, COMPONENT_LIMIT) {
        let reason = error.root_cause();
        ctx.status(
            "Note",
            format!("{reason}: going on without it; see target/log"),
        );
        return Ok(None);
    }
    if !active.has_source() {
        ctx.status(
            "Note",
            "rustup reports rust-src as installed, but it is not there",
        );
        return Ok(None);
    }
    Ok(Linker::find(ctx, &active)?.map(|linker| (active, linker)))
}

fn debian(ctx: &Ctx) -> Result<Toolchain> {
    let rustc = Path::new("/usr/bin/rustc");
    if let Some(ready) = Toolchain::at(ctx, rustc).filter(Toolchain::has_source) {
        return Ok(ready);
    }
    apt::packages(ctx, &DEBIAN, PURPOSE)?;
    Toolchain::at(ctx, rustc)
        .filter(Toolchain::has_source)
        .with_context(|| {
            format!(
                "{} of package rustc-web is not rustc {}.{} or newer with its source. \
             Install a newer one, or `rustup component add rust-src`",
                rustc.display(),
                OLDEST.0,
                OLDEST.1
            )
        })
}

/// The version after `name` in the output of `rustc -vV`.
fn field(verbose: &str, name: &str) -> Option<Version> {
    let line = verbose.lines().find_map(|line| line.strip_prefix(name))?;
    let mut numbers = line.split(|c: char| !c.is_ascii_digit());
    Some(Version(
        numbers.next()?.parse().ok()?,
        numbers.next()?.parse().ok()?,
    ))
}

/// The decision of an earlier run, as it is kept in `target/tools`.
pub(crate) struct Decision;

impl Decision {
    fn path(ctx: &Ctx) -> PathBuf {
        ctx.tools().join("toolchain")
    }

    /// What was decided, when it still holds: same compiler, same linker, source still there.
    pub(crate) fn load(ctx: &Ctx) -> Option<(Toolchain, Linker)> {
        let text = fs::read_to_string(Self::path(ctx)).ok()?;
        let mut lines = text.lines();
        let rustc = PathBuf::from(lines.next()?);
        let release = lines.next()?;
        let linker = Linker::load(lines.next()?, lines.next()?)?;
        let toolchain = Toolchain::at(ctx, &rustc).filter(Toolchain::has_source)?;
        (toolchain.release == release).then_some((toolchain, linker))
    }

    pub(crate) fn save(ctx: &Ctx, toolchain: &Toolchain, linker: &Linker) -> Result<()> {
        let rustc = toolchain.rustc.display();
        let (path, state) = linker.record()?;
        let text = format!("{rustc}\n{}\n{path}\n{state}\n", toolchain.release);
        ctx.write(&Self::path(ctx), text)
    }

    pub(crate) fn forget(ctx: &Ctx) -> Result<()> {
        crate::ctx::remove(&Self::path(ctx))
    }
}

/// What the host's rustc links with.
pub(crate) fn demand_host_tools() -> Result<()> {
    if find_program("cc").is_none() {
        bail!("no C compiler to link with. On Debian: sudo apt-get install gcc libc6-dev");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\n\
                           release: 1.95.0-nightly\nLLVM version: 22.1.2\n";

    #[test]
    fn versions_are_read_from_rustc() {
        assert_eq!(field(VERBOSE, "release: "), Some(Version(1, 95)));
        assert_eq!(field(VERBOSE, "LLVM version: "), Some(Version(22, 1)));
        assert_eq!(field(VERBOSE, "commit-date: "), None);
    }
}

//! bpf-linker: one that is there and understands rustc's bitcode, or one built for it.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    apt,
    toolchain::{Toolchain, demand_host_tools},
};
use crate::{account::find_program, ctx::Ctx};

const VERSION: &str = "0.13.0";
/// LLVM versions that this bpf-linker can be built for.
const NEWEST_LLVM: u32 = 23;
const PURPOSE: &str = "linking eBPF";

/// A bpf-linker whose LLVM is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// Major version of the LLVM that reads the bitcode.
    pub(crate) llvm: u32,
}

impl Linker {
    /// A linker that reads what `toolchain` writes: ours, one in `PATH`, or one built now.
    /// `None`, with the reason shown, when there is no LLVM to build it with.
    pub(crate) fn find(ctx: &Ctx, toolchain: &Toolchain) -> Result<Option<Self>> {
        let ours =
            (toolchain.llvm..=NEWEST_LLVM).map(|llvm| home(ctx, llvm).join("bin/bpf-linker"));
        for path in ours
            .filter(|path| path.exists())
            .chain(find_program("bpf-linker"))
        {
            if let Some(linker) = accept(ctx, path, toolchain) {
                return Ok(Some(linker));
            }
        }
        build(ctx, toolchain)
    }

    /// Path and state, to tell this file from another one that takes its place.
    pub(crate) fn record(&self) -> Result<(String, String)> {
        let state =
            state(&self.path).with_context(|| format!("{} has vanished", self.path.display()))?;
        Ok((
            self.path.display().to_string(),
            format!("{} {state}", self.llvm),
        ))
    }

    /// The linker of an earlier `record`, when it is still the same file.
    pub(crate) fn load(path: &str, record: &str) -> Option<Self> {
        let (llvm, expected) = record.split_once(' ')?;
        let path = PathBuf::from(path);
        (state(&path)? == expected).then_some(Self {
            path,
            llvm: llvm.parse().ok()?,
        })
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (LLVM {})", self.path.display(), self.llvm)
    }
}

fn state(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    Some(format!("{} {}", meta.len(), meta.mtime()))
}

fn home(ctx: &Ctx, llvm: u32) -> PathBuf {
    ctx.tools().join(format!("bpf-linker-{VERSION}-llvm{llvm}"))
}

/// A linker is refused when its LLVM is older than rustc's: it would misread the bitcode, or
/// fail with a message that helps nobody.
fn accept(ctx: &Ctx, path: PathBuf, toolchain: &Toolchain) -> Option<Linker> {
    let rustc = format!("{} writes LLVM {}", toolchain.release, toolchain.llvm);
    let refusal = match llvm_of(ctx, &path) {
        Some(llvm) if llvm >= toolchain.llvm => return Some(Linker { path, llvm }),
        Some(llvm) => format!("is built with LLVM {llvm}, but {rustc}"),
        None => format!("does not tell its LLVM, and {rustc}"),
    };
    let remedy = format!("looking for another; to have it used, reinstall bpf-linker {VERSION}");
    ctx.status(
        "Refused",
        format!("{} {refusal} ({remedy})", path.display()),
    );
    None
}

/// The LLVM that a linker runs with: of the shared library that it loads, or linked into it.
fn llvm_of(ctx: &Ctx, linker: &Path) -> Option<u32> {
    ctx.capture(ctx.user(linker).arg("--version")).ok()?;
    let libraries = ctx.capture(ctx.user("ldd").arg(linker)).unwrap_or_default();
    shared_llvm(&libraries).or_else(|| linked_llvm(&fs::read(linker).ok()?))
}

/// From ldd's `libLLVM.so.22.1 => …` or `libLLVM-19.so.1 => …`.
fn shared_llvm(libraries: &str) -> Option<u32> {
    let name = libraries
        .split_whitespace()
        .find_map(|word| word.strip_prefix("libLLVM"))?;
    leading_number(
        name.trim_start_matches(|c: char| !c.is_ascii_digit())
            .as_bytes(),
    )
}

/// LLVM's bitcode writer holds its own name and version as one string, `LLVM22.1.8`.
fn linked_llvm(binary: &[u8]) -> Option<u32> {
    let names = binary
        .windows(5)
        .enumerate()
        .filter(|(_, window)| window.starts_with(b"LLVM"));
    let mut versions = names.filter_map(|(at, _)| {
        let version = &binary[at + 4..];
        let number = leading_number(version)?;
        (version.get(number.to_string().len()) == Some(&b'.')).then_some(number)
    });
    versions.next()
}

fn leading_number(text: &[u8]) -> Option<u32> {
    let digits = text
        .iter()
        .take(4)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

/// Builds bpf-linker with an LLVM that is installed, or that Debian has.
fn build(ctx: &Ctx, toolchain: &Toolchain) -> Result<Option<Linker>> {
    let Some(llvm) = obtain_llvm(ctx, toolchain)? else {
        return Ok(None);
    };
    demand_host_tools()?;
    let home = home(ctx, llvm);
    ctx.publish(&home, |partial| install(ctx, llvm, partial))?;
    let path = home.join("bin/bpf-linker");
    Ok(accept(ctx, path, toolchain))
}

/// The oldest LLVM that is new enough: an installed one before one to install.
fn obtain_llvm(ctx: &Ctx, toolchain: &Toolchain) -> Result<Option<u32>> {
    let mut usable = toolchain.llvm..=NEWEST_LLVM;
    if let Some(llvm) = usable
        .clone()
        .find(|llvm| prefix(*llvm).join("bin/llvm-config").exists())
    {
        apt::packages_on_debian(ctx, &["libzstd-dev"], PURPOSE)?;
        return Ok(Some(llvm));
    }
    apt::lists(ctx, &[&package(toolchain.llvm)], PURPOSE)?;
    let Some(llvm) = usable.find(|llvm| apt::available(ctx, &package(*llvm))) else {
        let message = format!(
            "{} writes LLVM {}, and neither an installed LLVM nor a package {} can link that",
            toolchain.release,
            toolchain.llvm,
            package(toolchain.llvm),
        );
        ctx.status("Refused", message);
        return Ok(None);
    };
    apt::packages(ctx, &[&package(llvm), "libzstd-dev"], PURPOSE)?;
    Ok(Some(llvm))
}

fn package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

fn prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// Without its own prefix and `PATH`, the build links whichever LLVM is found first.
fn install(ctx: &Ctx, llvm: u32, root: &Path) -> Result<()> {
    let prefix = prefix(llvm);
    let mut path = prefix.join("bin").into_os_string();
    path.push(":");
    path.push(ctx.path());
    let mut cargo = ctx.cargo();
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        VERSION,
        "--locked",
        "--no-track",
    ]);
    cargo.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
    ]);
    cargo
        .arg("--root")
        .arg(root)
        .arg("--target-dir")
        .arg(root.join("build"));
    cargo
        .env("PATH", path)
        .env("LLVM_PREFIX", prefix)
        .env_remove("RUSTFLAGS");
    let what = format!("bpf-linker {VERSION} with LLVM {llvm}, for {PURPOSE} (about a minute)");
    ctx.run_logged("Building", &what, &mut cargo)?;
    crate::ctx::remove(&root.join("build"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_llvm_is_read_from_its_name() {
        assert_eq!(
            shared_llvm("\tlibLLVM.so.22.1 => /usr/lib/libLLVM.so.22.1 (0x7f)\n"),
            Some(22)
        );
        assert_eq!(
            shared_llvm("\tlibLLVM-19.so.1 => /usr/lib/libLLVM-19.so.1 (0x7f)\n"),
            Some(19)
        );
        assert_eq!(shared_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n"), None);
    }

    #[test]
    fn a_linked_llvm_is_read_from_the_binary() {
        assert_eq!(
            linked_llvm(b"\0LLVM ERROR: \0LLVMFuzz\0LLVM21.1.8\0"),
            Some(21)
        );
        assert_eq!(linked_llvm(b"\0LLVM22\0"), None);
        assert_eq!(linked_llvm(b"LLVM"), None);
    }

    #[test]
    fn a_record_names_the_file_as_it_was() {
        let linker = Linker {
            path: std::env::current_exe().unwrap(),
            llvm: 22,
        };
        let (path, state) = linker.record().unwrap();
        assert_eq!(Linker::load(&path, &state), Some(linker));
        assert_eq!(Linker::load(&path, "22 1 1"), None);
    }
}

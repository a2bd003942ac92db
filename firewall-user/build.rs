//! Puts the eBPF object where the library embeds it from: `pinhole.o` in `OUT_DIR`.
//!
//! The object is not built here: that takes another toolchain, which `cargo xtask setup` finds
//! or installs, and a build script has no business installing anything.

use std::{env, error::Error, fs, path::Path, process::ExitCode, time::SystemTime};

const OBJECT: &str = "../target/bpf/pinhole.o";
/// What the object is made of; `cargo xtask build` compares the same files.
const SOURCES: [&str; 4] = [
    "../firewall-ebpf/src",
    "../firewall-ebpf/Cargo.toml",
    "../firewall-ebpf/Cargo.lock",
    "../firewall-common/src",
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={OBJECT}");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let Some(made) = changed(Path::new(OBJECT)) else {
        println!(
            "cargo::error=there is no eBPF object (target/bpf/pinhole.o) to embed. \
             Run `cargo xtask setup` once; it installs what is missing and builds the object"
        );
        return Ok(ExitCode::FAILURE);
    };
    if SOURCES
        .iter()
        .any(|source| newest(Path::new(source)) > Some(made))
    {
        println!(
            "cargo::warning=the eBPF object is older than its sources: \
             run `cargo xtask build` to have it built again"
        );
    }
    let embedded = Path::new(&env::var("OUT_DIR")?).join("pinhole.o");
    let object = fs::read(OBJECT)?;
    fs::write(
        &embedded,
        without_debug(&object).ok_or("no 64-bit ELF object")?,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes of an ELF section header.
const HEADER: usize = 64;

/// An ELF object without the contents of its `.debug` sections: four fifths of it, which
/// the kernel does not want (BTF is all that it takes) and every `pinhole` would carry
/// about. The sections stay, empty, so that the numbers of all others do.
fn without_debug(object: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u64::from_le_bytes(object.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(object.get(at..at + 2)?.try_into().ok()?));
    // e_shoff, e_shnum, e_shstrndx (elf(5)).
    let headers = usize::try_from(word(0x28)?).ok()?;
    let (count, names) = (usize::from(half(0x3c)?), usize::from(half(0x3e)?));
    let header =
        |index: usize| object.get(headers + index * HEADER..headers + (index + 1) * HEADER);
    let place = |header: &[u8]| {
        let at = |at: usize| {
            usize::try_from(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?)).ok()
        };
        Some((at(0x18)?, at(0x20)?))
    };
    let (names, _) = place(header(names)?)?;
    let mut out = object.get(..HEADER)?.to_vec();
    let mut table = Vec::new();
    for index in 0..count {
        let mut header = header(index)?.to_vec();
        let name = names + u32::from_le_bytes(header.get(..4)?.try_into().ok()?) as usize;
        let name = object.get(name..)?;
        let is_debug = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
        let (from, length) = place(&header)?;
        if is_debug {
            // sh_type SHT_NULL, and nothing in it.
            header.get_mut(4..8)?.fill(0);
            header.get_mut(0x18..0x28)?.fill(0);
        } else if index > 0 {
            // No section here asks for more than eight.
            out.resize(out.len().next_multiple_of(8), 0);
            header
                .get_mut(0x18..0x20)?
                .copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend(object.get(from..from + length)?);
        }
        table.extend(header);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let at = (out.len() as u64).to_le_bytes();
    out.get_mut(0x28..0x30)?.copy_from_slice(&at);
    out.extend(table);
    Some(out)
}

/// The latest change of a file, or of anything in a directory.
fn newest(path: &Path) -> Option<SystemTime> {
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    inside
        .filter_map(|entry| newest(&entry.path()))
        .chain(changed(path))
        .max()
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

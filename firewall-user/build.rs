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
    fs::copy(OBJECT, &embedded)?;
    Ok(ExitCode::SUCCESS)
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

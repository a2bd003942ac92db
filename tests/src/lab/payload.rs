//! The file that is transferred, and how it is known again.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::process;

/// Name of the file on every server.
pub const NAME: &str = "payload.bin";

/// Its size: 20 MB.
pub const BYTES: usize = 20 * 1024 * 1024;

/// A file of random bytes, known by its SHA-256.
#[derive(Clone, Debug)]
pub struct Payload {
    /// Bytes.
    pub len: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl Payload {
    /// Writes `len` random bytes to `dir/payload.bin`, readable by all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(dir: &Path, len: usize) -> Result<Self> {
        let path = dir.join(NAME);
        let mut bytes = vec![0; len];
        fill(&mut bytes);
        fs::write(&path, &bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(Self {
            len: len as u64,
            sha256: sha256(&path)?,
        })
    }
}

/// SHA-256 of a file, lower-case hexadecimal.
///
/// # Errors
/// `sha256sum` cannot read it.
pub fn sha256(path: &Path) -> Result<String> {
    let out = process::check(Command::new("sha256sum").arg(path))?;
    let sum = out.split_whitespace().next();
    Ok(sum.context("sha256sum printed nothing")?.to_owned())
}

/// Xorshift from a seed of this run: incompressible, and another file each time.
fn fill(bytes: &mut [u8]) {
    use std::hash::{BuildHasher, RandomState};

    let mut x = RandomState::new().hash_one("payload") | 1;
    for chunk in bytes.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
}

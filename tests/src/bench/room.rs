//! Room in the kernel's connection table, which all network namespaces share.

use std::{fs, sync::Mutex};

use anyhow::{Context as _, Result};

use crate::lab::id;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
/// Flows beside those that are asked for: new ones, of runs that were before.
const SPARE: u64 = 1 << 22;

/// The machine's own settings, while somebody has others.
static OWN: Mutex<Option<(usize, u64, u64)>> = Mutex::new(None);

/// While it lives, the kernel has room for flows, and a hash table as long as it would
/// want for them. The machine's own settings come back with the last of these, and when
/// the program is interrupted.
#[derive(Debug)]
pub struct Room(bool);

impl Room {
    /// For so many flows; none are asked for with 0.
    ///
    /// # Errors
    /// The settings cannot be read or written.
    pub fn for_flows(flows: u32) -> Result<Self> {
        if flows == 0 {
            return Ok(Self(false));
        }
        let Ok(mut own) = OWN.lock() else {
            anyhow::bail!("a thread panicked");
        };
        let (max, buckets) = (read(MAX)?, read(BUCKETS)?);
        let (users, own_max, own_buckets) = own.take().unwrap_or((0, max, buckets));
        *own = Some((users + 1, own_max, own_buckets));
        id::on_interrupt(restore);
        // An entry stands in the hash table twice.
        write(MAX, max.max(SPARE + 2 * u64::from(flows)))?;
        write(BUCKETS, buckets.max(2 * u64::from(flows)))?;
        Ok(Self(true))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
        let Ok(mut own) = OWN.lock() else { return };
        if let Some((users, max, buckets)) = own.take() {
            if users > 1 {
                *own = Some((users - 1, max, buckets));
            } else {
                let _ = write(MAX, max).and_then(|()| write(BUCKETS, buckets));
            }
        }
    }
}

/// For the handler of Ctrl-C: nobody changes them again until the process ends.
fn restore() {
    if let Ok(mut own) = OWN.lock() {
        if let Some((_, max, buckets)) = own.take() {
            let _ = write(MAX, max).and_then(|()| write(BUCKETS, buckets));
        }
        std::mem::forget(own);
    }
}

fn read(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{path}: {text}"))
}

fn write(path: &str, value: u64) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("set {path} to {value}"))
}

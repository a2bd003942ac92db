//! Who may load an instance: one process at a time, over the pins that are there.
//!
//! The lock of all instances is held only while directories come and go. Loading
//! takes seconds, most of them in the verifier, and holds the instance's own lock.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use firewall_common::abi::{ABI_VERSION, heartbeat, maps};

use super::{
    BPFFS, Instance,
    loader::{Error, map_mut, pinned},
    pins, sys,
};
use crate::lock;

/// The network namespace of this process.
const NETNS: &str = "/proc/self/ns/net";
/// Whoever asks for the agent has its lock for an instant too.
const ASKED: Duration = Duration::from_millis(500);
/// How long another run may load: minutes where a machine is emulated.
const LOADS: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(10);

/// The right to load an instance, and then to be its agent.
///
/// Dropping it removes the pins, unless they were there before or [`Claim::keep`]
/// was called.
#[derive(Debug)]
pub(super) struct Claim {
    instance: Instance,
    netns: u64,
    taken_over: bool,
    remove_on_drop: bool,
    /// The lock of the instance. Fields go after `drop`, so nobody else has it
    /// while pins are removed.
    _agent: File,
}

impl Claim {
    /// Waits for another run that is loading the same instance, and takes the
    /// instance's lock.
    ///
    /// # Errors
    ///
    /// [`Error`]: an agent has it, it is another version's or namespace's, or the
    /// pins cannot be had.
    pub(super) fn take(instance: &Instance) -> Result<Self, Error> {
        ensure_bpffs(Path::new(BPFFS))?;
        let netns = netns_inode()?;
        pins::check(instance)?;
        let begun = Instant::now();
        loop {
            let found = match Self::try_take(instance, netns)? {
                Ok(claim) => return Ok(claim),
                Err(found) => found,
            };
            let waited = begun.elapsed();
            if found == Found::Filled && waited > ASKED {
                return Err(lock::taken(instance).into());
            }
            if waited > LOADS {
                return Err(Error::Starting {
                    instance: instance.to_string(),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// What is pinned, if somebody else has the instance's lock.
    fn try_take(instance: &Instance, netns: u64) -> Result<Result<Self, Found>, Error> {
        let _lock = pins::Lock::wait()?;
        let free = lock::is_free(instance)?;
        let found = look(instance, netns)?;
        if !free {
            return Ok(Err(found));
        }
        if found == Found::Unfinished {
            remove(instance);
        }
        let taken_over = found == Found::Filled;
        pins::make(instance)?;
        let agent = lock::hold(instance).inspect_err(|_| {
            if !taken_over {
                remove(instance);
            }
        })?;
        if taken_over {
            // Who is asked for the agent from now on names this process.
            sign(&mut pinned(instance, maps::HEARTBEAT)?)?;
        }
        Ok(Ok(Self {
            instance: instance.clone(),
            netns,
            taken_over,
            remove_on_drop: !taken_over,
            _agent: agent,
        }))
    }

    /// Are these pins that an earlier run filled?
    pub(super) const fn taken_over(&self) -> bool {
        self.taken_over
    }

    /// Keeps the pins from now on.
    pub(super) const fn keep(&mut self) {
        self.remove_on_drop = false;
    }

    /// Marks the maps as of this version, namespace and process. Until then they
    /// are an aborted start's.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn stamp(&self, ebpf: &mut Ebpf) -> Result<(), Error> {
        let mut beat: Array<_, u64> = map_mut(ebpf, maps::HEARTBEAT)?;
        beat.set(heartbeat::NETNS, self.netns, 0)
            .map_err(Error::map(maps::HEARTBEAT))?;
        sign(&mut beat)?;
        let mut abi: Array<_, u32> = map_mut(ebpf, maps::ABI)?;
        abi.set(0, ABI_VERSION, 0).map_err(Error::map(maps::ABI))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.remove_on_drop {
            remove_pins(&self.instance);
        }
    }
}

/// Names this process as the agent.
fn sign<T>(beat: &mut Array<T, u64>) -> Result<(), Error>
where
    T: std::borrow::BorrowMut<MapData>,
{
    beat.set(heartbeat::PID, u64::from(std::process::id()), 0)
        .map_err(Error::map(maps::HEARTBEAT))
}

/// Removes everything in the pin directory of `instance`, and the directory, while
/// no run makes one of the same name.
pub fn remove_pins(instance: &Instance) {
    let lock = pins::Lock::wait();
    if let Err(error) = &lock {
        log::warn!("{error}: the pins of {instance} are removed without a lock");
    }
    remove(instance);
}

/// As [`remove_pins`], for who has the lock.
fn remove(instance: &Instance) {
    let dir = instance.pin_dir();
    let Ok(entries) = fs::read_dir(&dir) else {
        return;
    };
    for entry in entries.flatten() {
        // Locks are directories, everything else is a pin.
        let is_lock = entry.path().symlink_metadata().is_ok_and(|m| m.is_dir());
        let removed = if is_lock {
            fs::remove_dir(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        if let Err(error) = removed {
            log::warn!("{}: {error}; remove it by hand", entry.path().display());
        }
    }
    if let Err(error) = fs::remove_dir(&dir) {
        log::warn!("{}: {error}; remove it by hand", dir.display());
    }
}

/// Inode number of the network namespace of this process.
///
/// # Errors
///
/// If /proc cannot be read.
pub fn netns_inode() -> Result<u64, Error> {
    fs::metadata(NETNS)
        .map(|meta| meta.ino())
        .map_err(Error::Netns)
}

fn ensure_bpffs(path: &Path) -> Result<(), Error> {
    if sys::is_bpffs(path).map_err(Error::Bpffs)? {
        return Ok(());
    }
    // Of two runs at once, the second would mount over the first one's pins.
    let directory = File::open(path).map_err(Error::Bpffs)?;
    directory.lock().map_err(Error::Bpffs)?;
    if sys::is_bpffs(path).map_err(Error::Bpffs)? {
        return Ok(());
    }
    sys::mount_bpffs(path).map_err(Error::Bpffs)?;
    log::info!("mounted a bpffs at {}", path.display());
    Ok(())
}

/// What is pinned under the name of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// No directory.
    Nothing,
    /// Maps without a version: a run is loading, or was cut short.
    Unfinished,
    /// Maps of this version and namespace.
    Filled,
}

/// Looks at the pins of `instance`; refuses those of another version or namespace.
fn look(instance: &Instance, netns: u64) -> Result<Found, Error> {
    if !instance.pin_dir().exists() {
        return Ok(Found::Nothing);
    }
    if !instance.pin(maps::ABI).exists() {
        return Ok(Found::Unfinished);
    }
    let abi: Array<MapData, u32> = pinned(instance, maps::ABI)?;
    match abi.get(&0, 0).map_err(Error::map(maps::ABI))? {
        0 => return Ok(Found::Unfinished),
        ABI_VERSION => {}
        found => {
            return Err(Error::Abi {
                instance: instance.to_string(),
                found,
            });
        }
    }
    let beat: Array<MapData, u64> = pinned(instance, maps::HEARTBEAT)?;
    let guarded = beat
        .get(&heartbeat::NETNS, 0)
        .map_err(Error::map(maps::HEARTBEAT))?;
    if guarded != netns {
        return Err(Error::Namespace {
            instance: instance.to_string(),
            found: guarded,
        });
    }
    Ok(Found::Filled)
}

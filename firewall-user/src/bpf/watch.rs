//! Watching flows: the ring `FLOW_EVENTS`, and the word that turns it on.
//!
//! A ring has one reader. Whoever watches holds the lock of a directory among
//! the pins, which goes with the process, however that ends; a second watcher is
//! told who the first one is. The programs write events until a moment that the
//! watcher moves on every second, so that one which was killed is soon forgotten.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use bytemuck::{Zeroable as _, pod_read_unaligned};
use firewall_common::{
    abi::{Census, Counter, EndReason, FlowEvent, FlowEventKind, TABLES_LEN, TableId, Watch, maps},
    time::NS_PER_SEC,
    timeout::Timeouts,
    verdict::Event as Counted,
};

use super::{
    Instance,
    loader::{Error as MapError, pinned},
    maps::{FlowRow, FlowTier},
    sys,
};
use crate::helper::Events;

/// Name of the directory among the pins that the watcher locks.
const DIRECTORY: &str = "watch";

/// For how long the programs write events without hearing from the watcher.
const LEASE_NS: u64 = 3 * NS_PER_SEC;

/// Time for which records are taken before anything else is looked at.
const TURN_NS: u64 = NS_PER_SEC / 100;

/// Why flows cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another watcher is there.
    #[error(
        "another `flows watch` (pid {pid}) reads the events of instance {instance}, and only one \
         can: stop it (`kill {pid}`), or share what it prints (`pinhole flows watch | tee FILE`)"
    )]
    Taken {
        /// The instance.
        instance: String,
        /// Process id of the watcher.
        pid: u32,
    },
    /// The lock fails.
    #[error("the watcher's lock of instance {instance} cannot be had: {cause}; run as root")]
    Lock {
        /// The instance.
        instance: String,
        /// What the kernel says.
        cause: io::Error,
    },
    /// A map cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The ring cannot be waited for.
    #[error("the ring of flow events cannot be waited for: {0}")]
    Ring(#[from] io::Error),
    /// A record of another version.
    #[error(
        "a flow event is not understood: the programs are of another version; run `pinhole run` \
         again, or use the pinhole that attached them"
    )]
    Record,
}

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// What.
    pub kind: FlowEventKind,
    /// Why it ended, if it did.
    pub end: Option<EndReason>,
    /// When, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// The flow then.
    pub row: FlowRow,
}

impl Told {
    /// Reads a record of the ring.
    ///
    /// # Errors
    ///
    /// [`Error::Record`].
    pub fn parse(record: &[u8], timeouts: &Timeouts) -> Result<Self, Error> {
        let bytes = record.get(..size_of::<FlowEvent>()).ok_or(Error::Record)?;
        let event: FlowEvent = pod_read_unaligned(bytes);
        let kind = FlowEventKind::try_from(event.kind).map_err(|_| Error::Record)?;
        let end = match kind {
            FlowEventKind::Destroy => {
                Some(EndReason::try_from(event.end).map_err(|_| Error::Record)?)
            }
            _ => None,
        };
        let tier = if event.proved == 0 {
            FlowTier::HalfOpen
        } else {
            FlowTier::Proved
        };
        Ok(Self {
            kind,
            end,
            at_ns: event.at_ns,
            row: FlowRow {
                key: event.key,
                flow: event.flow,
                tier,
                expires: event.flow.expires(event.key.proto(), timeouts),
            },
        })
    }
}

/// The one reader of flow events. Dropping it ends the events.
pub struct Watcher {
    ring: Events,
    lease: Lease,
    lost: Lost,
    evicted: Evicted,
    _lock: File,
}

impl Watcher {
    /// Begins to watch for events of `kinds`. Needs a running tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error`]; [`Error::Taken`] names the process that watches already.
    pub fn start(instance: &Instance, kinds: &[FlowEventKind]) -> Result<Self, Error> {
        let map: Array<MapData, Watch> = pinned(instance, maps::WATCH)?;
        let lock = lock(instance, &map)?;
        let mut lease = Lease {
            map,
            kinds: kinds.iter().fold(0, |bits, kind| bits | kind.bit()),
            until_ns: 0,
        };
        // What a watcher that was killed left is no news.
        lease.end()?;
        let mut ring: RingBuf<MapData> = pinned(instance, maps::FLOW_EVENTS)?;
        while ring.next().is_some() {}
        let lost = Lost::open(instance)?;
        let evicted = Evicted::open(instance)?;
        let ring = Events::new(ring)?;
        lease.renew()?;
        Ok(Self {
            ring,
            lease,
            lost,
            evicted,
            _lock: lock,
        })
    }

    /// Keeps the events coming; due every second. True if that came too late, so
    /// that the programs told nothing for a while: this process was stopped, or
    /// what it writes to did not take it.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn renew(&mut self) -> Result<bool, Error> {
        let late = sys::monotonic_ns() > self.lease.until_ns;
        self.lease.renew()?;
        Ok(late)
    }

    /// Waits for events and hands some of them to `each`.
    ///
    /// Cancel safe: while it waits, nothing is taken.
    ///
    /// # Errors
    ///
    /// [`Error::Ring`].
    pub async fn take(&mut self, each: impl FnMut(&[u8])) -> Result<(), Error> {
        self.ring.wait().await?;
        self.ring.drain(TURN_NS, each);
        Ok(())
    }

    /// Events lost since this was asked last, because the ring was full.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn lost(&mut self) -> Result<u64, Error> {
        self.lost.since_last()
    }
}

impl Watcher {
    /// Flows that tables displaced to take others, since this was asked last, by
    /// what the collector infers: the kernel tells nobody when it does so.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn evicted(&mut self) -> Result<Vec<(TableId, u64)>, Error> {
        self.evicted.since_last()
    }
}

/// The word that turns events on.
struct Lease {
    map: Array<MapData, Watch>,
    kinds: u32,
    until_ns: u64,
}

impl Lease {
    fn renew(&mut self) -> Result<(), Error> {
        self.until_ns = sys::monotonic_ns() + LEASE_NS;
        self.set(Watch {
            until_ns: self.until_ns,
            kinds: self.kinds,
            pid: std::process::id(),
        })
    }

    fn end(&mut self) -> Result<(), Error> {
        self.set(Watch::zeroed())
    }

    fn set(&mut self, watch: Watch) -> Result<(), Error> {
        let set = self.map.set(0, watch, 0);
        Ok(set.map_err(MapError::map(maps::WATCH))?)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Else the programs go on for three seconds, for nobody.
        if let Err(error) = self.end() {
            log::warn!("{error}");
        }
    }
}

/// The programs' count of lost events.
struct Lost {
    stats: PerCpuArray<MapData, Counter>,
    before: u64,
}

impl Lost {
    fn open(instance: &Instance) -> Result<Self, Error> {
        let mut lost = Self {
            stats: pinned(instance, maps::STATS)?,
            before: 0,
        };
        lost.before = lost.total()?;
        Ok(lost)
    }

    fn since_last(&mut self) -> Result<u64, Error> {
        let total = self.total()?;
        let before = std::mem::replace(&mut self.before, total);
        Ok(total.wrapping_sub(before))
    }

    fn total(&self) -> Result<u64, Error> {
        let index = Counted::FlowEventLost.index();
        let cpus = self
            .stats
            .get(&index, 0)
            .map_err(MapError::map(maps::STATS))?;
        Ok(cpus.iter().map(|counter| counter.packets).sum())
    }
}

/// The collector's count of displaced flows.
struct Evicted {
    census: Array<MapData, Census>,
    before: [u64; TABLES_LEN],
}

impl Evicted {
    fn open(instance: &Instance) -> Result<Self, Error> {
        let mut evicted = Self {
            census: pinned(instance, maps::CENSUS)?,
            before: [0; TABLES_LEN],
        };
        evicted.since_last()?;
        Ok(evicted)
    }

    fn since_last(&mut self) -> Result<Vec<(TableId, u64)>, Error> {
        let mut grown = Vec::new();
        for (table, before) in TableId::ALL.into_iter().zip(&mut self.before) {
            let census = self.census.get(&(table as u32), 0);
            let now = census.map_err(MapError::map(maps::CENSUS))?.evicted;
            // Not growing but new: another collector began to count.
            let more = now.saturating_sub(*before);
            *before = now;
            if more > 0 {
                grown.push((table, more));
            }
        }
        Ok(grown)
    }
}

fn lock(instance: &Instance, watch: &Array<MapData, Watch>) -> Result<File, Error> {
    let path = instance.pin(DIRECTORY);
    let failed = |cause| Error::Lock {
        instance: instance.to_string(),
        cause,
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let directory = File::open(&path).map_err(failed)?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(fs::TryLockError::Error(e)) => Err(failed(e)),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Taken {
            instance: instance.to_string(),
            pid: watch.get(&0, 0).map_or(0, |watch| watch.pid),
        }),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::bytes_of;
    use firewall_common::abi::{Flow, FlowKey6};

    use super::*;

    fn event(kind: u8, end: u8) -> FlowEvent {
        FlowEvent {
            at_ns: 7,
            key: FlowKey6::from_parts([1; 4], [2; 4], 3, 4, 6, 0),
            flow: Flow::zeroed(),
            kind,
            end,
            proved: 1,
            reserved: [0; 5],
        }
    }

    #[test]
    fn records_are_read_and_others_refused() {
        let timeouts = Timeouts::default();
        let parse = |event: FlowEvent| Told::parse(bytes_of(&event), &timeouts);
        let told = parse(event(3, 5)).unwrap();
        assert_eq!(told.kind, FlowEventKind::Destroy);
        assert_eq!(told.end, Some(EndReason::Closed));
        assert_eq!((told.at_ns, told.row.tier), (7, FlowTier::Proved));
        assert_eq!(parse(event(1, 0)).unwrap().end, None);
        assert!(parse(event(0, 0)).is_err(), "no kind");
        assert!(parse(event(3, 0)).is_err(), "an end without a reason");
        let whole = event(1, 0);
        let cut = &bytes_of(&whole)[..size_of::<FlowEvent>() - 1];
        assert!(Told::parse(cut, &timeouts).is_err());
    }
}

//! The collector: finds expired flows and has them deleted.
//!
//! It only finds candidates, by batch look-up, which does not make a flow look
//! used. The control program looks at each again and deletes it: nothing alive
//! is ever deleted.

use std::io;

use aya::maps::{Array, HashMap, MapData};
use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{
        Config, ExpectKey, Expectation, Flow, FlowKey4, FlowKey6, FlowState, Phase,
        TIER_COUNTS_LEN, Tier, maps,
    },
    key::FlowKey,
    time::Tick,
    timeout::Timeouts,
};

use crate::bpf::{
    Instance,
    loader::{Error as MapError, pinned},
    requests::{self, Requests},
    sys,
};

/// Elements read at once: a tenth of a millisecond, so that a held SYN does not wait.
const BATCH: usize = 512;
/// Elements read in one [`Collector::sweep`].
const BUDGET: usize = 32_768;
/// Slack in a tier's count before it is set right: flows come and go while the
/// tables are read.
const DRIFT: u64 = 16;

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table cannot be read.
    #[error("table {table}: {cause}")]
    Read {
        /// Its name.
        table: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The control program cannot be run.
    #[error(transparent)]
    Request(#[from] requests::Error),
    /// A map cannot be opened or written.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What one sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows read.
    pub read: usize,
    /// Flows deleted.
    pub deleted: u32,
    /// Pinholes deleted.
    pub expectations: usize,
    /// Did it come to the end of the last table?
    pub finished: bool,
}

/// Walks the tables, a budget at a time.
pub struct Collector {
    tables: Vec<Table>,
    at: usize,
    expectations: HashMap<MapData, ExpectKey, Expectation>,
    config: Array<MapData, Config>,
    counts: Counts,
    requests: Requests,
}

impl Collector {
    /// Opens the pinned tables of `instance`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn open(instance: &Instance, requests: Requests) -> Result<Self, Error> {
        let v4 = |name| pinned(instance, name).map(|map| Table::new(name, Either::V4(map)));
        let v6 = |name| pinned(instance, name).map(|map| Table::new(name, Either::V6(map)));
        Ok(Self {
            tables: vec![
                v4(maps::FLOWS4)?,
                v6(maps::FLOWS6)?,
                v4(maps::HALF_OPEN4_IN)?,
                v4(maps::HALF_OPEN4_OUT)?,
                v6(maps::HALF_OPEN6_IN)?,
                v6(maps::HALF_OPEN6_OUT)?,
            ],
            at: 0,
            expectations: pinned(instance, maps::EXPECTATIONS)?,
            config: pinned(instance, maps::CONFIG)?,
            counts: Counts::new(pinned(instance, maps::TIER_COUNTS)?),
            requests,
        })
    }

    /// Reads on from where the last sweep ended, up to a budget or the end of
    /// the last table, and has what is expired deleted. Lets other tasks run
    /// between batches.
    ///
    /// # Errors
    ///
    /// [`Error`]; the next sweep goes on with the next table.
    pub async fn sweep(&mut self) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        let timeouts = self.timeouts()?;
        while swept.read < BUDGET && !swept.finished {
            let now = Tick::from_ns(sys::monotonic_ns());
            let Some(table) = self.tables.get_mut(self.at) else {
                break;
            };
            let batch = table.next();
            if !matches!(&batch, Ok(batch) if !batch.done) {
                self.at = (self.at + 1) % self.tables.len();
                swept.finished = self.at == 0;
            }
            let batch = batch?;
            swept.read += batch.flows.len();
            let expired = self.counts.judge(&batch, now, &timeouts);
            swept.deleted += self.requests.expire(&expired)?;
            tokio::task::yield_now().await;
        }
        if swept.finished {
            self.counts.settle()?;
            swept.expectations = self.expire_expectations()?;
        }
        Ok(swept)
    }

    fn timeouts(&self) -> Result<Timeouts, Error> {
        let config = self.config.get(&0, 0);
        let config = config.map_err(MapError::map(maps::CONFIG))?;
        Ok(config.timeouts)
    }

    fn expire_expectations(&mut self) -> Result<usize, Error> {
        let now = Tick::from_ns(sys::monotonic_ns());
        let found = crate::bpf::maps::all(&self.expectations).map_err(|cause| Error::Read {
            table: maps::EXPECTATIONS,
            cause,
        })?;
        let mut deleted = 0;
        for (key, expectation) in found {
            if now.is_after(Tick(expectation.expires)) && self.expectations.remove(&key).is_ok() {
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

enum Either {
    V4(HashMap<MapData, FlowKey4, Flow>),
    V6(HashMap<MapData, FlowKey6, Flow>),
}

/// One of the six tables, and how far it is read.
struct Table {
    name: &'static str,
    map: Either,
    cursor: Option<u32>,
}

/// What one look-up gave; keys of both families in the wide form.
struct Batch {
    flows: Vec<(FlowKey6, Flow)>,
    proved: bool,
    done: bool,
}

impl Table {
    const fn new(name: &'static str, map: Either) -> Self {
        Self {
            name,
            map,
            cursor: None,
        }
    }

    fn next(&mut self) -> Result<Batch, Error> {
        let read = match &self.map {
            Either::V4(map) => read(map, self.cursor),
            Either::V6(map) => read(map, self.cursor),
        };
        let (flows, cursor) = read.map_err(|cause| {
            self.cursor = None;
            Error::Read {
                table: self.name,
                cause,
            }
        })?;
        self.cursor = cursor;
        Ok(Batch {
            flows,
            proved: matches!(self.name, maps::FLOWS4 | maps::FLOWS6),
            done: cursor.is_none(),
        })
    }
}

type Read = (Vec<(FlowKey6, Flow)>, Option<u32>);

fn read<K: aya::Pod + FlowKey + bytemuck::Zeroable>(
    map: &HashMap<MapData, K, Flow>,
    cursor: Option<u32>,
) -> io::Result<Read> {
    let mut keys = vec![K::zeroed(); BATCH];
    let mut values = vec![Flow::zeroed(); BATCH];
    let batch = sys::lookup_batch(map, cursor, &mut keys, &mut values)?;
    let flows = keys.iter().zip(&values).take(batch.count);
    Ok((
        flows.map(|(key, flow)| (key.widen(), *flow)).collect(),
        batch.cursor,
    ))
}

/// The proved flows counted in one pass, against what the programs count.
struct Counts {
    map: Array<MapData, u64>,
    seen: [u64; TIER_COUNTS_LEN],
    /// The drift at the end of the last pass, by tier.
    drift: [i64; TIER_COUNTS_LEN],
}

impl Counts {
    const fn new(map: Array<MapData, u64>) -> Self {
        Self {
            map,
            seen: [0; TIER_COUNTS_LEN],
            drift: [0; TIER_COUNTS_LEN],
        }
    }

    /// Counts a batch, and picks what is expired.
    fn judge(&mut self, batch: &Batch, now: Tick, timeouts: &Timeouts) -> Vec<FlowKey6> {
        let mut expired = Vec::new();
        for (key, flow) in &batch.flows {
            if now.is_after(flow.expires(key.proto(), timeouts)) {
                expired.push(*key);
            } else if batch.proved && FlowState(flow.state).phase() == Phase::Live {
                self.seen[Tier::of(key) as usize] += 1;
            }
        }
        expired
    }

    /// At the end of a pass: sets a count right that was off twice in a row.
    /// (The LRU may evict without telling.)
    fn settle(&mut self) -> Result<(), Error> {
        for (index, seen) in (0..).zip(std::mem::take(&mut self.seen)) {
            let kept = self
                .map
                .get(&index, 0)
                .map_err(MapError::map(maps::TIER_COUNTS))?;
            let drift = kept.wrapping_sub(seen).cast_signed();
            let before = std::mem::replace(&mut self.drift[index as usize], drift);
            if persists(before, drift, seen) {
                log::debug!("tier {index}: counted {seen} flows, {drift:+} on record");
                self.map
                    .set(index, seen, 0)
                    .map_err(MapError::map(maps::TIER_COUNTS))?;
            }
        }
        Ok(())
    }
}

fn persists(before: i64, drift: i64, seen: u64) -> bool {
    let slack = DRIFT + seen / 64;
    let off = |drift: i64| drift.unsigned_abs() > slack;
    off(before) && off(drift) && before.signum() == drift.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lasting_drift_is_set_right() {
        assert!(persists(40, 50, 0));
        assert!(persists(-40, -50, 0));
        assert!(!persists(0, 50, 0));
        assert!(!persists(40, -50, 0));
        assert!(!persists(10, 10, 0));
        assert!(!persists(100, 100, 64 * 200));
    }
}

//! The collector: finds expired flows and has them deleted.
//!
//! It only finds candidates, by batch look-up, which does not make a flow look
//! used. The control program looks at each again and deletes it: nothing alive
//! is ever deleted. It reads on and on, a few thousand entries at a time, at a
//! pace that follows the load (`pace`); on the way it takes stock of the tables
//! (`census`) and keeps the tiers' counts right.

mod census;
mod pace;
mod tables;

use std::{io, time::Duration};

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{
        Census, CollectorState, Config, CtlCounts, ExpectKey, Expectation, FlowKey6, TABLES_LEN,
        TIER_COUNTS_LEN, TableCounter, TableId, Tier, maps,
    },
    time::{NS_PER_SEC, Tick},
    timeout::Timeouts,
};

use crate::bpf::{
    Instance,
    loader::{Error as MapError, pinned},
    requests::{self, Requests},
    sys,
};
use census::{Watch, excess};
use pace::Load;
use tables::{BATCH, Batch, Table};

/// Batches in one [`Collector::step`].
const STEP: usize = 8;
/// A table that is empty by its counters is read every so often all the same.
const TRUST_NS: u64 = 30 * NS_PER_SEC;
/// CPU time of an entry before any is measured, ns.
const FIRST_COST_NS: f64 = 2000.0;
/// How much of the CPU time of an entry a step's measurement replaces.
const COST_WEIGHT: f64 = 0.1;

/// Why a step ended early.
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
    /// A map cannot be opened, read or written.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Walks the tables, some batches at a time.
pub struct Collector {
    tables: Vec<Table>,
    watches: Vec<Watch>,
    /// The table that is read, an index into both.
    at: usize,
    /// Is that table's pass under way?
    reading: bool,
    maps: Maps,
    requests: Requests,
    state: CollectorState,
    pass: Pass,
    load: Load,
    /// As they stand in the configuration at the beginning of a pass.
    timeouts: Timeouts,
    /// Proved flows read in this pass, by [`Tier`].
    tiers: [u64; TIER_COUNTS_LEN],
}

struct Maps {
    config: Array<MapData, Config>,
    counters: PerCpuArray<MapData, TableCounter>,
    tier_counts: Array<MapData, u64>,
    census: Array<MapData, Census>,
    collector: Array<MapData, CollectorState>,
    expectations: HashMap<MapData, ExpectKey, Expectation>,
}

/// The pass over all tables that is under way.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    began_ns: u64,
    read: u64,
    expired: u64,
    cpu_ns: u64,
}

impl Collector {
    /// Opens the pinned tables of `instance`, and goes on from what an earlier
    /// agent found.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn open(instance: &Instance, requests: Requests) -> Result<Self, Error> {
        let maps = Maps {
            config: pinned(instance, maps::CONFIG)?,
            counters: pinned(instance, maps::TABLE_COUNTERS)?,
            tier_counts: pinned(instance, maps::TIER_COUNTS)?,
            census: pinned(instance, maps::CENSUS)?,
            collector: pinned(instance, maps::COLLECTOR)?,
            expectations: pinned(instance, maps::EXPECTATIONS)?,
        };
        let tables = TableId::ALL
            .into_iter()
            .map(|id| Table::open(instance, id))
            .collect::<Result<_, _>>()?;
        let watches = (0..TABLES_LEN as u32)
            .map(|index| element(&maps.census, maps::CENSUS, index).map(Watch::new))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            tables,
            watches,
            at: 0,
            reading: false,
            state: element(&maps.collector, maps::COLLECTOR, 0)?,
            timeouts: element(&maps.config, maps::CONFIG, 0)?.timeouts,
            maps,
            requests,
            pass: Pass::default(),
            load: Load {
                present: 0,
                fill: 0.0,
                expired: 0.0,
                cost_ns: FIRST_COST_NS,
            },
            tiers: [0; TIER_COUNTS_LEN],
        })
    }

    /// Reads on from where the last step ended, has what is expired deleted, and
    /// says how long to rest. Lets other tasks run between batches.
    ///
    /// # Errors
    ///
    /// [`Error`]; the next step goes on with the next table.
    pub async fn step(&mut self) -> Result<Duration, Error> {
        let mut read = 0;
        let mut rest = None;
        for turn in 0..STEP {
            // Counting up can wait for the next step, when everything that was
            // under way has come to its end.
            if self.at == self.tables.len() && turn > 0 {
                break;
            }
            let began = sys::thread_cpu_ns();
            let batch = self.batch();
            let spent = sys::thread_cpu_ns().saturating_sub(began);
            self.pass.cpu_ns += spent;
            self.state.cpu_ns += spent;
            let (count, finished) = batch?;
            self.cost(count, spent);
            read += count;
            if finished {
                rest = Some(self.finish_pass()?);
                break;
            }
            tokio::task::yield_now().await;
        }
        self.load.present = self.present()?;
        if self.pass.read >= BATCH as u64 {
            self.load.expired = self.pass.expired as f64 / self.pass.read as f64;
        }
        self.state.pace = pace::entries_per_second(&self.load);
        self.state.at_ns = sys::monotonic_ns();
        self.publish()?;
        Ok(rest
            .unwrap_or_default()
            .max(pace::rest(read, self.state.pace)))
    }

    /// One batch of one table, or what comes between two tables. Returns how many
    /// entries were read, and whether all tables have been.
    fn batch(&mut self) -> Result<(usize, bool), Error> {
        if self.at == self.tables.len() {
            self.settle()?;
            return Ok((0, true));
        }
        if !self.reading && !self.begin()? {
            self.at += 1;
            return Ok((0, false));
        }
        let batch = self.tables[self.at].next();
        let done = !matches!(&batch, Ok(batch) if !batch.done);
        let at = self.at;
        if done {
            self.at += 1;
            self.reading = false;
        }
        let batch = batch.map_err(|cause| Error::Read {
            table: self.tables[at].id.map(),
            cause,
        })?;
        let expired = self.judge(at, &batch)?;
        if done {
            self.watches[at].end();
        }
        let deleted = self.requests.expire(&expired)?;
        self.watches[at].deleted(deleted);
        self.state.deleted += u64::from(deleted);
        Ok((batch.flows.len(), false))
    }

    /// Begins with the next table, unless there is nothing in it.
    fn begin(&mut self) -> Result<bool, Error> {
        let now = sys::monotonic_ns();
        if self.at == 0 {
            self.pass = Pass {
                began_ns: now,
                ..Pass::default()
            };
            self.tiers = [0; TIER_COUNTS_LEN];
            self.timeouts = element(&self.maps.config, maps::CONFIG, 0)?.timeouts;
        }
        let counter = self.maps.counter(self.tables[self.at].id)?;
        let watch = &mut self.watches[self.at];
        let census = &watch.census;
        if watch.held(counter) == 0
            && census.present == 0
            && now.saturating_sub(census.at_ns) < TRUST_NS
        {
            return Ok(false);
        }
        watch.begin(counter);
        self.reading = true;
        Ok(true)
    }

    /// Entries in all tables, by the programs' counters.
    fn present(&self) -> Result<u64, Error> {
        self.tables
            .iter()
            .zip(&self.watches)
            .map(|(table, watch)| {
                let held = watch.held(self.maps.counter(table.id)?);
                Ok(held.min(u64::from(table.size)))
            })
            .sum()
    }

    /// Counts a batch, and picks what is expired.
    fn judge(&mut self, at: usize, batch: &Batch) -> Result<Vec<FlowKey6>, Error> {
        let now = Tick::from_ns(sys::monotonic_ns());
        let proved = self.tables[at].id.is_proved();
        let mut expired = Vec::new();
        for (key, flow) in &batch.flows {
            let expires = flow.expires(key.proto(), &self.timeouts);
            let over = now.is_after(expires);
            if over {
                expired.push(*key);
            }
            if proved {
                self.tiers[Tier::of(key) as usize] += 1;
            }
            self.watches[at].read(key, flow, expires, over);
        }
        self.state.read += batch.flows.len() as u64;
        self.pass.read += batch.flows.len() as u64;
        self.pass.expired += expired.len() as u64;
        Ok(expired)
    }

    /// Counts up what the pass has read, when no CPU can be any more between a
    /// change of a table and its count.
    fn settle(&mut self) -> Result<(), Error> {
        let now = sys::monotonic_ns();
        let mut fill = 0.0_f64;
        let config = element(&self.maps.config, maps::CONFIG, 0)?;
        // Before the tables' counters: what these two do not have, those do not
        // have either, because the programs count there first.
        let on_record = self.maps.on_record()?;
        let mut counts = CtlCounts::zeroed();
        for (at, table) in self.tables.iter().enumerate() {
            if !self.watches[at].is_done() {
                continue;
            }
            let counter = self.maps.counter(table.id)?;
            if table.id.is_proved() {
                let churn = self.watches[at].churn(counter);
                for tier in tiers_of(table.id) {
                    let tier = tier as usize;
                    let drift = on_record[tier].wrapping_sub(self.tiers[tier]).cast_signed();
                    counts.tiers[tier] = -excess(drift, churn);
                    let limit = f64::from(config.tier_limits[tier].max(1));
                    fill = fill.max(self.tiers[tier] as f64 / limit);
                }
            }
            let proved = &self.tables[usize::from(!table.id.is_v4())];
            let promoted = |key: &FlowKey6| {
                (!table.id.is_proved())
                    .then(|| proved.incarnation(key))
                    .flatten()
            };
            self.watches[at].settle(counter, now, promoted);
            self.maps.write_census(table.id, &self.watches[at].census)?;
        }
        self.load.fill = fill;
        self.correct(&counts)
    }

    /// Sets the proved flows on record right. The program adds the difference, so
    /// what the data path counts at the same moment is not lost.
    fn correct(&mut self, counts: &CtlCounts) -> Result<(), Error> {
        if counts.tiers == [0; TIER_COUNTS_LEN] {
            return Ok(());
        }
        log::debug!("proved flows on record are corrected by {:?}", counts.tiers);
        self.requests.count(counts)?;
        self.state.corrected += counts.tiers.iter().map(|by| by.unsigned_abs()).sum::<u64>();
        Ok(())
    }

    /// Ends the pass; returns how long to rest at least.
    fn finish_pass(&mut self) -> Result<Duration, Error> {
        let took = sys::monotonic_ns().saturating_sub(self.pass.began_ns);
        self.at = 0;
        self.state.passes += 1;
        self.state.pass_ns = took;
        self.state.pass_read = self.pass.read;
        self.state.pass_cpu_ns = self.pass.cpu_ns;
        let expectations = self.expire_expectations()?;
        if self.pass.expired > 0 || expectations > 0 {
            log::debug!("collected: {:?}, {expectations} expectations", self.pass);
        }
        let apart = pace::between_passes(&self.load, self.pass.cpu_ns);
        Ok(apart.saturating_sub(Duration::from_nanos(took)))
    }

    /// Learns what an entry costs.
    fn cost(&mut self, read: usize, cpu_ns: u64) {
        if read >= BATCH / 2 {
            let each = cpu_ns as f64 / read as f64;
            self.load.cost_ns += COST_WEIGHT * (each - self.load.cost_ns);
        }
    }

    fn publish(&mut self) -> Result<(), Error> {
        let map = &mut self.maps.collector;
        map.set(0, self.state, 0)
            .map_err(MapError::map(maps::COLLECTOR))?;
        Ok(())
    }

    fn expire_expectations(&mut self) -> Result<usize, Error> {
        let now = Tick::from_ns(sys::monotonic_ns());
        let map = &mut self.maps.expectations;
        let found = crate::bpf::maps::all(map).map_err(|cause| Error::Read {
            table: maps::EXPECTATIONS,
            cause,
        })?;
        let mut deleted = 0;
        for (key, expectation) in found {
            if now.is_after(Tick(expectation.expires)) && map.remove(&key).is_ok() {
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

impl Maps {
    /// Of all CPUs.
    fn counter(&self, table: TableId) -> Result<TableCounter, Error> {
        let of_cpus = self
            .counters
            .get(&(table as u32), 0)
            .map_err(MapError::map(maps::TABLE_COUNTERS))?;
        Ok(TableCounter::sum(of_cpus.iter()))
    }

    fn on_record(&self) -> Result<[u64; TIER_COUNTS_LEN], Error> {
        let mut out = [0; TIER_COUNTS_LEN];
        for (index, count) in (0..).zip(&mut out) {
            *count = element(&self.tier_counts, maps::TIER_COUNTS, index)?;
        }
        Ok(out)
    }

    fn write_census(&mut self, table: TableId, census: &Census) -> Result<(), Error> {
        let done = self.census.set(table as u32, census, 0);
        Ok(done.map_err(MapError::map(maps::CENSUS))?)
    }
}

fn element<V: aya::Pod>(
    map: &Array<MapData, V>,
    name: &'static str,
    index: u32,
) -> Result<V, Error> {
    Ok(map.get(&index, 0).map_err(MapError::map(name))?)
}

/// The classes that a proved table holds.
const fn tiers_of(table: TableId) -> [Tier; 2] {
    if table.is_v4() {
        [Tier::Tcp4, Tier::Other4]
    } else {
        [Tier::Tcp6, Tier::Other6]
    }
}

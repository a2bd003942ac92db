//! The pinned maps of an instance, read as typed entries.
//!
//! Works with the agent stopped. The `ABI` map is read first: maps of another
//! version are refused before anything else in them is looked at.

use std::{fmt, io, path::Path};

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use bytemuck::Zeroable;
use firewall_common::{
    abi::{
        ABI_VERSION, Census, CollectorState, Config, Control, Counter, ExpectKey, Expectation,
        FastCounter, FastIface, FlowKey6, Iface, Rule, RuleName, Session, TableCounter, TableId,
        fast_places, heartbeat, hits_of_cpu, maps,
    },
    time::Tick,
};

pub use super::rows::{FlowRow, FlowTier, Names};
use super::{BPFFS, Instance, errno, pins, policy, sys, text, vlan_children};

/// Why the maps of an instance cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is pinned under this name.
    #[error(
        "no pinhole instance `{instance}` is attached here: start one with `pinhole run`, \
         or name another with --instance; found: {}",
        if found.is_empty() { "none".to_owned() } else { found.join(", ") }
    )]
    NotAttached {
        /// The name asked for.
        instance: String,
        /// The names that exist.
        found: Vec<String>,
    },
    /// Not root.
    #[error("cannot read the pins under {BPFFS}: {0}; run as root (`sudo pinhole …`)")]
    Permission(#[source] io::Error),
    /// Pinned by another version of pinhole.
    #[error(
        "the pinned maps of `{instance}` have ABI version {found}, this pinhole reads version \
         {ABI_VERSION}: use the pinhole that attached them, or `pinhole unload --instance \
         {instance}` with it and attach again"
    )]
    Abi {
        /// The instance.
        instance: String,
        /// Version of its maps.
        found: u32,
    },
    /// The first `run` is at work, or was killed at it.
    #[error(
        "instance `{instance}` is not ready: it is being attached at this moment, or that was \
         cut short; try again, or remove it with `pinhole unload`"
    )]
    Unfinished {
        /// The instance.
        instance: String,
    },
    /// The pin directory is not to be trusted.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// One map fails.
    #[error("map {map} of instance `{instance}` cannot be read: {reason}")]
    Map {
        /// The instance.
        instance: String,
        /// Name of the map.
        map: &'static str,
        /// What the kernel or aya said.
        reason: String,
    },
}

/// The pinned maps of an attached instance of this ABI version.
#[derive(Debug)]
pub struct Pinned {
    instance: Instance,
}

impl Pinned {
    /// Checks that the instance is attached and that its maps are of this version.
    ///
    /// # Errors
    /// [`Error`]: not attached, not permitted, another version.
    pub fn open(instance: &Instance) -> Result<Self, Error> {
        pins::check(instance)?;
        let pinned = Self {
            instance: instance.clone(),
        };
        let abi: Array<MapData, u32> = pinned.array(maps::ABI)?;
        let found = pinned.element(&abi, maps::ABI, 0)?;
        let instance = instance.to_string();
        match found {
            ABI_VERSION => Ok(pinned),
            // The loader writes the version once the programs are loaded.
            0 => Err(Error::Unfinished { instance }),
            _ => Err(Error::Abi { instance, found }),
        }
    }

    /// Which instance they are of.
    #[must_use]
    pub const fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn config(&self) -> Result<Config, Error> {
        self.element(&self.array(maps::CONFIG)?, maps::CONFIG, 0)
    }

    /// What changes while the programs run.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn control(&self) -> Result<Control, Error> {
        self.element(&self.array(maps::CONTROL)?, maps::CONTROL, 0)
    }

    /// The agent's sign of life, by [`heartbeat`].
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn heartbeat(&self) -> Result<[u64; heartbeat::LEN as usize], Error> {
        let map: Array<MapData, u64> = self.array(maps::HEARTBEAT)?;
        let mut out = [0; heartbeat::LEN as usize];
        for (index, slot) in (0..).zip(&mut out) {
            *slot = self.element(&map, maps::HEARTBEAT, index)?;
        }
        Ok(out)
    }

    /// Proved flows by [`firewall_common::abi::Tier`], as the programs count them.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn tier_counts(&self) -> Result<Vec<u64>, Error> {
        let map: Array<MapData, u64> = self.array(maps::TIER_COUNTS)?;
        (0..map.len())
            .map(|index| self.element(&map, maps::TIER_COUNTS, index))
            .collect()
    }

    /// Every flow table: its size, what the programs did to it, what the
    /// collector last found.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn tables(&self) -> Result<Vec<(TableId, u32, TableCounter, Census)>, Error> {
        let counters: PerCpuArray<MapData, TableCounter> =
            self.per_cpu_array(maps::TABLE_COUNTERS)?;
        let censuses: Array<MapData, Census> = self.array(maps::CENSUS)?;
        TableId::ALL
            .into_iter()
            .map(|id| {
                let size = MapInfo::from_pin(self.instance.pin(id.map()))
                    .map_err(|error| self.failed(id.map(), &error))?
                    .max_entries();
                let of_cpus = counters
                    .get(&(id as u32), 0)
                    .map_err(|error| self.failed(maps::TABLE_COUNTERS, &error))?;
                let census = self.element(&censuses, maps::CENSUS, id as u32)?;
                Ok((id, size, TableCounter::sum(of_cpus.iter()), census))
            })
            .collect()
    }

    /// What the collector says of itself.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn collector(&self) -> Result<CollectorState, Error> {
        self.element(&self.array(maps::COLLECTOR)?, maps::COLLECTOR, 0)
    }

    /// Guarded interfaces by index, without the VLANs on top of them.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn ifaces(&self) -> Result<Vec<(u32, Iface)>, Error> {
        let map = self.typed(maps::IFACES)?;
        vlan_children::guarded(&map).map_err(|error| self.failed(maps::IFACES, &error))
    }

    /// What the fast path knows of guarded interfaces, and did there, by index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn fast(&self) -> Result<Vec<(u32, FastIface, FastCounter)>, Error> {
        let counters: PerCpuArray<MapData, FastCounter> =
            self.per_cpu_array(maps::FAST_COUNTERS)?;
        let places: Array<MapData, FastIface> = self.array(maps::FAST_IFACES)?;
        let mut entries = Vec::new();
        for (index, _) in self.ifaces()? {
            for place in fast_places(index) {
                let entry = self.element(&places, maps::FAST_IFACES, place)?;
                entries.extend((entry.ifindex == index).then_some((index, entry)));
            }
        }
        let row = |(index, entry): (u32, FastIface)| {
            let of_cpus = counters
                .get(&u32::from(entry.number), 0)
                .map_err(|error| self.failed(maps::FAST_COUNTERS, &error))?;
            Ok((index, entry, FastCounter::sum(of_cpus.iter())))
        };
        entries.into_iter().map(row).collect()
    }

    /// The live generation of compiled rules, each with what it admitted or dropped.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn rules(&self) -> Result<Vec<(Rule, Counter)>, Error> {
        let config = self.config()?;
        let live = config.generation & 1;
        let count = config.rule_count[live as usize] as usize;
        let rules: Vec<Rule> = self.of_policy(maps::RULES, live)?;
        let hits: Vec<Counter> = self.of_policy(maps::RULE_HITS, live)?;
        let of_cpu = hits_of_cpu(count as u32) as usize;
        let counted = |at: usize| {
            let of_cpus = hits.iter().skip(at).step_by(of_cpu.max(1));
            of_cpus.fold(Counter::default(), plus)
        };
        let rules = rules.into_iter().take(count).enumerate();
        Ok(rules.map(|(at, rule)| (rule, counted(at))).collect())
    }

    /// Names of zones and rules.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn names(&self) -> Result<Names, Error> {
        let zones = self.ifaces()?;
        let zones = zones
            .iter()
            .map(|(_, iface)| (iface.zone, text(&iface.zone_name)));
        let names: Array<MapData, RuleName> = self.array(maps::RULE_NAMES)?;
        // Both generations: a flow can have been admitted by the policy before.
        let rules = sys::lookup_all(&names);
        let rules = rules.map_err(|error| self.failed(maps::RULE_NAMES, &error))?;
        Ok(Names::new(zones, rules.iter().map(|name| text(name))))
    }

    /// The counters of the `STATS` map, summed over CPUs, by
    /// [`firewall_common::verdict`] index.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn stats(&self) -> Result<Vec<Counter>, Error> {
        let map: PerCpuArray<MapData, Counter> = self.per_cpu_array(maps::STATS)?;
        (0..map.len())
            .map(|index| self.sum(&map, maps::STATS, index))
            .collect()
    }

    /// Every expectation that has not expired, oldest first.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn expectations(&self) -> Result<Vec<(ExpectKey, Expectation)>, Error> {
        let now = Tick::from_ns(sys::monotonic_ns());
        let mut rows = self.entries::<ExpectKey, Expectation>(maps::EXPECTATIONS)?;
        rows.retain(|(_, e)| !now.is_after(Tick(e.expires)));
        rows.sort_by_key(|(_, e)| e.created_ns);
        Ok(rows)
    }

    /// Refused lines of control connections, by the number of the
    /// [`Refusal`](crate::ftp::Refusal).
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn refusals(&self) -> Result<Vec<u64>, Error> {
        let map: Array<MapData, u64> = self.array(maps::REFUSALS)?;
        (0..map.len())
            .map(|index| self.element(&map, maps::REFUSALS, index))
            .collect()
    }

    /// Every FTP session, oldest first.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn sessions(&self) -> Result<Vec<(FlowKey6, Session)>, Error> {
        let mut rows = self.entries::<FlowKey6, Session>(maps::SESSIONS)?;
        rows.sort_by_key(|(_, s)| s.started_ns);
        Ok(rows)
    }

    /// All elements of a hash map, each bucket seen once.
    pub(super) fn entries<K, V>(&self, name: &'static str) -> Result<Vec<(K, V)>, Error>
    where
        K: aya::Pod + Zeroable,
        V: aya::Pod + Zeroable,
    {
        let map: HashMap<MapData, K, V> = self.typed(name)?;
        all(&map).map_err(|error| self.failed(name, &error))
    }

    fn array<V: aya::Pod>(&self, name: &'static str) -> Result<Array<MapData, V>, Error> {
        self.typed(name)
    }

    fn per_cpu_array<V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<PerCpuArray<MapData, V>, Error> {
        self.typed(name)
    }

    /// A pinned map of the type that the caller names. aya compares kind and sizes.
    pub(super) fn typed<M>(&self, name: &'static str) -> Result<M, Error>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let data = self.data(name)?;
        Map::from_map_data(data)
            .and_then(M::try_from)
            .map_err(|error| self.failed(name, &error))
    }

    fn data(&self, name: &'static str) -> Result<MapData, Error> {
        MapData::from_pin(self.instance.pin(name)).map_err(|error| match errno(&error) {
            Some(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                Error::Permission(io::Error::from(cause.kind()))
            }
            Some(cause) if cause.kind() == io::ErrorKind::NotFound => self.missing(name),
            _ => self.failed(name, &error),
        })
    }

    fn missing(&self, name: &'static str) -> Error {
        let attached = Path::is_dir(&self.instance.pin_dir());
        if attached && name == maps::ABI {
            let instance = self.instance.to_string();
            return Error::Unfinished { instance };
        }
        if attached {
            return self.failed(name, &"it is not pinned");
        }
        Error::NotAttached {
            instance: self.instance.to_string(),
            found: Instance::all().unwrap_or_default(),
        }
    }

    fn element<V: aya::Pod>(
        &self,
        map: &Array<MapData, V>,
        name: &'static str,
        index: u32,
    ) -> Result<V, Error> {
        map.get(&index, 0)
            .map_err(|error| self.failed(name, &error))
    }

    /// What the policy of a generation has of its own.
    fn of_policy<V: aya::Pod + Zeroable>(
        &self,
        name: &'static str,
        generation: u32,
    ) -> Result<Vec<V>, Error> {
        let map: ArrayOfMaps<MapData, Array<MapData, V>> = self.typed(name)?;
        policy::read(&map, generation).map_err(|error| self.failed(name, &error))
    }

    fn sum(
        &self,
        map: &PerCpuArray<MapData, Counter>,
        name: &'static str,
        index: u32,
    ) -> Result<Counter, Error> {
        let values = map
            .get(&index, 0)
            .map_err(|error| self.failed(name, &error))?;
        Ok(values.iter().fold(Counter::default(), plus))
    }

    pub(super) fn failed(&self, map: &'static str, reason: &dyn fmt::Display) -> Error {
        Error::Map {
            instance: self.instance.to_string(),
            map,
            reason: reason.to_string(),
        }
    }
}

fn plus(sum: Counter, more: &Counter) -> Counter {
    Counter {
        packets: sum.packets.wrapping_add(more.packets),
        bytes: sum.bytes.wrapping_add(more.bytes),
    }
}

/// Every element of a hash map, by batches: bounded however fast it changes.
///
/// # Errors
/// Those of bpf(2).
pub fn all<K, V>(map: &HashMap<MapData, K, V>) -> io::Result<Vec<(K, V)>>
where
    K: aya::Pod + Zeroable,
    V: aya::Pod + Zeroable,
{
    let mut out = Vec::new();
    // What is kept whole is small, as a rule, and often empty.
    each_by(map, 256, |key, value| out.push((*key, *value)))?;
    Ok(out)
}

/// As [`all`], without keeping them.
///
/// # Errors
/// Those of bpf(2).
pub fn each<K, V>(map: &HashMap<MapData, K, V>, see: impl FnMut(&K, &V)) -> io::Result<()>
where
    K: aya::Pod + Zeroable,
    V: aya::Pod + Zeroable,
{
    each_by(map, 4096, see)
}

/// So many at once.
fn each_by<K, V>(
    map: &HashMap<MapData, K, V>,
    batch: usize,
    mut see: impl FnMut(&K, &V),
) -> io::Result<()>
where
    K: aya::Pod + Zeroable,
    V: aya::Pod + Zeroable,
{
    let mut keys = vec![K::zeroed(); batch];
    let mut values = vec![V::zeroed(); batch];
    let mut cursor = None;
    loop {
        match sys::lookup_batch(map, cursor, &mut keys, &mut values) {
            Ok(batch) => {
                for (key, value) in keys.iter().zip(&values).take(batch.count) {
                    see(key, value);
                }
                match batch.cursor {
                    Some(next) => cursor = Some(next),
                    None => return Ok(()),
                }
            }
            // A bucket that holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && keys.len() < 1 << 24 => {
                keys.resize(2 * keys.len(), K::zeroed());
                values.resize(2 * values.len(), V::zeroed());
            }
            Err(error) => return Err(error),
        }
    }
}

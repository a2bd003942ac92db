//! The object loaded a second time, with tables of its own under the live policy.
//!
//! What runs here is what is attached, but it changes nothing of the instance:
//! the maps that the programs write are private, those of the policy are the
//! pinned ones, which the programs only read. Run through BPF_PROG_RUN, one
//! packet at a time; verdicts and notes come back, frames go nowhere.

use std::{collections::BTreeSet, io};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, RingBuf},
    programs::{SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use bytemuck::{Pod, Zeroable};
use firewall_common::abi::{
    DataFlow, EVENT_CLASSES, EXPLAIN_SWITCH, ExpectKey, Expectation, Explain, Flow, FlowKey4,
    FlowKey6, Pair, PairKey, maps, programs,
};

use super::{
    Instance, hooks,
    loader::{self, OBJECT, ProgramLog, map_mut},
    lookup::{Found, Table},
    requests::XdpMd,
};

pub use loader::Error;

/// The policy and what goes with it: never written by a program.
const SHARED: [&str; 6] = [
    maps::CONFIG,
    maps::CONTROL,
    maps::HEARTBEAT,
    maps::IFACES,
    maps::RULES,
    maps::CLASSES,
];

/// Room for the longest record several times over; it is emptied after each packet.
const RING_BYTES: u32 = (4 * EVENT_CLASSES[2] as u32).next_power_of_two();

/// Before June 2025 kernels let each CPU hoard up to 128 free nodes of an LRU
/// map: a map must have more than all of them can.
const NODES_PER_CPU: u32 = 256;

/// The shortest frame that BPF_PROG_RUN takes.
pub const MIN_FRAME: usize = 14;
/// The longest frame: a page, less the kernel's own room before and behind it.
pub const MAX_FRAME: usize = 3400;

/// A program that judges packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// XDP: what comes in.
    Ingress,
    /// TC: what goes out.
    Egress,
}

impl Hook {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Ingress => programs::INGRESS,
            Self::Egress => programs::EGRESS,
        }
    }
}

/// The context of a TC program, `struct __sk_buff` of `linux/bpf.h` as far as it
/// is set here; the kernel takes what is missing for zero.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SkBuff {
    unset: [u32; 9],
    ingress_ifindex: u32,
    ifindex: u32,
    unset_too: u32,
}

/// The programs over private tables.
pub struct Private {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
}

impl Private {
    /// Loads the programs of `hooks` with the policy of `instance`, or with
    /// empty maps alone; tables have room for `flows` flows.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn load(
        instance: Option<&Instance>,
        flows: usize,
        hooks: &BTreeSet<Hook>,
    ) -> Result<Self, Error> {
        let log = ProgramLog::Off as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &log, true);
        loader.override_global(EXPLAIN_SWITCH, &1_u8, true);
        if let Some(instance) = instance {
            for name in SHARED {
                let pin = instance.pin(name);
                // aya would make and pin one that is not there.
                if !pin.exists() {
                    return Err(Error::Map {
                        map: name,
                        reason: "it is not pinned".into(),
                    });
                }
                loader.map_pin_path(name, pin);
            }
        }
        let size = table_size(flows);
        for table in Table::ALL {
            loader.map_max_entries(table.name(), size);
        }
        for name in [
            maps::EXPECTATIONS,
            maps::TARGETS,
            maps::DATA_FLOWS,
            maps::SESSIONS,
            maps::PAIRS,
        ] {
            loader.map_max_entries(name, size);
        }
        for ring in [maps::EVENTS, maps::FLOW_EVENTS] {
            loader.map_max_entries(ring, RING_BYTES);
        }
        let mut ebpf = loader.load(OBJECT).map_err(Error::Object)?;
        let wanted: Vec<_> = hooks.iter().map(|hook| hook.program()).collect();
        loader::load_programs(&mut ebpf, &wanted)?;
        let ring = ebpf
            .take_map(maps::EVENTS)
            .ok_or_else(|| missing(maps::EVENTS))?;
        let ring = RingBuf::try_from(ring).map_err(Error::map(maps::EVENTS))?;
        Ok(Self { ebpf, ring })
    }

    /// The kernel's digest of a program's instructions.
    ///
    /// # Errors
    ///
    /// [`Error::Program`].
    pub fn tag(&self, hook: Hook) -> Result<u64, Error> {
        let name = hook.program();
        let program = self.ebpf.program(name).ok_or_else(|| unloaded(name))?;
        program
            .info()
            .map(|info| info.tag())
            .map_err(|error| Error::Program {
                program: name,
                reason: super::causes(&error),
            })
    }

    /// Runs a frame as if it came in or went out there: at egress, `came_in_by`
    /// is the interface through which the host got it, 0 if the host made it.
    ///
    /// # Errors
    ///
    /// [`Error::Program`]: the interface is not in this network namespace, say.
    pub fn run(
        &mut self,
        hook: Hook,
        ifindex: u32,
        came_in_by: u32,
        frame: &[u8],
    ) -> Result<Explain, Error> {
        self.note(Explain::NONE)?;
        let ran = match hook {
            Hook::Ingress => {
                let context = XdpMd::arriving(ifindex, frame.len());
                let program: &mut Xdp = loader::program(&mut self.ebpf, hook.program())?;
                run(program, frame, bytemuck::bytes_of(&context))
            }
            Hook::Egress => {
                let context = SkBuff {
                    ingress_ifindex: came_in_by,
                    ifindex,
                    ..SkBuff::zeroed()
                };
                let program: &mut SchedClassifier =
                    loader::program(&mut self.ebpf, hook.program())?;
                run(program, frame, bytemuck::bytes_of(&context))
            }
        };
        while self.ring.next().is_some() {}
        ran.map_err(|cause| Error::Program {
            program: hook.program(),
            reason: format!("it cannot be run on {} bytes: {cause}", frame.len()),
        })?;
        let notes: Array<_, Explain> = map_mut(&mut self.ebpf, maps::EXPLAIN)?;
        notes.get(&0, 0).map_err(Error::map(maps::EXPLAIN))
    }

    fn note(&mut self, value: Explain) -> Result<(), Error> {
        let mut notes: Array<_, Explain> = map_mut(&mut self.ebpf, maps::EXPLAIN)?;
        notes.set(0, value, 0).map_err(Error::map(maps::EXPLAIN))
    }

    /// The entry of a flow, as the programs would find it.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn flow(&mut self, key: &FlowKey6) -> Result<Option<Found>, Error> {
        for table in Table::of(key) {
            let map = map_mut_named(&mut self.ebpf, table.name())?;
            let found = match key.narrow() {
                Some(key) => get::<FlowKey4, Flow>(map, table.name(), &key)?,
                None => get::<FlowKey6, Flow>(map, table.name(), key)?,
            };
            if let Some(flow) = found {
                return Ok(Some(Found { table, flow }));
            }
        }
        Ok(None)
    }

    /// The expectation under `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn expectation(&mut self, key: &ExpectKey) -> Result<Option<Expectation>, Error> {
        let map = map_mut_named(&mut self.ebpf, maps::EXPECTATIONS)?;
        get(map, maps::EXPECTATIONS, key)
    }

    /// Writes a flow into the table where it was found.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn put_flow(&mut self, key: &FlowKey6, found: &Found) -> Result<(), Error> {
        let name = found.table.name();
        match key.narrow() {
            Some(key) => self.put(name, &key, &found.flow),
            None => self.put(name, key, &found.flow),
        }
    }

    /// Writes an expectation.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn put_expectation(&mut self, key: &ExpectKey, value: &Expectation) -> Result<(), Error> {
        self.put(maps::EXPECTATIONS, key, value)
    }

    /// Whose data connection the flow of `key` is.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn data_flow(&mut self, key: &FlowKey6) -> Result<Option<DataFlow>, Error> {
        let map = map_mut_named(&mut self.ebpf, maps::DATA_FLOWS)?;
        get(map, maps::DATA_FLOWS, key)
    }

    /// Writes whose data connection the flow of `key` is.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn put_data_flow(&mut self, key: &FlowKey6, value: &DataFlow) -> Result<(), Error> {
        self.put(maps::DATA_FLOWS, key, value)
    }

    /// Writes a host pair.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn put_pair(&mut self, key: &PairKey, value: &Pair) -> Result<(), Error> {
        self.put(maps::PAIRS, key, value)
    }

    /// Sets how many proved flows there are, by [`firewall_common::abi::Tier`].
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn put_tier_counts(&mut self, counts: &[u64]) -> Result<(), Error> {
        let mut map: Array<_, u64> = map_mut(&mut self.ebpf, maps::TIER_COUNTS)?;
        (0..)
            .zip(counts)
            .try_for_each(|(tier, count)| map.set(tier, count, 0))
            .map_err(Error::map(maps::TIER_COUNTS))
    }

    fn put<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
        key: &K,
        value: &V,
    ) -> Result<(), Error> {
        let map = map_mut_named(&mut self.ebpf, name)?;
        HashMap::<_, K, V>::try_from(map)
            .and_then(|mut map| map.insert(key, value, 0))
            .map_err(Error::map(name))
    }
}

/// Room for `flows` and as many that begin, on any kernel.
fn table_size(flows: usize) -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX / NODES_PER_CPU / 4);
    let flows = u32::try_from(flows).unwrap_or(u32::MAX / 8);
    (2 * NODES_PER_CPU * cpus)
        .saturating_add(2 * flows)
        .next_power_of_two()
}

fn run<P>(program: &P, frame: &[u8], context: &[u8]) -> io::Result<()>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>>,
{
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(context),
        ..TestRunOptions::new()
    };
    match program.test_run(options) {
        Ok(_) => Ok(()),
        Err(error) => Err(hooks::os_error(&error)),
    }
}

fn get<K: aya::Pod, V: aya::Pod>(
    map: &mut Map,
    name: &'static str,
    key: &K,
) -> Result<Option<V>, Error> {
    let map: HashMap<_, K, V> = map.try_into().map_err(Error::map(name))?;
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(Error::map(name)(error)),
    }
}

fn map_mut_named<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, Error> {
    ebpf.map_mut(name).ok_or_else(|| missing(name))
}

fn missing(map: &'static str) -> Error {
    Error::Map {
        map,
        reason: "the object does not hold it; rebuild with `cargo xtask build`".into(),
    }
}

fn unloaded(program: &'static str) -> Error {
    Error::Program {
        program,
        reason: "it is not loaded".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_room_on_old_kernels_too() {
        let least = table_size(0);
        assert!(least.is_power_of_two() && least as usize >= 512 * aya::util::nr_cpus().unwrap());
        assert!(table_size(100_000) >= 200_000);
    }

    #[test]
    fn the_context_ends_where_the_kernel_reads_it() {
        // `struct __sk_buff`: ingress_ifindex and ifindex are its tenth and
        // eleventh words.
        assert_eq!(std::mem::offset_of!(SkBuff, ingress_ifindex), 36);
        assert_eq!(std::mem::offset_of!(SkBuff, ifindex), 40);
    }
}

//! From the embedded object to loaded programs over pinned maps.

use std::{collections::BTreeMap, fs, io, path::Path};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapInfo},
    programs::{Program, ProgramError, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use firewall_common::abi::{ABI_VERSION, FRAGMENTS_LEN, maps, programs};

use super::{BPFFS, Instance, causes, claim::Claim, pins};
use crate::{config::Tables, lock};

/// The eBPF object, as `cargo xtask build` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pinhole.o"));

/// The maps that are pinned. What is left belongs to the programs that are loaded:
/// scratch space, the programs' log, and datagrams that are under way.
const MAPS: [&str; 33] = [
    maps::ABI,
    maps::CONFIG,
    maps::CONTROL,
    maps::HEARTBEAT,
    maps::FLOWS4,
    maps::FLOWS6,
    maps::HALF_OPEN4_IN,
    maps::HALF_OPEN4_OUT,
    maps::HALF_OPEN6_IN,
    maps::HALF_OPEN6_OUT,
    maps::EXPECTATIONS,
    maps::TARGETS,
    maps::DATA_FLOWS,
    maps::SESSIONS,
    maps::PAIRS,
    maps::REFUSALS,
    maps::IFACES,
    maps::FAST_IFACES,
    maps::FAST_COUNTERS,
    maps::RULES,
    maps::RULE_HITS,
    maps::CLASSES,
    maps::RULE_NAMES,
    maps::STATS,
    maps::TIER_COUNTS,
    maps::MOVES,
    maps::TABLE_COUNTERS,
    maps::CENSUS,
    maps::COLLECTOR,
    maps::EVENTS,
    maps::JOURNAL,
    maps::WATCH,
    maps::FLOW_EVENTS,
];

/// Every program of the object.
const PROGRAMS: [&str; 4] = [
    programs::INGRESS,
    programs::EGRESS,
    programs::REINJECT,
    programs::CTL,
];

/// Lines of the verifier's log that an error shows: the last ones hold the reason.
const VERIFIER_LINES: usize = 20;

/// Why nothing is loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bpffs, and it cannot be mounted.
    #[error(
        "no bpffs at {BPFFS}, and mounting one fails: {0}; mount it: \
         `sudo mount -t bpf bpf {BPFFS}`"
    )]
    Bpffs(io::Error),
    /// The pinned maps are of another version.
    #[error(
        "the pinned maps of instance {instance} have ABI version {found}, this pinhole has \
         {ABI_VERSION}: unload it with the pinhole that attached it, then run again"
    )]
    Abi {
        /// The instance.
        instance: String,
        /// Version of its maps.
        found: u32,
    },
    /// The instance belongs to another network namespace.
    #[error(
        "instance {instance} guards another network namespace (inode {found}): \
         give this one a name of its own with --instance NAME, or `pinhole unload` that one"
    )]
    Namespace {
        /// The instance.
        instance: String,
        /// Inode of the namespace that it guards.
        found: u64,
    },
    /// /proc does not tell the network namespace.
    #[error("/proc/self/ns/net cannot be read: {0}; mount /proc, or run where it can be seen")]
    Netns(io::Error),
    /// The pin directory is not to be trusted, or not to be had.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// An agent of this instance runs.
    #[error(transparent)]
    Agent(#[from] lock::Error),
    /// Another run of this instance takes its time.
    #[error(
        "another run of instance {instance} has not finished loading: see what became of it, \
         end it, or give this one a name of its own with --instance NAME"
    )]
    Starting {
        /// The instance.
        instance: String,
    },
    /// aya cannot make the maps.
    #[error(
        "the maps cannot be created: {}; if memory is short, make `[tables]` of the policy smaller",
        causes(.0)
    )]
    Object(EbpfError),
    /// The kernel refuses a program.
    #[error("the kernel refuses program {program}: {reason}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it says, with the end of the verifier's log.
        reason: String,
    },
    /// A map cannot be read or written.
    #[error("map {map} cannot be used: {reason}; run as root, or `pinhole unload` and run again")]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya says.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on an operation on `map`.
    pub(crate) fn map<E: std::error::Error>(map: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Map {
            map,
            reason: causes(&error),
        }
    }
}

/// Whether the programs log what they drop and which flows begin.
///
/// The verifier takes out the lines of a level that is off, so that they cost
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ProgramLog {
    /// No line.
    Off = 0,
    /// All lines ([`log::Level::Info`] is the only level in use).
    On = log::Level::Info as u8,
}

/// The loaded object of an instance.
///
/// Dropping it removes the pins that loading made, unless [`Loaded::keep`] was
/// called: nothing half attached stays behind.
#[derive(Debug)]
pub struct Loaded {
    /// Maps and programs.
    pub ebpf: Ebpf,
    /// Which instance it is.
    pub instance: Instance,
    /// Are these maps that an earlier run filled?
    pub taken_over: bool,
    /// Tables whose size was kept: name, wanted, kept.
    pub kept_sizes: Vec<(&'static str, u32, u32)>,
    claim: Claim,
}

impl Loaded {
    /// Loads [`OBJECT`] over the maps that `instance` has pinned, or new ones.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing new is left pinned then.
    pub fn load(instance: &Instance, tables: &Tables, log: ProgramLog) -> Result<Self, Error> {
        let claim = Claim::take(instance)?;
        let (sizes, kept_sizes) = sizes(instance, tables);
        let mut ebpf = create(instance, &sizes, log)?;
        load_programs(&mut ebpf, &PROGRAMS)?;
        pin_control(&mut ebpf, instance)?;
        claim.stamp(&mut ebpf)?;
        Ok(Self {
            ebpf,
            instance: instance.clone(),
            taken_over: claim.taken_over(),
            kept_sizes,
            claim,
        })
    }

    /// Keeps the pins from now on.
    pub fn keep(&mut self) {
        self.claim.keep();
    }

    /// Handles of their own to the programs that are attached.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] if the object has none, or they cannot be pinned for a moment, which
    /// is how a second handle is had.
    pub fn hooks(&mut self) -> Result<Hooks, Error> {
        let ingress: &mut Xdp = program(&mut self.ebpf, programs::INGRESS)?;
        let ingress = second(&self.instance, programs::INGRESS, |path| {
            ingress.pin(path).map_err(|error| causes(&error))?;
            Xdp::from_pin(path, XdpAttachType::Interface).map_err(|error| causes(&error))
        })?;
        let egress: &mut SchedClassifier = program(&mut self.ebpf, programs::EGRESS)?;
        let egress = second(&self.instance, programs::EGRESS, |path| {
            egress.pin(path).map_err(|error| causes(&error))?;
            SchedClassifier::from_pin(path).map_err(|error| causes(&error))
        })?;
        Ok(Hooks {
            instance: self.instance.clone(),
            ingress,
            egress,
        })
    }
}

/// The programs that are attached to interfaces, apart from the rest of the object.
#[derive(Debug)]
pub struct Hooks {
    /// Whose they are.
    pub instance: Instance,
    pub(super) ingress: Xdp,
    pub(super) egress: SchedClassifier,
}

/// A program by a pin that is there for as long as it takes to open it.
fn second<T>(
    instance: &Instance,
    name: &'static str,
    by_pin: impl FnOnce(&Path) -> Result<T, String>,
) -> Result<T, Error> {
    let path = instance.pin(&format!("{name}-new"));
    // Left by a start that was cut short.
    let _ = fs::remove_file(&path);
    let opened = by_pin(&path).map_err(|error| Error::Program {
        program: name,
        reason: format!("it cannot be opened again at {}: {error}", path.display()),
    })?;
    fs::remove_file(&path).map_err(|error| Error::Program {
        program: name,
        reason: format!("its pin {} cannot be removed: {error}", path.display()),
    })?;
    Ok(opened)
}

type Kept = Vec<(&'static str, u32, u32)>;

/// Sizes to create the maps with. A pinned map keeps its own: the flows in it
/// are worth more than the new size.
fn sizes(instance: &Instance, tables: &Tables) -> (BTreeMap<&'static str, u32>, Kept) {
    let mut sizes = BTreeMap::from([
        (maps::FLOWS4, tables.flows),
        (maps::FLOWS6, tables.flows),
        (maps::HALF_OPEN4_IN, tables.half_open),
        (maps::HALF_OPEN4_OUT, tables.half_open),
        (maps::HALF_OPEN6_IN, tables.half_open),
        (maps::HALF_OPEN6_OUT, tables.half_open),
        (maps::EXPECTATIONS, tables.expectations),
        (maps::TARGETS, tables.expectations),
        (maps::DATA_FLOWS, data_flows(tables)),
        (maps::SESSIONS, tables.sessions),
        (maps::PAIRS, tables.sessions),
        (maps::FRAGMENTS, fragments()),
    ]);
    let mut kept = Vec::new();
    for name in MAPS {
        let Ok(info) = MapInfo::from_pin(instance.pin(name)) else {
            continue;
        };
        let pinned = info.max_entries();
        // aya maps a ring by the size that it was told, not by the pinned one.
        let wanted = sizes.insert(name, pinned);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != pinned) {
            kept.push((name, wanted, pinned));
        }
    }
    (sizes, kept)
}

/// Elements of `FRAGMENTS`.
fn fragments() -> u32 {
    least_lru().max(FRAGMENTS_LEN as u32)
}

/// Elements of `DATA_FLOWS`: a data connection for each expectation and each session.
pub(super) fn data_flows(tables: &Tables) -> u32 {
    let wanted = tables.expectations.saturating_add(tables.sessions);
    wanted.clamp(least_lru(), 1 << 30).next_power_of_two()
}

/// The smallest LRU map that is of use: before the summer of 2025 each CPU hoarded
/// 128 free nodes of one.
fn least_lru() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    (256 * cpus).next_power_of_two() as u32
}

fn create(
    instance: &Instance,
    sizes: &BTreeMap<&'static str, u32>,
    log: ProgramLog,
) -> Result<Ebpf, Error> {
    let level = log as u8;
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, true);
    for name in MAPS {
        loader.map_pin_path(name, instance.pin(name));
    }
    for (name, size) in sizes {
        loader.map_max_entries(name, *size);
    }
    loader.load(OBJECT).map_err(Error::Object)
}

/// All at once: the verifier takes its time over each, on one CPU.
pub(super) fn load_programs(ebpf: &mut Ebpf, known: &[&'static str]) -> Result<(), Error> {
    for name in known {
        ebpf.program(name).ok_or_else(|| missing(name))?;
    }
    let wanted = ebpf.programs_mut().filter_map(|(name, program)| {
        let name = known.iter().copied().find(|wanted| *wanted == name)?;
        Some((name, program))
    });
    std::thread::scope(|scope| {
        let loads: Vec<_> = wanted
            .map(|(name, program)| scope.spawn(move || load(name, program)))
            .collect();
        let ended = loads.into_iter().map(|load| {
            load.join().unwrap_or_else(|_| {
                Err(Error::Program {
                    program: "(any)",
                    reason: "loading it failed in an unforeseen way".into(),
                })
            })
        });
        ended.collect()
    })
}

fn load(name: &'static str, program: &mut Program) -> Result<(), Error> {
    let loaded = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(missing(name)),
    };
    loaded.map_err(|e| refused(name, &e))
}

/// Pins the control program in the place of an earlier one, so that commands can
/// delete flows without an agent.
fn pin_control(ebpf: &mut Ebpf, instance: &Instance) -> Result<(), Error> {
    let path = instance.pin(programs::CTL_PIN);
    let fresh = instance.pin(&format!("{}-new", programs::CTL_PIN));
    let failed = |reason: String| Error::Program {
        program: programs::CTL,
        reason: format!("it cannot be pinned at {}: {reason}", path.display()),
    };
    // Left by a start that was cut short.
    let _ = fs::remove_file(&fresh);
    let program: &mut Xdp = program(ebpf, programs::CTL)?;
    program
        .pin(&fresh)
        .map_err(|error| failed(causes(&error)))?;
    fs::rename(&fresh, &path).map_err(|error| failed(error.to_string()))
}

fn missing(program: &'static str) -> Error {
    Error::Program {
        program,
        reason: "the object does not hold it; rebuild with `cargo xtask build`".into(),
    }
}

pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, Error>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| missing(name))?
        .try_into()
        .map_err(|_| missing(name))
}

fn refused(program: &'static str, error: &ProgramError) -> Error {
    let reason = match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => format!("{io_error}\n{}", tail(&verifier_log.to_string())),
        other => causes(other),
    };
    Error::Program { program, reason }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n")
}

/// A pinned map of `instance` as `T`, opened apart from any object. aya compares
/// kind and sizes.
pub(crate) fn pinned<T>(instance: &Instance, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    MapData::from_pin(instance.pin(name))
        .and_then(aya::maps::Map::from_map_data)
        .and_then(TryInto::try_into)
        .map_err(Error::map(name))
}

/// A map of the object as `T`.
pub(crate) fn map_mut<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
{
    ebpf.map_mut(name)
        .ok_or_else(|| Error::Map {
            map: name,
            reason: "the object does not hold it; rebuild with `cargo xtask build`".into(),
        })?
        .try_into()
        .map_err(Error::map(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_verifier_log_is_shown() {
        let log: String = (0..100).map(|i| format!("{i}: r0 = 0\n")).collect();
        let shown = tail(&log);
        assert_eq!(shown.lines().count(), VERIFIER_LINES);
        assert!(shown.ends_with("99: r0 = 0"));
        assert_eq!(tail("one"), "one");
    }
}

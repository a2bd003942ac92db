//! pinhole's real programs, one packet at a time.
//!
//! The object is loaded with maps of its own and run through BPF_PROG_RUN: what
//! the host sends through egress, what arrives through ingress.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use bytemuck::Zeroable;
use firewall_common::{
    abi::{
        Config, Counter, Flow, FlowKey4, FlowKey6, FlowState, Iface, Phase, Rule, ZONE_ANY, action,
        maps, programs, timeout,
    },
    key::{Direction, FlowKey as _, Heading, map_v4},
    tcp::State,
    time::ticks_from_secs,
    verdict::{DropReason, PassReason, Verdict},
    wire::{self, Headers, proto},
};
use firewall_user::{bpf::policy, classes::Classes};

use super::segment::{Ends, Side};
use crate::lab::Family;

/// The loopback interface, on which BPF_PROG_RUN runs by default.
const LO: u32 = 1;
const OUTSIDE: u8 = 1;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
/// Of conversations that last milliseconds none may run out.
const TIMEOUT_SECS: u64 = 3600;
/// One conversation at a time is in the tables; the kernel's LRU wants more than a few elements.
const TABLE_SIZE: u32 = 2048;
const V4_TABLES: [&str; 3] = [maps::FLOWS4, maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT];
const V6_TABLES: [&str; 3] = [maps::FLOWS6, maps::HALF_OPEN6_IN, maps::HALF_OPEN6_OUT];

type Table<K> = HashMap<MapData, K, Flow>;

/// The loaded programs.
pub struct Programs {
    ebpf: Ebpf,
    flows4: Vec<Table<FlowKey4>>,
    flows6: Vec<Table<FlowKey6>>,
    stats: PerCpuArray<MapData, Counter>,
    /// The table in which the last flow was found, where the next one is looked for first.
    last: usize,
}

impl Programs {
    /// Loads the object at `path` with a policy that accepts every flow, from
    /// either side.
    ///
    /// # Errors
    /// The file cannot be read, or the kernel refuses a program.
    pub fn load(path: &Path) -> Result<Self> {
        let object = std::fs::read(path)
            .with_context(|| format!("{}: `cargo xtask build` makes it", path.display()))?;
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, true);
        for table in V4_TABLES.iter().chain(&V6_TABLES) {
            loader.map_max_entries(table, TABLE_SIZE);
        }
        let mut ebpf = loader.load(&object).context("load the object")?;
        let ingress: &mut Xdp = program(&mut ebpf, programs::INGRESS)?.try_into()?;
        ingress.load().context("load the ingress program")?;
        let egress: &mut SchedClassifier = program(&mut ebpf, programs::EGRESS)?.try_into()?;
        egress.load().context("load the egress program")?;
        policy(&mut ebpf)?;
        Ok(Self {
            flows4: tables(&mut ebpf, V4_TABLES)?,
            flows6: tables(&mut ebpf, V6_TABLES)?,
            stats: PerCpuArray::try_from(take(&mut ebpf, maps::STATS)?)?,
            ebpf,
            last: 0,
        })
    }

    /// Does the packet in `frame`, an Ethernet frame, pass?
    ///
    /// # Errors
    /// The kernel does not run the program, or it returns what it never does.
    pub fn passes(&mut self, from: Side, frame: &[u8]) -> Result<bool> {
        let options = TestRunOptions {
            data_in: Some(frame),
            ..TestRunOptions::new()
        };
        let result = match from {
            Side::Outside => {
                let ingress: &mut Xdp = program(&mut self.ebpf, programs::INGRESS)?.try_into()?;
                ingress.test_run(options)
            }
            Side::Inside => {
                let egress: &mut SchedClassifier =
                    program(&mut self.ebpf, programs::EGRESS)?.try_into()?;
                egress.test_run(options)
            }
        };
        let code = result.context("run a program")?.return_value;
        match (from, code) {
            (Side::Outside, XDP_PASS) | (Side::Inside, TC_ACT_UNSPEC) => Ok(true),
            (Side::Outside, XDP_DROP) | (Side::Inside, TC_ACT_SHOT) => Ok(false),
            (side, other) => bail!("the program for {side:?} returns {other}"),
        }
    }

    /// As [`Self::passes`], with the reason that was counted. Slow.
    ///
    /// # Errors
    /// As [`Self::passes`], or not exactly one reason was counted.
    pub fn judge(&mut self, from: Side, frame: &[u8]) -> Result<Verdict> {
        let before = self.counted()?;
        let passes = self.passes(from, frame)?;
        let after = self.counted()?;
        let changed: Vec<Verdict> = before
            .iter()
            .zip(&after)
            .filter(|((_, before), (_, after))| before != after)
            .map(|((verdict, _), _)| *verdict)
            .collect();
        match changed[..] {
            [verdict] if matches!(verdict, Verdict::Pass(_)) == passes => Ok(verdict),
            _ => bail!("pass is {passes}, and counted was {changed:?}"),
        }
    }

    fn counted(&self) -> Result<Vec<(Verdict, u64)>> {
        let pass = PassReason::ALL.iter().map(|r| Verdict::Pass(*r));
        let drop = DropReason::ALL.iter().map(|r| Verdict::Drop(*r));
        pass.chain(drop)
            .map(|verdict| {
                let counters = self.stats.get(&verdict.index(), 0)?;
                Ok((verdict, counters.iter().map(|c| c.packets).sum()))
            })
            .collect()
    }

    /// The live entry of the flow between `ends`.
    ///
    /// # Errors
    /// What the kernel says, or there are two.
    pub fn flow(&mut self, ends: &Ends) -> Result<Option<Flow>> {
        match ends.family {
            Family::V4 => find(&self.flows4, FlowKey4::of(&headers(ends)).0, &mut self.last),
            Family::V6 => find(&self.flows6, FlowKey6::of(&headers(ends)).0, &mut self.last),
        }
    }

    /// Forgets the flow between `ends`, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget(&mut self, ends: &Ends) -> Result<()> {
        match ends.family {
            Family::V4 => remove(&mut self.flows4, FlowKey4::of(&headers(ends)).0),
            Family::V6 => remove(&mut self.flows6, FlowKey6::of(&headers(ends)).0),
        }
    }
}

/// The direction in `flow`, which is between `ends`, of what `from` sends.
#[must_use]
pub fn direction(ends: &Ends, from: Side, flow: &Flow) -> Direction {
    let headers = headers(ends);
    let outward = match ends.family {
        Family::V4 => FlowKey4::of(&headers).1,
        Family::V6 => FlowKey6::of(&headers).1,
    };
    let heading = match (from, outward) {
        (Side::Inside, heading) => heading,
        (Side::Outside, Heading::Up) => Heading::Down,
        (Side::Outside, Heading::Down) => Heading::Up,
    };
    Direction::of(heading, FlowState(flow.state).first_heading())
}

/// The TCP state of a live entry.
///
/// # Errors
/// It is no TCP state.
pub fn state(flow: &Flow) -> Result<State> {
    let number = FlowState(flow.state).state();
    State::try_from(number).map_err(|n| anyhow::anyhow!("a flow in the TCP state {n}"))
}

fn find<K: aya::Pod>(tables: &[Table<K>], key: K, last: &mut usize) -> Result<Option<Flow>> {
    for at in [*last, 0, 1, 2] {
        match tables[at].get(&key, 0) {
            Ok(flow) if FlowState(flow.state).phase() == Phase::Live => {
                *last = at;
                return Ok(Some(flow));
            }
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).context("look a flow up"),
        }
    }
    Ok(None)
}

fn remove<K: aya::Pod>(tables: &mut [Table<K>], key: K) -> Result<()> {
    for table in tables {
        match table.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if is_missing(&error.io_error) => {}
            Err(error) => return Err(error).context("remove a flow"),
        }
    }
    Ok(())
}

fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

/// The headers that the programs would make of a segment from inside.
fn headers(ends: &Ends) -> Headers {
    let address = |side| {
        let bytes = ends.of(side).address;
        match ends.family {
            Family::V4 => map_v4(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            Family::V6 => bytemuck::cast(bytes),
        }
    };
    Headers {
        family: match ends.family {
            Family::V4 => wire::Family::V4,
            Family::V6 => wire::Family::V6,
        },
        proto: proto::TCP,
        src: address(Side::Inside),
        dst: address(Side::Outside),
        sport: ends.of(Side::Inside).port,
        dport: ends.of(Side::Outside).port,
        ..Headers::ZERO
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("the object has no program {name}"))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the object has no map {name}"))
}

fn tables<K: aya::Pod>(ebpf: &mut Ebpf, names: [&str; 3]) -> Result<Vec<Table<K>>> {
    names
        .into_iter()
        .map(|name| Ok(HashMap::try_from(take(ebpf, name)?)?))
        .collect()
}

/// Every flow may begin, on either side, and none runs out.
fn policy(ebpf: &mut Ebpf) -> Result<()> {
    let iface = Iface {
        zone: OUTSIDE,
        ..Zeroable::zeroed()
    };
    let mut ifaces: HashMap<_, u32, Iface> = HashMap::try_from(take(ebpf, maps::IFACES)?)?;
    ifaces.insert(LO, iface, 0)?;
    let rule = Rule {
        from_zone: ZONE_ANY,
        to_zone: ZONE_ANY,
        action: action::ACCEPT,
        sport: [0, u16::MAX],
        dport: [0, u16::MAX],
        ..Zeroable::zeroed()
    };
    policy::install(ebpf, 0, &Classes::of(&[rule])?)?;
    let config = Config {
        rule_count: [1; 2],
        // The tables are emptied from here, which the programs do not count.
        tier_limits: [u32::MAX; 4],
        timeouts: [ticks_from_secs(TIMEOUT_SECS); timeout::LEN],
        ..Zeroable::zeroed()
    };
    let mut configs: Array<_, Config> = Array::try_from(take(ebpf, maps::CONFIG)?)?;
    configs.set(0, config, 0)?;
    Ok(())
}

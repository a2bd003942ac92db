//! The real object, loaded without pins and run through BPF_PROG_RUN.

mod agent;
mod outcome;
mod rules;
mod run;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, atomic::AtomicUsize},
    thread,
    time::{Duration, SystemTime},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{SchedClassifier, Xdp},
};
use bytemuck::Zeroable;
use firewall_common::{
    abi::{
        Config, Control, Counter, CtlCounts, CtlFlow, CtlRequest, DataFlow, EventHeader, ExpectKey,
        Expectation, Flow, FlowEvent, FlowEventKind, FlowKey4, FlowKey6, FlowState, FragmentKey,
        Fragments, Iface, ORPHAN_BUCKETS, Pair, PairKey, Rule, TABLES_LEN, TIER_COUNTS_LEN,
        TableCounter, TableId, Target, Watch, ctl_op, essentials, heartbeat, maps, programs,
        timeout,
    },
    key::FlowKey as _,
    time::{Tick, ticks_from_secs},
    verdict::{DropReason, Event, PassReason, STATS_LEN, Verdict},
};
use firewall_user::{
    bpf::{policy, sys::lookup_per_cpu},
    classes::Classes,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use self::run::{loaded, meet, run, run_again};
pub(crate) use self::{
    outcome::{Outcome, dropped, passed, would_drop},
    rules::{accept, accept_port, outward_rules},
};

/// The loopback interface, on which BPF_PROG_RUN runs by default.
const LO: u32 = 1;
/// All time-outs, in ticks.
const TIMEOUT: u32 = ticks_from_secs(600);
/// Fragmented datagrams that the programs remember here.
pub(crate) const DATAGRAMS: u32 = 1024;
/// Zone of that interface.
pub(crate) const OUTSIDE: u8 = 1;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Where a frame is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    /// It arrives.
    Ingress,
    /// The host sends it.
    Egress,
}

/// The programs with their maps, for one test at a time.
pub(crate) struct Rig {
    ebpf: Option<Ebpf>,
}

/// Loaded objects that no test uses at the moment: verifying the programs takes
/// longer than any test.
static IDLE: Mutex<Vec<Ebpf>> = Mutex::new(Vec::new());

impl Drop for Rig {
    fn drop(&mut self) {
        // What a failed test leaves behind is not for the next one.
        if !std::thread::panicking() {
            IDLE.lock().unwrap().extend(self.ebpf.take());
        }
    }
}

fn object() -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/pinhole.o");
    std::fs::read(&path).unwrap_or_else(|e| {
        panic!("{}: {e}; `cargo xtask build` makes it", path.display());
    })
}

/// The programs' own clock (`bpf_ktime_get_coarse_ns`), ns. Where the machine has no time for
/// the timer's interrupt, as where it is emulated, it lags `CLOCK_MONOTONIC` by many ticks.
pub(crate) fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    Duration::from(now).as_nanos() as u64
}

const V4_TABLES: [&str; 3] = [maps::FLOWS4, maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT];
const V6_TABLES: [&str; 3] = [maps::FLOWS6, maps::HALF_OPEN6_IN, maps::HALF_OPEN6_OUT];

fn load() -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &0_u8, true);
    for table in V4_TABLES.iter().chain(&V6_TABLES) {
        loader.map_max_entries(table, 2048);
    }
    loader.map_max_entries(maps::FRAGMENTS, DATAGRAMS);
    let mut ebpf = loader.load(&object()).unwrap();
    // At once: the verifier takes its time over each, on one CPU.
    thread::scope(|scope| {
        for (name, program) in ebpf.programs_mut() {
            if [programs::INGRESS, programs::CTL, programs::EGRESS].contains(&name) {
                scope.spawn(move || loaded(program));
            }
        }
    });
    ebpf
}

impl Rig {
    /// Loads the object with the rules of a host: everything out, replies in.
    pub(crate) fn new() -> Self {
        Self::with_rules(&outward_rules())
    }

    pub(crate) fn with_rules(rules: &[Rule]) -> Self {
        let idle = IDLE.lock().unwrap().pop();
        let mut rig = Self {
            ebpf: Some(idle.unwrap_or_else(load)),
        };
        rig.reset();
        rig.configure(|config| {
            config.essentials = essentials::ALL;
            config.tier_limits = [1024; 4];
            config.timeouts = [TIMEOUT; timeout::LEN];
            config.agent_stale_ns = 2_000_000_000;
            config.hold_ring_limit = 1 << 20;
            config.hold_per_pair = 8;
        });
        rig.iface(OUTSIDE);
        rig.rules(rules);
        rig
    }

    /// Empties the maps.
    fn reset(&mut self) {
        for table in V4_TABLES {
            self.empty::<FlowKey4, Flow>(table);
        }
        for table in V6_TABLES {
            self.empty::<FlowKey6, Flow>(table);
        }
        self.empty::<FragmentKey, Fragments>(maps::FRAGMENTS);
        for at in 0..ORPHAN_BUCKETS as u32 {
            self.array::<u64>(maps::ORPHANS).set(at, 0, 0).unwrap();
        }
        self.empty::<ExpectKey, Expectation>(maps::EXPECTATIONS);
        self.empty::<Target, u64>(maps::TARGETS);
        self.empty::<FlowKey6, DataFlow>(maps::DATA_FLOWS);
        self.empty::<PairKey, Pair>(maps::PAIRS);
        self.array(maps::CONFIG)
            .set(0, Config::zeroed(), 0)
            .unwrap();
        self.confirm_deadline(0);
        for at in 0..heartbeat::LEN {
            self.array::<u64>(maps::HEARTBEAT).set(at, 0, 0).unwrap();
        }
        for at in 0..TIER_COUNTS_LEN as u32 {
            self.array::<u64>(maps::TIER_COUNTS).set(at, 0, 0).unwrap();
        }
        let cpus = aya::util::nr_cpus().unwrap();
        let mut stats: PerCpuArray<_, Counter> =
            PerCpuArray::try_from(self.map(maps::STATS)).unwrap();
        for at in 0..STATS_LEN {
            let zero = PerCpuValues::try_from(vec![Counter::default(); cpus]).unwrap();
            stats.set(at, zero, 0).unwrap();
        }
        let mut tables: PerCpuArray<_, TableCounter> =
            PerCpuArray::try_from(self.map(maps::TABLE_COUNTERS)).unwrap();
        for at in 0..TABLES_LEN as u32 {
            let zero = PerCpuValues::try_from(vec![TableCounter::default(); cpus]).unwrap();
            tables.set(at, zero, 0).unwrap();
        }
        self.records();
        self.watch_until(0, &[]);
        self.flow_events();
    }

    fn empty<K: aya::Pod, V: aya::Pod>(&mut self, table: &str) {
        let mut table = self.hash::<K, V>(table);
        let keys: Vec<K> = table.keys().map(|key| key.unwrap()).collect();
        for key in keys {
            table.remove(&key).unwrap();
        }
    }

    fn ebpf(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().unwrap()
    }

    fn xdp(&mut self, name: &str) -> &mut Xdp {
        let program = self.ebpf().program_mut(name).unwrap();
        program.try_into().unwrap()
    }

    fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf().map_mut(name).unwrap()
    }

    fn array<T: aya::Pod>(&mut self, name: &str) -> Array<&mut MapData, T> {
        Array::try_from(self.map(name)).unwrap()
    }

    pub(crate) fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> HashMap<&mut MapData, K, V> {
        HashMap::try_from(self.map(name)).unwrap()
    }

    /// Changes the configuration.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut table: Array<_, Config> = self.array(maps::CONFIG);
        let mut config = table.get(&0, 0).unwrap();
        change(&mut config);
        table.set(0, config, 0).unwrap();
    }

    /// Puts the interface into a zone.
    pub(crate) fn iface(&mut self, zone: u8) {
        self.iface_with(zone, 0);
    }

    /// As [`Rig::iface`], with `iface_flags`.
    pub(crate) fn iface_with(&mut self, zone: u8, flags: u32) {
        let iface = Iface {
            zone,
            flags,
            ..Zeroable::zeroed()
        };
        self.hash::<u32, Iface>(maps::IFACES)
            .insert(LO, iface, 0)
            .unwrap();
        // The programs remember an interface for a jiffy: ten milliseconds at most.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    pub(crate) fn rules(&mut self, rules: &[Rule]) {
        self.generation(0, rules);
    }

    /// Puts rules into a generation, and makes it the live one.
    pub(crate) fn generation(&mut self, generation: u32, rules: &[Rule]) {
        let classes = Classes::of(rules).unwrap();
        policy::install(self.ebpf(), generation, &classes).unwrap();
        self.configure(|config| {
            config.rule_count[generation as usize] = rules.len() as u32;
            config.generation = generation;
        });
    }

    pub(crate) fn confirm_deadline(&mut self, at_ns: u64) {
        let control = Control {
            confirm_deadline_ns: at_ns,
        };
        self.array(maps::CONTROL).set(0, control, 0).unwrap();
    }

    /// A frame arrives.
    pub(crate) fn ingress(&mut self, frame: &[u8]) -> Outcome {
        let before = self.stats();
        let code = run(self.xdp(programs::INGRESS), frame);
        let outcome = self.counted(&before);
        let expected = if outcome.passes() { XDP_PASS } else { XDP_DROP };
        assert_eq!(code, expected, "{outcome:?}");
        outcome
    }

    /// A frame arrives, and whether it passes is all that is asked: a look at
    /// every counter takes far longer.
    pub(crate) fn feed(&mut self, frame: &[u8]) -> bool {
        run(self.xdp(programs::INGRESS), frame) == XDP_PASS
    }

    /// The host sends a frame.
    pub(crate) fn egress(&mut self, frame: &[u8]) -> Outcome {
        let before = self.stats();
        let program: &mut SchedClassifier = self
            .ebpf()
            .program_mut(programs::EGRESS)
            .unwrap()
            .try_into()
            .unwrap();
        let code = run(program, frame);
        let outcome = self.counted(&before);
        let expected = match outcome.0 {
            _ if outcome.passes() => TC_ACT_UNSPEC,
            Verdict::Drop(DropReason::RingFull | DropReason::Held) => TC_ACT_REDIRECT,
            _ => TC_ACT_SHOT,
        };
        assert_eq!(code, expected, "{outcome:?}");
        outcome
    }

    /// Two frames at once, each on a CPU of its own and `times` over. Both begin
    /// when both are ready.
    pub(crate) fn at_once(&mut self, frames: [(Hook, &[u8]); 2], times: u32) {
        let ebpf = &*self.ebpf();
        let missing = AtomicUsize::new(frames.len());
        thread::scope(|scope| {
            for (cpu, (hook, frame)) in frames.into_iter().enumerate() {
                let missing = &missing;
                scope.spawn(move || {
                    let mut own = CpuSet::new();
                    own.set(cpu % aya::util::nr_cpus().unwrap()).unwrap();
                    sched_setaffinity(Pid::from_raw(0), &own).unwrap();
                    meet(missing);
                    match hook {
                        Hook::Ingress => {
                            let program = ebpf.program(programs::INGRESS).unwrap();
                            run_again(TryInto::<&Xdp>::try_into(program).unwrap(), frame, times);
                        }
                        Hook::Egress => {
                            let program = ebpf.program(programs::EGRESS).unwrap();
                            let program: &SchedClassifier = program.try_into().unwrap();
                            run_again(program, frame, times);
                        }
                    }
                });
            }
        });
    }

    /// Packets that passed for a reason.
    pub(crate) fn passed(&mut self, reason: PassReason) -> u64 {
        self.stats()[reason.index() as usize]
    }

    /// Packets that were dropped for a reason.
    pub(crate) fn dropped(&mut self, reason: DropReason) -> u64 {
        self.stats()[reason.index() as usize]
    }

    /// Removes the proved IPv4 flows.
    pub(crate) fn forget4(&mut self) {
        self.empty::<FlowKey4, Flow>(maps::FLOWS4);
        for tier in 0..TIER_COUNTS_LEN as u32 {
            self.array::<u64>(maps::TIER_COUNTS)
                .set(tier, 0, 0)
                .unwrap();
        }
    }

    /// How many IPv4 flows are half-open.
    pub(crate) fn half_open4(&mut self) -> usize {
        let tables = [maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT];
        tables.map(|table| self.flows4(table).len()).iter().sum()
    }

    /// Removes the half-open IPv4 flows.
    pub(crate) fn forget_half_open4(&mut self) {
        self.empty::<FlowKey4, Flow>(maps::HALF_OPEN4_IN);
        self.empty::<FlowKey4, Flow>(maps::HALF_OPEN4_OUT);
    }

    /// Removes those of IPv6.
    pub(crate) fn forget_half_open6(&mut self) {
        self.empty::<FlowKey6, Flow>(maps::HALF_OPEN6_IN);
        self.empty::<FlowKey6, Flow>(maps::HALF_OPEN6_OUT);
    }

    /// Packets that the rules of a generation decided, by rule: the sum of all CPUs, up to the end of each one's last cache line.
    pub(crate) fn hits(&mut self, generation: u32) -> Vec<u64> {
        let of_policies: ArrayOfMaps<_, Array<MapData, Counter>> =
            ArrayOfMaps::try_from(self.map(maps::RULE_HITS)).unwrap();
        let counters = of_policies.get(&generation, 0).unwrap();
        let rules = counters.len() as usize / aya::util::nr_cpus().unwrap();
        let mut hits = vec![0; rules];
        for (at, counter) in counters.iter().enumerate() {
            hits[at % rules] += counter.unwrap().packets;
        }
        hits
    }

    /// Asks the control program; returns how many flows it changed.
    pub(crate) fn ctl(&mut self, op: u32, keys: &[FlowKey6]) -> u32 {
        let flows: Vec<_> = keys.iter().copied().map(CtlFlow::any).collect();
        self.ctl_flows(op, &flows)
    }

    /// Deletes flows by what was seen of them, as the command line does.
    pub(crate) fn delete(&mut self, seen: &[(FlowKey4, Flow)]) -> u32 {
        let flow = |(key, flow): &(FlowKey4, Flow)| {
            CtlFlow::new(key.widen(), FlowState(flow.state).incarnation())
        };
        let flows: Vec<_> = seen.iter().map(flow).collect();
        self.ctl_flows(ctl_op::DELETE, &flows)
    }

    fn ctl_flows(&mut self, op: u32, flows: &[CtlFlow]) -> u32 {
        let mut request: CtlRequest = Zeroable::zeroed();
        request.op = op;
        request.count = flows.len() as u32;
        request.flows[..flows.len()].copy_from_slice(flows);
        run(self.xdp(programs::CTL), bytemuck::bytes_of(&request))
    }

    pub(crate) fn expire(&mut self, keys: &[FlowKey6]) -> u32 {
        self.ctl(ctl_op::EXPIRE, keys)
    }

    /// Hands counts to the control program; returns how many it changed.
    pub(crate) fn count(&mut self, counts: &CtlCounts) -> u32 {
        let request = CtlCounts {
            op: ctl_op::COUNT,
            ..*counts
        };
        run(self.xdp(programs::CTL), bytemuck::bytes_of(&request))
    }

    /// Proved flows on record, by tier.
    pub(crate) fn tier_counts(&mut self) -> [u64; TIER_COUNTS_LEN] {
        let counts = self.array::<u64>(maps::TIER_COUNTS);
        std::array::from_fn(|tier| counts.get(&(tier as u32), 0).unwrap())
    }

    /// What the programs did to a table, on all CPUs.
    pub(crate) fn table_counter(&mut self, table: TableId) -> TableCounter {
        let counters: PerCpuArray<_, TableCounter> =
            PerCpuArray::try_from(self.map(maps::TABLE_COUNTERS)).unwrap();
        let of_cpus = counters.get(&(table as u32), 0).unwrap();
        TableCounter {
            created: of_cpus.iter().map(|c| c.created).sum(),
            removed: of_cpus.iter().map(|c| c.removed).sum(),
        }
    }

    fn stats(&mut self) -> Vec<u64> {
        let stats: PerCpuArray<_, Counter> = PerCpuArray::try_from(self.map(maps::STATS)).unwrap();
        let counters = lookup_per_cpu(&stats, STATS_LEN as usize).unwrap();
        let of_cpus = counters.chunks(counters.len() / STATS_LEN as usize);
        of_cpus
            .map(|of| of.iter().map(|c| c.packets).sum())
            .collect()
    }

    /// The one verdict that was counted since `before`.
    fn counted(&mut self, before: &[u64]) -> Outcome {
        let after = self.stats();
        let pass = PassReason::ALL.iter().map(|r| passed(*r));
        let drop = DropReason::ALL
            .iter()
            .flat_map(|r| [dropped(*r), would_drop(*r)]);
        let counted: Vec<Outcome> = pass
            .chain(drop)
            .filter(|o| after[o.index()] != before[o.index()])
            .collect();
        let [outcome] = counted[..] else {
            panic!("one verdict a packet, not {counted:?}");
        };
        let at = outcome.index();
        assert_eq!(after[at], before[at] + 1, "counted once");
        outcome
    }

    /// Bytes counted at an index of the outcomes.
    pub(crate) fn bytes(&mut self, at: u32) -> u64 {
        let stats: PerCpuArray<_, Counter> = PerCpuArray::try_from(self.map(maps::STATS)).unwrap();
        stats.get(&at, 0).unwrap().iter().map(|c| c.bytes).sum()
    }

    pub(crate) fn event(&mut self, event: Event) -> u64 {
        self.stats()[event.index() as usize]
    }

    /// All entries of a table of IPv4 flows.
    pub(crate) fn flows4(&mut self, table: &str) -> BTreeMap<String, (FlowKey4, Flow)> {
        self.hash::<FlowKey4, Flow>(table)
            .iter()
            .map(|entry| entry.unwrap())
            .map(|(key, flow)| (format!("{key:?}"), (key, flow)))
            .collect()
    }

    /// The only IPv4 flow of a table.
    pub(crate) fn flow4(&mut self, table: &str) -> (FlowKey4, Flow) {
        let flows = self.flows4(table);
        assert_eq!(flows.len(), 1, "{table}: {flows:#?}");
        *flows.values().next().unwrap()
    }

    /// Changes the only IPv4 flow of a table.
    pub(crate) fn change4(&mut self, table: &str, change: impl FnOnce(&mut Flow)) {
        let (key, mut flow) = self.flow4(table);
        change(&mut flow);
        self.hash::<FlowKey4, Flow>(table)
            .insert(key, flow, 0)
            .unwrap();
    }

    /// Lets the time of an IPv4 flow be over.
    pub(crate) fn expire4(&mut self, key: &FlowKey4) {
        let mut table = self.hash::<FlowKey4, Flow>(maps::FLOWS4);
        let mut flow = table.get(key, 0).unwrap();
        flow.seen = long_ago();
        table.insert(key, flow, 0).unwrap();
    }

    /// Somebody watches flows for the rest of the test.
    pub(crate) fn watch(&mut self, kinds: &[FlowEventKind]) {
        self.watch_until(now_ns() + 3_600_000_000_000, kinds);
    }

    /// Somebody watched, and did not say that it ended.
    pub(crate) fn watched(&mut self) {
        self.watch_until(now_ns() - 1_000_000_000, &FlowEventKind::ALL);
    }

    fn watch_until(&mut self, until_ns: u64, kinds: &[FlowEventKind]) {
        let watch = Watch {
            until_ns,
            kinds: kinds.iter().fold(0, |bits, kind| bits | kind.bit()),
            pid: 0,
        };
        self.array(maps::WATCH).set(0, watch, 0).unwrap();
    }

    /// What the watcher was told.
    pub(crate) fn flow_events(&mut self) -> Vec<FlowEvent> {
        let mut ring = RingBuf::try_from(self.map(maps::FLOW_EVENTS)).unwrap();
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            events.push(bytemuck::pod_read_unaligned(&record));
        }
        events
    }

    /// Everything on the ring.
    pub(crate) fn records(&mut self) -> Vec<(EventHeader, Vec<u8>)> {
        let mut ring = RingBuf::try_from(self.map(maps::EVENTS)).unwrap();
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            let (head, rest) = record.split_at(size_of::<EventHeader>());
            let head: EventHeader = bytemuck::pod_read_unaligned(head);
            records.push((head, rest[..head.len as usize].to_vec()));
        }
        records
    }
}

/// When a flow was last renewed that has expired by now.
pub(crate) fn long_ago() -> u32 {
    tick().0.wrapping_sub(TIMEOUT + 2)
}

/// The tick of now.
pub(crate) fn tick() -> Tick {
    Tick::from_ns(now_ns())
}

/// A seed that differs from run to run, for generated packets; printed on failure.
pub(crate) fn seed() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
}

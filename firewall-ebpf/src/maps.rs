//! The maps. Sizes of the tables are defaults, which the loader overrides.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use firewall_common::abi::{
    Census, CollectorState, Config, Control, Counter, DataFlow, EVENTS_BYTES, ExpectKey,
    Expectation, FLOW_EVENTS_BYTES, FRAGMENTS_LEN, Flow, FlowKey4, FlowKey6, FragmentKey,
    Fragments, INNER_MAP, Iface, JOURNAL_LEN, JournalEntry, ORPHAN_BUCKETS, Pair, PairKey,
    REFUSALS_LEN, RING_SHARES_LEN, RULE_NAMES_LEN, Rule, RuleName, Session, TABLES_LEN,
    TIER_COUNTS_LEN, TableCounter, Target, Watch, classes::Block, heartbeat,
};
use firewall_common::verdict::STATS_LEN;

pub(crate) const FLOWS: usize = 65_536;
pub(crate) const HALF_OPEN: usize = 16_384;
const FTP: usize = 4096;
pub(crate) const IFACES_LEN: usize = 1024;
const GENERATIONS: usize = 2;

/// What each policy has of its own; the real length is decided when it is made.
///
/// Not of `T`: a kernel before 6.2 takes a map into another only if it looked for timers
/// in the values of both, and the agent makes its maps without type information. In a
/// structure the kernel looks, in an array it does not.
pub(crate) type OfPolicy<T> = Array<[T; 1], 1, INNER_MAP>;

#[btf_map]
pub(crate) static ABI: Array<u32, 1> = Array::new();
#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(crate) static CONTROL: Array<Control, 1> = Array::new();
#[btf_map]
pub(crate) static HEARTBEAT: Array<u64, { heartbeat::LEN as usize }> = Array::new();
#[btf_map]
pub(crate) static FLOWS4: LruHashMap<FlowKey4, Flow, FLOWS> = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS6: LruHashMap<FlowKey6, Flow, FLOWS> = LruHashMap::new();
#[btf_map]
pub(crate) static HALF_OPEN4_IN: LruHashMap<FlowKey4, Flow, HALF_OPEN> = LruHashMap::new();
#[btf_map]
pub(crate) static HALF_OPEN4_OUT: LruHashMap<FlowKey4, Flow, HALF_OPEN> = LruHashMap::new();
#[btf_map]
pub(crate) static HALF_OPEN6_IN: LruHashMap<FlowKey6, Flow, HALF_OPEN> = LruHashMap::new();
#[btf_map]
pub(crate) static HALF_OPEN6_OUT: LruHashMap<FlowKey6, Flow, HALF_OPEN> = LruHashMap::new();
#[btf_map]
pub(crate) static EXPECTATIONS: HashMap<ExpectKey, Expectation, FTP> = HashMap::new();
#[btf_map]
pub(crate) static TARGETS: HashMap<Target, u64, FTP> = HashMap::new();
#[btf_map]
pub(crate) static DATA_FLOWS: LruHashMap<FlowKey6, DataFlow, FTP> = LruHashMap::new();
#[btf_map]
pub(crate) static SESSIONS: HashMap<FlowKey6, Session, FTP> = HashMap::new();
#[btf_map]
static REFUSALS: Array<u64, REFUSALS_LEN> = Array::new();
#[btf_map]
pub(crate) static PAIRS: HashMap<PairKey, Pair, FTP> = HashMap::new();
#[btf_map]
pub(crate) static IFACES: HashMap<u32, Iface, IFACES_LEN> = HashMap::new();
#[btf_map]
pub(crate) static RULES: ArrayOfMaps<OfPolicy<Rule>, GENERATIONS> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static CLASSES: ArrayOfMaps<OfPolicy<Block>, GENERATIONS> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static RULE_HITS: ArrayOfMaps<OfPolicy<Counter>, GENERATIONS> = ArrayOfMaps::new();
#[btf_map]
static RULE_NAMES: Array<RuleName, RULE_NAMES_LEN> = Array::new();
#[btf_map]
pub(crate) static STATS: PerCpuArray<Counter, { STATS_LEN as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static TIER_COUNTS: Array<u64, TIER_COUNTS_LEN> = Array::new();
#[btf_map]
pub(crate) static MOVES: Array<u64, 1> = Array::new();
#[btf_map]
pub(crate) static TABLE_COUNTERS: PerCpuArray<TableCounter, TABLES_LEN> = PerCpuArray::new();
#[btf_map]
static CENSUS: Array<Census, TABLES_LEN> = Array::new();
#[btf_map]
static COLLECTOR: Array<CollectorState, 1> = Array::new();
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragments, FRAGMENTS_LEN> = LruHashMap::new();
#[btf_map]
pub(crate) static ORPHANS: Array<u64, ORPHAN_BUCKETS> = Array::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<u8, EVENTS_BYTES> = RingBuf::new();
#[btf_map]
pub(crate) static RING_SHARES: Array<u64, RING_SHARES_LEN> = Array::new();
#[btf_map]
static JOURNAL: Array<JournalEntry, JOURNAL_LEN> = Array::new();
#[btf_map]
pub(crate) static WATCH: Array<Watch, 1> = Array::new();
#[btf_map]
pub(crate) static FLOW_EVENTS: RingBuf<u8, FLOW_EVENTS_BYTES> = RingBuf::new();

/// What [`Table::create`] says when the entry is there already.
pub(crate) const EEXIST: i32 = -17;

/// The shape of the proved and half-open tables, one pair a family.
pub(crate) trait Table<K> {
    /// The entry for `key`. The pointer stays valid for the whole run, but its
    /// node can be recycled for another flow: the state word tells.
    fn entry(&self, key: &K) -> Option<*mut Flow>;
    /// Makes an entry where there is none. `Err` carries the errno, negative.
    fn create(&self, key: &K, flow: &Flow) -> Result<(), i32>;
    /// Removes the entry; only ever called by the winner of the swap to doomed
    /// or promoting. False: the LRU was faster.
    fn delete(&self, key: &K) -> bool;
}

impl<K, const N: usize> Table<K> for LruHashMap<K, Flow, N> {
    #[inline(always)]
    fn entry(&self, key: &K) -> Option<*mut Flow> {
        self.get_ptr_mut(key)
    }

    #[inline(always)]
    fn create(&self, key: &K, flow: &Flow) -> Result<(), i32> {
        const BPF_NOEXIST: u64 = 1;
        self.insert(key, flow, BPF_NOEXIST)
    }

    #[inline(always)]
    fn delete(&self, key: &K) -> bool {
        self.remove(key).is_ok()
    }
}

//! Every structure that crosses the boundary between kernel and user space.
//!
//! Declared once, here. No enum, no `Option`, no implicit padding: integers
//! become enums by `TryFrom` on the side that reads them. Byte order is the
//! host's unless a field says otherwise.

pub mod classes;
mod config;
mod event;
mod expect;
mod explain;
mod fast;
mod flow;
mod flow_key;
mod flow_word;
mod fragment;
mod journal;
mod pair_window;
mod ring_share;
mod rule;
mod session;
mod table;
mod watch;

pub use config::*;
pub use event::*;
pub use expect::*;
pub use explain::*;
pub use fast::*;
pub use flow::*;
pub use flow_key::*;
pub use flow_word::*;
pub use fragment::*;
pub use journal::*;
pub use pair_window::*;
pub use ring_share::*;
pub use rule::*;
pub use session::*;
pub use table::*;
pub use watch::*;

/// Version of all structures and map shapes below. A running instance whose
/// pinned maps carry another version is refused, never misread.
pub const ABI_VERSION: u32 = 4;

/// Names of the maps, as they stand in the object and under the pin directory.
pub mod maps {
    /// `ARRAY<u32>[1]`: the [`super::ABI_VERSION`] of the pinned maps. Its own shape never changes.
    pub const ABI: &str = "ABI";
    /// `ARRAY<Config>[1]`.
    pub const CONFIG: &str = "CONFIG";
    /// `ARRAY<Control>[1]`: the confirmation deadline.
    pub const CONTROL: &str = "CONTROL";
    /// `ARRAY<u64>[heartbeat::LEN]`: the agent's sign of life, by [`super::heartbeat`].
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// `LRU_HASH<FlowKey4, Flow>`: IPv4 flows that have proved themselves.
    pub const FLOWS4: &str = "FLOWS4";
    /// `LRU_HASH<FlowKey6, Flow>`: IPv6 flows that have proved themselves.
    pub const FLOWS6: &str = "FLOWS6";
    /// `LRU_HASH<FlowKey4, Flow>`: unproved IPv4 flows that began inside.
    pub const HALF_OPEN4_IN: &str = "HALF_OPEN4_IN";
    /// `LRU_HASH<FlowKey4, Flow>`: unproved IPv4 flows that began outside.
    pub const HALF_OPEN4_OUT: &str = "HALF_OPEN4_OUT";
    /// `LRU_HASH<FlowKey6, Flow>`: unproved IPv6 flows that began inside.
    pub const HALF_OPEN6_IN: &str = "HALF_OPEN6_IN";
    /// `LRU_HASH<FlowKey6, Flow>`: unproved IPv6 flows that began outside.
    pub const HALF_OPEN6_OUT: &str = "HALF_OPEN6_OUT";
    /// `HASH<ExpectKey, Expectation>`.
    pub const EXPECTATIONS: &str = "EXPECTATIONS";
    /// `HASH<Target, u64>`: ports that somebody is expected at, with the budget of SYNs
    /// from others that are reported ([`super::PairWindow`]).
    pub const TARGETS: &str = "TARGETS";
    /// `LRU_HASH<FlowKey6, DataFlow>`: data connections that took an expectation, by
    /// their own key, and whose they are.
    pub const DATA_FLOWS: &str = "DATA_FLOWS";
    /// `HASH<FlowKey6, Session>`: FTP sessions, by the key of their control flow.
    pub const SESSIONS: &str = "SESSIONS";
    /// `ARRAY<u64>[REFUSALS_LEN]`: lines of control connections that were refused, and
    /// data connections beyond a session range's limits, by the helper's reason. Written by the agent, never read by the programs.
    pub const REFUSALS: &str = "REFUSALS";
    /// `HASH<PairKey, Pair>`: host pairs with a live FTP session.
    pub const PAIRS: &str = "PAIRS";
    /// `HASH<u32, Iface>`: guarded interfaces by index.
    pub const IFACES: &str = "IFACES";
    /// `ARRAY<FastIface>[FAST_PLACES]`: what the fast path must know of guarded interfaces,
    /// in one of their [`super::fast_places`].
    pub const FAST_IFACES: &str = "FAST_IFACES";
    /// `PERCPU_ARRAY<FastCounter>[FAST_LEN]`, by [`super::FastIface::number`].
    pub const FAST_COUNTERS: &str = "FAST_COUNTERS";
    /// `PERCPU_ARRAY<Hop>[HOPS_LEN]`: routes that were looked up a moment ago. Not pinned.
    pub const HOPS: &str = "HOPS";
    /// `ARRAY<u32>[NEIGHBOURS_LEN]`: the tick in which a packet to a next hop last went
    /// through the kernel. Not pinned.
    pub const NEIGHBOURS: &str = "NEIGHBOURS";
    /// `ARRAY_OF_MAPS[2]` of `ARRAY<Rule>`, a compiled policy each: two generations, of
    /// which `Config::generation` is live.
    pub const RULES: &str = "RULES";
    /// `ARRAY_OF_MAPS[2]` of `ARRAY<Counter>`, generations as `RULES`: packets of new flows
    /// by CPU ([`super::hits_of_cpu`]), then by compiled rule.
    pub const RULE_HITS: &str = "RULE_HITS";
    /// `ARRAY_OF_MAPS[2]` of `ARRAY<Block>`, generations as `RULES`: what finds the rule of
    /// a packet among many ([`super::classes`]).
    pub const CLASSES: &str = "CLASSES";
    /// `ARRAY<RuleName>[RULE_NAMES_LEN]`: names of the configuration's rules, by
    /// [`super::name_of_id`]. Never read by the programs.
    pub const RULE_NAMES: &str = "RULE_NAMES";
    /// `PERCPU_ARRAY<Counter>[STATS_LEN]`, by [`crate::verdict`] index.
    pub const STATS: &str = "STATS";
    /// `ARRAY<u64>[TIER_COUNTS_LEN]`: proved flows by [`super::Tier`].
    pub const TIER_COUNTS: &str = "TIER_COUNTS";
    /// `ARRAY<u64>[1]`: how many flows have moved to a proved table.
    pub const MOVES: &str = "MOVES";
    /// `PERCPU_ARRAY<TableCounter>[TABLES_LEN]`, by [`super::TableId`].
    pub const TABLE_COUNTERS: &str = "TABLE_COUNTERS";
    /// `ARRAY<Census>[TABLES_LEN]`, by [`super::TableId`]. Never read by the programs.
    pub const CENSUS: &str = "CENSUS";
    /// `ARRAY<CollectorState>[1]`. Never read by the programs.
    pub const COLLECTOR: &str = "COLLECTOR";
    /// `LRU_HASH<FragmentKey, Fragments>`: fragmented datagrams on their way. Not pinned.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// `ARRAY<u64>[ORPHAN_BUCKETS]`: [`super::Bucket`]s. Not pinned.
    pub const ORPHANS: &str = "ORPHANS";
    /// `RINGBUF`: control payloads and related events, in the order in which they were seen.
    pub const EVENTS: &str = "EVENTS";
    /// `ARRAY<JournalEntry>[JOURNAL_LEN]`: what became of FTP sessions. Written by the
    /// agent, never read by the programs.
    pub const JOURNAL: &str = "JOURNAL";
    /// `ARRAY<Watch>[1]`: whether anybody watches flows.
    pub const WATCH: &str = "WATCH";
    /// `RINGBUF` of [`super::FlowEvent`]: what becomes of flows, for one watcher.
    pub const FLOW_EVENTS: &str = "FLOW_EVENTS";
    /// `ARRAY<Explain>[1]`: how the last packet was judged. Never pinned, and written only
    /// where [`super::EXPLAIN_SWITCH`] is on.
    pub const EXPLAIN: &str = "EXPLAIN";
}

/// Names of the programs in the object.
pub mod programs {
    /// XDP, ingress of every guarded interface.
    pub const INGRESS: &str = "pinhole_ingress";
    /// TC, egress of every guarded interface.
    pub const EGRESS: &str = "pinhole_egress";
    /// XDP, run by the agent through BPF_PROG_RUN on live frames: a held packet
    /// again, with holding off.
    pub const REINJECT: &str = "pinhole_reinject";
    /// XDP, run through BPF_PROG_RUN with a [`super::CtlRequest`] as the packet:
    /// the only place in which flows are deleted or marked on request.
    pub const CTL: &str = "pinhole_ctl";
    /// Name of the pin of [`CTL`], for commands that work without an agent.
    pub const CTL_PIN: &str = "program-ctl";
}

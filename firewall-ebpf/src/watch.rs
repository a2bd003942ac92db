//! Tells a watcher what becomes of flows.
//!
//! Nobody watching costs one look at a map element, where a flow begins, changes
//! its state or ends, and nothing anywhere else.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use firewall_common::{
    abi::{EndReason, Flow, FlowEvent, FlowEventKind, FlowKey4, FlowKey6, FlowState},
    key::FlowKey,
    verdict::Event,
};

use crate::{
    conntrack::Family,
    maps::{FLOW_EVENTS, WATCH},
    stats,
};

/// What is told: kind, end and tier in one word, because a function that is not
/// inlined has five registers for its arguments.
#[derive(Clone, Copy)]
pub(crate) struct News(u32);

impl News {
    /// Its first packet was accepted.
    pub(crate) const NEW: Self = Self(FlowEventKind::New as u32);

    /// Its state changed.
    #[inline(always)]
    pub(crate) const fn update(proved: bool) -> Self {
        Self(FlowEventKind::Update as u32 | (proved as u32) << 16)
    }

    /// It ended.
    #[inline(always)]
    pub(crate) const fn destroy(end: EndReason, proved: bool) -> Self {
        Self(FlowEventKind::Destroy as u32 | (end as u32) << 8 | (proved as u32) << 16)
    }
}

/// Tells `news` of the flow in `entry`, which has or had the state `word`.
#[inline(always)]
pub(crate) fn tell<K: Family>(key: &K, entry: *const Flow, word: FlowState, news: News) {
    if WATCH.get(0).is_some_and(|watch| watch.until_ns != 0) {
        K::tell_watcher(key, entry, word.0, news.0);
    }
}

/// As [`tell`], for IPv4. Global, so that the verifier looks at it once, and not
/// again for each way that leads to one of its calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tell_watcher4(
    key: *const FlowKey4,
    entry: *const Flow,
    word: u64,
    news: u32,
) -> u32 {
    tell_watcher(key, entry, word, news)
}

/// As [`tell_watcher4`], for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tell_watcher6(
    key: *const FlowKey6,
    entry: *const Flow,
    word: u64,
    news: u32,
) -> u32 {
    tell_watcher(key, entry, word, news)
}

/// Returns whether it was told: a global function must return a number.
#[inline(always)]
fn tell_watcher<K: FlowKey>(key: *const K, entry: *const Flow, word: u64, news: u32) -> u32 {
    // Callers pass none, but the verifier judges the function by itself.
    if key.is_null() || entry.is_null() {
        return 0;
    }
    let Some(watch) = WATCH.get(0) else {
        return 0;
    };
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    if watch.until_ns < now_ns || watch.kinds >> (news & 31) & 1 == 0 {
        return 0;
    }
    let Some(mut record) = FLOW_EVENTS.reserve_untyped::<FlowEvent>(0) else {
        stats::event(Event::FlowEventLost);
        return 0;
    };
    let event: *mut FlowEvent = MaybeUninit::as_mut_ptr(&mut record);
    // SAFETY: the reservation is as large as the record, and nobody else sees it
    // before it is submitted; any bytes are a valid record.
    let event = unsafe { &mut *event };
    event.at_ns = now_ns;
    // SAFETY: not null, and a key.
    event.key = unsafe { &*key }.widen();
    // SAFETY: a map value; other CPUs may change counters under the copy.
    event.flow = unsafe { *entry };
    event.kind = (news & 31) as u8;
    event.end = (news >> 8) as u8;
    event.proved = (news >> 16) as u8;
    event.reserved = [0; 5];
    let recycled = FlowState(event.flow.state).incarnation() != FlowState(word).incarnation();
    event.flow.state = word;
    if recycled {
        // The LRU gave the node to another flow meanwhile: these are its numbers.
        stats::event(Event::FlowEventLost);
        record.discard(0);
        return 0;
    }
    record.submit(0);
    1
}

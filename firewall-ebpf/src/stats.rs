//! Per-CPU counters: every verdict and every notable event, by its stable index.

use aya_ebpf::btf_maps::PerCpuArray;
use firewall_common::{abi::Counter, verdict::Event};

use crate::maps::{RULE_HITS, STATS};

/// Counts a verdict, by its index, on a packet of `bytes` bytes.
#[inline(always)]
pub(crate) fn outcome(outcome: u32, bytes: u32) {
    add(&STATS, outcome, bytes);
}

/// Counts an event.
#[inline(always)]
pub(crate) fn event(event: Event) {
    add(&STATS, event.index(), 0);
}

/// Counts a new flow that the compiled rule at `index` decided.
#[inline(always)]
pub(crate) fn rule(index: u32, bytes: u32) {
    add(&RULE_HITS, index, bytes);
}

#[inline(always)]
fn add<const N: usize>(map: &PerCpuArray<Counter, N>, index: u32, bytes: u32) {
    let Some(counter) = map.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: the element is this CPU's own, and programs of both hooks run
    // with bottom halves off, so nobody else writes it meanwhile.
    let counter = unsafe { &mut *counter };
    counter.packets = counter.packets.wrapping_add(1);
    counter.bytes = counter.bytes.wrapping_add(bytes as u64);
}

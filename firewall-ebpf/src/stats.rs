//! Per-CPU counters: every verdict and every notable event, by its stable index.

use aya_ebpf::{btf_maps::PerCpuArray, helpers::generated::bpf_get_smp_processor_id};
use firewall_common::{
    abi::{Counter, hits_of_cpu},
    verdict::Event,
};

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

/// Counts a new flow that the compiled rule `index` of `count` decided.
#[inline(always)]
pub(crate) fn rule(generation: u32, index: u32, count: u32, bytes: u32) {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(hits) = RULE_HITS.get(generation) {
        tally(
            hits.get_ptr_mut(cpu * hits_of_cpu(count) + index)
                .map(<*mut _>::cast),
            bytes,
        );
    }
}

#[inline(always)]
fn add<const N: usize>(map: &PerCpuArray<Counter, N>, index: u32, bytes: u32) {
    tally(map.get_ptr_mut(index), bytes);
}

#[inline(always)]
fn tally(counter: Option<*mut Counter>, bytes: u32) {
    let Some(counter) = counter else {
        return;
    };
    // SAFETY: the element is this CPU's own, and programs of both hooks run
    // with bottom halves off, so nobody else writes it meanwhile.
    let counter = unsafe { &mut *counter };
    counter.packets = counter.packets.wrapping_add(1);
    counter.bytes = counter.bytes.wrapping_add(bytes as u64);
}

//! Lines for `pinhole run -v`.
//!
//! The loader sets aya-log's level before the programs are verified. At level 0
//! the verifier knows that the lines cannot be reached and takes them out: off,
//! they cost nothing.
//!
//! Outcomes stand as numbers; user space puts in their names, because a table of
//! strings is a table of pointers, which the object's data cannot hold.

use aya_log_ebpf::info;
use firewall_common::verdict::{PassReason, Verdict};

use crate::{packet::Packet, work::Work};

/// Logs a drop (in shadow mode, what would be one), or the begin of a flow.
#[inline(always)]
pub(crate) fn outcome<P: Packet>(packet: &P, work: &Work, outcome: u32) {
    const NEW: u32 = PassReason::NewByRule.index();
    const EXPECTED: u32 = PassReason::NewExpected.index();
    let passed = outcome < Verdict::FIRST_DROP;
    if passed && outcome != NEW && outcome != EXPECTED {
        return;
    }
    let h = &work.headers;
    if h.l3_len == 0 {
        info!(packet, "outcome#{} on {}", outcome, packet.ifindex());
        return;
    }
    info!(
        packet,
        "outcome#{} on {} proto {} {:i}.{} > {:i}.{} len {}",
        outcome,
        packet.ifindex(),
        h.proto,
        octets(&h.src),
        h.sport,
        octets(&h.dst),
        h.dport,
        h.l3_len
    );
}

#[inline(always)]
fn octets(address: &[u32; 4]) -> [u8; 16] {
    bytemuck::cast(*address)
}

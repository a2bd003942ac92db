//! Requests of user space that change flows, run through BPF_PROG_RUN.
//!
//! User space only finds candidates; here, in one run, each is looked up again,
//! judged again and changed by compare-and-swap. So a flow that was reopened in
//! between is never hit.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop, bpf_xdp_load_bytes},
};
use firewall_common::{
    abi::{
        CTL_FLOWS, CtlCounts, CtlFlow, Flow, FlowKey4, FlowKey6, FlowState, Phase, ctl_op,
        flow_flags,
    },
    life::Place,
    time::Tick,
    verdict::Event,
    wire::Reader as _,
};

use crate::{
    conntrack::{Family, count_created, count_in_tier, forget_rule, state_of},
    maps::Table,
    packet::XdpPacket,
    stats,
};

struct Request {
    ctx: *mut c_void,
    now: Tick,
    op: u32,
    done: u32,
}

/// Runs the request that the packet carries; returns how many flows it changed.
#[inline(always)]
pub(crate) fn run(packet: &XdpPacket) -> u32 {
    let Some(head) = packet.read::<8>(0) else {
        return 0;
    };
    let op = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
    let count = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    if op == ctl_op::COUNT {
        return add_counts(packet);
    }
    if count > CTL_FLOWS as u32 {
        return 0;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let mut request = Request {
        ctx: packet.as_ptr(),
        now: Tick::from_ns(now),
        op,
        done: 0,
    };
    let callback = one as extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: `request` outlives the loop, and the callback has the signature
    // that bpf_loop documents.
    unsafe { bpf_loop(count, callback as *mut c_void, (&raw mut request).cast(), 0) };
    request.done
}

/// Adds a [`CtlCounts`]; returns how many counts it changed.
#[inline(always)]
fn add_counts(packet: &XdpPacket) -> u32 {
    let Some(bytes) = packet.read::<{ size_of::<CtlCounts>() }>(0) else {
        return 0;
    };
    let counts: CtlCounts = bytemuck::cast(bytes);
    let mut changed = 0;
    for (tier, by) in (0..).zip(counts.tiers) {
        if by != 0 {
            count_in_tier(tier, by);
            changed += 1;
        }
    }
    if counts.created[0] != 0 {
        count_created::<FlowKey4>(Place::Proved, counts.created[0]);
        changed += 1;
    }
    if counts.created[1] != 0 {
        count_created::<FlowKey6>(Place::Proved, counts.created[1]);
        changed += 1;
    }
    changed
}

extern "C" fn one(index: u32, request: *mut c_void) -> i64 {
    // SAFETY: `run` passes its own `Request`, which nothing else refers to meanwhile.
    let request = unsafe { &mut *request.cast::<Request>() };
    let mut flow = MaybeUninit::<CtlFlow>::uninit();
    let size = size_of::<CtlFlow>() as u32;
    // SAFETY: `flow` has room for its own size; the helper checks the source.
    let loaded = unsafe {
        bpf_xdp_load_bytes(
            request.ctx.cast(),
            8 + index * size,
            flow.as_mut_ptr().cast(),
            size,
        )
    };
    if loaded != 0 {
        return 1;
    }
    // SAFETY: the helper filled it, and any bit pattern is valid.
    let flow = unsafe { flow.assume_init() };
    let changed = match flow.key.narrow() {
        Some(key) => apply(&key, flow.incarnation, request.op, request.now),
        None => apply(&flow.key, flow.incarnation, request.op, request.now),
    };
    request.done += changed as u32;
    0
}

#[inline(always)]
fn apply<K: Family>(key: &K, incarnation: u32, op: u32, now: Tick) -> bool {
    match op {
        ctl_op::EXPIRE => {
            expire(K::flows(), key, now, Place::Proved)
                | expire(K::half_open(true), key, now, Place::Inside)
                | expire(K::half_open(false), key, now, Place::Outside)
        }
        // The proved table last: a flow moves there from the others.
        ctl_op::DELETE => {
            delete(K::half_open(true), key, incarnation, Place::Inside)
                || delete(K::half_open(false), key, incarnation, Place::Outside)
                || delete(K::flows(), key, incarnation, Place::Proved)
        }
        ctl_op::BLIND => mark(key, |word| word.with(flow_flags::BLIND)),
        ctl_op::ADMIT => admit(key, 0),
        ctl_op::EXPECTED => admit(key, flow_flags::RELATED),
        ctl_op::UNHELP => mark(key, |word| word.without(flow_flags::HELPER_FTP)),
        _ => false,
    }
}

/// Admits a refused flow wherever it is, and sets `flags`.
#[inline(always)]
fn admit<K: Family>(key: &K, flags: u32) -> bool {
    let entry = match K::flows().entry(key) {
        Some(entry) => Some(entry),
        None => match K::half_open(true).entry(key) {
            Some(entry) => Some(entry),
            None => K::half_open(false).entry(key),
        },
    };
    let Some(entry) = entry else {
        return false;
    };
    if !FlowState(state_of(entry).load()).has(flow_flags::WOULD_DROP) {
        return false;
    }
    // The drop reason that stood there names no rule.
    let admit = |word: FlowState| word.without(flow_flags::WOULD_DROP).with(flags);
    let admitted = forget_rule(entry) && mark_entry(entry, admit);
    if admitted {
        stats::event(Event::FlowAdmitted);
    }
    admitted
}

/// Deletes the entry if it is expired, in whatever phase it was left.
#[inline(always)]
fn expire<K: Family, T: Table<K>>(table: &T, key: &K, now: Tick, place: Place) -> bool {
    let Some(entry) = table.entry(key) else {
        return false;
    };
    crate::conntrack::delete_expired(table, key, entry, now, place)
}

/// Deletes the entry if it is the one that the operator saw.
#[inline(always)]
fn delete<K: Family, T: Table<K>>(table: &T, key: &K, incarnation: u32, place: Place) -> bool {
    table
        .entry(key)
        .is_some_and(|entry| crate::conntrack::delete_live(table, key, entry, incarnation, place))
}

#[inline(always)]
fn mark<K: Family>(key: &K, change: impl Fn(FlowState) -> FlowState) -> bool {
    let Some(entry) = K::flows().entry(key) else {
        return false;
    };
    mark_entry(entry, change)
}

#[inline(always)]
fn mark_entry(entry: *mut Flow, change: impl Fn(FlowState) -> FlowState) -> bool {
    let state = state_of(entry);
    for _ in 0..4 {
        let word = state.load();
        if FlowState(word).phase() as u8 != Phase::Live as u8 {
            return false;
        }
        let next = change(FlowState(word)).0;
        if state.swap(word, next).is_ok() {
            return true;
        }
    }
    stats::event(Event::Contention);
    false
}

//! Data connections and the control connection that negotiated them.
//!
//! A flow entry has no room for its parent, and most flows have none: the ties
//! are in a map of their own, `DATA_FLOWS`. What is there only shows where a flow
//! belongs and keeps its parent alive; no packet passes because of it. So an
//! entry that the LRU displaced costs no connection.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys by value would be copied to the stack once more"
)]

use core::arch::asm;

use firewall_common::{
    abi::{FlowKey4, FlowKey6},
    key::FlowKey,
    verdict::Event,
};

use crate::{
    conntrack::{Family, seen_of},
    expect::live_parent,
    maps::DATA_FLOWS,
    stats,
    work::Work,
};

/// Ties the new flow of this incarnation to the control flow whose expectation it
/// took ([`Work::data`]).
#[inline(always)]
pub(crate) fn begin<K: Family>(work: &mut Work, incarnation: u32) {
    // The ring record has room for a key.
    K::into_event(work);
    work.data.incarnation = incarnation;
    // In place of what a flow of this key left that the LRU displaced.
    const BPF_ANY: u64 = 0;
    if DATA_FLOWS
        .insert(&work.event.key, &work.data, BPF_ANY)
        .is_err()
    {
        stats::event(Event::CreateFailed);
    }
}

/// Data went by: the control connection is not forgotten, however long it is silent.
///
/// Called once a tick and flow at most, so it costs two look-ups sixty times a
/// second, and none for a packet of any other flow.
#[inline(always)]
pub(crate) fn keep_parent<K: Family>(work: &mut Work, incarnation: u32) {
    K::into_event(work);
    pinhole_data_keep_parent(work, incarnation);
}

/// A global function: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_data_keep_parent(work: *mut Work, incarnation: u32) -> u32 {
    // SAFETY: `keep_parent` passes this run's own work area, which nothing else
    // refers to meanwhile.
    let Some(work) = (unsafe { work.as_mut() }) else {
        return 0;
    };
    // On the stack: to the verifier of 6.1 what `work` points to is no map value
    // here, and only those and the stack hold keys.
    let key = work.event.key;
    let Some(data) = DATA_FLOWS.get_ptr(&key) else {
        return 0;
    };
    // SAFETY: a map value is valid for the whole run. If its node goes to another
    // flow under the reads, that one's parent is kept for a tick.
    let data = unsafe { &*data };
    if data.incarnation != incarnation {
        return 0;
    }
    // The look-up itself marks the entry as used to the LRU.
    let Some((parent, _)) = live_parent(&data.parent, data.parent_incarnation, work.now) else {
        return 0;
    };
    let seen = seen_of(parent);
    if seen.load() != work.now.0 {
        seen.store(work.now.0);
    }
    1
}

/// Unties an IPv4 flow of this incarnation, which ends. Global, as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pinhole_data_end4(key: *const FlowKey4, incarnation: u32) -> u32 {
    // Callers pass none, but the verifier judges the function by itself.
    // SAFETY: null, or a key.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    // Copied together with the ports it would stand across two places of the stack, which
    // the verifier refuses.
    let mut hi = key.hi();
    // SAFETY: one register, unchanged.
    unsafe { asm!("{0} = {0}", inout(wreg) hi, options(pure, nomem, nostack)) };
    let (lo_port, hi_port) = (key.lo_port(), key.hi_port());
    let key = FlowKey4::from_parts(key.lo(), hi, lo_port, hi_port, key.proto(), key.aux());
    end(&key.widen(), incarnation)
}

/// As [`pinhole_data_end4`], of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pinhole_data_end6(key: *const FlowKey6, incarnation: u32) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    // On the stack, as in `pinhole_data_keep_parent`.
    end(&{ *key }, incarnation)
}

#[inline(always)]
fn end(key: &FlowKey6, incarnation: u32) -> u32 {
    let Some(data) = DATA_FLOWS.get_ptr(key) else {
        return 0;
    };
    // SAFETY: a map value is valid for the whole run.
    let found = unsafe { (*data).incarnation };
    // The next flow of the key may be there already, with a tie of its own.
    if found != incarnation {
        return 0;
    }
    DATA_FLOWS.remove(key).is_ok() as u32
}

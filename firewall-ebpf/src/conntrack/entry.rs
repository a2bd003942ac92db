//! One entry of a flow table, through its look-up pointer.

use firewall_common::{
    abi::{Flow, FlowState, Last, RULE_NONE},
    key::Direction,
    tcp::State,
    time::Tick,
    timeout,
    wire::{OnWire, proto},
};

use crate::{atomic::Shared, maps::CONFIG, work::Work};

/// The state word of an entry.
#[inline(always)]
pub(crate) fn state_of(entry: *mut Flow) -> Shared<u64> {
    // SAFETY: a map value is valid for the whole run.
    let word = unsafe { &raw mut (*entry).state };
    // SAFETY: eight bytes, aligned, and changed atomically only.
    unsafe { Shared::new(word) }
}

#[inline(always)]
pub(crate) fn last_of(entry: *mut Flow) -> Shared<u64> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).last };
    // SAFETY: as `state_of`.
    unsafe { Shared::new(word) }
}

#[inline(always)]
pub(super) fn seen_of(entry: *mut Flow) -> Shared<u32> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).seen };
    // SAFETY: as `state_of`; four bytes, aligned.
    unsafe { Shared::new(word) }
}

#[inline(always)]
pub(super) fn end_of(entry: *mut Flow, direction: Direction) -> Shared<u32> {
    let side = match direction {
        // SAFETY: a map value is valid for the whole run.
        Direction::Original => unsafe { &raw mut (*entry).tcp[0].end },
        // SAFETY: as above.
        Direction::Reply => unsafe { &raw mut (*entry).tcp[1].end },
    };
    // SAFETY: as `seen_of`.
    unsafe { Shared::new(side) }
}

/// The zone from which packets of `direction` must come.
#[inline(always)]
pub(super) fn zone_of(entry: *mut Flow, direction: Direction) -> u8 {
    let last = Last(last_of(entry).load());
    match direction {
        Direction::Original => last.from_zone(),
        Direction::Reply => last.to_zone(),
    }
}

/// Does the entry, which has `word`, count as absent at `now`? It is one of
/// `protocol`.
#[inline(always)]
pub(crate) fn is_expired(entry: *mut Flow, word: FlowState, protocol: u8, now: Tick) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    // SAFETY: a map value; a torn read of the windows, which other CPUs change
    // meanwhile, is the read of a moment before or after.
    let flow = unsafe { &*entry.cast_const() };
    now.is_after(timeout::expires(
        protocol,
        word,
        Last(last_of(entry).load()),
        Tick(seen_of(entry).load()),
        || flow.has_unacknowledged(),
        &config.timeouts,
    ))
}

/// Takes the rule's number away from an entry; false if other CPUs were faster
/// each time.
#[inline(always)]
pub(crate) fn forget_rule(entry: *mut Flow) -> bool {
    let last = last_of(entry);
    for _ in 0..4 {
        let word = last.load();
        if last.swap(word, Last(word).with_rule(RULE_NONE).0).is_ok() {
            return true;
        }
    }
    false
}

/// Advances the state word; an unchanged one costs no atomic operation.
#[inline(always)]
pub(super) fn swap(entry: *mut Flow, old: FlowState, new: FlowState) -> bool {
    old == new || state_of(entry).swap(old.0, new.0).is_ok()
}

/// Renews the flow's life. Once both ends have said good-bye, later packets do
/// not lengthen it.
#[inline(always)]
pub(super) fn refresh(work: &Work, entry: *mut Flow, word: FlowState, changed: bool) {
    let h = &work.headers;
    let ended = h.proto == proto::TCP
        && matches!(
            State::try_from(word.state()),
            Ok(State::LastAck | State::TimeWait | State::Close)
        );
    let seen = seen_of(entry);
    if (changed || !ended) && seen.load() != work.now.0 {
        seen.store(work.now.0);
    }
}

#[inline(always)]
pub(super) fn account(entry: *mut Flow, direction: Direction, wire: OnWire) {
    let packets = match direction {
        // SAFETY: a map value is valid for the whole run.
        Direction::Original => unsafe { &raw mut (*entry).packets[0] },
        // SAFETY: as above.
        Direction::Reply => unsafe { &raw mut (*entry).packets[1] },
    };
    let octets = match direction {
        // SAFETY: as above.
        Direction::Original => unsafe { &raw mut (*entry).bytes[0] },
        // SAFETY: as above.
        Direction::Reply => unsafe { &raw mut (*entry).bytes[1] },
    };
    // SAFETY: four bytes, aligned, changed atomically only.
    let packets = unsafe { Shared::new(packets) };
    // SAFETY: eight bytes, aligned, changed atomically only.
    let octets = unsafe { Shared::new(octets) };
    packets.add(wire.packets);
    octets.add(wire.bytes as u64);
}

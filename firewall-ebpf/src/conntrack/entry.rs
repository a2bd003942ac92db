//! One entry of a flow table, through its look-up pointer.

use firewall_common::{
    abi::{Flow, FlowState, timeout},
    key::Direction,
    tcp::{State, generic},
    wire::proto,
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
pub(super) fn expires_of(entry: *mut Flow) -> Shared<u32> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).expires };
    // SAFETY: as `state_of`; four bytes, aligned.
    unsafe { Shared::new(word) }
}

#[inline(always)]
pub(super) fn seen_of(entry: *mut Flow) -> Shared<u32> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).seen };
    // SAFETY: as `expires_of`.
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
    // SAFETY: as `expires_of`.
    unsafe { Shared::new(side) }
}

/// The zone from which packets of `direction` must come.
#[inline(always)]
pub(super) fn zone_of(entry: *mut Flow, direction: Direction) -> u8 {
    // SAFETY: a map value; the field is written at creation only.
    let flow = unsafe { &*entry.cast_const() };
    match direction {
        Direction::Original => flow.from_zone,
        Direction::Reply => flow.to_zone,
    }
}

/// Advances the state word; an unchanged one costs no atomic operation.
#[inline(always)]
pub(super) fn swap(entry: *mut Flow, old: FlowState, new: FlowState) -> bool {
    old == new || state_of(entry).swap(old.0, new.0).is_ok()
}

/// Moves the expiry. Once both ends have said good-bye, later packets do not
/// lengthen the flow's life.
#[inline(always)]
pub(super) fn refresh(work: &Work, entry: *mut Flow, word: FlowState, changed: bool) {
    let h = &work.headers;
    let ended = h.proto == proto::TCP
        && matches!(
            State::try_from(word.state()),
            Ok(State::LastAck | State::TimeWait | State::Close)
        );
    if changed || !ended {
        let ticks = timeout_of(h.proto, word.state());
        expires_of(entry).store(work.now.plus(ticks).0);
    }
    let seen = seen_of(entry);
    if seen.load() != work.now.0 {
        seen.store(work.now.0);
    }
}

#[inline(always)]
pub(super) fn timeout_of(protocol: u8, state: u8) -> u32 {
    let index = match protocol {
        proto::TCP => timeout::TCP + state as usize,
        proto::UDP if state == generic::REPLIED => timeout::UDP_STREAM,
        proto::UDP => timeout::UDP,
        proto::ICMP | proto::ICMPV6 => timeout::ICMP,
        _ => timeout::OTHER,
    };
    // The mask is for the verifier; every index above is below it.
    CONFIG
        .get(0)
        .map_or(0, |config| config.timeouts[index & (timeout::LEN - 1)])
}

#[inline(always)]
pub(super) fn account(entry: *mut Flow, direction: Direction, bytes: u32) {
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
    packets.add(1);
    octets.add(bytes as u64);
}

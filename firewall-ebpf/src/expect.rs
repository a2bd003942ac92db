//! Taking a pinhole.

use firewall_common::{
    abi::{DataFlow, ExpectKey, Expectation, Flow, FlowKey6, FlowState, Phase, flow_flags},
    expect::{self, Taken},
    key::Direction,
    tcp::State,
    time::Tick,
    verdict::{DropReason, Event},
    wire::proto,
};

use crate::{
    atomic::Shared,
    conntrack::{is_expired, state_of},
    maps::{EXPECTATIONS, FLOWS4, FLOWS6, Table as _},
    pair, stats,
    work::Work,
};

/// What the expectations say of a SYN.
#[derive(Clone, Copy)]
pub(crate) enum Admission {
    /// None for it: the rules decide.
    No,
    /// It has its pinhole.
    Yes,
    /// There is one, but not for it; the rules may still admit the SYN.
    Refused(DropReason),
}

/// Takes the expectation for a SYN, if there is one.
#[inline(always)]
pub(crate) fn take(work: &mut Work) -> Admission {
    let Some(entry) = look(work, Direction::Original) else {
        return Admission::No;
    };
    let h = &work.headers;
    // SAFETY: a map value; all fields but `state` are written before the agent
    // inserts it and never after.
    let expectation = unsafe { &*entry.cast_const() };
    if work.now.is_after(Tick(expectation.expires)) {
        return Admission::No;
    }
    if expectation.from_zone != work.from_zone || expectation.to_zone != work.to_zone {
        return Admission::Refused(DropReason::ExpectationZone);
    }
    let (port, now) = (h.sport, work.now);
    let mut client_is_hi = 0;
    let taken = expect::take(state_of_pinhole(entry), port, || {
        let (key, incarnation) = (&expectation.parent, expectation.parent_incarnation);
        let parent = live_parent(key, incarnation, now);
        if let Some((_, word)) = parent {
            client_is_hi = word.has(flow_flags::FIRST_DOWN) as u8;
        }
        parent.is_some()
    });
    match taken {
        Taken::Now => {
            stats::event(Event::ExpectationUsed);
            pair::came_about(work);
        }
        Taken::Before => {}
        Taken::Refused(reason) => return Admission::Refused(reason),
    }
    work.data = DataFlow {
        parent: expectation.parent,
        parent_incarnation: expectation.parent_incarnation,
        incarnation: 0,
        via: expectation.via,
        client_is_hi,
        reserved: 0,
    };
    Admission::Yes
}

#[inline(always)]
fn state_of_pinhole(entry: *mut Expectation) -> Shared<u64> {
    // SAFETY: a map value is valid for the whole run.
    let state = unsafe { &raw mut (*entry).state };
    // SAFETY: eight bytes, aligned, and only changed atomically.
    unsafe { Shared::new(state) }
}

/// The connection has come about: its pinhole has served it. From now on a SYN
/// of the same source port is one of another connection.
#[inline(always)]
pub(crate) fn served(work: &mut Work, direction: Direction) {
    let Some(entry) = look(work, direction) else {
        return;
    };
    let port = match direction {
        Direction::Original => work.headers.sport,
        Direction::Reply => work.headers.dport,
    };
    expect::serve(state_of_pinhole(entry), port);
}

/// The expectation of a connection that has a packet in `direction`.
#[inline(always)]
fn look(work: &mut Work, direction: Direction) -> Option<*mut Expectation> {
    let h = &work.headers;
    let (src, dst, dport) = match direction {
        Direction::Original => (h.src, h.dst, h.dport),
        Direction::Reply => (h.dst, h.src, h.sport),
    };
    work.expect = ExpectKey {
        src,
        dst,
        dport,
        proto: h.proto,
        reserved: 0,
    };
    // By reference, so that the stack holds no copy of the key.
    let key = &work.expect;
    EXPECTATIONS.get_ptr_mut(key)
}

/// The established control flow `key` of this incarnation, and its state. A pinhole
/// dies with its parent even when no agent lives to remove it.
#[inline(always)]
pub(crate) fn live_parent(
    key: &FlowKey6,
    incarnation: u32,
    now: Tick,
) -> Option<(*mut Flow, FlowState)> {
    let entry = match key.narrow() {
        Some(key) => FLOWS4.entry(&key),
        None => FLOWS6.entry(key),
    }?;
    let word = FlowState(state_of(entry).load());
    let lives = word.phase() as u8 == Phase::Live as u8
        && word.incarnation() == incarnation
        && !is_expired(entry, word, proto::TCP, now)
        && word.state() == State::Established as u8
        && !word.has(flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY);
    if lives { Some((entry, word)) } else { None }
}

//! Taking a pinhole.

use firewall_common::{
    abi::{ExpectKey, ExpectState, Expectation, Flow, FlowState, Phase, flow_flags},
    tcp::State,
    time::Tick,
    verdict::{DropReason, Event},
};

use crate::{
    atomic::Shared,
    maps::{EXPECTATIONS, FLOWS4, FLOWS6, Table as _},
    stats,
    work::Work,
};

/// What the expectations say of a SYN.
#[derive(Clone, Copy)]
pub(crate) enum Taken {
    /// None for it: the rules decide.
    No,
    /// It has its pinhole.
    Yes,
    /// There is one, but not for it; the rules may still admit the SYN.
    Refused(DropReason),
}

/// Takes the expectation for a SYN, if there is one.
#[inline(always)]
pub(crate) fn take(work: &mut Work) -> Taken {
    let h = &work.headers;
    work.expect = ExpectKey {
        src: h.src,
        dst: h.dst,
        dport: h.dport,
        proto: h.proto,
        reserved: 0,
    };
    // By reference, so that the stack holds no copy of the key.
    let key = &work.expect;
    let Some(entry) = EXPECTATIONS.get_ptr_mut(key) else {
        return Taken::No;
    };
    // SAFETY: a map value; all fields but `state` are written before the agent
    // inserts it and never after.
    let expectation = unsafe { &*entry.cast_const() };
    if work.now.is_after(Tick(expectation.expires)) {
        return Taken::No;
    }
    if expectation.from_zone != work.from_zone || expectation.to_zone != work.to_zone {
        return Taken::Refused(DropReason::ExpectationZone);
    }
    if !parent_lives(expectation, work.now) {
        return Taken::Refused(DropReason::ExpectationOrphaned);
    }
    let mine = ExpectState::Taken(h.sport).word();
    // SAFETY: a map value is valid for the whole run.
    let state = unsafe { &raw mut (*entry).state };
    // SAFETY: eight bytes, aligned, and only changed atomically.
    let state = unsafe { Shared::new(state) };
    match state.swap(ExpectState::Free.word(), mine) {
        Ok(_) => {
            stats::event(Event::ExpectationUsed);
            Taken::Yes
        }
        // A SYN that is sent again finds its own mark.
        Err(word) if word == mine => Taken::Yes,
        Err(_) => Taken::Refused(DropReason::ExpectationTaken),
    }
}

/// A pinhole dies with its parent even when no agent lives to remove it.
#[inline(always)]
fn parent_lives(expectation: &Expectation, now: Tick) -> bool {
    let entry = match expectation.parent.narrow() {
        Some(key) => FLOWS4.entry(&key),
        None => FLOWS6.entry(&expectation.parent),
    };
    let Some(entry) = entry else {
        return false;
    };
    // SAFETY: a map value, aligned.
    let flow: &Flow = unsafe { &*entry.cast_const() };
    let word = FlowState(flow.state);
    word.phase() as u8 == Phase::Live as u8
        && word.incarnation() == expectation.parent_incarnation
        && !now.is_after(Tick(flow.expires))
        && word.state() == State::Established as u8
        && !word.has(flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY)
}

//! The step that a packet makes in its flow.

use firewall_common::{
    abi::{EndReason, Flow, FlowState, flow_flags},
    forward,
    key::{Direction, Heading},
    life::{self, Entry as _, Followed, Found},
    tcp::{self, Counter as _, Segment, State, Stepped, What, generic},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::proto,
};

use super::{
    begin::resynchronise,
    entry::{Entry, seen_of, state_of, zone_of},
    refused::begins,
    tiers::{Family, end},
};
use crate::{
    control, data, expect, explain,
    maps::CONFIG,
    packet::Packet,
    stats,
    watch::{self, News},
    work::Work,
};

/// Steps a flow. `None` when the packet begins a new flow in its place.
#[inline(always)]
pub(super) fn step<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
    found: Found<Entry>,
) -> Option<Verdict> {
    let word = found.word;
    let direction = Direction::of(heading, word.first_heading());
    if zone_of(found.entry.0, direction) != work.from_zone {
        // Nobody answered the flow that stands there: who began it may have
        // borrowed the address. The rules decide who may begin another.
        work.displaces = !word.has(flow_flags::SEEN_REPLY) && begins(&work.headers, direction);
        return if work.displaces {
            None
        } else {
            Some(Verdict::Drop(DropReason::ZoneMismatch))
        };
    }
    let protocol = work.headers.proto;
    // The first packet of a tick.
    let early = seen_of(found.entry.0).load() != work.now.0;
    let tcp = protocol == proto::TCP;
    if tcp && Segment::of(work.headers.tcp_flags).is_none() {
        return Some(Verdict::Drop(DropReason::TcpFlags));
    }
    // Through memory, as the segment's kind is from its flags: the verifier would
    // follow each of them through all that comes.
    work.direction.set(direction as u32);
    let incarnation = found.word.incarnation();
    let (entry, proved) = (found.entry.0, found.proved);
    if tcp {
        step_tcp(entry, work, incarnation);
    } else {
        work.stepped.write(Stepped::NONE);
        pinhole_generic_step(entry, work, incarnation);
    }
    if !proved && matches!(life::follow(found.entry, incarnation), Followed::Lost) {
        // Its windows and its end may be missing in the new entry. TCP sends it
        // again; other protocols have nothing to lose, and nothing to be checked.
        if tcp {
            return Some(Verdict::Drop(DropReason::Moving));
        }
        let out = work.stepped_mut();
        out.what = What::Accepted;
        out.changed = false;
    }
    let Stepped {
        what,
        word,
        changed,
        ..
    } = *work.stepped();
    match what {
        What::Accepted | What::Ended => {}
        // A flow is moved once: what follows it does not meet this again.
        What::Gone | What::Moving => return None,
        What::Ignored => {
            explain::bounds(work);
            return Some(Verdict::Pass(work.stepped().pass));
        }
        What::Invalid => {
            explain::bounds(work);
            return Some(Verdict::Drop(work.stepped().drop));
        }
        What::Contended => {
            stats::event(Event::Contention);
            return Some(Verdict::Pass(PassReason::Established));
        }
        What::Reopen => {
            end(&*K::slot(work), entry, word, proved, EndReason::Reused);
            return None;
        }
        What::Resync => return resynchronise::<K>(work, entry, word, proved),
    }
    let mut moved = false;
    if proved {
        count(Entry(entry), work);
    } else {
        moved = K::half_open_step(entry, work) != 0;
    }
    note_recycled(entry, incarnation);
    if changed && word.has(flow_flags::RELATED) && is_there(word) {
        expect::served(work, direction);
    }
    if early && word.has(flow_flags::RELATED) && is_there(word) {
        data::keep_parent::<K>(work, incarnation);
    }
    if changed && !moved {
        watch::tell(&*K::slot(work), entry, word, News::update(proved));
    }
    let verdict = if protocol == proto::TCP && word.has(flow_flags::HELPER_FTP) {
        control::payload::<P, K>(packet, work, heading, entry, word)
    } else {
        Verdict::Pass(PassReason::Established)
    };
    if matches!(what, What::Ended) {
        end(&*K::slot(work), entry, word, proved, EndReason::Reset);
    }
    Some(verdict)
}

/// Counts the packet in its flow.
#[inline(always)]
pub(super) fn count(entry: Entry, work: &Work) {
    let direction = work.direction();
    entry.packets(direction).add(work.on_wire.packets);
    entry.bytes(direction).add(work.on_wire.bytes as u64);
}

/// What was written just now may have gone to the node's next flow. It is one packet's
/// worth, so it is counted and left.
#[inline(always)]
pub(super) fn note_recycled(entry: *mut Flow, incarnation: u32) {
    if FlowState(state_of(entry).load()).incarnation() != incarnation {
        stats::event(Event::Recycled);
    }
}

/// The loop of [`tcp::step`]. The result is in [`Work::stepped`].
#[inline(always)]
fn step_tcp(entry: *mut Flow, work: &mut Work, incarnation: u32) {
    work.stepped.write(Stepped::NONE);
    for _ in 0..tcp::TRIES {
        if pinhole_tcp_classify(entry, work, incarnation) == 0 {
            return;
        }
        if work.stepped().is_checked() {
            pinhole_tcp_measure(entry, work);
            pinhole_tcp_settle(entry, work);
            pinhole_tcp_compare(entry, work);
        }
        pinhole_tcp_plan(entry, work);
        if pinhole_tcp_commit(entry, work) != 0 {
            pinhole_tcp_record(entry, work);
            return;
        }
    }
    work.stepped_mut().what = What::Contended;
}

// The parts of a step are global functions. The verifier looks at each once,
// however many ways lead to its calls, and takes for granted what it may be given:
// an entry and a work area, or null. And what each keeps on the stack is gone
// when it returns.

/// [`tcp::classify`]; 1 if the step goes on.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_classify(entry: *mut Flow, work: *mut Work, incarnation: u32) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let (arrived, out) = work.arrived();
    tcp::classify(entry, &arrived, incarnation, out) as u32
}

/// [`tcp::measure`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_measure(entry: *mut Flow, work: *mut Work) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let (arrived, out) = work.arrived();
    tcp::measure(entry, &arrived, out);
    0
}

/// [`tcp::settle`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_settle(entry: *mut Flow, work: *mut Work) -> u32 {
    let Some((_, work)) = given(entry, work) else {
        return 0;
    };
    let (arrived, out) = work.arrived();
    tcp::settle(&arrived, out);
    0
}

/// [`tcp::compare`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_compare(entry: *mut Flow, work: *mut Work) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let (arrived, out) = work.arrived();
    tcp::compare(entry, &arrived, out);
    0
}

/// [`tcp::plan`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_plan(entry: *mut Flow, work: *mut Work) -> u32 {
    let (Some((entry, work)), Some(config)) = (given(entry, work), CONFIG.get(0)) else {
        return 0;
    };
    let now = work.now;
    let (arrived, out) = work.arrived();
    tcp::plan(entry, &arrived, now, &config.timeouts, out);
    0
}

/// [`tcp::commit`]; 1 if it was.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_commit(entry: *mut Flow, work: *mut Work) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let now = work.now;
    tcp::commit(entry, now, work.stepped_mut()) as u32
}

/// [`tcp::record`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_record(entry: *mut Flow, work: *mut Work) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let (arrived, out) = work.arrived();
    tcp::record(entry, &arrived, out);
    ahead(entry, work);
    0
}

/// [`tcp::is_in_flight`] of the segment in [`Work::quoted`]; 1 if it may be.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn pinhole_tcp_quoted(entry: *mut Flow, work: *mut Work) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let seq = work.quoted.seq;
    work.stepped.write(Stepped::NONE);
    let (arrived, out) = work.arrived();
    tcp::is_in_flight(entry, arrived.direction, seq, out) as u32
}

/// What a global function was given, unless it is null.
#[inline(always)]
fn given<'a>(entry: *mut Flow, work: *mut Work) -> Option<(Entry, &'a mut Work)> {
    if entry.is_null() {
        return None;
    }
    // SAFETY: `step_tcp` passes this run's own work area, which nothing else
    // refers to meanwhile.
    unsafe { work.as_mut() }.map(|work| (Entry(entry), work))
}

/// [`life::generic::step`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_generic_step(entry: *mut Flow, work: *mut Work, incarnation: u32) -> u32 {
    let Some((entry, work)) = given(entry, work) else {
        return 0;
    };
    let (now, direction) = (work.now, work.direction());
    life::generic::step(entry, direction, incarnation, now, work.stepped_mut());
    ahead(entry, work);
    0
}

/// [`forward::accepted`] of the flow, as if it had proved itself, into
/// [`Work::flow_ahead`]: what follows a step in the half-open tables knows better, and
/// whether the packet is accepted at all the verdict says.
#[inline(always)]
fn ahead(entry: Entry, work: &mut Work) {
    let zone = zone_of(entry.0, work.direction().flip());
    work.flow_ahead = forward::accepted(work.stepped().word, false, zone);
}

/// Has the handshake of a TCP flow ended in a connection?
#[inline(always)]
const fn is_there(word: FlowState) -> bool {
    word.state() == State::Established as u8 || word.state() == State::FinWait as u8
}

/// Has the flow shown that both of its ends exist?
///
/// For TCP that is the originator's acknowledgement of the SYN-ACK: an answer
/// alone can be provoked by a spoofed SYN to an open port.
#[inline(always)]
pub(super) const fn has_proved(protocol: u8, word: FlowState) -> bool {
    if protocol == proto::TCP {
        word.state() == State::Established as u8 && word.has(flow_flags::ASSURED)
    } else {
        word.state() == generic::REPLIED
    }
}

//! The step that a packet makes in its flow.

use firewall_common::{
    abi::{EndReason, Flow, FlowState, Phase, flow_flags},
    key::{Direction, Heading},
    tcp::{self, Segment, State, Stepped, What, generic},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::proto,
};

use super::{
    begin::resynchronise,
    entry::{Entry, account, seen_of, state_of, zone_of},
    refused::begins,
    tiers::{Family, end, promote},
};
use crate::{
    control, data, expect, explain,
    maps::CONFIG,
    packet::Packet,
    stats,
    watch::{self, News},
    work::Work,
};

/// Lost swaps after which a packet passes without its step being recorded.
const CAS_TRIES: usize = 4;

/// Steps a flow, whose entry had `word` when it was found. `None` when the packet
/// begins a new flow in its place.
#[inline(always)]
pub(super) fn step<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
    (entry, word): (*mut Flow, FlowState),
    proved: bool,
) -> Option<Verdict> {
    let direction = Direction::of(heading, word.first_heading());
    if zone_of(entry, direction) != work.from_zone {
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
    let early = seen_of(entry).load() != work.now.0;
    if protocol == proto::TCP {
        if Segment::of(work.headers.tcp_flags).is_none() {
            return Some(Verdict::Drop(DropReason::TcpFlags));
        }
        // Through memory, as the segment's kind is from its flags: the verifier
        // would follow each of them through all that comes.
        work.direction.set(direction as u32);
        step_tcp(entry, work, word.incarnation());
    } else {
        step_generic(entry, work, direction, word.incarnation());
    }
    let Stepped {
        what,
        word,
        changed,
        opened,
        ..
    } = *work.stepped();
    match what {
        What::Accepted | What::Ended => {}
        What::Gone => return None,
        // As `Found::Moving`.
        What::Moving => return Some(Verdict::Pass(PassReason::Established)),
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
    account(entry, direction, work.on_wire);
    // What was written just now may have gone to the node's next flow. It is
    // one packet's worth, so it is counted and left.
    if FlowState(state_of(entry).load()).incarnation() != word.incarnation() {
        stats::event(Event::Recycled);
    }
    if changed && word.has(flow_flags::RELATED) && is_there(word) {
        expect::served(work, direction);
    }
    if early && word.has(flow_flags::RELATED) && is_there(word) {
        data::keep_parent::<K>(work, word.incarnation());
    }
    let moved = !proved && has_proved(protocol, word) && promote::<K>(work, entry, word, opened);
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

/// The step of a protocol without states of its own: the first answer makes it replied.
#[inline(always)]
fn step_generic(entry: *mut Flow, work: &mut Work, direction: Direction, incarnation: u32) {
    let out = work.stepped.write(Stepped::NONE);
    for _ in 0..CAS_TRIES {
        let word = FlowState(state_of(entry).load());
        if word.incarnation() != incarnation {
            return;
        }
        match word.phase() {
            Phase::Live => {}
            Phase::Promoting => {
                out.what = What::Moving;
                return;
            }
            Phase::Doomed => return,
        }
        let new = match direction {
            Direction::Original => word,
            Direction::Reply => word
                .with_state(generic::REPLIED)
                .with(flow_flags::SEEN_REPLY),
        };
        if new == word || state_of(entry).swap(word.0, new.0).is_ok() {
            out.what = What::Accepted;
            out.word = new;
            out.changed = new.state() != word.state();
            let seen = seen_of(entry);
            if seen.load() != work.now.0 {
                seen.store(work.now.0);
            }
            return;
        }
    }
    out.what = What::Contended;
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
const fn has_proved(protocol: u8, word: FlowState) -> bool {
    if protocol == proto::TCP {
        word.state() == State::Established as u8 && word.has(flow_flags::ASSURED)
    } else {
        word.state() == generic::REPLIED
    }
}

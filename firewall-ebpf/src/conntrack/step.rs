//! The step that a packet makes in its flow.

use firewall_common::{
    abi::{Flow, FlowState, Phase, flow_flags},
    key::{Direction, Heading},
    tcp::{self, Segment, State, Step, generic},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::{Headers, proto},
};

use super::{
    entry::{account, end_of, refresh, state_of, swap, zone_of},
    tiers::{Family, promote, reopen},
};
use crate::{
    control, expect,
    packet::Packet,
    stats,
    watch::{self, News},
    work::Work,
};

/// Lost swaps after which a packet passes without its step being recorded.
const CAS_TRIES: usize = 4;

/// Steps a flow. `None` when the packet begins a new flow in its place.
#[inline(always)]
pub(super) fn step<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
    entry: *mut Flow,
    proved: bool,
) -> Option<Verdict> {
    let word = FlowState(state_of(entry).load());
    let direction = Direction::of(heading, word.first_heading());
    if zone_of(entry, direction) != work.from_zone {
        return Some(Verdict::Drop(DropReason::ZoneMismatch));
    }
    let h = &work.headers;
    let protocol = h.proto;
    let stepped = if protocol == proto::TCP {
        step_tcp(h, entry, direction, word.incarnation())
    } else {
        step_generic(entry, direction, word.incarnation())
    };
    let (word, changed) = match stepped {
        Stepped::To(word, changed) => (word, changed),
        Stepped::Done(verdict) => return Some(verdict),
        Stepped::Gone => return None,
        Stepped::Reopen(word) => {
            reopen(&*K::slot(work), entry, word, proved);
            return None;
        }
    };
    refresh(work, entry, word, changed);
    account(entry, direction, work.on_wire);
    // What was written just now may have gone to the node's next flow. It is
    // one packet's worth, so it is counted and left.
    if FlowState(state_of(entry).load()).incarnation() != word.incarnation() {
        stats::event(Event::Recycled);
    }
    if changed && word.has(flow_flags::RELATED) && is_there(word) {
        expect::served(work, direction);
    }
    let moved = !proved && has_proved(protocol, word) && promote::<K>(work, entry, word);
    if changed && !moved {
        watch::tell(&*K::slot(work), entry, word, News::update(proved));
    }
    if protocol == proto::TCP && word.has(flow_flags::HELPER_FTP) {
        return Some(control::payload::<P, K>(packet, work, heading, entry, word));
    }
    Some(Verdict::Pass(PassReason::Established))
}

enum Stepped {
    /// The flow has this word now, and whether its protocol state is another than before.
    To(FlowState, bool),
    /// Nothing changed; this is the verdict.
    Done(Verdict),
    /// The flow had this word, and the packet begins a new one.
    Reopen(FlowState),
    /// The flow went away since it was found: a miss.
    Gone,
}

/// What another CPU did to the entry since the flow of `incarnation` was found
/// there, if that leaves nothing to step.
///
/// A doomed or promoting word must stay as it is, or the CPU that made it so
/// could not take it back.
#[inline(always)]
fn overtaken(word: FlowState, incarnation: u32) -> Option<Stepped> {
    if word.incarnation() != incarnation {
        stats::event(Event::Recycled);
        return Some(Stepped::Gone);
    }
    match word.phase() {
        Phase::Live => None,
        // As `Found::Moving`.
        Phase::Promoting => Some(Stepped::Done(Verdict::Pass(PassReason::Established))),
        Phase::Doomed => Some(Stepped::Gone),
    }
}

#[inline(always)]
fn step_tcp(h: &Headers, entry: *mut Flow, direction: Direction, incarnation: u32) -> Stepped {
    let Some(segment) = Segment::of(h.tcp_flags) else {
        return Stepped::Done(Verdict::Drop(DropReason::TcpFlags));
    };
    for _ in 0..CAS_TRIES {
        let word = FlowState(state_of(entry).load());
        if let Some(stepped) = overtaken(word, incarnation) {
            return stepped;
        }
        let Ok(state) = State::try_from(word.state()) else {
            return Stepped::Done(Verdict::Drop(DropReason::TcpInvalid));
        };
        let next = match tcp::step(state, direction, segment) {
            Step::To(next) => next,
            Step::Ignore => return Stepped::Done(Verdict::Pass(PassReason::Ignored)),
            Step::Invalid => return Stepped::Done(Verdict::Drop(DropReason::TcpInvalid)),
            Step::Reopen => return Stepped::Reopen(word),
        };
        if !handshake_fits(h, entry, direction, state, segment) {
            return Stepped::Done(Verdict::Drop(DropReason::TcpHandshake));
        }
        if matches!(segment, Segment::Syn | Segment::SynAck) {
            end_of(entry, direction).store(h.seq.wrapping_add(1));
        }
        let new = word
            .with_state(next as u8)
            .with(marks(direction, matches!(segment, Segment::Fin)));
        if swap(entry, word, new) {
            return Stepped::To(new, new.state() != word.state());
        }
    }
    stats::event(Event::Contention);
    Stepped::Done(Verdict::Pass(PassReason::Established))
}

/// During the handshake an acknowledgement must name what it acknowledges:
/// who only spoofs an address cannot know it.
#[inline(always)]
fn handshake_fits(
    h: &Headers,
    entry: *mut Flow,
    direction: Direction,
    state: State,
    segment: Segment,
) -> bool {
    let acknowledges = match (state, segment) {
        (State::SynSent | State::SynSent2, Segment::SynAck) => true,
        (State::SynRecv, Segment::Ack | Segment::Fin) => {
            matches!(direction, Direction::Original)
        }
        _ => false,
    };
    !acknowledges || h.ack == end_of(entry, direction.flip()).load()
}

#[inline(always)]
const fn marks(direction: Direction, fin: bool) -> u32 {
    match (direction, fin) {
        (Direction::Original, false) => 0,
        (Direction::Original, true) => flow_flags::FIN_ORIGINAL,
        (Direction::Reply, false) => flow_flags::SEEN_REPLY,
        (Direction::Reply, true) => flow_flags::SEEN_REPLY | flow_flags::FIN_REPLY,
    }
}

#[inline(always)]
fn step_generic(entry: *mut Flow, direction: Direction, incarnation: u32) -> Stepped {
    for _ in 0..CAS_TRIES {
        let word = FlowState(state_of(entry).load());
        if let Some(stepped) = overtaken(word, incarnation) {
            return stepped;
        }
        let new = match direction {
            Direction::Original => word,
            Direction::Reply => word
                .with_state(generic::REPLIED)
                .with(flow_flags::SEEN_REPLY),
        };
        if swap(entry, word, new) {
            return Stepped::To(new, new.state() != word.state());
        }
    }
    stats::event(Event::Contention);
    Stepped::Done(Verdict::Pass(PassReason::Established))
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
        word.state() == State::Established as u8
    } else {
        word.state() == generic::REPLIED
    }
}

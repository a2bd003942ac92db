//! What the state of a flow and its last packet say of a segment.

use super::{Stepped, What, is_reply, is_syn, kind};
use crate::{
    abi::{FlowState, Last, LastKind, flow_flags},
    key::Direction,
    sabotage,
    tcp::{
        Arrived, Cells, Segment, State, Word as _, before,
        window::{First, Fit, Measured},
    },
    verdict::{DropReason, PassReason},
};

/// A SYN on a closed tuple begins a new flow if the old one was closed in order,
/// or by the originator's own RST. Otherwise the closing may have been forged,
/// and the answer will tell.
///
/// Stricter than the kernel: the connection that an expectation let in is never
/// followed by another one without a new expectation.
#[inline(always)]
pub(super) fn may_reopen(word: FlowState, last: Last, direction: Direction) -> bool {
    let in_order = word.has(flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY);
    let own_reset =
        matches!(last.kind(), LastKind::Rst) && is_reply(last.direction()) == is_reply(direction);
    !sabotage::TUPLE_REUSE && (in_order || own_reset || word.has(flow_flags::RELATED))
}

/// Notes a segment that passes without being understood; its answer may tell.
#[inline(always)]
pub(super) fn ignored<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) -> bool {
    let (h, direction) = (arrived.headers, arrived.direction);
    let (word, last, state) = (out.word, out.last[0], out.state[0]);
    if matches!(arrived.segment, Segment::SynAck)
        && is_reply(direction)
        && is_syn(last)
        && !is_reply(last.direction())
        && h.ack == last.end()
    {
        if last.sack() && h.sack != h.ack {
            // Nothing can be acknowledged selectively yet.
            (out.value, out.bound) = (h.sack, last.end());
            out.refuse(DropReason::TcpAckOver);
        } else if word.has(flow_flags::RELATED) {
            out.refuse(DropReason::ExpectationTaken);
        } else {
            out.what = What::Resync;
        }
        return false;
    }
    let mut noted = last.with_packet(kind(arrived.segment), direction, arrived.end());
    if matches!(arrived.segment, Segment::Syn) {
        noted = noted.with_options(h.scale, h.sack_permitted);
        if matches!(state, State::LastAck) {
            noted = noted.with_kind(LastKind::SynInLastAck);
        }
    }
    if matches!(state, State::SynSent) && !word.has(flow_flags::MAXACK_REPLY) {
        // A challenge ACK, if an RST of this sequence number comes next.
        cells.maxack(Direction::Reply).store(h.ack);
    }
    out.last[1] = noted;
    out.ignore(PassReason::Ignored);
    true
}

/// Is it the answer to a SYN that was let through in LAST_ACK, and not to the FIN?
#[inline(always)]
pub(super) fn is_challenge(state: State, next: State, last: Last, arrived: &Arrived<'_>) -> bool {
    matches!((state, next), (State::LastAck, State::TimeWait))
        && matches!(arrived.segment, Segment::Ack)
        && matches!(last.kind(), LastKind::SynInLastAck)
        && is_reply(last.direction()) != is_reply(arrived.direction)
}

/// What an RST does.
pub(super) enum Reset {
    /// Closes the flow if it fits the windows.
    Closes,
    /// Fits, but not exactly: a challenge ACK will tell (RFC 5961, section 3.2).
    Keeps,
    /// Closes the flow whatever the windows say.
    Certain,
    /// Lies before what the other side has acknowledged.
    Invalid,
    /// Does so, after a SYN of its own side: noted like one out of window.
    Stray,
}

#[inline(always)]
pub(super) fn reset<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) -> Reset {
    let (h, direction) = (arrived.headers, arrived.direction);
    let (word, last, state) = (out.word, out.last[0], out.state[0]);
    let other = direction.flip();
    // While it closes, the tuple may have been used again beyond what we know.
    if sabotage::RST
        || matches!(
            state,
            State::FinWait | State::CloseWait | State::LastAck | State::TimeWait | State::Close
        )
    {
        return Reset::Certain;
    }
    // After a SYN of the other side that was let through, this may answer it, and
    // what that side acknowledged before is history. (The kernel says so after a
    // SYN of either side: who only spoofs one end could then close a connection
    // with a SYN and an RST anywhere in the window, against RFC 5961, section 3.2.)
    let other_syn = is_syn(last) && is_reply(last.direction()) != is_reply(direction);
    if word.has(flow_flags::maxack_set(other)) && !other_syn {
        let sure = matches!(state, State::Established) && word.has(flow_flags::ASSURED);
        if h.seq == 0 && !sure {
            return Reset::Closes;
        }
        let maxack = cells.maxack(other).load();
        if before(h.seq, maxack) {
            (out.value, out.bound) = (h.seq, maxack);
            return if is_syn(last) {
                Reset::Stray
            } else {
                Reset::Invalid
            };
        }
        // Exact, or behind the last segment of its own side.
        let train = matches!(last.kind(), LastKind::Ack)
            && is_reply(last.direction()) == is_reply(direction)
            && h.seq == last.end();
        if !sure || h.seq == maxack || train {
            return Reset::Closes;
        }
        return Reset::Keeps;
    }
    // The answer to a SYN, or to an ACK of a half-open connection, that was let
    // through.
    let answers = (word.has(flow_flags::SEEN_REPLY) && other_syn)
        || (!word.has(flow_flags::ASSURED) && matches!(last.kind(), LastKind::Ack));
    if answers && h.ack == last.end() {
        return Reset::Certain;
    }
    // The answer to a challenge ACK that was.
    if matches!(state, State::SynSent)
        && matches!(last.kind(), LastKind::Ack)
        && is_reply(last.direction())
        && !word.has(flow_flags::MAXACK_REPLY)
        && h.seq == cells.maxack(Direction::Reply).load()
    {
        return Reset::Certain;
    }
    Reset::Closes
}

/// After both SYNs (RFC 9293, section 3.5), the replier's ACK ends the handshake,
/// too, if it names all that the originator has sent. (The kernel asks for less.)
#[inline(always)]
pub(super) fn simultaneous<E: Cells>(
    cells: E,
    word: FlowState,
    state: State,
    arrived: &Arrived<'_>,
) -> bool {
    matches!(state, State::SynRecv)
        && matches!(arrived.segment, Segment::Ack)
        && is_reply(arrived.direction)
        && word.has(flow_flags::SIMULTANEOUS)
        && arrived.headers.ack == cells.end(Direction::Original).load()
}

/// During the handshake an acknowledgement must name what it acknowledges, data
/// in a SYN or behind a SYN-ACK (RFC 7413) included or not: who only spoofs an
/// address cannot know it. (The kernel lets it lag by 66000.)
///
/// The upper bound is that of the window.
#[inline(always)]
pub(super) fn acknowledges_handshake<E: Cells>(
    cells: E,
    word: FlowState,
    state: State,
    arrived: &Arrived<'_>,
    m: &mut Measured,
) {
    let replies = is_reply(arrived.direction);
    let first = match (state, arrived.segment) {
        (State::SynSent | State::SynSent2, Segment::SynAck) => {
            if replies && !word.has(flow_flags::MAXACK_ORIGINAL) {
                cells.maxack(Direction::Original).load()
            } else {
                cells.end(arrived.direction.flip()).load()
            }
        }
        (State::SynRecv, Segment::Ack | Segment::Fin)
            if !replies && !word.has(flow_flags::SIMULTANEOUS) =>
        {
            // As loaded before its other words: the SYN-ACK may be being recorded.
            if m.receiver_maxwin == 0 {
                m.fit = Fit::Invalid(DropReason::TcpHandshake);
                return;
            }
            end_of_syn_ack(cells)
        }
        _ => return,
    };
    if !matches!(m.fit, Fit::Invalid(_)) && before(arrived.headers.ack, first) {
        (m.value, m.bound) = (arrived.headers.ack, first);
        m.fit = Fit::Invalid(DropReason::TcpHandshake);
        m.first = First::Known;
    }
}

/// Sequence number after the SYN-ACK, in SYN_RECV: nothing has raised the
/// replier's limit since, unless it was a SYN-ACK of the originator's; then it is
/// the replier's end, if that has sent nothing since.
#[inline(always)]
pub(super) fn end_of_syn_ack<E: Cells>(cells: E) -> u32 {
    let maxend = cells.maxend(Direction::Reply).load();
    let end = cells.end(Direction::Reply).load();
    if before(end, maxend) { end } else { maxend }
}

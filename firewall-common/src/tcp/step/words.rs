//! The words that a step leaves in its flow.

use super::{Stepped, What, is_reply, judge::end_of_syn_ack, kind};
use crate::{
    abi::{
        FlowState, LastKind,
        flow_flags::{self, NO_SCALE},
        timeout::TCP_UNACKNOWLEDGED,
    },
    key::Direction,
    tcp::{
        Arrived, Cells, Segment, State, Word as _,
        window::{First, Fit},
    },
    time::Tick,
    timeout::{self, Timeouts},
    wire::proto,
};

/// Notes a FIN or an RST out of window on a proved flow. One of each side says
/// that its ends know more than we do: then the flow may live on, but not for
/// long. True if that shortens its life.
#[inline(always)]
pub(super) fn stray<E: Cells>(
    cells: E,
    arrived: &Arrived<'_>,
    now: Tick,
    timeouts: &Timeouts,
    out: &mut Stepped,
) -> bool {
    let (word, last) = (out.word, out.last[0]);
    if !word.has(flow_flags::ASSURED) || !matches!(arrived.segment, Segment::Rst | Segment::Fin) {
        return false;
    }
    let answers = matches!(last.kind(), LastKind::Rst | LastKind::Fin)
        && is_reply(last.direction()) != is_reply(arrived.direction);
    if !answers {
        out.last[1] = last
            .with_packet(kind(arrived.segment), arrived.direction, last.end())
            .astray();
        return false;
    }
    let expires = timeout::expires(
        proto::TCP,
        word,
        Tick(cells.seen().load()),
        || has_unacknowledged(cells, word),
        timeouts,
    );
    expires.is_after(now.plus(timeouts[TCP_UNACKNOWLEDGED]))
}

/// The words after an accepted segment, and whether it renews the flow's life.
#[inline(always)]
pub(super) fn accepted<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) {
    let direction = arrived.direction;
    let (word, last, [state, next]) = (out.word, out.last[0], out.state);
    let inside = out.checked && matches!(out.measured.fit, Fit::Inside);
    let mut new = out
        .next
        .with_state(next as u8)
        .with(answered(direction))
        .without(flow_flags::CUT_SHORT);
    if inside && arrived.has_ack() {
        new = new.with(flow_flags::maxack_set(direction));
    }
    if matches!(next, State::SynSent2) {
        new = new.with(flow_flags::SIMULTANEOUS);
    }
    // A challenge ACK will put this right, and until then the flow must not end:
    // whoever guesses a window could end it. (The kernel gives it the time-out
    // of CLOSE.)
    if matches!(arrived.segment, Segment::Rst) && !matches!(next, State::Close) {
        new = new.with(flow_flags::CUT_SHORT);
    }
    let closes = matches!(next, State::FinWait | State::LastAck | State::TimeWait);
    if matches!(arrived.segment, Segment::Fin) && closes {
        new = new.with(flow_flags::fin(direction));
    }
    let established = matches!(next, State::Established);
    let had_reply = word.has(flow_flags::SEEN_REPLY);
    if established && had_reply && matches!(state, State::SynRecv | State::Established) {
        new = new.with(flow_flags::ASSURED);
    }
    out.changed = state as u8 != next as u8;
    out.opened = established && matches!(state, State::SynRecv);
    if out.opened {
        out.streams = streams(cells, word);
    }
    if matches!(arrived.segment, Segment::Rst) && !had_reply {
        out.what = What::Ended;
    }
    let end = if inside && matches!(arrived.segment, Segment::Ack) {
        arrived.end()
    } else {
        last.end()
    };
    out.last[1] = last.with_packet(kind(arrived.segment), direction, end);
    // A SYN sent again does not renew: a port used over and over would keep the
    // entry. Nor does anything once both ends have said good-bye. (The kernel
    // renews then.)
    let again = matches!((state, next), (State::SynSent, State::SynSent)) && !had_reply;
    let ended = matches!(next, State::LastAck | State::TimeWait | State::Close);
    out.next = new;
    out.renew = !again && (out.changed || !ended);
}

/// Where the streams of a connection begin that is just being established.
#[inline(always)]
fn streams<E: Cells>(cells: E, word: FlowState) -> [u32; 2] {
    let (original, reply) = (Direction::Original, Direction::Reply);
    if word.has(flow_flags::SIMULTANEOUS) {
        return [cells.end(original).load(), cells.end(reply).load()];
    }
    // Nothing that the originator sent has been recorded since its SYN.
    [cells.maxack(original).load(), end_of_syn_ack(cells)]
}

/// The state word with what a side's SYN says of it.
#[inline(always)]
pub(super) fn introduced(word: FlowState, arrived: &Arrived<'_>, out: &Stepped) -> FlowState {
    let (h, direction) = (arrived.headers, arrived.direction);
    if !out.checked || !matches!(out.measured.first, First::Syn) {
        return word;
    }
    let other = word.scale(direction.flip());
    let mut word = word;
    let mut own = word.scale(direction);
    if h.options_len() != 0 {
        own = h.scale;
        word = word.without(flow_flags::sack(direction) | flow_flags::maxack_set(direction));
        if h.sack_permitted {
            word = word.with(flow_flags::sack(direction));
        }
    }
    match direction {
        Direction::Original => word.with_scales(own, other),
        // Both sides must offer a scale, or there is none (RFC 7323, section 2.2).
        Direction::Reply if own == NO_SCALE || other == NO_SCALE => {
            word.with_scales(NO_SCALE, NO_SCALE)
        }
        Direction::Reply => word.with_scales(other, own),
    }
}

#[inline(always)]
fn has_unacknowledged<E: Cells>(cells: E, word: FlowState) -> bool {
    let by = |from: Direction| {
        timeout::is_unacknowledged(
            word,
            from,
            cells.maxwin(from).load(),
            cells.end(from).load(),
            cells.maxack(from.flip()).load(),
        )
    };
    by(Direction::Original) || by(Direction::Reply)
}

/// The mark that a packet in `direction` leaves on a flow that it does not change.
#[inline(always)]
pub(super) const fn answered(direction: Direction) -> u32 {
    match direction {
        Direction::Original => 0,
        Direction::Reply => flow_flags::SEEN_REPLY,
    }
}

//! The step that a segment makes in its flow: the whole of TCP tracking.
//!
//! What it decides is what nf_conntrack decides (`nf_conntrack_tcp_packet` of
//! Linux 6.18), except where this file says that it is stricter.
//!
//! One compare-and-swap on the state word elects the segment that makes a
//! transition; what goes with it is written after that, by the winner. A loser
//! loads the word again and is judged anew.
//!
//! A step has five parts, each a function that the kernel programs call apart:
//! BPF has a stack of 512 bytes. What they hand on to one another stands in
//! [`Stepped`].

use super::{
    Arrived, Cells, Segment, State, Transition, Word as _, before, transition,
    window::{First, Fit, Measured},
};
use crate::{
    abi::{
        FlowState, Last, LastKind, Phase,
        flow_flags::{self, NO_SCALE},
        timeout::TCP_UNACKNOWLEDGED,
    },
    key::Direction,
    sabotage,
    time::Tick,
    timeout::{self, Timeouts},
    verdict::{DropReason, PassReason},
    wire::proto,
};

/// Lost swaps after which a segment passes without its step being recorded.
pub const TRIES: usize = 4;

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum What {
    /// The flow went away since it was found: a miss.
    Gone = 0,
    /// Another CPU is moving the flow to the proved table.
    Moving = 1,
    /// It passes, and the flow has [`Stepped::word`] now.
    Accepted = 2,
    /// It passes for [`Stepped::pass`], and the flow's state is as before.
    Ignored = 3,
    /// It is dropped for [`Stepped::drop`].
    Invalid = 4,
    /// A SYN that begins a new flow in place of this one, which had [`Stepped::word`].
    Reopen = 5,
    /// A SYN-ACK that answers an ignored SYN: the two ends have begun a new
    /// connection in place of this one, which had [`Stepped::word`].
    Resync = 6,
    /// It passes, and is the end of the flow, which has [`Stepped::word`]: an RST
    /// is the only answer that it got.
    Ended = 7,
    /// It passes; every swap was lost.
    Contended = 8,
}

/// The result of [`step`].
#[derive(Clone, Copy, Debug)]
pub struct Stepped {
    /// What became of the segment.
    pub what: What,
    /// Why it passes, if it was ignored.
    pub pass: PassReason,
    /// Why it is dropped, if it is invalid.
    pub drop: DropReason,
    /// The state word: after the step if that changed it, else as found.
    pub word: FlowState,
    /// Is the protocol state another than before?
    pub changed: bool,
    /// Has the handshake come to its end with this segment? Then `streams` holds
    /// the first sequence number of each side's stream.
    pub opened: bool,
    /// By [`Direction`].
    pub streams: [u32; 2],
    /// Of an ignored or invalid segment: the number that did not fit ...
    pub value: u32,
    /// ... and the bound that it exceeds or falls short of; both 0 where the
    /// state or the flags alone decided.
    pub bound: u32,
    /// The last packet's word as found, and as it will be.
    pub(super) last: [Last; 2],
    /// The state word as it will be.
    pub(super) next: FlowState,
    /// Is the flow's life renewed?
    pub(super) renew: bool,
    /// The state of the flow as found, and as it will be.
    pub(super) state: [State; 2],
    /// Are the windows to be consulted?
    pub(super) checked: bool,
    pub(super) measured: Measured,
}

impl Stepped {
    /// To begin with.
    pub const NONE: Self = Self {
        what: What::Gone,
        pass: PassReason::Ignored,
        drop: DropReason::TcpInvalid,
        word: FlowState(0),
        changed: false,
        opened: false,
        streams: [0; 2],
        value: 0,
        bound: 0,
        last: [Last(0); 2],
        next: FlowState(0),
        renew: false,
        state: [State::None; 2],
        checked: false,
        measured: Measured::NONE,
    };

    /// Is the second part of the step needed?
    #[inline(always)]
    #[must_use]
    pub const fn is_checked(&self) -> bool {
        self.checked
    }

    #[inline(always)]
    fn ignore(&mut self, pass: PassReason) {
        self.what = What::Ignored;
        self.pass = pass;
    }

    #[inline(always)]
    fn refuse(&mut self, drop: DropReason) {
        self.what = What::Invalid;
        self.drop = drop;
    }
}

/// Steps the flow of `incarnation` in `cells` by a segment at `now`.
///
/// The kernel programs have the same loop.
pub fn step<E: Cells>(
    cells: E,
    arrived: &Arrived<'_>,
    incarnation: u32,
    now: Tick,
    timeouts: &Timeouts,
    out: &mut Stepped,
) {
    for _ in 0..TRIES {
        if !classify(cells, arrived, incarnation, out) {
            return;
        }
        if out.is_checked() {
            measure(cells, arrived, out);
            settle(arrived, out);
            compare(cells, arrived, out);
        }
        plan(cells, arrived, now, timeouts, out);
        if commit(cells, now, out) {
            record(cells, arrived, out);
            return;
        }
    }
    out.what = What::Contended;
}

/// First part: what the flow's state and its last packet say of a segment.
///
/// True if the step goes on; else `out` is the result.
#[inline(always)]
pub fn classify<E: Cells>(
    cells: E,
    arrived: &Arrived<'_>,
    incarnation: u32,
    out: &mut Stepped,
) -> bool {
    let word = FlowState(cells.state().load());
    let last = Last(cells.last().load());
    out.word = word;
    out.last = [last; 2];
    out.checked = false;
    (out.value, out.bound) = (0, 0);
    out.what = What::Gone;
    if word.incarnation() != incarnation {
        return false;
    }
    match word.phase() {
        Phase::Live => {}
        // A word in these phases must stay as it is, or the CPU that made it so
        // could not take it back.
        Phase::Promoting => {
            out.what = What::Moving;
            return false;
        }
        Phase::Doomed => return false,
    }
    out.refuse(DropReason::TcpInvalid);
    let Ok(state) = State::try_from(word.state()) else {
        return false;
    };
    let direction = arrived.direction;
    out.state = [state; 2];
    let next = match transition(state, direction, arrived.segment) {
        Transition::To(next) => next,
        Transition::Ignore => return ignored(cells, arrived, out),
        Transition::Reopen => {
            if may_reopen(word, last, direction) {
                out.what = What::Reopen;
                return false;
            }
            return ignored(cells, arrived, out);
        }
        Transition::Invalid => return false,
    };
    out.what = What::Accepted;
    if is_challenge(state, next, last, arrived) {
        out.ignore(PassReason::TcpChallenge);
        out.last[1] = last.with_kind(LastKind::Syn);
        return true;
    }
    out.state[1] = next;
    out.checked = true;
    if matches!(arrived.segment, Segment::Rst) {
        match reset(cells, arrived, out) {
            Reset::Closes => {}
            Reset::Keeps => out.state[1] = state,
            Reset::Certain => out.checked = false,
            Reset::Invalid => {
                out.refuse(DropReason::TcpRst);
                return false;
            }
            Reset::Stray => {
                out.refuse(DropReason::TcpRst);
                out.checked = false;
                return true;
            }
        }
    } else if simultaneous(cells, word, state, arrived) {
        out.state[1] = State::Established;
    }
    true
}

/// Second part, where [`Stepped::is_checked`]: what the windows say. First
/// third.
#[inline(always)]
pub fn measure<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) {
    let (word, state) = (out.word, out.state[0]);
    let m = &mut out.measured;
    super::window::measure(cells, word, state, arrived, m);
}

/// Second part, second third.
#[inline(always)]
pub fn settle(arrived: &Arrived<'_>, out: &mut Stepped) {
    super::window::settle(out.state[0], arrived, &mut out.measured);
}

/// Second part, last third.
#[inline(always)]
pub fn compare<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) {
    let (word, state) = (out.word, out.state[0]);
    let m = &mut out.measured;
    super::window::compare(word, arrived, m);
    acknowledges_handshake(cells, word, state, arrived, m);
    (out.value, out.bound) = (m.value, m.bound);
    match m.fit {
        Fit::Invalid(reason) => out.refuse(reason),
        Fit::Ignore(reason) => out.ignore(reason),
        Fit::Overshot if !word.has(flow_flags::LIBERAL) => out.ignore(PassReason::TcpOvershot),
        _ => {}
    }
}

/// Third part: what is to become of the state and of the word of the last packet.
#[inline(always)]
pub fn plan<E: Cells>(
    cells: E,
    arrived: &Arrived<'_>,
    now: Tick,
    timeouts: &Timeouts,
    out: &mut Stepped,
) {
    out.next = introduced(out.word, arrived, out);
    out.renew = false;
    match out.what {
        What::Accepted => accepted(cells, arrived, out),
        What::Ignored => {
            out.next = out.next.with(answered(arrived.direction));
            // After a SYN that begins anew, whose ACK comes next is not sure.
            if !out.checked && matches!(arrived.segment, Segment::Syn) {
                out.next = out.next.without(flow_flags::SIMULTANEOUS);
            }
        }
        _ => {
            if stray(cells, arrived, now, timeouts, out) {
                out.next = out.next.with(flow_flags::CUT_SHORT);
                out.renew = true;
            }
        }
    }
}

/// Fourth part: the swap that decides, and what goes with it.
///
/// False if another CPU changed the state meanwhile: the step begins anew.
#[inline(always)]
pub fn commit<E: Cells>(cells: E, now: Tick, out: &mut Stepped) -> bool {
    let (old, new) = (out.word, out.next);
    if new != old && cells.state().swap(old.0, new.0).is_err() {
        return false;
    }
    out.word = new;
    let [last, next] = out.last;
    if next != last {
        // Lost to another segment of the same moment, which is then the last.
        let _ = cells.last().swap(last.0, next.0);
    }
    if out.renew && cells.seen().load() != now.0 {
        cells.seen().store(now.0);
    }
    true
}

/// Fifth part, if [`commit`] was true: what becomes of the windows.
#[inline(always)]
pub fn record<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &Stepped) {
    if out.checked {
        super::window::record(cells, out.word, arrived, &out.measured);
    }
}

/// A SYN on a closed tuple begins a new flow if the old one was closed in order,
/// or by the originator's own RST. Otherwise the closing may have been forged,
/// and the answer will tell.
///
/// Stricter than the kernel: the connection that an expectation let in is never
/// followed by another one without a new expectation.
#[inline(always)]
fn may_reopen(word: FlowState, last: Last, direction: Direction) -> bool {
    let in_order = word.has(flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY);
    let own_reset =
        matches!(last.kind(), LastKind::Rst) && is_reply(last.direction()) == is_reply(direction);
    !sabotage::TUPLE_REUSE && (in_order || own_reset || word.has(flow_flags::RELATED))
}

/// Notes a segment that passes without being understood; its answer may tell.
#[inline(always)]
fn ignored<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) -> bool {
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
fn is_challenge(state: State, next: State, last: Last, arrived: &Arrived<'_>) -> bool {
    matches!((state, next), (State::LastAck, State::TimeWait))
        && matches!(arrived.segment, Segment::Ack)
        && matches!(last.kind(), LastKind::SynInLastAck)
        && is_reply(last.direction()) != is_reply(arrived.direction)
}

/// What an RST does.
enum Reset {
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
fn reset<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) -> Reset {
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
fn simultaneous<E: Cells>(cells: E, word: FlowState, state: State, arrived: &Arrived<'_>) -> bool {
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
fn acknowledges_handshake<E: Cells>(
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

/// Notes a FIN or an RST out of window on a proved flow. One of each side says
/// that its ends know more than we do: then the flow may live on, but not for
/// long. True if that shortens its life.
#[inline(always)]
fn stray<E: Cells>(
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
fn accepted<E: Cells>(cells: E, arrived: &Arrived<'_>, out: &mut Stepped) {
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

/// Sequence number after the SYN-ACK, in SYN_RECV: nothing has raised the
/// replier's limit since, unless it was a SYN-ACK of the originator's; then it is
/// the replier's end, if that has sent nothing since.
#[inline(always)]
fn end_of_syn_ack<E: Cells>(cells: E) -> u32 {
    let maxend = cells.maxend(Direction::Reply).load();
    let end = cells.end(Direction::Reply).load();
    if before(end, maxend) { end } else { maxend }
}

/// The state word with what a side's SYN says of it.
#[inline(always)]
fn introduced(word: FlowState, arrived: &Arrived<'_>, out: &Stepped) -> FlowState {
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
const fn answered(direction: Direction) -> u32 {
    match direction {
        Direction::Original => 0,
        Direction::Reply => flow_flags::SEEN_REPLY,
    }
}

#[inline(always)]
const fn is_reply(direction: Direction) -> bool {
    matches!(direction, Direction::Reply)
}

#[inline(always)]
const fn kind(segment: Segment) -> LastKind {
    match segment {
        Segment::Syn => LastKind::Syn,
        Segment::SynAck => LastKind::SynAck,
        Segment::Fin => LastKind::Fin,
        Segment::Ack => LastKind::Ack,
        Segment::Rst => LastKind::Rst,
    }
}

#[inline(always)]
const fn is_syn(last: Last) -> bool {
    matches!(last.kind(), LastKind::Syn | LastKind::SynInLastAck)
}

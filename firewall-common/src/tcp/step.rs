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

mod judge;
mod words;

use judge::{
    Reset, acknowledges_handshake, ignored, is_challenge, may_reopen, reset, simultaneous,
};
use words::{accepted, answered, introduced, stray};

use super::{
    Arrived, Cells, Segment, State, Transition, Word as _, transition,
    window::{Fit, Measured},
};
use crate::{
    abi::{FlowState, Last, LastKind, Phase, flow_flags},
    key::Direction,
    life,
    time::Tick,
    timeout::Timeouts,
    verdict::{DropReason, PassReason},
};

/// Lost swaps after which a segment passes without its step being recorded.
pub const TRIES: usize = 4;

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
        Transition::Ignore | Transition::Reopen if arrived.headers.options_malformed => {
            out.refuse(DropReason::MalformedTcp);
            return false;
        }
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
    out.renew = false;
    if arrived.headers.options_malformed && !matches!(out.what, What::Invalid) {
        unread(out);
        return;
    }
    out.next = introduced(out.word, arrived, out);
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

/// Drops a segment that fits, but of whose options not all could be read. It does
/// not come to its receiver, so it has done nothing.
///
/// One that does not fit leaves what any such segment leaves, as in the kernel: the
/// first of its side tells where that is.
#[inline(always)]
fn unread(out: &mut Stepped) {
    out.refuse(DropReason::MalformedTcp);
    out.checked = false;
    out.next = out.word;
    out.last[1] = out.last[0];
}

/// Fourth part: the swap that decides, and what goes with it.
///
/// False if another CPU changed the state meanwhile: the step begins anew. If
/// another one deletes the flow meanwhile, the segment is a miss.
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
    if out.renew && !life::renew(cells, now, new.incarnation()) {
        out.what = What::Gone;
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

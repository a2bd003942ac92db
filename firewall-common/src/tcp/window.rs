//! Window tracking: does a segment lie where its two ends can have it?
//!
//! After "Real Stateful TCP Packet Filtering in IP Filter" (van Rooij, 2000), as
//! nf_conntrack does it (`tcp_in_window` of Linux 6.18). We stand between two ends
//! and see each segment before its receiver does, or after its sender sent it, so
//! each side's windows are known to within what is on its way.

use super::{Arrived, Cells, Segment, State, Word as _, after, before};
use crate::{
    abi::{FlowState, flow_flags},
    sabotage,
    verdict::{DropReason, PassReason},
    wire::Fragment,
};

/// In [`crate::abi::TcpSide::maxwin`]: a CPU is writing this side's first values.
/// No window is as wide: the widest is 65535 << 14 (RFC 7323, section 2.3).
pub(super) const CLAIMED: u32 = 1 << 31;

/// No selective acknowledgement lies as far ahead of the cumulative one: what it
/// names was within a window, and none is wider (RFC 7323, section 2.3).
const SACK_REACH: u32 = 1 << 30;

/// An acknowledgement may lag this far behind what it acknowledges, or by the
/// widest window, whichever is more.
const MAX_ACK_LAG: u32 = 66_000;

/// How a segment lies in the windows of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It does.
    Inside,
    /// It passes, and says nothing of windows: the SYN of a simultaneous open, or
    /// whatever does not fit in a liberal flow.
    Unmeasured,
    /// More than the window allows, but by less than it is wide; its end counts,
    /// so that the acknowledgement of it passes.
    Overshot,
    /// It passes without counting.
    Ignore(PassReason),
    /// It does not fit.
    Invalid(DropReason),
}

/// What a segment says of a side that was not known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Nothing: the side is known.
    Known,
    /// Its SYN or SYN-ACK.
    Syn,
    /// Any other segment, of a flow that was picked up in mid-life.
    Middle,
}

/// A segment held against the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    pub fit: Fit,
    pub first: First,
    /// Acknowledgement, and the highest edge that is acknowledged selectively.
    pub ack: u32,
    pub sack: u32,
    /// First sequence number of the segment, and the one after it.
    pub seq: u32,
    pub end: u32,
    /// Window in bytes.
    pub win: u32,
    /// The sender's `end`, `maxend` and `maxwin` before its updates, first values applied.
    pub sender_end: u32,
    pub sender_maxend: u32,
    pub sender_maxwin: u32,
    /// Has the sender acknowledged anything before?
    pub acknowledged: bool,
    /// The sender's `maxwin` as loaded.
    pub loaded_maxwin: u32,
    /// The receiver's `end` and `maxwin`, first values applied.
    pub receiver_end: u32,
    pub receiver_maxwin: u32,
    /// What was compared, and with what; 0 if nothing decided.
    pub value: u32,
    pub bound: u32,
}

impl Measured {
    pub(super) const NONE: Self = Self {
        fit: Fit::Inside,
        first: First::Known,
        ack: 0,
        sack: 0,
        seq: 0,
        end: 0,
        win: 0,
        sender_end: 0,
        sender_maxend: 0,
        sender_maxwin: 0,
        acknowledged: false,
        loaded_maxwin: 0,
        receiver_end: 0,
        receiver_maxwin: 0,
        value: 0,
        bound: 0,
    };
}

/// Scales a window, unless the side offered no scale.
#[inline(always)]
fn scaled(window: u32, scale: u8) -> u32 {
    if scale == flow_flags::NO_SCALE || sabotage::SCALE {
        window
    } else {
        window << scale
    }
}

/// First part of measuring: what the segment and the flow, which is in `state`,
/// have to be compared.
#[inline(always)]
pub(super) fn measure<E: Cells>(
    cells: E,
    word: FlowState,
    state: State,
    arrived: &Arrived<'_>,
    m: &mut Measured,
) {
    let from = arrived.direction;
    let (h, to) = (arrived.headers, from.flip());
    let syn = matches!(arrived.segment, Segment::Syn | Segment::SynAck);
    let end = arrived.end();
    let raw = h.window as u32;
    let sack = if word.has(flow_flags::sack(to)) {
        h.sack
    } else {
        h.ack
    };
    let loaded_maxwin = cells.maxwin(from).load();
    let receiver_maxwin = cells.maxwin(to).load();
    m.fit = Fit::Inside;
    m.first = First::Known;
    m.ack = h.ack;
    m.sack = sack;
    m.end = end;
    m.win = if syn {
        raw
    } else {
        scaled(raw, word.scale(from))
    };
    m.sender_end = cells.end(from).load();
    m.sender_maxend = cells.maxend(from).load();
    m.sender_maxwin = loaded_maxwin;
    m.loaded_maxwin = loaded_maxwin;
    m.receiver_maxwin = receiver_maxwin;
    if (loaded_maxwin | receiver_maxwin) & CLAIMED != 0 {
        m.fit = Fit::Invalid(DropReason::TcpHandshake);
        return;
    }
    let mut receiver_end = cells.end(to).load();
    let opening = matches!(state, State::SynSent | State::SynRecv);
    if syn && (loaded_maxwin == 0 || (opening && after(end, m.sender_end))) {
        m.first = First::Syn;
        m.sender_end = end;
        m.sender_maxend = end;
        m.sender_maxwin = raw.max(1);
        // The SYN of the other side.
        let crossing = loaded_maxwin == 0 || from.index() == 1;
        if crossing && matches!(arrived.segment, Segment::Syn) {
            m.fit = Fit::Unmeasured;
            return;
        }
    } else if loaded_maxwin == 0 {
        m.first = First::Middle;
        m.sender_end = end;
        m.sender_maxwin = m.win.max(1);
        m.sender_maxend = end.wrapping_add(m.sender_maxwin);
        if m.receiver_maxwin == 0 {
            receiver_end = sack;
        } else if sack == receiver_end.wrapping_add(1) {
            // Likely the answer to a keep-alive.
            receiver_end = sack;
        }
    }
    m.receiver_end = receiver_end;
}

/// Second part of measuring: numbers that are there and mean nothing.
#[inline(always)]
pub(super) fn settle(state: State, arrived: &Arrived<'_>, m: &mut Measured) {
    if !matches!(m.fit, Fit::Inside) {
        return;
    }
    let h = arrived.headers;
    m.seq = h.seq;
    let reset = matches!(arrived.segment, Segment::Rst);
    // No acknowledgement, or that of a stack which sets ACK in an RST and leaves
    // the field zero: nothing to hold against the other side.
    if !arrived.has_ack() || (reset && h.ack == 0) {
        m.ack = m.receiver_end;
        m.sack = m.receiver_end;
    }
    // The answer to a SYN (RFC 9293, section 3.10.7.1: an RST without ACK has the
    // acknowledgement as its sequence number, which is none here).
    if reset && h.seq == 0 && matches!(state, State::SynSent) {
        m.seq = m.sender_end;
        m.end = m.sender_end;
    }
}

/// Third part of measuring: the four bounds.
#[inline(always)]
pub(super) fn compare(word: FlowState, arrived: &Arrived<'_>, m: &mut Measured) {
    m.acknowledged = word.has(flow_flags::maxack_set(arrived.direction));
    (m.value, m.bound) = (0, 0);
    if !matches!(m.fit, Fit::Inside) {
        return;
    }
    bounds(m);
    let unfit = matches!(m.fit, Fit::Ignore(_) | Fit::Invalid(_));
    if unfit && (word.has(flow_flags::LIBERAL) || sabotage::WINDOW) {
        m.fit = Fit::Unmeasured;
    }
}

#[inline(always)]
fn bounds(m: &mut Measured) {
    let (seq, receiver_end, receiver_maxwin) = (m.seq, m.receiver_end, m.receiver_maxwin);
    let lowest_end = m.sender_end.wrapping_sub(receiver_maxwin).wrapping_sub(1);
    let lag = m.sender_maxwin.max(MAX_ACK_LAG);
    let lowest_ack = receiver_end.wrapping_sub(lag).wrapping_sub(1);
    let ack_is_over = after(m.sack, receiver_end);
    if after(seq, m.sender_maxend) {
        let overshot = m.end.wrapping_sub(m.sender_maxend).wrapping_add(1);
        let by_little = receiver_maxwin != 0
            && after(m.end, lowest_end)
            && after(m.sack, lowest_ack)
            && overshot <= receiver_maxwin
            && !ack_is_over;
        (m.value, m.bound) = (seq, m.sender_maxend);
        m.fit = if by_little {
            Fit::Overshot
        } else {
            Fit::Invalid(DropReason::TcpSeqOver)
        };
    } else if ack_is_over {
        (m.value, m.bound) = (m.sack, receiver_end);
        m.fit = Fit::Invalid(DropReason::TcpAckOver);
    } else if receiver_maxwin != 0 && !after(m.end, lowest_end) {
        (m.value, m.bound) = (m.end, lowest_end.wrapping_add(1));
        m.fit = Fit::Ignore(PassReason::TcpOldData);
    } else if !after(m.sack, lowest_ack) {
        (m.value, m.bound) = (m.sack, lowest_ack.wrapping_add(1));
        m.fit = Fit::Ignore(PassReason::TcpOldAck);
    } else if m.sack.wrapping_sub(m.ack) >= SACK_REACH {
        // Stricter than the kernel: what lies between the two counts as window, and
        // one of 2^31 is none. It leaves nothing, or the kernel's would be another.
        (m.value, m.bound) = (m.sack, m.ack.wrapping_add(SACK_REACH - 1));
        m.fit = Fit::Invalid(DropReason::TcpSackOver);
        m.first = First::Known;
    }
}

/// All of measuring for a segment that does nothing to the state of an established flow;
/// `None` unless both sides are known and it lies inside their windows.
#[inline(always)]
pub(super) fn plain<E: Cells>(
    cells: E,
    word: FlowState,
    arrived: &Arrived<'_>,
) -> Option<Measured> {
    let mut m = Measured::NONE;
    measure(cells, word, State::Established, arrived, &mut m);
    // Nobody writes the first values of either side.
    if matches!(m.fit, Fit::Inside) && matches!(m.first, First::Known) {
        settle(State::Established, arrived, &mut m);
        compare(word, arrived, &mut m);
        return matches!(m.fit, Fit::Inside).then_some(m);
    }
    None
}

/// Lost swaps after which a value is left as it is.
const TRIES: usize = 4;

/// Writes what a measured segment says. Called after the state word was swapped,
/// so by one CPU for each change of state.
///
/// Each value is advanced in serial arithmetic by compare-and-swap: the order in
/// which two segments of one side are recorded does not matter.
#[inline(always)]
pub(super) fn record<E: Cells>(cells: E, word: FlowState, arrived: &Arrived<'_>, m: &Measured) {
    let from = arrived.direction;
    match m.first {
        First::Known => {}
        First::Syn | First::Middle => {
            record_first(cells, word, arrived, m);
            return;
        }
    }
    match m.fit {
        Fit::Inside => {}
        Fit::Overshot => {
            let _ = cells.end(from).swap(m.sender_end, m.end);
            return;
        }
        _ => return,
    }
    let window = m.win.wrapping_add(m.sack.wrapping_sub(m.ack));
    widen(cells.maxwin(from), m.sender_maxwin, window);
    let sent = farthest(arrived, m);
    if after(sent, m.sender_end) {
        advance(cells.end(from), m.sender_end, sent);
    }
    acknowledge(cells, arrived, m);
    allow(cells, arrived, m);
}

/// How far the sender has come with this segment.
///
/// Of a datagram in fragments only the first is seen here, without the length of
/// the whole: it may be as long as a datagram can be, and as the receiver's window
/// allows. (nf_conntrack puts it together first.)
#[inline(always)]
fn farthest(arrived: &Arrived<'_>, m: &Measured) -> u32 {
    const LONGEST: u32 = 0xffff;
    if arrived.headers.fragment as u8 != Fragment::First as u8 {
        return m.end;
    }
    let longest = arrived.headers.seq.wrapping_add(LONGEST);
    let allowed = if after(longest, m.sender_maxend) {
        m.sender_maxend
    } else {
        longest
    };
    if after(allowed, m.end) {
        allowed
    } else {
        m.end
    }
}

/// The first values of a side. Claimed, so that those of two segments never mix.
#[inline(always)]
fn record_first<E: Cells>(cells: E, word: FlowState, arrived: &Arrived<'_>, m: &Measured) {
    let from = arrived.direction;
    if cells.maxwin(from).swap(m.loaded_maxwin, CLAIMED).is_err() {
        return;
    }
    cells.end(from).store(m.sender_end);
    cells.maxend(from).store(m.sender_maxend);
    let mut maxwin = m.sender_maxwin;
    if matches!(m.first, First::Middle) {
        introduce(cells, arrived, m);
    } else if from.index() == 0 && !word.has(flow_flags::maxack_set(from)) {
        cells
            .maxack(from)
            .store(arrived.headers.seq.wrapping_add(1));
    }
    if matches!(m.fit, Fit::Inside) {
        maxwin = maxwin.max(m.win.wrapping_add(m.sack.wrapping_sub(m.ack)) & !CLAIMED);
        if arrived.has_ack() {
            cells.maxack(from).store(m.ack);
        }
        allow(cells, arrived, m);
    }
    let _ = cells.maxwin(from).swap(CLAIMED, maxwin);
}

/// What the first segment of one side says of the other.
#[inline(always)]
fn introduce<E: Cells>(cells: E, arrived: &Arrived<'_>, m: &Measured) {
    let to = arrived.direction.flip();
    let end = cells.end(to).load();
    if cells.maxwin(to).load() == 0 {
        cells.end(to).store(m.sack);
        cells.maxend(to).store(m.sack);
    } else if m.sack == end.wrapping_add(1) {
        advance(cells.end(to), end, m.sack);
    }
}

/// Records the acknowledgement.
#[inline(always)]
fn acknowledge<E: Cells>(cells: E, arrived: &Arrived<'_>, m: &Measured) {
    if !arrived.has_ack() {
        return;
    }
    let from = arrived.direction;
    let maxack = cells.maxack(from);
    let old = maxack.load();
    if !m.acknowledged {
        let _ = maxack.swap(old, m.ack);
    } else if after(m.ack, old) {
        advance(maxack, old, m.ack);
    }
}

/// Records what the segment's window allows the other side.
#[inline(always)]
fn allow<E: Cells>(cells: E, arrived: &Arrived<'_>, m: &Measured) {
    let to = arrived.direction.flip();
    let maxwin = cells.maxwin(to).load();
    if maxwin != 0 && after(m.end, m.sender_maxend) {
        let more = m.end.wrapping_sub(m.sender_maxend);
        widen(cells.maxwin(to), maxwin, maxwin.wrapping_add(more));
    }
    let limit = m.sack.wrapping_add(m.win);
    let maxend = cells.maxend(to);
    let old = maxend.load();
    if !before(limit, old) {
        // A closed window can be probed with one byte.
        let limit = if m.win == 0 {
            limit.wrapping_add(1)
        } else {
            limit
        };
        advance(maxend, old, limit);
    }
}

/// Raises a sequence number from `old`, unless it is there already.
#[inline(always)]
fn advance<W: super::Word<u32>>(word: W, old: u32, new: u32) {
    // As with every segment that says again what is known: a swap is not for nothing.
    if old == new {
        return;
    }
    let mut old = old;
    for _ in 0..TRIES {
        match word.swap(old, new) {
            Ok(()) => return,
            Err(now) if after(new, now) => old = now,
            Err(_) => return,
        }
    }
}

/// Raises a window from `old`, unless it is as wide already.
#[inline(always)]
fn widen<W: super::Word<u32>>(word: W, old: u32, new: u32) {
    let new = new & !CLAIMED;
    let mut old = old;
    for _ in 0..TRIES {
        if old >= new {
            return;
        }
        match word.swap(old, new) {
            Ok(()) => return,
            Err(now) => old = now,
        }
    }
}

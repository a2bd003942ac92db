//! The entry that a segment begins.

use super::{State, end};
use crate::{
    abi::{
        FlowState, Last, LastKind, TcpSide,
        flow_flags::{self, NO_SCALE},
    },
    key::Direction,
    wire::Headers,
};

/// What is TCP's own in a new entry.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// The state.
    pub state: State,
    /// Flags of TCP.
    pub flags: u32,
    /// By [`Direction`].
    pub tcp: [TcpSide; 2],
    /// Kind, direction and end of the last segment.
    pub last: (LastKind, Direction, u32),
}

/// By the originator's SYN.
#[inline(always)]
#[must_use]
pub fn opened(h: &Headers) -> Begun {
    let end = end(h);
    let window = h.window as u32;
    let sack = if h.sack_permitted {
        flow_flags::SACK_ORIGINAL
    } else {
        0
    };
    Begun {
        state: State::SynSent,
        flags: sack | flow_flags::scales(h.scale, NO_SCALE),
        tcp: [
            TcpSide {
                end,
                maxend: end,
                maxack: h.seq.wrapping_add(1),
                maxwin: window.max(1),
            },
            TcpSide::UNKNOWN,
        ],
        last: (LastKind::Syn, Direction::Original, 0),
    }
}

/// By an ACK in mid-life: whoever sends it counts as the originator.
///
/// Nothing is known of the other side, nor of scales, so the flow's windows can
/// never be held against it; and SACK may have been agreed on.
#[inline(always)]
#[must_use]
pub fn picked_up(h: &Headers) -> Begun {
    let end = end(h);
    let window = (h.window as u32).max(1);
    Begun {
        state: State::Established,
        flags: flow_flags::LIBERAL
            | flow_flags::SACK_ORIGINAL
            | flow_flags::SACK_REPLY
            | flow_flags::scales(NO_SCALE, NO_SCALE),
        tcp: [
            TcpSide {
                end,
                maxend: end.wrapping_add(window),
                maxack: end,
                maxwin: window,
            },
            TcpSide::UNKNOWN,
        ],
        last: (LastKind::Ack, Direction::Original, end),
    }
}

/// By the SYN-ACK `h` that answers an ignored SYN on the tuple of the flow that
/// had `word` and `last`: a new flow of the same rule and zones, already answered.
///
/// The SYN itself is gone; of its window no more is known than that it was open.
#[inline(always)]
#[must_use]
pub fn resynchronised(word: FlowState, last: Last, h: &Headers) -> Begun {
    const KEPT: u32 = flow_flags::FIRST_DOWN
        | flow_flags::HELPER_FTP
        | flow_flags::FROM_INSIDE
        | flow_flags::LIBERAL
        | flow_flags::WOULD_DROP
        // As in the kernel: of a flow that was proved, a stray FIN or RST is noted.
        | flow_flags::ASSURED;
    let sack = [
        (last.sack(), flow_flags::SACK_ORIGINAL),
        (h.sack_permitted, flow_flags::SACK_REPLY),
    ];
    let mut flags = word.flags() & KEPT | flow_flags::SEEN_REPLY | flow_flags::MAXACK_REPLY;
    for (permitted, flag) in sack {
        if permitted {
            flags |= flag;
        }
    }
    let scaled = last.scale() != NO_SCALE && h.scale != NO_SCALE;
    flags |= if scaled {
        flow_flags::scales(last.scale(), h.scale)
    } else {
        flow_flags::scales(NO_SCALE, NO_SCALE)
    };
    let window = h.window as u32;
    let (syn_end, end) = (last.end(), end(h));
    Begun {
        state: State::SynRecv,
        flags,
        tcp: [
            TcpSide {
                end: syn_end,
                // A closed window can be probed with one byte.
                maxend: syn_end.wrapping_add(window.max(1)),
                maxack: syn_end,
                maxwin: 1,
            },
            TcpSide {
                end,
                maxend: end,
                maxack: h.ack,
                maxwin: window.max(1),
            },
        ],
        last: (LastKind::SynAck, Direction::Reply, syn_end),
    }
}

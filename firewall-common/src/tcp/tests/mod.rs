//! The tracker over plain memory: scenarios, properties, interleavings.

mod interleaved;
mod properties;
mod scenarios;

use super::*;
use crate::{
    abi::{Flow, FlowState, Last, RULE_NONE, TcpSide, flow_flags, timeout},
    time::Tick,
    timeout::Timeouts,
    wire::proto,
};

pub(super) const SYN: u8 = tcp_flags::SYN;
pub(super) const ACK: u8 = tcp_flags::ACK;
pub(super) const FIN: u8 = tcp_flags::FIN;
pub(super) const RST: u8 = tcp_flags::RST;
pub(super) const OUT: Direction = Direction::Original;
pub(super) const BACK: Direction = Direction::Reply;
/// When flows of these tests began.
pub(super) const START: Tick = Tick(1000);
const INCARNATION: u32 = 7;

/// Headers of a segment of `len` bytes of payload.
pub(crate) fn segment(flags: u8, seq: u32, ack: u32, len: u32) -> Headers {
    Headers {
        proto: proto::TCP,
        tcp_flags: flags,
        seq,
        ack,
        sack: ack,
        window: 1000,
        l3_len: 40 + len,
        l4_offset: 20,
        payload_offset: 40,
        ..Headers::ZERO
    }
}

pub(super) fn timeouts() -> Timeouts {
    let mut table = [600; timeout::LEN];
    table[State::Established as usize] = 100_000;
    table[State::Close as usize] = 10;
    table[timeout::TCP_UNACKNOWLEDGED] = 300;
    table
}

/// A flow in one thread.
pub(super) struct Track {
    pub(super) cells: FlowCells,
    pub(super) now: Tick,
}

impl Track {
    /// Begun by `syn`.
    pub(super) fn new(syn: &Headers) -> Self {
        let begun = opened(syn);
        let (kind, direction, end) = begun.last;
        let flow = Flow {
            state: FlowState::new(begun.state as u8, begun.flags, INCARNATION).0,
            last: Last::new(RULE_NONE, 0, 1)
                .with_packet(kind, direction, end)
                .0,
            seen: START.0,
            created: START.0,
            bytes: [0; 2],
            packets: [0; 2],
            tcp: begun.tcp,
        };
        Self {
            cells: FlowCells::new(&flow),
            now: START,
        }
    }

    /// After a handshake: the originator's stream begins at 1001, the replier's at 5001.
    pub(super) fn established() -> Self {
        let mut track = Self::new(&segment(SYN, 1000, 0, 0));
        track.accepts(BACK, &segment(SYN | ACK, 5000, 1001, 0));
        track.accepts(OUT, &segment(ACK, 1001, 5001, 0));
        assert_eq!(track.state(), State::Established);
        track
    }

    /// The complete step. If the plain one takes the segment, it has left the same.
    pub(super) fn step(&mut self, direction: Direction, h: &Headers) -> Stepped {
        let arrived = Arrived {
            headers: h,
            segment: Segment::of(h.tcp_flags).unwrap(),
            direction,
        };
        let before = self.flow();
        let by_plain = FlowCells::new(&before);
        let is_plain = plain(&by_plain, &arrived, before.state(), self.now);
        let out = self.complete_step(&arrived);
        if is_plain {
            assert_eq!(out.what, What::Accepted, "{out:?}");
            assert_eq!((out.word, out.changed), (before.state(), false));
            assert_eq!(by_plain.flow(), self.flow());
        } else {
            assert_eq!(by_plain.flow(), before, "nothing is written");
        }
        out
    }

    fn complete_step(&mut self, arrived: &Arrived<'_>) -> Stepped {
        let mut out = Stepped::NONE;
        step(
            &self.cells,
            arrived,
            INCARNATION,
            self.now,
            &timeouts(),
            &mut out,
        );
        out
    }

    pub(super) fn accepts(&mut self, direction: Direction, h: &Headers) {
        let out = self.step(direction, h);
        assert_eq!(out.what, What::Accepted, "{out:?}");
    }

    pub(super) fn flow(&self) -> Flow {
        self.cells.flow()
    }

    pub(super) fn state(&self) -> State {
        self.flow().state().state().try_into().unwrap()
    }

    pub(super) fn expires(&self) -> Tick {
        self.flow().expires(proto::TCP, &timeouts())
    }

    pub(super) fn side(&self, direction: Direction) -> TcpSide {
        self.flow().tcp[direction.index()]
    }

    pub(super) fn has(&self, flags: u32) -> bool {
        self.flow().state().has(flags)
    }
}

#[test]
fn the_handshake_ends_in_a_proved_flow() {
    let track = Track::established();
    assert!(track.has(flow_flags::ASSURED) && track.has(flow_flags::SEEN_REPLY));
    assert_eq!(track.side(OUT).end, 1001);
    assert_eq!(track.side(BACK).end, 5001);
}

/// The control of what [`Track::step`] compares: the plain step does take segments.
#[test]
fn a_segment_of_either_side_is_plain_once_both_have_spoken() {
    let track = Track::established();
    let takes = |direction, h: &Headers| {
        let arrived = Arrived {
            headers: h,
            segment: Segment::of(h.tcp_flags).unwrap(),
            direction,
        };
        plain(&track.cells.clone(), &arrived, track.flow().state(), START)
    };
    assert!(takes(OUT, &segment(ACK, 1001, 5001, 100)));
    assert!(takes(BACK, &segment(ACK, 5001, 1001, 100)));
    assert!(!takes(OUT, &segment(ACK | FIN, 1001, 5001, 100)));
    assert!(!takes(BACK, &segment(RST, 5001, 1001, 0)));
    assert!(
        !takes(OUT, &segment(ACK, 900_000, 5001, 100)),
        "out of window"
    );
    let torn = Headers {
        options_malformed: true,
        ..segment(ACK, 1001, 5001, 100)
    };
    assert!(!takes(OUT, &torn));
}

//! Any sequence of segments on one TCP flow: the tracker never panics, keeps what
//! is constant, never lengthens a life for what it refuses, and an outsider moves
//! no established flow.
#![no_main]

use firewall_common::{
    abi::{Flow, FlowState, Last, LastKind, RULE_NONE, TcpSide, flow_flags, timeout},
    key::Direction,
    tcp::{
        Arrived, Begun, FlowCells, Segment, State, Stepped, Transition, What, opened, picked_up,
        plain, resynchronised, step, transition,
    },
    time::Tick,
    timeout::Timeouts,
    wire::{Headers, proto, tcp_flags},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else {
        return;
    };
    let mut rounds = rest.chunks_exact(ROUND);
    let Some(first) = rounds.next() else {
        return;
    };
    let mut world = World::begun(*how, first);
    for round in rounds {
        if !world.round(round) {
            return;
        }
    }
});

/// Bytes that make one segment.
const ROUND: usize = 11;
/// Flags that are written once, when the flow begins.
const CONSTANT: u32 = flow_flags::FIRST_DOWN
    | flow_flags::HELPER_FTP
    | flow_flags::BLIND
    | flow_flags::RELATED
    | flow_flags::SEEDED
    | flow_flags::FROM_INSIDE
    | flow_flags::WOULD_DROP;
const INCARNATION: u32 = 0xabcd_1234;
/// Windows are below this: it marks one that another CPU is writing.
const CLAIMED: u32 = 1 << 31;

struct World {
    cells: FlowCells,
    now: Tick,
    timeouts: Timeouts,
    /// Is the proved table full, so that the flow is never assured?
    full: bool,
}

impl World {
    fn begun(how: u8, first: &[u8]) -> Self {
        let mut timeouts = [600; timeout::LEN];
        timeouts[State::Established as usize] = 500_000;
        timeouts[State::Close as usize] = 10;
        timeouts[timeout::TCP_UNACKNOWLEDGED] = 300;
        let zero = Flow {
            state: 0,
            last: 0,
            seen: 0,
            created: 0,
            bytes: [0; 2],
            packets: [0; 2],
            tcp: [TcpSide::UNKNOWN; 2],
        };
        let mut h = headers(&FlowCells::new(&zero), first);
        let syn = how & 1 == 0;
        h.tcp_flags = if syn { tcp_flags::SYN } else { tcp_flags::ACK };
        let begun = if syn { opened(&h) } else { picked_up(&h) };
        let more = [(2, flow_flags::LIBERAL), (4, flow_flags::RELATED)]
            .into_iter()
            .filter(|(bit, _)| how & bit != 0)
            .fold(flow_flags::FIRST_DOWN, |flags, (_, flag)| flags | flag);
        let now = Tick(u32::MAX - 1000);
        Self {
            cells: FlowCells::new(&entry(&begun, more, Last::new(RULE_NONE, 1, 2), now)),
            now,
            timeouts,
            full: how & 8 != 0,
        }
    }

    /// One segment; false if the flow is at its end.
    fn round(&mut self, bytes: &[u8]) -> bool {
        let h = headers(&self.cells, bytes);
        let Some(segment) = Segment::of(h.tcp_flags) else {
            return true;
        };
        self.now = self.now.plus([0, 1, 20, 250][usize::from(bytes[10] >> 6)]);
        let before = self.cells.flow();
        if self.now.is_after(self.expires(&before)) {
            return false;
        }
        let arrived = Arrived {
            headers: &h,
            segment,
            direction: direction(bytes),
        };
        let out = self.step(&arrived);
        let after = self.cells.flow();
        self.keeps_what_is_constant(&before, &after, &out);
        assert!(!h.options_malformed || out.what == What::Invalid);
        match out.what {
            What::Accepted => accepted(&before, &after, &arrived, &out),
            What::Ignored => self.ignored(&before, &after),
            What::Invalid => self.refused(&before, &after),
            What::Reopen => {
                assert_eq!(segment, Segment::Syn);
                return false;
            }
            What::Resync => {
                assert_eq!(segment, Segment::SynAck);
                let begun = resynchronised(out.word, before.last(), &h);
                let flags = out.word.flags() & CONSTANT;
                let last = Last::new(before.rule(), before.from_zone(), before.to_zone());
                self.cells = FlowCells::new(&entry(&begun, flags, last, self.now));
                return true;
            }
            What::Ended => {
                assert_eq!(segment, Segment::Rst);
                return false;
            }
            What::Gone | What::Moving | What::Contended => {
                panic!("{:?}, and nobody else is here", out.what);
            }
        }
        outsider(&before, &after, &arrived);
        self.promote();
        true
    }

    /// The same step of the same flow has the same outcome, by the plain step, too, if
    /// that takes the segment.
    fn step(&self, arrived: &Arrived<'_>) -> Stepped {
        let again = self.cells.clone();
        let by_plain = self.cells.clone();
        let before = self.cells.flow();
        let is_plain = plain(&by_plain, arrived, before.state(), self.now);
        let [mut out, mut same] = [Stepped::NONE; 2];
        for (cells, out) in [(&self.cells, &mut out), (&again, &mut same)] {
            step(cells, arrived, INCARNATION, self.now, &self.timeouts, out);
        }
        assert_eq!(self.cells.flow(), again.flow());
        assert_eq!((out.what, out.word), (same.what, same.word));
        if is_plain {
            assert_eq!(by_plain.flow(), again.flow());
            assert_eq!(
                (out.what, out.word, out.changed),
                (What::Accepted, before.state(), false)
            );
        } else {
            assert_eq!(by_plain.flow(), before);
        }
        out
    }

    fn expires(&self, flow: &Flow) -> Tick {
        flow.expires(proto::TCP, &self.timeouts)
    }

    fn keeps_what_is_constant(&self, before: &Flow, after: &Flow, out: &Stepped) {
        let (old, new) = (before.state(), after.state());
        assert_eq!(old.incarnation(), new.incarnation());
        assert_eq!(old.phase(), new.phase());
        assert_eq!(old.flags() & CONSTANT, new.flags() & CONSTANT);
        let place = |flow: &Flow| (flow.rule(), flow.from_zone(), flow.to_zone(), flow.created);
        assert_eq!(place(before), place(after));
        assert_eq!(old.flags() & !new.flags() & marks(), 0, "a mark stays");
        assert!(State::try_from(new.state()).is_ok());
        if matches!(out.what, What::Accepted | What::Ignored) {
            assert_eq!(out.word, new);
        }
        for side in &after.tcp {
            assert!(side.maxwin < CLAIMED, "{}", side.maxwin);
        }
    }

    /// What is refused changes no state and no window, and lengthens no life. Only
    /// in the handshake a side that was not known can be introduced by it, as in
    /// the kernel, until its own SYN corrects that.
    fn refused(&self, before: &Flow, after: &Flow) {
        assert_eq!(before.state().state(), after.state().state());
        if before.tcp.iter().all(|side| side.maxwin != 0) && !opening(before) {
            assert_eq!(before.tcp, after.tcp);
        }
        let (was, is) = (self.expires(before), self.expires(after));
        assert!(!is.is_after(was), "refused, and lives longer");
    }

    /// What is ignored leaves the state and the time of the last good packet, and
    /// lengthens no life either.
    fn ignored(&self, before: &Flow, after: &Flow) {
        assert_eq!(before.state().state(), after.state().state());
        assert_eq!(before.seen, after.seen);
        let (was, is) = (self.expires(before), self.expires(after));
        assert!(!is.is_after(was), "ignored, and lives longer");
    }

    /// What the programs do with an established flow.
    fn promote(&mut self) {
        let mut flow = self.cells.flow();
        let word = flow.state();
        if word.state() == State::Established as u8 && !self.full {
            flow.state = word.with(flow_flags::ASSURED).0;
            self.cells = FlowCells::new(&flow);
        }
    }
}

/// Flags that only ever appear.
fn marks() -> u32 {
    flow_flags::SEEN_REPLY | flow_flags::ASSURED | flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY
}

fn entry(begun: &Begun, flags: u32, last: Last, now: Tick) -> Flow {
    let (kind, direction, end) = begun.last;
    Flow {
        state: FlowState::new(begun.state as u8, flags | begun.flags, INCARNATION).0,
        last: last.with_packet(kind, direction, end).0,
        seen: now.0,
        created: now.0,
        bytes: [0; 2],
        packets: [0; 2],
        tcp: begun.tcp,
    }
}

fn direction(bytes: &[u8]) -> Direction {
    if bytes[0] & 1 == 0 {
        Direction::Original
    } else {
        Direction::Reply
    }
}

/// A segment. Its numbers lie near those of the flow, or anywhere.
fn headers(cells: &FlowCells, bytes: &[u8]) -> Headers {
    use tcp_flags::{ACK, FIN, RST, SYN, URG};
    const KINDS: [u8; 8] = [
        SYN,
        SYN | ACK,
        ACK,
        ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        ACK | URG,
    ];
    let flow = cells.flow();
    let from = direction(bytes).index();
    let (ours, theirs) = (&flow.tcp[from], &flow.tcp[1 - from]);
    let near = |how: u8, delta: [u8; 2]| {
        let delta = i32::from(i16::from_le_bytes(delta));
        let base = match how & 7 {
            0 => ours.end,
            1 => ours.maxend,
            2 => ours.maxack,
            3 => theirs.end,
            4 => theirs.maxend,
            5 => theirs.maxack,
            6 => flow.last().end(),
            _ => return (delta as u32) << 16 | delta as u32,
        };
        base.wrapping_add((delta << (how >> 3 & 7) << 1 >> 1) as u32)
    };
    let ack = near(bytes[4], [bytes[5], bytes[6]]);
    let options = bytes[10];
    let payload = u32::from(bytes[9]) * 7;
    Headers {
        proto: proto::TCP,
        tcp_flags: KINDS[usize::from(bytes[0] >> 1 & 7)],
        seq: near(bytes[1], [bytes[2], bytes[3]]),
        ack,
        sack: if options & 32 == 0 {
            ack
        } else {
            ack.wrapping_add(payload)
        },
        window: u16::from_le_bytes([bytes[7], bytes[8]]),
        scale: (options & 15).min(flow_flags::NO_SCALE),
        sack_permitted: options & 16 != 0,
        options_malformed: bytes[0] >> 4 == 15,
        l3_len: 40 + payload,
        l4_offset: 20,
        payload_offset: 40,
        ..Headers::ZERO
    }
}

/// What is accepted steps as the table says, and windows only grow.
fn accepted(before: &Flow, after: &Flow, arrived: &Arrived<'_>, out: &Stepped) {
    let (old, new) = (before.state().state(), after.state().state());
    assert_eq!(out.changed, old != new);
    let Ok(state) = State::try_from(old) else {
        panic!("state {old}");
    };
    let by_table = match transition(state, arrived.direction, arrived.segment) {
        Transition::To(next) => next as u8,
        other => panic!("accepted, and the table says {other:?}"),
    };
    let kept = arrived.segment == Segment::Rst && new == old;
    let crossed = new == State::Established as u8 && state == State::SynRecv;
    assert!(
        new == by_table || kept || crossed,
        "{old} to {new}, not {by_table}"
    );
    if new == State::Established as u8 && new != old {
        assert!(after.state().has(flow_flags::SEEN_REPLY), "nobody answered");
    }
    for (was, is) in before.tcp.iter().zip(&after.tcp) {
        // Beyond its limit, a side's end is what it sent last, as in the kernel.
        let within = !earlier(was.maxend, was.end);
        if was.maxwin != 0 && within && !opening(before) {
            assert!(!earlier(is.end, was.end), "end goes back");
        }
    }
}

/// Who does not know the sequence numbers of a proved connection does not move it.
fn outsider(before: &Flow, after: &Flow, arrived: &Arrived<'_>) {
    let word = before.state();
    let [a, b] = &before.tcp;
    let proved = word.state() == State::Established as u8
        && word.has(flow_flags::ASSURED)
        && !word.has(flow_flags::LIBERAL)
        && a.maxwin != 0
        && b.maxwin != 0;
    if !proved {
        return;
    }
    let ours = &before.tcp[arrived.direction.index()];
    let room = 2 * u64::from(a.maxwin.max(b.maxwin).max(66_000)) + 2 * 65_536;
    let off = |mark: u32| u64::from((arrived.headers.seq.wrapping_sub(mark) as i32).unsigned_abs());
    // Who speaks for both ends can have one answer a SYN of the other; that takes
    // packets from two zones.
    let last = before.last();
    let answers_a_syn = matches!(last.kind(), LastKind::Syn | LastKind::SynInLastAck)
        && last.direction() != arrived.direction;
    if off(ours.end) > room && off(ours.maxend) > room && !answers_a_syn {
        assert_eq!(
            word.state(),
            after.state().state(),
            "moved from outside the window"
        );
        assert_eq!(before.tcp, after.tcp);
    }
}

/// Is the handshake under way?
fn opening(flow: &Flow) -> bool {
    let states = [State::SynSent, State::SynSent2, State::SynRecv];
    states
        .iter()
        .any(|state| *state as u8 == flow.state().state())
}

/// Is `a` earlier than `b`, modulo 2^32?
fn earlier(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

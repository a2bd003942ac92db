//! Two CPUs in one flow at once, under every schedule there is.

use super::*;
use crate::{
    explore::{self, Cpu},
    life::{
        Place,
        tests::memory::{At, Memory},
    },
};

type Packet = (Direction, Headers);

/// What a segment met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Met {
    what: What,
    /// Where the streams begin, if it ended the handshake.
    streams: Option<[u32; 2]>,
}

/// The complete step of a packet.
fn run<E: Cells>(cells: E, packet: &Packet) -> Met {
    let mut out = Stepped::NONE;
    let arrived = arrived(packet);
    step(cells, &arrived, INCARNATION, START, &timeouts(), &mut out);
    Met {
        what: out.what,
        streams: out.opened.then_some(out.streams),
    }
}

/// As the programs step it: by the plain step, if that takes it.
fn run_plain<E: Cells>(cells: E, packet: &Packet) -> Met {
    let found = FlowState(cells.state().load());
    if plain(cells, &arrived(packet), found, START) {
        return Met {
            what: What::Accepted,
            streams: None,
        };
    }
    run(cells, packet)
}

fn arrived((direction, h): &Packet) -> Arrived<'_> {
    Arrived {
        headers: h,
        segment: Segment::of(h.tcp_flags).unwrap(),
        direction: *direction,
    }
}

/// What one order of the two leaves behind.
fn in_order(flow: &Flow, packets: &[Packet; 2], first: usize) -> (Flow, [What; 2]) {
    let cells = FlowCells::new(flow);
    let mut results = [What::Gone; 2];
    for number in [first, 1 - first] {
        results[number] = run(&cells, &packets[number]).what;
    }
    (cells.flow(), results)
}

/// Runs two segments under all schedules, and shows each result to `check`.
fn all(flow: &Flow, packets: &[Packet; 2], mut check: impl FnMut(&Flow, &[Met], &str)) {
    let start = Memory::with(Place::Proved, flow);
    let cpu = |number: usize| {
        move |cpu: &Cpu<'_, Memory>| run_plain(At { cpu, node: 0 }, &packets[number])
    };
    explore::all(&start, &[&cpu(0), &cpu(1)], |memory, results, schedule| {
        check(&memory.at(Place::Proved).unwrap(), results, schedule);
    });
}

/// Is what two segments leave behind under every schedule that of one order?
fn is_one_order(flow: &Flow, packets: &[Packet; 2]) {
    let orders = [0, 1].map(|first| in_order(flow, packets, first));
    all(flow, packets, |flow, results, schedule| {
        let whats = [0, 1].map(|number: usize| results[number].what);
        let fits = orders.iter().any(|(after, ordered)| {
            after.state == flow.state && after.tcp == flow.tcp && *ordered == whats
        });
        assert!(
            fits,
            "{schedule}: {whats:?} {flow:#x?}\nnot one of {orders:#x?}"
        );
    });
}

fn syn_received() -> Flow {
    let mut track = Track::new(&segment(SYN, 1000, 0, 0));
    track.accepts(BACK, &segment(SYN | ACK, 5000, 1001, 0));
    track.flow()
}

#[test]
fn data_of_both_sides() {
    let flow = Track::established().flow();
    let out = segment(ACK, 1001, 5001, 100);
    let back = segment(ACK, 5001, 1001, 300);
    is_one_order(&flow, &[(OUT, out), (BACK, back)]);
}

#[test]
fn data_of_one_side_out_of_order() {
    let flow = Track::established().flow();
    let (one, two) = (segment(ACK, 1001, 5001, 100), segment(ACK, 1101, 5001, 100));
    is_one_order(&flow, &[(OUT, one), (OUT, two)]);
}

#[test]
fn the_ends_of_both_sides() {
    let flow = Track::established().flow();
    let out = segment(FIN | ACK, 1001, 5001, 0);
    let back = segment(FIN | ACK, 5001, 1001, 0);
    is_one_order(&flow, &[(OUT, out), (BACK, back)]);
    all(&flow, &[(OUT, out), (BACK, back)], |flow, _, schedule| {
        assert_eq!(flow.state().state(), State::LastAck as u8, "{schedule}");
        assert!(flow.state().has(flow_flags::FIN_ORIGINAL), "{schedule}");
        assert!(flow.state().has(flow_flags::FIN_REPLY), "{schedule}");
    });
}

#[test]
fn a_reset_and_data() {
    let flow = Track::established().flow();
    let rst = segment(RST, 5001, 0, 0);
    let data = segment(ACK, 1001, 5001, 100);
    all(&flow, &[(BACK, rst), (OUT, data)], |flow, _, schedule| {
        assert_eq!(flow.state().state(), State::Close as u8, "{schedule}");
    });
}

#[test]
fn one_segment_alone_ends_the_handshake() {
    let packets = [
        (OUT, segment(ACK, 1001, 5001, 0)),
        (OUT, segment(ACK, 1001, 5001, 100)),
    ];
    all(&syn_received(), &packets, |flow, results, schedule| {
        let opened = results.iter().filter_map(|r| r.streams).count();
        assert_eq!(opened, 1, "{schedule}");
        assert_eq!(flow.state().state(), State::Established as u8);
        assert!(flow.state().has(flow_flags::ASSURED));
        assert_eq!(flow.tcp[0].end, 1101, "{schedule}");
        let streams = results.iter().find_map(|r| r.streams);
        assert_eq!(streams, Some([1001, 5001]), "{schedule}");
    });
}

/// The values of two SYN-ACKs that contradict one another never mix.
#[test]
fn two_answers_to_one_syn() {
    let flow = Track::new(&segment(SYN, 1000, 0, 0)).flow();
    let packets = [5000, 900_000].map(|seq| (BACK, segment(SYN | ACK, seq, 1001, 0)));
    all(&flow, &packets, |flow, results, schedule| {
        let side = flow.tcp[1];
        assert!(
            side.end == 5001 || side.end == 900_001,
            "{schedule} {side:?}"
        );
        assert_eq!(side.maxend, side.end, "{schedule}");
        assert_eq!(side.maxwin, 1000, "{schedule}");
        assert_eq!(flow.state().state(), State::SynRecv as u8, "{schedule}");
        let accepted = results.iter().filter(|r| r.what == What::Accepted).count();
        assert!(accepted >= 1, "{schedule}");
    });
}

/// The originator's acknowledgement races with the very SYN-ACK it must name: it
/// cannot be known yet, so whatever it names is a guess.
#[test]
fn a_guess_does_not_end_the_handshake() {
    let flow = Track::new(&segment(SYN, 1000, 0, 0)).flow();
    for guess in [0, 1, 4999] {
        let packets = [
            (BACK, segment(SYN | ACK, 5000, 1001, 0)),
            (OUT, segment(ACK, 1001, guess, 0)),
        ];
        all(&flow, &packets, |flow, results, schedule| {
            assert_eq!(flow.state().state(), State::SynRecv as u8, "{schedule}");
            assert_eq!(results[1].what, What::Invalid, "{schedule} {guess}");
        });
    }
}

#[test]
fn no_claim_is_left_behind() {
    let flow = Track::new(&segment(SYN, 1000, 0, 0)).flow();
    let packets = [
        (OUT, segment(SYN, 2000, 0, 0)),
        (OUT, segment(SYN, 3000, 0, 0)),
    ];
    all(&flow, &packets, |flow, _, schedule| {
        let side = flow.tcp[0];
        assert_eq!(side.maxwin, 1000, "{schedule}");
        assert!(side.end == 2001 || side.end == 3001, "{schedule} {side:?}");
        assert_eq!(
            (side.maxend, side.maxack),
            (side.end, side.end),
            "{schedule}"
        );
    });
}

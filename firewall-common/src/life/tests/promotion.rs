//! A flow that moves up while other packets of it, or its deletion, are under way.

use super::*;
use crate::{
    explore,
    tcp::{FlowCells, opened, tests::segment},
    wire::tcp_flags::{ACK, FIN, RST, SYN},
};

fn half_open() -> Memory {
    Memory::with(
        Place::Inside,
        &udp(states::UNREPLIED, flow_flags::FROM_INSIDE, 1),
    )
}

/// After SYN (1000) and SYN-ACK (5000).
fn syn_received() -> Flow {
    let begun = opened(&segment(SYN, 1000, 0, 0));
    let (kind, direction, end) = begun.last;
    let flags = begun.flags | flow_flags::FROM_INSIDE;
    let flow = Flow {
        state: FlowState::new(begun.state as u8, flags, INCARNATION).0,
        last: Last::new(0, 0, 1).with_packet(kind, direction, end).0,
        tcp: begun.tcp,
        ..udp(0, 0, 1)
    };
    serially(&flow, &[(BACK, segment(SYN | ACK, 5000, 1001, 0))])
}

/// What segments leave behind one after the other.
fn serially(flow: &Flow, segments: &[(Direction, Headers)]) -> Flow {
    let cells = FlowCells::new(flow);
    for (direction, headers) in segments {
        let arrived = Arrived {
            headers,
            segment: Segment::of(headers.tcp_flags).unwrap(),
            direction: *direction,
        };
        let mut out = Stepped::NONE;
        tcp::step(&cells, &arrived, INCARNATION, START, &timeouts(), &mut out);
    }
    cells.flow()
}

/// Judges packets at once, each on a CPU of its own.
fn at_once(start: &Memory, packets: &[Packet], check: impl FnMut(&Memory, &[Fate], &str)) {
    let cpu = |packet: Packet| move |cpu: &Cpu<'_, Memory>| judge(&mut view(cpu, START), &packet);
    let tasks: Vec<_> = packets.iter().copied().map(cpu).collect();
    let tasks: Vec<explore::Task<'_, Memory, Fate>> = tasks
        .iter()
        .map(|task| task as explore::Task<'_, _, _>)
        .collect();
    explore::all(start, &tasks, check);
}

#[test]
fn two_answers_move_a_flow_once_and_both_count() {
    for second in [BACK, OUT] {
        let packets = [Packet::Udp(BACK), Packet::Udp(second)];
        at_once(&half_open(), &packets, |memory, fates, schedule| {
            let (place, flow) = only(memory, schedule);
            assert_eq!(place, Place::Proved, "{schedule}");
            assert!(flow.state().has(flow_flags::ASSURED), "{schedule}");
            assert!(
                fates.iter().all(|fate| fate.passed()),
                "{schedule} {fates:?}"
            );
            let moved = fates.iter().filter(|fate| fate.moved()).count();
            assert_eq!(
                (moved, memory.created, memory.removed),
                (1, 1, 1),
                "{schedule}"
            );
            let expected = if second == BACK { [1, 2] } else { [2, 1] };
            assert_eq!(flow.packets, expected, "{schedule}");
            assert_eq!(
                flow.bytes,
                expected.map(|n| u64::from(n * LENGTH)),
                "{schedule}"
            );
        });
    }
}

/// Of two segments at once each passes or is dropped because the flow moves; what
/// the proved entry knows afterwards is what one order would have left, and each
/// that passed is counted once.
fn is_one_order(segments: [(Direction, Headers); 2]) {
    let start = syn_received();
    let packets = segments.map(|(direction, headers)| Packet::Tcp(direction, headers));
    let known = |order: &[_]| serially(&start, order);
    let [one, two] = segments;
    let both = [known(&[one, two]), known(&[two, one])];
    let alone = [known(&[one]), known(&[two])];
    at_once(
        &Memory::with(Place::Inside, &start),
        &packets,
        |memory, fates, schedule| {
            let (_, flow) = only(memory, schedule);
            let lost = fates.iter().filter(|fate| **fate == Fate::Moving).count();
            let passed: Vec<_> = (0..2).filter(|number| fates[*number].passed()).collect();
            assert_eq!(passed.len() + lost, 2, "{schedule} {fates:?}");
            let fits = match passed[..] {
                // What was dropped may have left some of its windows behind.
                [passed] => (8..16).all(|word| {
                    let of = |flow: &Flow| memory::node(flow)[word];
                    [alone[passed], both[0], both[1]]
                        .iter()
                        .any(|order| of(order) == of(&flow))
                }),
                _ => both.iter().any(|order| order.tcp == flow.tcp),
            };
            assert!(
                fits,
                "{schedule} {fates:?} {flow:#x?}\nnone of {both:#x?} {alone:#x?}"
            );
            let established = State::Established as u8;
            assert_eq!(flow.state().state(), established, "{schedule}");
            let counted = flow.packets[0] + flow.packets[1];
            assert_eq!(counted as usize, 1 + passed.len(), "{schedule} {fates:?}");
            let moved = fates.iter().filter(|fate| fate.moved()).count();
            assert_eq!(memory.created as usize, moved, "{schedule}");
        },
    );
}

#[test]
fn the_ack_of_a_handshake_and_the_data_behind_it() {
    let ack = (OUT, segment(ACK, 1001, 5001, 0));
    is_one_order([ack, (OUT, segment(ACK, 1001, 5001, 100))]);
    is_one_order([ack, ack]);
}

#[test]
fn the_ack_of_a_handshake_and_the_servers_first_words() {
    let established = (OUT, segment(ACK, 1001, 5001, 0));
    is_one_order([established, (BACK, segment(ACK, 5001, 1001, 300))]);
}

/// What no order would let through does not get through because the flow moves.
#[test]
fn what_does_not_fit_never_passes_a_flow_on_the_move() {
    let ack = (OUT, segment(ACK, 1001, 5001, 0));
    let misfits = [
        (BACK, segment(ACK, 900_000, 1001, 10)),
        (BACK, segment(RST, 4000, 0, 0)),
        (BACK, segment(RST, 900_000, 0, 0)),
        (OUT, segment(FIN | ACK, 1001, 900_000, 0)),
    ];
    let established = serially(&syn_received(), &[ack]);
    let start = Memory::with(Place::Inside, &established);
    for (direction, headers) in misfits {
        let packets = [Packet::Tcp(ack.0, ack.1), Packet::Tcp(direction, headers)];
        at_once(&start, &packets, |memory, fates, schedule| {
            let refused = matches!(fates[1], Fate::Moving | Fate::Invalid);
            assert!(refused, "{schedule} {fates:?} {headers:?}");
            let (place, flow) = only(memory, schedule);
            assert_eq!(place, Place::Proved, "{schedule}");
            assert_eq!(flow.state().state(), State::Established as u8, "{schedule}");
        });
    }
}

/// An RST that fits either closes the flow or does not get through. The flow is one
/// that could not be promoted when its handshake ended.
#[test]
fn a_reset_that_passes_has_closed_the_flow() {
    let ack = (OUT, segment(ACK, 1001, 5001, 0));
    let established = serially(&syn_received(), &[ack]);
    let packets = [
        Packet::Tcp(ack.0, ack.1),
        Packet::Tcp(BACK, segment(RST, 5001, 0, 0)),
    ];
    let start = Memory::with(Place::Inside, &established);
    at_once(&start, &packets, |memory, fates, schedule| {
        let (_, flow) = only(memory, schedule);
        let closed = flow.state().state() == State::Close as u8;
        assert_eq!(fates[1].passed(), closed, "{schedule} {fates:?}");
    });
}

/// What the operator deletes is gone, or was moving; nothing is left in between.
#[test]
fn promotion_and_deletion_by_hand() {
    let answer = |cpu: &Cpu<'_, Memory>| judge(&mut view(cpu, START), &Packet::Udp(BACK)).passed();
    let delete = |cpu: &Cpu<'_, Memory>| {
        let mut tables = view(cpu, START);
        [Place::Inside, Place::Proved].into_iter().any(|place| {
            let Some(entry) = tables.look(place) else {
                return false;
            };
            let Deletion::Won(word) = doom_listed(entry, INCARNATION) else {
                return false;
            };
            tables.remove(place, entry, word, EndReason::Deleted);
            true
        })
    };
    explore::all(
        &half_open(),
        &[&answer, &delete],
        |memory, results, schedule| {
            if results[1] {
                assert_eq!(memory.entries(), [], "{schedule}");
            } else {
                assert_eq!(only(memory, schedule).0, Place::Proved, "{schedule}");
                assert!(results[0], "{schedule}");
            }
        },
    );
}

/// The half-open table displaces the entry while it is copied, and its node goes
/// to a flow of another key: that never appears under this one.
#[test]
fn a_node_that_is_reused_under_the_copy_is_not_promoted() {
    let other = Flow {
        state: FlowState::new(states::REPLIED, 0, 0x1110_0003).0,
        packets: [77; 2],
        ..udp(0, 0, 0)
    };
    let answer = |cpu: &Cpu<'_, Memory>| judge(&mut view(cpu, START), &Packet::Udp(BACK));
    let displace = |cpu: &Cpu<'_, Memory>| {
        memory::displace(cpu, Place::Inside, &other);
        Fate::Missed
    };
    explore::all(
        &half_open(),
        &[&answer, &displace],
        |memory, _, schedule| {
            if let Some(flow) = memory.at(Place::Proved) {
                assert_eq!(flow.state().incarnation(), INCARNATION, "{schedule}");
                assert!(flow.packets[0] < 77, "{schedule} {flow:?}");
            }
            assert_eq!(memory.at(Place::Inside), None, "{schedule}");
        },
    );
}

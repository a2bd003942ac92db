//! One flow on two CPUs at once: BPF_PROG_RUN from two pinned threads.

use firewall_common::{
    abi::{ExpectKey, ExpectState, Expectation, Phase, TableId, flow_flags, maps},
    tcp::{State, generic},
    time::ticks_from_secs,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    control::with_pinhole,
    packets::{End, HOST, PEER, segment, tcp, tcp_syn, udp},
    rig::{Hook, OUTSIDE, Outcome, Rig, accept, passed, tick},
    tracking::handshake,
};

/// Packets in each direction of the long run: ten million in all.
const MANY: u32 = 5_000_000;
/// Flows of the short runs.
const ROUNDS: u16 = 200;
/// Flows of the runs in which two CPUs do the same at once.
const CONTENDED: u16 = 300;
/// Where a data connection is expected.
const DATA: End = End::V4(HOST, 40_100);

/// 500 bytes from layer 3 upwards.
fn data(src: End, dst: End, seq: u32, ack: u32) -> Vec<u8> {
    tcp(src, dst, &segment("PA", seq, ack).carrying([7; 460]))
}

fn begun() -> Outcome {
    passed(PassReason::NewByRule)
}

#[test]
fn both_directions_of_one_connection_are_counted_exactly() {
    let mut rig = Rig::new();
    let (host, peer) = (End::V4(HOST, 40_000), End::V4(PEER, 80));
    handshake(&mut rig, host, peer);
    let before = rig.flow4(maps::FLOWS4).1;
    let passed = rig.passed(PassReason::Established);
    let out = data(host, peer, 1001, 5001);
    let back = data(peer, host, 5001, 1001);
    rig.at_once([(Hook::Egress, &out), (Hook::Ingress, &back)], MANY);

    let (_, flow) = rig.flow4(maps::FLOWS4);
    for side in [0, 1] {
        assert_eq!(flow.packets[side] - before.packets[side], MANY);
        let bytes = flow.bytes[side] - before.bytes[side];
        assert_eq!(bytes, 500 * u64::from(MANY));
    }
    assert_eq!(flow.state().state(), State::Established as u8);
    assert_eq!(flow.state().incarnation(), before.state().incarnation());
    // Each packet was judged by this flow, and none made another entry.
    let judged = rig.passed(PassReason::Established) - passed;
    assert_eq!(judged, 2 * u64::from(MANY));
    assert_eq!(rig.table_counter(TableId::Proved4).created, 1);
    assert_eq!(rig.half_open4(), 0);
    assert_eq!(rig.event(Event::Contention), 0);
}

#[test]
fn both_directions_at_once_from_the_first_packet_make_one_flow() {
    // Either side may begin, so that both CPUs make an entry.
    let mut rig = Rig::with_rules(&[accept(0, OUTSIDE), accept(OUTSIDE, 0)]);
    for round in 0..ROUNDS {
        let (host, peer) = (End::V4(HOST, 20_000 + round), End::V4(PEER, 53));
        let (out, back) = (udp(host, peer, b"out"), udp(peer, host, b"back"));
        rig.at_once([(Hook::Egress, &out), (Hook::Ingress, &back)], 10);
        let flows = rig.flows4(maps::FLOWS4);
        assert_eq!(flows.len(), 1, "round {round}: {flows:?}");
        let (_, flow) = rig.flow4(maps::FLOWS4);
        assert_eq!(flow.state().state(), generic::REPLIED);
        assert_eq!(rig.half_open4(), 0, "round {round}");
        assert_eq!(rig.event(Event::FlowPromoted), u64::from(round) + 1);
        assert_eq!(rig.tier_counts()[1], 1);
        rig.forget4();
    }
}

#[test]
fn two_connections_at_once_do_not_share_a_pinhole() {
    let mut rig = Rig::new();
    let (key, free) = lasting_pinhole(&mut rig);
    for round in 0..ROUNDS {
        rig.expect(key, free);
        let ports = [20_000 + 2 * round, 20_001 + 2 * round];
        let syns = ports.map(|port| tcp_syn(End::V4(PEER, port), DATA));
        rig.at_once([(Hook::Ingress, &syns[0]), (Hook::Ingress, &syns[1])], 20);
        let taken = is_taken_once(&mut rig, round, &key);
        let taker = ports
            .iter()
            .find(|port| ExpectState::Taken(**port).word() == taken);
        assert!(taker.is_some(), "round {round}: {taken:#x}");
    }
}

/// A pinhole for [`DATA`] that is there as long as the test.
fn lasting_pinhole(rig: &mut Rig) -> (ExpectKey, Expectation) {
    let key = with_pinhole(rig, DATA.port());
    let free = Expectation {
        expires: tick().plus(ticks_from_secs(3600)).0,
        ..rig.pinhole(&key)
    };
    (key, free)
}

/// The pinhole was taken, once a round, and one connection came of it. Returns its state.
fn is_taken_once(rig: &mut Rig, round: u16, key: &ExpectKey) -> u64 {
    assert_eq!(rig.event(Event::ExpectationUsed), u64::from(round) + 1);
    let opened = rig.flows4(maps::HALF_OPEN4_OUT);
    assert_eq!(opened.len(), 1, "round {round}: {opened:?}");
    rig.forget_half_open4();
    rig.pinhole(key).state
}

/// What has to be true of a flow that two CPUs promoted at once: `counted` packets
/// of `bytes` in all, and one entry.
fn is_promoted_once(rig: &mut Rig, round: u16, counted: u32, bytes: u64) {
    let (_, flow) = rig.flow4(maps::FLOWS4);
    assert!(flow.state().has(flow_flags::ASSURED), "round {round}");
    assert_eq!(flow.state().phase(), Phase::Live, "round {round}");
    assert_eq!(flow.packets.iter().sum::<u32>(), counted, "round {round}");
    assert_eq!(flow.bytes.iter().sum::<u64>(), bytes, "round {round}");
    assert_eq!(rig.half_open4(), 0, "round {round}");
    let rounds = u64::from(round) + 1;
    assert_eq!(rig.event(Event::FlowPromoted), rounds);
    assert_eq!(rig.tier_counts().iter().sum::<u64>(), 1, "round {round}");
    let (half, proved) = (TableId::Inside4, TableId::Proved4);
    let half = rig.table_counter(half);
    assert_eq!((half.created, half.removed), (rounds, rounds));
    assert_eq!(rig.table_counter(proved).created, rounds);
    rig.forget4();
}

#[test]
fn a_flow_is_promoted_once_and_every_answer_counts() {
    let mut rig = Rig::new();
    for round in 0..CONTENDED {
        let (host, peer) = (End::V4(HOST, 20_000 + round), End::V4(PEER, 53));
        assert_eq!(rig.egress(&udp(host, peer, b"ask")), begun());
        let answer = udp(peer, host, b"answer");
        rig.at_once([(Hook::Ingress, &answer), (Hook::Ingress, &answer)], 5);
        is_promoted_once(&mut rig, round, 11, 31 + 10 * 34);
    }
}

#[test]
fn a_connection_is_promoted_once_and_what_passes_is_counted() {
    let mut rig = Rig::new();
    for round in 0..CONTENDED {
        let (host, peer) = (End::V4(HOST, 20_000 + round), End::V4(PEER, 80));
        assert_eq!(
            rig.egress(&tcp(host, peer, &segment("S", 1000, 0))),
            begun()
        );
        let syn_ack = tcp(peer, host, &segment("SA", 5000, 1001));
        assert_eq!(rig.ingress(&syn_ack), passed(PassReason::Established));
        let moving = rig.dropped(DropReason::Moving);
        let ack = tcp(host, peer, &segment("A", 1001, 5001));
        rig.at_once([(Hook::Egress, &ack), (Hook::Egress, &ack)], 5);
        let moving = (rig.dropped(DropReason::Moving) - moving) as u32;
        assert!(moving < 10, "round {round}: one at least moved it");
        let counted = 12 - moving;
        is_promoted_once(&mut rig, round, counted, 40 * u64::from(counted));
    }
}

/// The SYN of a data connection on both CPUs, and its copies.
#[test]
fn a_syn_and_its_copies_take_a_pinhole_once() {
    let mut rig = Rig::new();
    let (key, free) = lasting_pinhole(&mut rig);
    for round in 0..CONTENDED {
        rig.expect(key, free);
        let port = 20_000 + round;
        let syn = tcp_syn(End::V4(PEER, port), DATA);
        rig.at_once([(Hook::Ingress, &syn), (Hook::Ingress, &syn)], 5);
        let taken = is_taken_once(&mut rig, round, &key);
        assert_eq!(taken, ExpectState::Taken(port).word(), "round {round}");
    }
}

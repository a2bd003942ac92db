//! Control payload on its way to the agent, and the pinholes that come back.

use firewall_common::{
    abi::{
        EventKind, ExpectKey, ExpectState, Expectation, FlowState, config_flags, event_flags,
        flow_flags, maps,
    },
    key::FlowKey as _,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{End, HOST, PEER, THIRD, Tcp, segment, tcp, tcp_syn},
    rig::{OUTSIDE, Rig, dropped, long_ago, now_ns, passed, tick},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const FTP: End = End::V4(PEER, 21);
/// From where the server opens an active data connection, and to where.
const FTP_DATA: End = End::V4(PEER, 20);
const LISTENER: End = End::V4(HOST, 40_100);
const KNOWN: PassReason = PassReason::Established;

fn line(text: &[u8]) -> Tcp {
    segment("PA", 1001, 5001).carrying(text)
}

#[test]
fn control_payload_is_queued_in_the_order_seen() {
    let mut rig = Rig::new();
    rig.agent_lives();
    handshake(&mut rig, HOST_END, FTP);
    let greeting = segment("PA", 5001, 1001).carrying(b"220 hello\r\n");
    assert_eq!(rig.ingress(&tcp(FTP, HOST_END, &greeting)), passed(KNOWN));
    let long = vec![b'x'; 1400];
    assert_eq!(rig.egress(&tcp(HOST_END, FTP, &line(&long))), passed(KNOWN));
    let fin = tcp(HOST_END, FTP, &segment("FA", 2401, 5012));
    assert_eq!(rig.egress(&fin), passed(KNOWN));
    let records = rig.records();
    let kinds: Vec<u16> = records.iter().map(|(head, _)| head.kind).collect();
    let expected = [
        EventKind::Open,
        EventKind::Payload,
        EventKind::Payload,
        EventKind::Fin,
    ];
    assert_eq!(kinds, expected.map(|kind| kind as u16));
    let (open, _) = &records[0];
    assert_eq!((open.seq, open.ack), (1001, 5001));
    let (head, bytes) = &records[1];
    assert_eq!(bytes, b"220 hello\r\n");
    assert_eq!(head.seq, 5001);
    assert_ne!(head.flags & event_flags::REPLY, 0);
    assert_eq!(head.flags & event_flags::EGRESS, 0);
    let (head, bytes) = &records[2];
    assert_eq!(bytes, &long);
    assert_eq!(head.flags & event_flags::REPLY, 0);
    assert_ne!(head.flags & event_flags::EGRESS, 0);
    assert_eq!(head.incarnation, open.incarnation);
}

#[test]
fn other_ports_and_empty_segments_are_not_queued() {
    let mut rig = Rig::new();
    rig.agent_lives();
    let web = End::V4(PEER, 80);
    handshake(&mut rig, HOST_END, web);
    assert_eq!(
        rig.egress(&tcp(HOST_END, web, &line(b"PORT 1"))),
        passed(KNOWN)
    );
    assert!(rig.records().is_empty());
}

#[test]
fn a_payload_that_finds_no_room_is_dropped_as_a_packet() {
    let mut rig = Rig::new();
    rig.agent_lives();
    handshake(&mut rig, HOST_END, FTP);
    let big = tcp(HOST_END, FTP, &line(&[b'x'; 1400]));
    let full = (0..10_000).find(|_| rig.egress(&big) == dropped(DropReason::RingFull));
    assert!(full.is_some(), "the ring has an end");
    let reply = tcp(
        FTP,
        HOST_END,
        &segment("PA", 5001, 1001).carrying([b'y'; 1400]),
    );
    assert_eq!(rig.ingress(&reply), dropped(DropReason::RingFull));
    // What carries nothing to read goes on.
    assert_eq!(
        rig.egress(&tcp(HOST_END, FTP, &segment("A", 1001, 5001))),
        passed(KNOWN)
    );
    let flow = rig.flow4(maps::FLOWS4).1;
    assert!(
        !FlowState(flow.state).has(flow_flags::BLIND),
        "nothing was missed"
    );
}

#[test]
fn two_hosts_cannot_fill_the_ring() {
    let mut rig = Rig::new();
    rig.agent_lives();
    let other = End::V4(THIRD, 21);
    let second = End::V4(HOST, 40_001);
    handshake(&mut rig, HOST_END, FTP);
    handshake(&mut rig, second, FTP);
    handshake(&mut rig, HOST_END, other);
    let big = line(&[b'x'; 1400]);
    let flood = tcp(HOST_END, FTP, &big);
    let full = (0..10_000).find(|_| rig.egress(&flood) == dropped(DropReason::RingFull));
    assert!(full.is_some(), "their part has an end");
    // Another connection of theirs has no part of its own, but others have theirs.
    assert_eq!(
        rig.egress(&tcp(second, FTP, &big)),
        dropped(DropReason::RingFull)
    );
    assert_eq!(rig.egress(&tcp(HOST_END, other, &big)), passed(KNOWN));
    let records = rig.records();
    let queued = records
        .iter()
        .filter(|(head, _)| head.kind == EventKind::Payload as u16);
    assert_eq!(queued.count(), full.unwrap() + 1);
    // The agent has read all of it.
    assert_eq!(rig.egress(&flood), passed(KNOWN));
}

#[test]
fn without_an_agent_payload_passes_and_the_flow_is_blind_for_good() {
    let mut rig = Rig::new();
    rig.agent_lives();
    handshake(&mut rig, HOST_END, FTP);
    rig.agent_died();
    let user = tcp(HOST_END, FTP, &line(b"USER x\r\n"));
    assert_eq!(rig.egress(&user), passed(PassReason::Blind));
    let flow = rig.flow4(maps::FLOWS4).1;
    assert!(FlowState(flow.state).has(flow_flags::BLIND));
    rig.records();
    rig.agent_lives();
    assert_eq!(rig.egress(&user), passed(PassReason::Blind));
    assert!(
        rig.records().is_empty(),
        "a new agent does not read half a conversation"
    );
}

/// An established control flow, and a pinhole for its server's data connection.
pub(crate) fn with_pinhole(rig: &mut Rig, port: u16) -> ExpectKey {
    rig.agent_lives();
    handshake(rig, HOST_END, FTP);
    let (mut key, expectation) = expectation(rig);
    key.dport = port;
    rig.expect(key, expectation);
    key
}

/// A pinhole for a data connection of the control flow that there is.
fn expectation(rig: &mut Rig) -> (ExpectKey, Expectation) {
    let (parent, flow) = rig.flow4(maps::FLOWS4);
    let key = ExpectKey::tcp(FTP.mapped(), HOST_END.mapped(), 0);
    let expectation = Expectation {
        parent: parent.widen(),
        parent_incarnation: FlowState(flow.state).incarnation(),
        expires: tick().plus(600).0,
        created_ns: now_ns(),
        from_zone: OUTSIDE,
        to_zone: 0,
        via: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    (key, expectation)
}

#[test]
fn a_pinhole_serves_one_connection() {
    let mut rig = Rig::new();
    let key = with_pinhole(&mut rig, LISTENER.port());
    let syn = |from: End| tcp_syn(from, LISTENER);
    assert_eq!(
        rig.ingress(&syn(End::V4(THIRD, 20))),
        dropped(DropReason::Policy)
    );
    assert_eq!(
        rig.ingress(&tcp_syn(FTP_DATA, End::V4(HOST, 40_101))),
        dropped(DropReason::Policy)
    );
    assert_eq!(rig.ingress(&syn(FTP_DATA)), passed(PassReason::NewExpected));
    let taken = rig.pinhole(&key);
    assert_eq!(ExpectState::from_word(taken.state), ExpectState::Taken(20));
    assert_eq!(rig.event(Event::ExpectationUsed), 1);
    // Sent again, it is the same connection; from another port it is a second one.
    assert_eq!(rig.ingress(&syn(FTP_DATA)), passed(KNOWN));
    let second = rig.ingress(&syn(End::V4(PEER, 21_000)));
    assert_eq!(second, dropped(DropReason::ExpectationTaken));
    let related = rig.flow4(maps::HALF_OPEN4_OUT).1;
    assert!(FlowState(related.state).has(flow_flags::RELATED));
}

#[test]
fn a_pinhole_dies_with_its_parent_even_without_an_agent() {
    let syn = tcp_syn(FTP_DATA, LISTENER);
    let ends: [&dyn Fn(&mut Rig); 4] = [
        &|rig| {
            let fin = tcp(HOST_END, FTP, &segment("FA", 1001, 5001));
            assert_eq!(rig.egress(&fin), passed(KNOWN));
        },
        &|rig| {
            let fin = tcp(FTP, HOST_END, &segment("FA", 5001, 1001));
            assert_eq!(rig.ingress(&fin), passed(KNOWN));
        },
        &|rig| {
            let rst = tcp(FTP, HOST_END, &segment("R", 5001, 0));
            assert_eq!(rig.ingress(&rst), passed(KNOWN));
        },
        &|rig| rig.change4(maps::FLOWS4, |flow| flow.seen = long_ago()),
    ];
    for end in ends {
        let mut rig = Rig::new();
        with_pinhole(&mut rig, LISTENER.port());
        end(&mut rig);
        assert_eq!(rig.ingress(&syn), dropped(DropReason::ExpectationOrphaned));
    }
}

#[test]
fn a_pinhole_is_for_its_zones_and_its_time() {
    let syn = tcp_syn(FTP_DATA, LISTENER);
    let mut rig = Rig::new();
    let key = with_pinhole(&mut rig, LISTENER.port());
    rig.iface(OUTSIDE + 1);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::ExpectationZone));
    rig.iface(OUTSIDE);
    let mut old = rig.pinhole(&key);
    old.expires = tick().0.wrapping_sub(2);
    rig.expect(key, old);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy));
}

#[test]
fn a_syn_between_the_hosts_of_a_session_is_reported_or_held() {
    let mut rig = Rig::new();
    rig.agent_lives();
    let syn = tcp_syn(FTP_DATA, LISTENER);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy));
    assert!(rig.records().is_empty(), "no session between them");
    rig.session(HOST_END, FTP);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy));
    let (head, bytes) = rig.records().remove(0);
    assert_eq!(head.kind, EventKind::SynDropped as u16);
    assert_eq!(head.reason, DropReason::Policy as u8);
    assert!(bytes.is_empty());
    rig.configure(|config| config.flags |= config_flags::HOLD);
    // The agent has read all that was said before.
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy));
    // Now it has not: that may be what announces it.
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Held));
    let (head, bytes) = rig.records().remove(1);
    assert_eq!(head.kind, EventKind::SynHeld as u16);
    assert_eq!(bytes, syn, "the whole frame, to run it again");
    let third = tcp_syn(End::V4(THIRD, 20), LISTENER);
    assert_eq!(
        rig.ingress(&third),
        dropped(DropReason::Policy),
        "another pair"
    );
    assert!(rig.records().is_empty());
}

#[test]
fn a_syn_of_another_host_to_an_expected_port_is_reported() {
    let mut rig = Rig::new();
    let key = with_pinhole(&mut rig, 40_100);
    rig.hash(maps::TARGETS)
        .insert(key.target(), 0_u64, 0)
        .unwrap();
    rig.records();
    let syn = |from, port| tcp(from, End::V4(HOST, port), &segment("S", 1, 0));
    let stray = syn(End::V4(THIRD, 4000), 40_100);
    let began = window();
    assert_eq!(rig.ingress(&stray), dropped(DropReason::Policy));
    let (head, bytes) = rig.records().remove(0);
    assert_eq!(head.kind, EventKind::SynStray as u16);
    assert_eq!(head.reason, DropReason::Policy as u8);
    assert!(bytes.is_empty());
    // Four a second, and none of another port, nor while no agent reads it.
    let elsewhere = syn(End::V4(THIRD, 4000), 40_101);
    assert_eq!(rig.ingress(&elsewhere), dropped(DropReason::Policy));
    assert!(rig.records().is_empty());
    let mut told = 1;
    for _ in 0..50 {
        rig.ingress(&stray);
        told += rig.records().len() as u64;
    }
    let windows = window() - began + 1;
    assert!((4..=4 * windows).contains(&told), "{told} in {windows}");
    // The one who is expected comes all the same.
    let expected = syn(End::V4(PEER, 20), 40_100);
    assert_eq!(rig.ingress(&expected), passed(PassReason::NewExpected));
}

#[test]
fn with_session_ranges_the_agent_is_asked_of_every_syn() {
    let mut rig = holding();
    rig.records();
    assert_eq!(rig.ingress(&unexpected(1)), dropped(DropReason::Policy));
    rig.records();
    rig.configure(|config| config.flags |= config_flags::RANGES);
    assert_eq!(rig.ingress(&unexpected(2)), dropped(DropReason::Held));
    let kinds: Vec<u16> = rig.records().iter().map(|(head, _)| head.kind).collect();
    assert_eq!(kinds, [EventKind::SynHeld as u16]);
}

/// Hosts with one session, a record that waits for the agent, and SYNs held.
fn holding() -> Rig {
    let mut rig = Rig::new();
    rig.agent_lives();
    rig.configure(|config| config.flags |= config_flags::HOLD);
    handshake(&mut rig, HOST_END, FTP);
    rig.session(HOST_END, FTP);
    rig
}

fn unexpected(port: u16) -> Vec<u8> {
    let from = End::V4(PEER, 2000 + port);
    tcp_syn(from, LISTENER)
}

/// The budget is for one window of 2^30 ns.
fn window() -> u64 {
    now_ns() >> 30
}

#[test]
fn holding_has_a_budget_a_pair() {
    let mut rig = holding();
    let (began, mut held) = (window(), 0);
    for port in 0..200 {
        held += u64::from(rig.ingress(&unexpected(port)) == dropped(DropReason::Held));
    }
    let windows = window() - began + 1;
    // Eight, and one for the session.
    assert!((9..=9 * windows).contains(&held), "{held} in {windows}");
    assert!(rig.event(Event::SynReported) <= (9 + 64) * windows);
}

#[test]
fn a_connection_that_comes_about_gives_its_hold_back() {
    let within_a_window = (0..20).any(|_| gives_its_hold_back());
    assert!(within_a_window, "no window of the budget was long enough");
}

/// False if the budget became another one meanwhile: then nothing was shown.
fn gives_its_hold_back() -> bool {
    let mut rig = holding();
    let began = window();
    let mut port = 0;
    let mut hold = |rig: &mut Rig| {
        port += 1;
        rig.ingress(&unexpected(port)) == dropped(DropReason::Held)
    };
    while hold(&mut rig) {}
    let mut expected = expectation(&mut rig);
    for dport in 50_000..50_020 {
        expected.0.dport = dport;
        rig.expect(expected.0, expected.1);
        let syn = tcp_syn(FTP_DATA, End::V4(HOST, dport));
        assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
        let held = hold(&mut rig);
        if window() != began {
            return false;
        }
        assert!(held, "after port {dport}");
    }
    true
}

#[test]
fn syns_leave_half_of_the_ring_to_control_payload() {
    let mut rig = holding();
    rig.configure(|config| config.hold_ring_limit = 4096);
    let syn = unexpected(0);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Held));
    let big = tcp(HOST_END, FTP, &line(&[b'x'; 1400]));
    assert_eq!(rig.egress(&big), passed(KNOWN));
    assert_eq!(rig.egress(&big), passed(KNOWN));
    let before = rig.event(Event::SynReported);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy));
    assert_eq!(rig.event(Event::SynReported), before, "nor reported");
}

#[test]
fn a_syn_on_its_way_out_is_held_too() {
    let mut rig = holding();
    rig.rules(&[]);
    let syn = tcp_syn(End::V4(HOST, 20), End::V4(PEER, 40_100));
    assert_eq!(rig.egress(&syn), dropped(DropReason::Held));
    let (head, bytes) = rig.records().pop().unwrap();
    assert_eq!(head.kind, EventKind::SynHeld as u16);
    assert_ne!(head.flags & event_flags::EGRESS, 0);
    assert_eq!(bytes, syn);
}

#[test]
fn a_syn_that_passes_between_the_hosts_of_a_session_is_told_once() {
    let mut rig = Rig::new();
    rig.agent_lives();
    let control = tcp(HOST_END, FTP, &segment("S", 1000, 0));
    let data = tcp_syn(HOST_END, End::V4(PEER, 50_000));
    assert_eq!(rig.egress(&data), passed(PassReason::NewByRule));
    assert!(rig.records().is_empty(), "no session between them");
    rig.session(HOST_END, FTP);
    assert_eq!(rig.egress(&data), passed(KNOWN), "sent again");
    assert_eq!(rig.egress(&control), passed(PassReason::NewByRule));
    assert!(
        rig.records().is_empty(),
        "a flow that is known, and a control connection"
    );

    let from = End::V4(HOST, 40_001);
    let began = now_ns() >> 30;
    let next = tcp_syn(from, End::V4(PEER, 50_001));
    assert_eq!(rig.egress(&next), passed(PassReason::NewByRule));
    let (head, bytes) = rig.records().remove(0);
    assert_eq!(head.kind, EventKind::SynPassed as u16);
    assert_eq!(head.flags & event_flags::EXPECTED, 0);
    assert_ne!(head.flags & event_flags::EGRESS, 0);
    assert!(bytes.is_empty());
    // With a budget, of which the one above is a part: who floods is told of no more.
    let mut told = 1;
    for port in 2000..2200 {
        let syn = tcp_syn(End::V4(HOST, port), End::V4(PEER, 50_001));
        assert_eq!(rig.egress(&syn), passed(PassReason::NewByRule));
        told += rig.records().len() as u64;
    }
    let windows = (now_ns() >> 30) - began + 1;
    assert!((64..=64 * windows).contains(&told), "{told} in {windows}");
}

#[test]
fn an_expected_syn_is_told_as_such() {
    let mut rig = Rig::new();
    with_pinhole(&mut rig, LISTENER.port());
    rig.session(HOST_END, FTP);
    rig.records();
    let syn = tcp_syn(FTP_DATA, LISTENER);
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
    let (head, _) = rig.records().remove(0);
    assert_eq!(head.kind, EventKind::SynPassed as u16);
    assert_ne!(head.flags & event_flags::EXPECTED, 0);
}

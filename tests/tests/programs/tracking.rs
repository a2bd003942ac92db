//! Replies pass, what nobody asked for does not.

use firewall_common::{
    abi::{Rule, config_flags, maps, rule_flags},
    tcp::State,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{
        End, HOST, HOST6, PEER, PEER6, THIRD, Tcp, echo, segment, tagged, tcp, tcp_syn, udp,
    },
    rig::{OUTSIDE, Rig, accept, dropped, passed},
};

const NEW: PassReason = PassReason::NewByRule;
const KNOWN: PassReason = PassReason::Established;

fn ends() -> [(End, End); 2] {
    [
        (End::V4(HOST, 40_000), End::V4(PEER, 80)),
        (End::V6(HOST6, 40_000), End::V6(PEER6, 80)),
    ]
}

/// The host opens a connection; both families, and both orders of addresses.
pub(crate) fn handshake(rig: &mut Rig, host: End, peer: End) {
    let syn = tcp(host, peer, &segment("S", 1000, 0));
    let syn_ack = tcp(peer, host, &segment("SA", 5000, 1001));
    let ack = tcp(host, peer, &segment("A", 1001, 5001));
    assert_eq!(rig.egress(&syn), passed(NEW));
    assert_eq!(rig.ingress(&syn_ack), passed(KNOWN));
    assert_eq!(rig.egress(&ack), passed(KNOWN));
}

#[test]
fn a_connection_of_the_host_gets_its_replies() {
    for (host, peer) in ends() {
        let mut rig = Rig::new();
        handshake(&mut rig, host, peer);
        let data = segment("PA", 5001, 1001).carrying([7; 100]);
        assert_eq!(rig.ingress(&tcp(peer, host, &data)), passed(KNOWN));
        assert_eq!(
            rig.ingress(&tagged(&tcp(peer, host, &data), 100)),
            passed(KNOWN)
        );
        assert_eq!(rig.event(Event::FlowPromoted), 1);
    }
}

#[test]
fn a_connection_proves_itself_by_the_originators_ack() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    let syn = tcp(host, peer, &segment("S", 1000, 0));
    assert_eq!(rig.egress(&syn), passed(NEW));
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("SA", 5000, 1001))),
        passed(KNOWN)
    );
    // The answer alone, even with the responder's own ACK, proves nothing.
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("A", 5001, 1001))),
        passed(KNOWN)
    );
    assert!(rig.flows4(maps::FLOWS4).is_empty());
    assert_eq!(rig.flow4(maps::HALF_OPEN4_IN).1.packets, [1, 2]);
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("A", 1001, 5001))),
        passed(KNOWN)
    );
    assert!(rig.flows4(maps::HALF_OPEN4_IN).is_empty());
    let (_, flow) = rig.flow4(maps::FLOWS4);
    assert_eq!(flow.packets, [2, 2]);
    assert_eq!(flow.state().state(), State::Established as u8);
}

#[test]
fn what_nobody_asked_for_is_dropped_with_its_reason() {
    for (host, peer) in ends() {
        let mut rig = Rig::new();
        let cases = [
            (tcp(peer, host, &segment("S", 1, 0)), DropReason::Policy),
            (tcp(peer, host, &segment("SA", 1, 2)), DropReason::TcpNoFlow),
            (tcp(peer, host, &segment("A", 1, 2)), DropReason::TcpNoFlow),
            (tcp(peer, host, &segment("PA", 1, 2)), DropReason::TcpNoFlow),
            (tcp(peer, host, &segment("FA", 1, 2)), DropReason::TcpNoFlow),
            (tcp(peer, host, &segment("R", 1, 0)), DropReason::TcpNoFlow),
            (tcp(peer, host, &segment("SF", 1, 0)), DropReason::TcpFlags),
            (tcp(peer, host, &segment("", 1, 0)), DropReason::TcpFlags),
            (tcp(peer, host, &segment("FPU", 1, 0)), DropReason::TcpFlags),
            (udp(peer, host, b"x"), DropReason::Policy),
            (echo(peer, host, false), DropReason::Policy),
            (echo(peer, host, true), DropReason::IcmpUnsolicited),
        ];
        for (frame, reason) in cases {
            assert_eq!(rig.ingress(&frame), dropped(reason));
        }
        assert_eq!(rig.event(Event::FlowCreated), 0);
    }
}

#[test]
fn the_answer_must_acknowledge_the_syn() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("S", 1000, 0))),
        passed(NEW)
    );
    let blind = tcp(peer, host, &segment("SA", 5000, 999));
    assert_eq!(rig.ingress(&blind), dropped(DropReason::TcpHandshake));
}

#[test]
fn a_spoofed_syn_to_an_open_port_proves_nothing() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::with_rules(&[accept(OUTSIDE, 0)]);
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("S", 1000, 0))),
        passed(NEW)
    );
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("SA", 5000, 1001))),
        passed(KNOWN)
    );
    // Whoever spoofs an address does not see the answer's sequence number.
    let guess = tcp(peer, host, &segment("A", 1001, 77));
    assert_eq!(rig.ingress(&guess), dropped(DropReason::TcpHandshake));
    assert!(rig.flows4(maps::FLOWS4).is_empty());
    assert_eq!(rig.flows4(maps::HALF_OPEN4_OUT).len(), 1);
}

#[test]
fn another_port_address_or_protocol_is_another_flow() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    let data = segment("A", 5001, 1001);
    let strangers = [
        tcp(End::V4(THIRD, 80), host, &data),
        tcp(End::V4(PEER, 81), host, &data),
        tcp(peer, End::V4(HOST, 40_001), &data),
    ];
    for frame in strangers {
        assert_eq!(rig.ingress(&frame), dropped(DropReason::TcpNoFlow));
    }
}

#[test]
fn a_closed_connection_lets_no_data_through_but_its_tuple_is_reused() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("FA", 1001, 5001))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("A", 5001, 1002))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("FA", 5001, 1002))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("A", 1002, 5002))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.flow4(maps::FLOWS4).1.state().state(),
        State::TimeWait as u8
    );
    // A new SYN of the host begins a new flow in its place, by the rules.
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("S", 9000, 0))),
        passed(NEW)
    );
    assert_eq!(rig.event(Event::TupleReused), 1);
    assert!(rig.flows4(maps::FLOWS4).is_empty());
}

#[test]
fn a_syn_from_outside_does_not_reuse_a_closed_tuple_that_no_rule_opens() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("FA", 1001, 5001))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("FA", 5001, 1002))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("A", 1002, 5002))),
        passed(KNOWN)
    );
    let syn = tcp_syn(peer, host);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy));
}

#[test]
fn udp_and_ping_get_their_replies_and_prove_themselves_by_them() {
    for (host, peer) in ends() {
        let mut rig = Rig::new();
        assert_eq!(rig.egress(&udp(host, peer, b"question")), passed(NEW));
        assert_eq!(rig.event(Event::FlowPromoted), 0);
        assert_eq!(rig.ingress(&udp(peer, host, b"answer")), passed(KNOWN));
        assert_eq!(rig.event(Event::FlowPromoted), 1);
        assert_eq!(rig.egress(&udp(host, peer, b"more")), passed(KNOWN));

        assert_eq!(rig.egress(&echo(host, peer, false)), passed(NEW));
        let reply = match (host, peer) {
            (End::V4(h, id), End::V4(p, _)) => echo(End::V4(p, id), End::V4(h, id), true),
            (End::V6(h, id), End::V6(p, _)) => echo(End::V6(p, id), End::V6(h, id), true),
            _ => unreachable!(),
        };
        assert_eq!(rig.ingress(&reply), passed(KNOWN));
    }
}

#[test]
fn an_echo_request_is_never_taken_for_a_reply() {
    let mut rig = Rig::new();
    let (host, peer) = (End::V4(HOST, 77), End::V4(PEER, 77));
    assert_eq!(rig.egress(&echo(host, peer, false)), passed(NEW));
    assert_eq!(
        rig.ingress(&echo(peer, host, false)),
        dropped(DropReason::Policy)
    );
    assert_eq!(rig.ingress(&echo(peer, host, true)), passed(KNOWN));
}

#[test]
fn a_packet_from_another_zone_is_not_of_the_flow() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    rig.iface(OUTSIDE + 1);
    let data = tcp(peer, host, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&data), dropped(DropReason::ZoneMismatch));
}

#[test]
fn a_reset_closes_and_then_only_an_answered_syn_opens() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("RA", 5001, 1001))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.flow4(maps::FLOWS4).1.state().state(),
        State::Close as u8
    );
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("S", 9000, 0))),
        passed(PassReason::Ignored),
        "who sent the RST may not have been the peer"
    );
    assert_eq!(
        rig.ingress(&tcp(peer, host, &segment("SA", 70_000, 9001))),
        passed(KNOWN)
    );
    assert_eq!(rig.event(Event::TupleReused), 1);
    assert_eq!(
        rig.flow4(maps::HALF_OPEN4_IN).1.state().state(),
        State::SynRecv as u8,
        "a new flow in place of the old one"
    );
    assert_eq!(
        rig.egress(&tcp(host, peer, &segment("A", 9001, 70_001))),
        passed(KNOWN)
    );
    assert_eq!(
        rig.flow4(maps::FLOWS4).1.state().state(),
        State::Established as u8
    );
}

/// Rules that pick up connections, and let segments out of window pass.
fn lenient(flags: u16) -> Rig {
    let rule = Rule {
        proto: 6,
        flags,
        ..accept(0, OUTSIDE)
    };
    let mut rig = Rig::with_rules(&[rule]);
    rig.configure(|config| config.flags |= config_flags::LOOSE);
    rig
}

#[test]
fn a_connection_is_picked_up_by_a_rule_that_says_so() {
    for (host, peer) in ends() {
        let data = tcp(host, peer, &segment("A", 1001, 5001));
        let answer = tcp(peer, host, &segment("A", 5001, 1001));
        assert_eq!(
            lenient(0).egress(&data),
            dropped(DropReason::TcpNoFlow),
            "another rule's word"
        );
        let mut rig = lenient(rule_flags::LOOSE);
        assert_eq!(
            rig.ingress(&answer),
            dropped(DropReason::TcpNoFlow),
            "no rule lets it in"
        );
        let fin = tcp(host, peer, &segment("FA", 1001, 5001));
        assert_eq!(rig.egress(&fin), dropped(DropReason::TcpNoFlow));
        assert_eq!(rig.egress(&data), passed(NEW));
        assert_eq!(rig.ingress(&answer), passed(KNOWN));
        assert_eq!(rig.egress(&data), passed(KNOWN));
        assert_eq!(rig.event(Event::FlowPromoted), 1);
    }
}

#[test]
fn windows_do_not_bind_where_a_rule_is_liberal() {
    let (host, peer) = ends()[0];
    for (flags, outcome) in [
        (0, dropped(DropReason::TcpSeqOver)),
        (rule_flags::LIBERAL, passed(KNOWN)),
    ] {
        let mut rig = lenient(flags);
        handshake(&mut rig, host, peer);
        let far = tcp(peer, host, &segment("A", 900_000_000, 1001));
        assert_eq!(rig.ingress(&far), outcome);
        let rst = tcp(peer, host, &segment("R", 4000, 0));
        assert_eq!(
            rig.ingress(&rst),
            dropped(DropReason::TcpRst),
            "an RST must be right all the same"
        );
    }
}

#[test]
fn data_beyond_the_window_is_dropped_and_the_scale_counts() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    let with = |flags, seq, ack| Tcp {
        // Scale 7, SACK permitted.
        options: vec![3, 3, 7, 1, 4, 2, 1, 1],
        ..segment(flags, seq, ack)
    };
    assert_eq!(
        rig.egress(&tcp(host, peer, &with("S", 1000, 0))),
        passed(NEW)
    );
    assert_eq!(
        rig.ingress(&tcp(peer, host, &with("SA", 5000, 1001))),
        passed(KNOWN)
    );
    let ack = Tcp {
        window: 100,
        ..segment("A", 1001, 5001)
    };
    assert_eq!(rig.egress(&tcp(host, peer, &ack)), passed(KNOWN));
    // 5001 + (100 << 7); the SYN alone would have allowed 65535.
    let flow = rig.flow4(maps::FLOWS4).1;
    assert_eq!(flow.tcp[1].maxend, 5001 + (100 << 7));
    let far = tcp(peer, host, &segment("A", 5001 + 200_000, 1001));
    assert_eq!(rig.ingress(&far), dropped(DropReason::TcpSeqOver));
    // An edge that was never sent is refused, in a SACK too.
    let sack = |ack, left: u32, right: u32| {
        let edges = [left.to_be_bytes(), right.to_be_bytes()].concat();
        let data = Tcp {
            options: [&[1, 1, 5, 10][..], &edges].concat(),
            ..segment("A", 5001, ack)
        };
        tcp(peer, host, &data)
    };
    assert_eq!(
        rig.ingress(&sack(1001, 2000, 3000)),
        dropped(DropReason::TcpAckOver)
    );
    // And one that no window reaches.
    let behind = 1001_u32.wrapping_sub(1 << 30);
    assert_eq!(
        rig.ingress(&sack(behind, 1000, 1001)),
        dropped(DropReason::TcpSackOver)
    );
    assert_eq!(rig.ingress(&sack(behind + 1, 1000, 1001)), passed(KNOWN));
    assert_eq!(rig.event(Event::TcpOptions), 0);
}

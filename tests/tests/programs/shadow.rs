//! Shadow mode: everything passes, and what enforcing would drop is counted apart.

use firewall_common::{
    abi::{EventKind, Flow, FlowState, Rule, action, config_flags, ctl_op, flow_flags, maps},
    key::FlowKey as _,
    tcp::State,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{End, HOST, PEER, echo, ethertype, frag_needed, segment, tcp, udp},
    rig::{OUTSIDE, Outcome, Rig, accept, dropped, passed, would_drop},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);
const NOTHING: &[Rule] = &[];
const POLICY: DropReason = DropReason::Policy;
const OF_REFUSED: DropReason = DropReason::RefusedFlow;

/// Shadow mode under a policy that accepts nothing.
fn shadow() -> Rig {
    let mut rig = Rig::with_rules(NOTHING);
    set_shadow(&mut rig, true);
    rig
}

/// The peer connects to the host, which nothing allows.
fn connect(rig: &mut Rig) {
    let syn = tcp(PEER_END, HOST_END, &segment("S", 1000, 0));
    let syn_ack = tcp(HOST_END, PEER_END, &segment("SA", 5000, 1001));
    let ack = tcp(PEER_END, HOST_END, &segment("A", 1001, 5001));
    assert_eq!(rig.ingress(&syn), would_drop(POLICY));
    assert_eq!(rig.egress(&syn_ack), would_drop(OF_REFUSED));
    assert_eq!(rig.ingress(&ack), would_drop(OF_REFUSED));
}

fn data(rig: &mut Rig) -> [Outcome; 2] {
    let (ours, theirs) = ([1001, 5001], [5001, 1001]);
    let line = |[seq, ack]: [u32; 2]| segment("PA", seq, ack).carrying(b"hello");
    [
        rig.ingress(&tcp(PEER_END, HOST_END, &line(ours))),
        rig.egress(&tcp(HOST_END, PEER_END, &line(theirs))),
    ]
}

fn word(flow: &Flow) -> FlowState {
    FlowState(flow.state)
}

fn set_shadow(rig: &mut Rig, on: bool) {
    rig.configure(|config| {
        if on {
            config.flags |= config_flags::SHADOW;
        } else {
            config.flags &= !config_flags::SHADOW;
        }
    });
}

#[test]
fn what_cannot_be_tracked_passes_and_is_counted_as_would_drop() {
    let mut rig = Rig::with_rules(NOTHING);
    let mpls = ethertype(0x8847);
    let mut cut = udp(PEER_END, HOST_END, b"x");
    cut.truncate(36);
    let stray = tcp(PEER_END, HOST_END, &segment("R", 1, 1));
    let flags = tcp(PEER_END, HOST_END, &segment("SF", 1, 1));
    let cases = [
        (mpls, DropReason::UnsupportedEthertype),
        (cut, DropReason::MalformedIpv4),
        (flags, DropReason::TcpFlags),
        (stray, DropReason::TcpNoFlow),
    ];
    for (frame, reason) in &cases {
        assert_eq!(rig.ingress(frame), dropped(*reason));
        assert_eq!(rig.egress(frame), dropped(*reason));
    }
    set_shadow(&mut rig, true);
    for (frame, reason) in &cases {
        assert_eq!(rig.ingress(frame), would_drop(*reason));
        assert_eq!(rig.egress(frame), would_drop(*reason));
    }
    assert_eq!(rig.ingress(&ethertype(0x0806)), passed(PassReason::Arp));
}

#[test]
fn a_refused_connection_is_tracked_as_an_accepted_one_is() {
    let mut rig = shadow();
    connect(&mut rig);
    assert_eq!(data(&mut rig), [would_drop(OF_REFUSED); 2]);
    let (_, flow) = rig.flow4(maps::FLOWS4);
    assert_eq!(word(&flow).state(), State::Established as u8);
    assert_eq!(flow.would_drop(), Some(POLICY));
    assert_eq!(flow.packets, [3, 2]);
    assert_eq!(rig.event(Event::FlowRefused), 1);
    let error = frag_needed(
        HOST_END,
        PEER_END,
        &tcp(PEER_END, HOST_END, &segment("A", 1001, 5001)),
    );
    assert_eq!(rig.egress(&error), would_drop(DropReason::IcmpUnrelated));
}

#[test]
fn a_connection_met_in_mid_life_is_tracked_with_its_reason() {
    const NO_FLOW: DropReason = DropReason::TcpNoFlow;
    let rejects = Rule {
        action: action::DROP,
        ..accept(OUTSIDE, 0)
    };
    for rules in [NOTHING, &[accept(OUTSIDE, 0)], &[rejects]] {
        let mut rig = Rig::with_rules(rules);
        // The control: enforcing drops the segment before the rules, and tracks nothing.
        assert_eq!(data(&mut rig), [dropped(NO_FLOW); 2]);
        set_shadow(&mut rig, true);
        assert_eq!(
            data(&mut rig),
            [would_drop(NO_FLOW), would_drop(OF_REFUSED)]
        );
        let (_, flow) = rig.flow4(maps::HALF_OPEN4_OUT);
        assert_eq!(word(&flow).state(), State::Established as u8);
        assert_eq!(flow.would_drop(), Some(NO_FLOW));
        assert_eq!(flow.packets, [1, 1]);
        set_shadow(&mut rig, false);
        assert_eq!(data(&mut rig), [dropped(OF_REFUSED); 2]);
    }
}

#[test]
fn a_connection_met_in_mid_life_can_be_admitted() {
    let mut rig = shadow();
    data(&mut rig);
    let key = rig.flow4(maps::HALF_OPEN4_OUT).0.widen();
    assert_eq!(rig.ctl(ctl_op::ADMIT, &[key]), 1);
    set_shadow(&mut rig, false);
    assert_eq!(data(&mut rig), [passed(PassReason::Established); 2]);
}

#[test]
fn other_protocols_are_tracked_too() {
    let mut rig = shadow();
    let (peer, host) = (End::V4(PEER, 80), End::V4(HOST, 80));
    assert_eq!(
        rig.ingress(&udp(PEER_END, HOST_END, b"?")),
        would_drop(POLICY)
    );
    assert_eq!(
        rig.egress(&udp(HOST_END, PEER_END, b"!")),
        would_drop(OF_REFUSED)
    );
    assert_eq!(rig.ingress(&echo(peer, host, false)), would_drop(POLICY));
    assert_eq!(rig.egress(&echo(host, peer, true)), would_drop(OF_REFUSED));
    let flows = rig.flows4(maps::FLOWS4);
    assert_eq!(flows.len(), 2, "proved by two-way traffic: {flows:#?}");
    assert!(
        flows
            .values()
            .all(|(_, flow)| flow.would_drop() == Some(POLICY))
    );
}

#[test]
fn a_dropping_rule_is_the_reason() {
    let mut deny = accept(OUTSIDE, 0);
    deny.action = action::DROP;
    let mut rig = Rig::with_rules(&[deny]);
    set_shadow(&mut rig, true);
    assert_eq!(
        rig.ingress(&udp(PEER_END, HOST_END, b"?")),
        would_drop(DropReason::Rule)
    );
    let (_, flow) = rig.flow4(maps::HALF_OPEN4_OUT);
    assert_eq!(flow.would_drop(), Some(DropReason::Rule));
}

#[test]
fn an_invalid_packet_passes_and_changes_nothing() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    set_shadow(&mut rig, true);
    let before = rig.flow4(maps::FLOWS4).1.state;
    let wrong = tcp(PEER_END, HOST_END, &segment("S", 9, 0));
    assert_eq!(rig.ingress(&wrong), would_drop(DropReason::TcpInvalid));
    assert_eq!(rig.flow4(maps::FLOWS4).1.state, before);
    let ack = tcp(PEER_END, HOST_END, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&ack), passed(PassReason::Established));
}

#[test]
fn enforcing_takes_the_pass_of_refused_connections_away() {
    let mut rig = shadow();
    connect(&mut rig);
    set_shadow(&mut rig, false);
    assert_eq!(data(&mut rig), [dropped(OF_REFUSED); 2]);
    assert_eq!(rig.flow4(maps::FLOWS4).1.would_drop(), Some(POLICY));
    let error = frag_needed(
        HOST_END,
        PEER_END,
        &tcp(PEER_END, HOST_END, &segment("A", 1001, 5001)),
    );
    assert_eq!(rig.egress(&error), dropped(DropReason::IcmpUnrelated));
    // Who begins anew is judged anew.
    let syn = tcp(PEER_END, HOST_END, &segment("S", 77_000, 0));
    assert_eq!(rig.ingress(&syn), dropped(POLICY));
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 0);
    rig.rules(&[accept(OUTSIDE, 0)]);
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewByRule));
}

#[test]
fn the_hosts_answers_do_not_reopen_what_the_policy_refuses() {
    let mut rig = Rig::new();
    set_shadow(&mut rig, true);
    assert_eq!(
        rig.ingress(&udp(PEER_END, HOST_END, b"?")),
        would_drop(POLICY)
    );
    set_shadow(&mut rig, false);
    // The host may send anything, but this is an answer.
    assert_eq!(
        rig.egress(&udp(HOST_END, PEER_END, b"!")),
        dropped(OF_REFUSED)
    );
    assert_eq!(rig.ingress(&udp(PEER_END, HOST_END, b"?")), dropped(POLICY));
}

#[test]
fn an_admitted_connection_keeps_its_pass() {
    let mut rig = shadow();
    connect(&mut rig);
    let key = rig.flow4(maps::FLOWS4).0.widen();
    assert_eq!(rig.ctl(ctl_op::ADMIT, &[key]), 1);
    assert_eq!(rig.ctl(ctl_op::ADMIT, &[key]), 0, "it is no more refused");
    set_shadow(&mut rig, false);
    assert_eq!(data(&mut rig), [passed(PassReason::Established); 2]);
    let (_, flow) = rig.flow4(maps::FLOWS4);
    assert_eq!(flow.would_drop(), None);
    assert!(!word(&flow).has(flow_flags::RELATED));
    assert_eq!(rig.event(Event::FlowAdmitted), 1);
}

#[test]
fn a_data_syn_that_would_be_held_passes_and_can_be_admitted() {
    let mut rig = shadow();
    rig.agent_lives();
    rig.configure(|config| config.flags |= config_flags::HOLD);
    rig.session(HOST_END, PEER_END);
    let syn = tcp(PEER_END, HOST_END, &segment("S", 1000, 0));
    // Something must wait for the agent.
    set_shadow(&mut rig, false);
    assert_eq!(rig.ingress(&syn), dropped(POLICY));
    set_shadow(&mut rig, true);
    assert_eq!(rig.ingress(&syn), would_drop(DropReason::Held));
    let (head, _) = rig.records().remove(1);
    assert_eq!(head.kind, EventKind::SynHeld as u16);
    let (key, flow) = rig.flow4(maps::HALF_OPEN4_OUT);
    assert_eq!(flow.would_drop(), Some(DropReason::Held));
    assert_eq!(head.key, key.widen());
    assert_eq!(rig.ctl(ctl_op::EXPECTED, &[head.key]), 1);
    let syn_ack = tcp(HOST_END, PEER_END, &segment("SA", 5000, 1001));
    assert_eq!(rig.egress(&syn_ack), passed(PassReason::Established));
    assert!(word(&rig.flow4(maps::HALF_OPEN4_OUT).1).has(flow_flags::RELATED));
}

#[test]
fn control_payload_without_room_passes_and_blinds_its_session() {
    let mut rig = Rig::new();
    rig.agent_lives();
    set_shadow(&mut rig, true);
    let ftp = End::V4(PEER, 21);
    handshake(&mut rig, HOST_END, ftp);
    let line = segment("PA", 1001, 5001).carrying([b'x'; 1400]);
    let line = tcp(HOST_END, ftp, &line);
    let full = (0..10_000).find(|_| rig.egress(&line) == would_drop(DropReason::RingFull));
    assert!(full.is_some(), "the ring has an end");
    assert!(word(&rig.flow4(maps::FLOWS4).1).has(flow_flags::BLIND));
    assert_eq!(rig.egress(&line), passed(PassReason::Blind));
}

//! What a watcher of flows is told, and flows that the operator deletes.

use firewall_common::{
    abi::{
        CTL_FLOWS, EndReason, FLOW_EVENTS_BYTES, Flow, FlowEvent, FlowEventKind, FlowKey4,
        FlowState, Phase, maps,
    },
    tcp::{State, generic},
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{End, HOST, HOST6, PEER, PEER6, segment, tcp, udp},
    rig::{Rig, dropped, passed},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);

/// Kind, end, state, tier and packets of an event.
type Told = (FlowEventKind, Option<EndReason>, u8, bool, [u32; 2]);

fn told(event: &FlowEvent) -> Told {
    let kind = FlowEventKind::try_from(event.kind).unwrap();
    let end = EndReason::try_from(event.end).ok();
    assert_eq!(end.is_some(), kind == FlowEventKind::Destroy, "{event:?}");
    let word = FlowState(event.flow.state);
    assert_eq!(word.phase(), Phase::Live, "as it was before");
    (
        kind,
        end,
        word.state(),
        event.proved == 1,
        event.flow.packets,
    )
}

fn heard(rig: &mut Rig) -> Vec<Told> {
    rig.flow_events().iter().map(told).collect()
}

fn state(state: State) -> u8 {
    state as u8
}

#[test]
fn a_connection_is_told_from_its_first_packet_to_its_end() {
    use FlowEventKind::{Destroy, New, Update};
    for (host, peer) in [
        (HOST_END, PEER_END),
        (End::V6(HOST6, 40_000), End::V6(PEER6, 80)),
    ] {
        let mut rig = Rig::new();
        rig.watch(&FlowEventKind::ALL);
        handshake(&mut rig, host, peer);
        let events = rig.flow_events();
        assert_eq!(
            events.iter().map(told).collect::<Vec<_>>(),
            [
                (New, None, state(State::SynSent), false, [1, 0]),
                (Update, None, state(State::SynRecv), false, [1, 1]),
                (Update, None, state(State::Established), true, [2, 1]),
            ]
        );
        let incarnation = |event: &FlowEvent| FlowState(event.flow.state).incarnation();
        for event in &events {
            assert_eq!(event.key, events[0].key);
            assert_eq!(incarnation(event), incarnation(&events[0]));
            let ends = event
                .key
                .endpoints(FlowState(event.flow.state).first_heading());
            assert_eq!(
                ends,
                (host.mapped(), host.port(), peer.mapped(), peer.port())
            );
        }
        // Data changes no state: nothing is told.
        let ack = tcp(peer, host, &segment("A", 5001, 1001));
        assert_eq!(rig.ingress(&ack), passed(PassReason::Established));
        assert_eq!(heard(&mut rig), []);
        let reset = tcp(host, peer, &segment("RA", 1001, 5001));
        assert_eq!(rig.egress(&reset), passed(PassReason::Established));
        assert_eq!(
            heard(&mut rig),
            [(Update, None, state(State::Close), true, [3, 2])]
        );
        // The port is used again at once.
        assert_eq!(
            rig.egress(&tcp(host, peer, &segment("S", 90_000, 0))),
            passed(PassReason::NewByRule)
        );
        assert_eq!(
            heard(&mut rig),
            [
                (
                    Destroy,
                    Some(EndReason::Reused),
                    state(State::Close),
                    true,
                    [3, 2]
                ),
                (New, None, state(State::SynSent), false, [1, 0]),
            ]
        );
    }
}

#[test]
fn a_datagram_and_its_answer_are_told() {
    use FlowEventKind::{New, Update};
    let mut rig = Rig::new();
    rig.watch(&FlowEventKind::ALL);
    let (a, b) = (End::V4(HOST, 5353), End::V4(PEER, 53));
    assert_eq!(rig.egress(&udp(a, b, b"?")), passed(PassReason::NewByRule));
    assert_eq!(
        rig.ingress(&udp(b, a, b"!!")),
        passed(PassReason::Established)
    );
    let events = rig.flow_events();
    assert_eq!(
        events.iter().map(told).collect::<Vec<_>>(),
        [
            (New, None, generic::UNREPLIED, false, [1, 0]),
            (Update, None, generic::REPLIED, true, [1, 1]),
        ]
    );
    // 20 and 8 bytes of headers, one and two of payload.
    assert_eq!(events[1].flow.bytes, [29, 30]);
}

#[test]
fn without_a_watcher_nothing_is_told() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    assert_eq!(heard(&mut rig), [], "nobody ever watched");
    rig.watched();
    let flow = rig.flow4(maps::FLOWS4);
    assert_eq!(rig.delete(&[flow]), 1);
    handshake(&mut rig, HOST_END, PEER_END);
    assert_eq!(heard(&mut rig), [], "it is over");
    assert_eq!(rig.event(Event::FlowEventLost), 0);
    // The control: it is the watcher that was missing.
    rig.watch(&FlowEventKind::ALL);
    let flow = rig.flow4(maps::FLOWS4);
    assert_eq!(rig.delete(&[flow]), 1);
    assert_eq!(heard(&mut rig).len(), 1);
}

#[test]
fn only_the_kinds_asked_for_are_told() {
    for kind in FlowEventKind::ALL {
        let mut rig = Rig::new();
        rig.watch(&[kind]);
        handshake(&mut rig, HOST_END, PEER_END);
        let flow = rig.flow4(maps::FLOWS4);
        assert_eq!(rig.delete(&[flow]), 1);
        let heard = heard(&mut rig);
        let count = if kind == FlowEventKind::Update { 2 } else { 1 };
        assert_eq!(heard.len(), count, "{heard:?}");
        assert!(heard.iter().all(|told| told.0 == kind), "{heard:?}");
    }
}

/// Makes `count` flows without a packet, and deletes them.
fn make_and_delete(rig: &mut Rig, count: usize) -> usize {
    let (_, model) = rig.flow4(maps::FLOWS4);
    let key = |n: usize| FlowKey4::from_parts(1, 2, n as u16, 7, 6, 0);
    let flows: Vec<_> = (0..count).map(|n| (key(n), model)).collect();
    for (key, flow) in &flows {
        let mut table = rig.hash::<FlowKey4, Flow>(maps::FLOWS4);
        table.insert(key, flow, 0).unwrap();
    }
    let deleted: u32 = flows.chunks(CTL_FLOWS).map(|some| rig.delete(some)).sum();
    deleted as usize
}

#[test]
fn a_full_ring_loses_events_and_counts_them() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    rig.watch(&[FlowEventKind::Destroy]);
    // An event and the ring's own head.
    let room = FLOW_EVENTS_BYTES / (size_of::<FlowEvent>() + 8);
    let mut deleted = 0;
    while deleted < room + 100 {
        deleted += make_and_delete(&mut rig, 1000);
    }
    let (heard, lost) = (heard(&mut rig).len(), rig.event(Event::FlowEventLost));
    assert!(lost >= 100, "{lost}");
    assert_eq!(heard + lost as usize, deleted, "each is told or counted");
    // It goes on when there is room again.
    assert_eq!(make_and_delete(&mut rig, 10), 10);
    assert_eq!(self::heard(&mut rig).len(), 10);
}

#[test]
fn a_deleted_flow_is_gone_with_the_next_packet() {
    let mut rig = Rig::new();
    rig.watch(&[FlowEventKind::Destroy]);
    handshake(&mut rig, HOST_END, PEER_END);
    let other = End::V4(HOST, 40_001);
    handshake(&mut rig, other, PEER_END);
    let data = tcp(PEER_END, HOST_END, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&data), passed(PassReason::Established));
    let flows = rig.flows4(maps::FLOWS4);
    let doomed = *flows
        .values()
        .find(|(key, _)| key.lo_port() == 40_000)
        .unwrap();
    assert_eq!(rig.delete(&[doomed, doomed]), 1, "once");
    assert_eq!(rig.ingress(&data), dropped(DropReason::TcpNoFlow));
    let untouched = tcp(PEER_END, other, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&untouched), passed(PassReason::Established));
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
    let established = state(State::Established);
    assert_eq!(
        heard(&mut rig),
        [(
            FlowEventKind::Destroy,
            Some(EndReason::Deleted),
            established,
            true,
            [2, 2]
        )]
    );
}

#[test]
fn half_open_flows_are_deleted_too() {
    let mut rig = Rig::new();
    let syn = tcp(HOST_END, PEER_END, &segment("S", 1000, 0));
    assert_eq!(rig.egress(&syn), passed(PassReason::NewByRule));
    let flow = rig.flow4(maps::HALF_OPEN4_IN);
    assert_eq!(rig.delete(&[flow]), 1);
    assert!(rig.flows4(maps::HALF_OPEN4_IN).is_empty());
}

#[test]
fn a_flow_reopened_since_it_was_seen_survives() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    let seen = rig.flow4(maps::FLOWS4);
    assert_eq!(rig.delete(&[seen]), 1);
    handshake(&mut rig, HOST_END, PEER_END);
    assert_eq!(rig.delete(&[seen]), 0, "another incarnation");
    let again = rig.flow4(maps::FLOWS4);
    assert_eq!(again.0, seen.0);
    assert_eq!(rig.delete(&[again]), 1, "the control");
}

#[test]
fn a_flow_promoted_since_it_was_seen_is_deleted() {
    let mut rig = Rig::new();
    let syn = tcp(HOST_END, PEER_END, &segment("S", 1000, 0));
    assert_eq!(rig.egress(&syn), passed(PassReason::NewByRule));
    let seen = rig.flow4(maps::HALF_OPEN4_IN);
    let syn_ack = tcp(PEER_END, HOST_END, &segment("SA", 5000, 1001));
    assert_eq!(rig.ingress(&syn_ack), passed(PassReason::Established));
    let ack = tcp(HOST_END, PEER_END, &segment("A", 1001, 5001));
    assert_eq!(rig.egress(&ack), passed(PassReason::Established));
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
    assert_eq!(rig.delete(&[seen]), 1);
    assert!(rig.flows4(maps::FLOWS4).is_empty());
}

#[test]
fn the_tier_counts_follow_a_deletion() {
    let mut rig = Rig::new();
    rig.configure(|config| config.tier_limits[0] = 1);
    handshake(&mut rig, HOST_END, PEER_END);
    let flow = rig.flow4(maps::FLOWS4);
    assert_eq!(rig.delete(&[flow]), 1);
    handshake(&mut rig, HOST_END, PEER_END);
    assert_eq!(rig.event(Event::TableFull), 0, "there was room again");
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
}

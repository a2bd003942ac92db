//! Data connections that came too early, or that nobody could know of.

use std::net::SocketAddr;

use bytemuck::Zeroable as _;
use etherparse::PacketBuilder;
use firewall_common::{
    abi::{EventHeader, FlowState},
    key::Heading,
};

use super::{fake::key, *};

fn frame(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(src), SocketAddr::V4(dst)) = (src, dst) else {
        panic!("only IPv4 here");
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(src.ip().octets(), dst.ip().octets(), 64)
        .tcp(src.port(), dst.port(), 7, 1000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

pub(super) fn syn(w: &mut World, kind: EventKind, src: SocketAddr, dst: SocketAddr, flags: u16) {
    let (key, heading) = key(src, dst);
    let data = match kind {
        EventKind::SynHeld if flags & event_flags::NO_ETHERNET != 0 => {
            frame(src, dst).split_off(14)
        }
        EventKind::SynHeld => frame(src, dst),
        _ => Vec::new(),
    };
    let down = if heading == Heading::Down {
        event_flags::HEADING_DOWN
    } else {
        0
    };
    let mut zones = [fake::OUTSIDE, fake::INSIDE];
    if src.ip() != CLIENT.parse::<std::net::IpAddr>().unwrap() {
        zones.reverse();
    }
    let header = EventHeader {
        at_ns: w.now,
        key,
        ifindex: 7,
        len: u32::try_from(data.len()).unwrap(),
        kind: kind as u16,
        flags: flags | down,
        from_zone: zones[0],
        to_zone: zones[1],
        reason: DropReason::Policy as u8,
        ..EventHeader::zeroed()
    };
    w.handle(header, &data);
}

pub(super) fn data_port(flow: &Flow) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(flow.client.ip(), 40_000),
        SocketAddr::new(flow.server.ip(), 50_075),
    )
}

pub(super) fn passive() -> (World, Flow) {
    passive_in(World::new())
}

pub(super) fn passive_in(mut w: World) -> (World, Flow) {
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PASV\r\n");
    w.server(&mut f, "227 (192,0,2,7,195,155)\r\n");
    (w, f)
}

#[test]
fn without_ethernet_a_held_syn_runs_again_behind_a_zero_header() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    syn(
        &mut w,
        EventKind::SynHeld,
        src,
        dst,
        event_flags::NO_ETHERNET,
    );
    let mut wanted = frame(src, dst);
    wanted[..12].fill(0);
    assert_eq!(w.agent.tables.reinjected, [(wanted, 7)]);
}

#[test]
fn a_held_syn_on_its_way_out_goes_out_once_it_is_expected() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    let other = SocketAddr::new(dst.ip(), 50_076);
    syn(&mut w, EventKind::SynHeld, src, other, event_flags::EGRESS);
    assert!(w.agent.tables.resent.is_empty());
    assert_eq!(w.session(&f).dropped, 1);
    syn(&mut w, EventKind::SynHeld, src, dst, event_flags::EGRESS);
    assert_eq!(w.agent.tables.resent, [(frame(src, dst), 7)]);
    let bare = event_flags::EGRESS | event_flags::NO_ETHERNET;
    w.now += REINJECT_NS;
    syn(&mut w, EventKind::SynHeld, src, dst, bare);
    let packet = frame(src, dst).split_off(14);
    assert_eq!(w.agent.tables.resent[1..], [(packet, 7)]);
    assert!(w.agent.tables.reinjected.is_empty());
}

#[test]
fn a_held_syn_that_is_expected_runs_again_once_a_second() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert_eq!(w.agent.tables.reinjected, [(frame(src, dst), 7)]);
    assert_eq!(w.session(&f).dropped, 0);
    // Held again: then it is dropped for good, and said so.
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert_eq!(w.agent.tables.reinjected.len(), 1);
    assert_eq!(w.session(&f).dropped, 1);
    w.now += REINJECT_NS;
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert_eq!(w.agent.tables.reinjected.len(), 2);
    w.tick();
    assert_eq!(w.agent.reinjected.len(), 1);
    w.now += REINJECT_NS;
    w.tick();
    assert!(w.agent.reinjected.is_empty());
}

#[test]
fn a_partial_checksum_is_completed_before_it_runs_again() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    let right = frame(src, dst);
    let mut partial = right.clone();
    let sum = firewall_common::checksum::pseudo_header(&right[26..30], &right[30..34], 6, 20);
    partial[50..52].copy_from_slice(&firewall_common::checksum::fold(sum).to_be_bytes());
    let (key, heading) = key(src, dst);
    assert_eq!(heading, Heading::Up);
    let header = EventHeader {
        at_ns: w.now,
        key,
        ifindex: 7,
        len: u32::try_from(partial.len()).unwrap(),
        kind: EventKind::SynHeld as u16,
        ..EventHeader::zeroed()
    };
    w.handle(header, &partial);
    assert_eq!(w.agent.tables.reinjected, [(right, 7)]);
}

#[test]
fn what_is_not_expected_or_cannot_run_again_stays_dropped() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    let other = SocketAddr::new(dst.ip(), 50_076);
    syn(&mut w, EventKind::SynHeld, src, other, 0);
    syn(&mut w, EventKind::SynHeld, dst, src, 0);
    syn(&mut w, EventKind::SynDropped, src, dst, 0);
    assert!(w.agent.tables.reinjected.is_empty());
    assert_eq!(w.session(&f).dropped, 3);
    // After its expectation has expired.
    w.now += 61 * NS_PER_SEC;
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert!(w.agent.tables.reinjected.is_empty());
}

#[test]
fn h14_a_dropped_data_connection_is_tied_to_the_encrypted_session() {
    let mut w = World::new();
    let mut tls = Flow::new(CLIENT, 41822, SERVER);
    w.open(&tls);
    w.server(&mut tls, "220 hi\r\n");
    w.client(&mut tls, "AUTH TLS\r\n");
    w.server(&mut tls, "234 go\r\n");
    let mut clear = Flow::new(CLIENT, 41823, SERVER);
    w.now += 10;
    w.log_in(&mut clear);
    let (src, dst) = data_port(&tls);
    syn(&mut w, EventKind::SynDropped, src, dst, 0);
    assert_eq!(w.session(&clear).dropped, 0);
    let session = w.session(&tls);
    assert_eq!(session.dropped, 1);
    assert_eq!(
        session.drops[0],
        DroppedSyn {
            at_ns: w.now,
            sport: 40_000,
            dport: 50_075,
            from_client: 1,
            reason: DropReason::Policy as u8,
            reserved: 0,
        }
    );
    // The ring of four keeps the latest.
    for port in 1..=5 {
        let active = SocketAddr::new(src.ip(), port);
        syn(&mut w, EventKind::SynDropped, dst, active, 0);
    }
    let session = w.session(&tls);
    assert_eq!(session.dropped, 6);
    let ports = session.drops.map(|d| (d.dport, d.from_client));
    assert_eq!(ports, [(4, 0), (5, 0), (2, 0), (3, 0)]);
}

#[test]
fn a_syn_between_other_hosts_concerns_nobody() {
    let (mut w, f) = passive();
    let (_, dst) = data_port(&f);
    let third = "10.0.0.3:40000".parse().unwrap();
    syn(&mut w, EventKind::SynHeld, third, dst, 0);
    assert!(w.agent.tables.reinjected.is_empty());
    assert_eq!(w.session(&f).dropped, 0);
}

#[test]
fn in_shadow_mode_nothing_runs_again_and_what_is_expected_is_admitted() {
    let mut w = World::with(|settings| settings.shadow = true);
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PASV\r\n");
    let (src, dst) = data_port(&f);
    // It came before its reply was read, on a flow that the programs refused.
    let (refused, _) = key(src, dst);
    w.agent.tables.refused.push(refused);
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert!(w.agent.tables.admitted.is_empty(), "not expected yet");
    assert_eq!(w.session(&f).dropped, 1);
    w.server(&mut f, "227 (192,0,2,7,195,155)\r\n");
    assert_eq!(w.agent.tables.expectations.len(), 1);
    let entry = FlowState::new(State::SynSent as u8, 0, 9);
    w.agent.tables.states.insert(refused, entry);
    syn(&mut w, EventKind::SynDropped, src, dst, 0);
    assert_eq!(w.agent.tables.admitted, [refused]);
    let [(tied, data)] = w.agent.tables.data_flows[..] else {
        panic!("one flow was admitted");
    };
    assert_eq!((tied, data.incarnation), (refused, 9));
    assert_eq!(
        (data.parent, data.parent_incarnation),
        (f.key(), f.incarnation)
    );
    assert_eq!(data.via, ExpectVia::Pasv as u8);
    assert_eq!(w.session(&f).dropped, 1);
    assert!(w.agent.tables.expectations.is_empty(), "it has served");
    assert!(w.agent.tables.reinjected.is_empty());
}

#[test]
fn in_shadow_mode_a_pinhole_waits_for_a_flow_that_needs_it() {
    let (mut w, f) = passive_in(World::with(|settings| settings.shadow = true));
    let (src, dst) = data_port(&f);
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert_eq!(w.agent.tables.expectations.len(), 1);
    assert_eq!(w.session(&f).dropped, 1);
}

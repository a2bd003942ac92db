//! The tables: expiry, limits, requests of user space.

use firewall_common::{
    abi::{FlowState, Tier, ctl_op, flow_flags, maps},
    key::FlowKey as _,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{End, HOST, PEER, segment, tcp, udp},
    rig::{Rig, dropped, passed, tick},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);

#[test]
fn an_expired_flow_is_no_flow() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    rig.change4(maps::FLOWS4, |flow| flow.expires = tick().0.wrapping_sub(2));
    let data = tcp(PEER_END, HOST_END, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&data), dropped(DropReason::TcpNoFlow));
    assert!(rig.flows4(maps::FLOWS4).is_empty(), "deleted on the way");
}

#[test]
fn the_collector_deletes_what_is_expired_and_nothing_else() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    let key = rig.flow4(maps::FLOWS4).0.widen();
    assert_eq!(rig.expire(&[key]), 0, "alive");
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
    rig.change4(maps::FLOWS4, |flow| flow.expires = tick().0.wrapping_sub(2));
    assert_eq!(rig.expire(&[key, key]), 1, "once");
    assert!(rig.flows4(maps::FLOWS4).is_empty());
    assert_eq!(rig.event(Event::FlowExpired), 1);
}

#[test]
fn half_open_flows_expire_too() {
    let mut rig = Rig::new();
    let syn = tcp(HOST_END, PEER_END, &segment("S", 1000, 0));
    assert_eq!(rig.egress(&syn), passed(PassReason::NewByRule));
    let key = rig.flow4(maps::HALF_OPEN4_IN).0.widen();
    rig.change4(maps::HALF_OPEN4_IN, |flow| {
        flow.expires = tick().0.wrapping_sub(2)
    });
    assert_eq!(rig.expire(&[key]), 1);
    assert!(rig.flows4(maps::HALF_OPEN4_IN).is_empty());
}

#[test]
fn at_the_limit_a_flow_works_unprotected_and_is_counted() {
    let mut rig = Rig::new();
    rig.configure(|config| config.tier_limits[Tier::Tcp4 as usize] = 0);
    handshake(&mut rig, HOST_END, PEER_END);
    assert!(rig.flows4(maps::FLOWS4).is_empty());
    assert_eq!(rig.event(Event::TableFull), 1);
    let data = tcp(PEER_END, HOST_END, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&data), passed(PassReason::Established));
    // The limit of TCP is not that of the others.
    let (a, b) = (End::V4(HOST, 5353), End::V4(PEER, 53));
    assert_eq!(rig.egress(&udp(a, b, b"?")), passed(PassReason::NewByRule));
    assert_eq!(
        rig.ingress(&udp(b, a, b"!")),
        passed(PassReason::Established)
    );
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
    // Room again: the next packet takes the flow across.
    rig.configure(|config| config.tier_limits[Tier::Tcp4 as usize] = 16);
    assert_eq!(rig.ingress(&data), passed(PassReason::Established));
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 2);
}

#[test]
fn a_mark_from_user_space_reaches_the_flow() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, End::V4(PEER, 21));
    let key = rig.flow4(maps::FLOWS4).0.widen();
    let flags = |rig: &mut Rig| FlowState(rig.flow4(maps::FLOWS4).1.state).flags();
    assert_ne!(flags(&mut rig) & flow_flags::HELPER_FTP, 0);
    assert_eq!(rig.ctl(ctl_op::BLIND, &[key]), 1);
    assert_ne!(flags(&mut rig) & flow_flags::BLIND, 0);
    assert_eq!(rig.ctl(ctl_op::UNHELP, &[key]), 1);
    assert_eq!(flags(&mut rig) & flow_flags::HELPER_FTP, 0);
    assert_eq!(rig.ctl(99, &[key]), 0, "an unknown request changes nothing");
}

//! The tables: expiry, limits, requests of user space.

use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{
        CtlCounts, FlowKey4, FlowState, TableCounter, TableId, Tier, ZONE_ANY, ctl_op, flow_flags,
        maps, table_full,
    },
    key::FlowKey as _,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{End, HOST, PEER, segment, tcp, tcp_syn, udp},
    rig::{OUTSIDE, Rig, accept, accept_port, dropped, long_ago, passed},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);

#[test]
fn an_expired_flow_is_no_flow() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    rig.change4(maps::FLOWS4, |flow| flow.seen = long_ago());
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
    rig.change4(maps::FLOWS4, |flow| flow.seen = long_ago());
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
    rig.change4(maps::HALF_OPEN4_IN, |flow| flow.seen = long_ago());
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

#[test]
fn a_full_tier_can_refuse_new_flows_by_name() {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    rig.configure(|config| {
        config.table_full = table_full::DROP;
        config.tier_limits[Tier::Tcp4 as usize] = 1;
    });
    let (host, peer) = (End::V4(HOST, 40_001), PEER_END);
    let syn = tcp_syn(host, peer);
    assert_eq!(rig.egress(&syn), dropped(DropReason::TierFull));
    // What no rule accepts keeps its own reason, and other classes have room.
    let from_outside = tcp_syn(peer, host);
    assert_eq!(rig.ingress(&from_outside), dropped(DropReason::Policy));
    let question = udp(End::V4(HOST, 5353), End::V4(PEER, 53), b"?");
    assert_eq!(rig.egress(&question), passed(PassReason::NewByRule));
    // What is tracked goes on, and there is room again once it has gone.
    let data = tcp(PEER_END, HOST_END, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&data), passed(PassReason::Established));
    rig.configure(|config| config.tier_limits[Tier::Tcp4 as usize] = 2);
    assert_eq!(rig.egress(&syn), passed(PassReason::NewByRule));
}

#[test]
fn a_full_tier_can_let_the_rules_alone_decide() {
    let rules = [accept(0, ZONE_ANY), accept_port(OUTSIDE, 0, 443)];
    let mut rig = Rig::with_rules(&rules);
    handshake(&mut rig, HOST_END, PEER_END);
    let (peer, web) = (End::V4(PEER, 50_000), End::V4(HOST, 443));
    let mid = tcp(peer, web, &segment("A", 5, 6));
    assert_eq!(rig.ingress(&mid), dropped(DropReason::TcpNoFlow));
    rig.configure(|config| {
        config.table_full = table_full::PASS;
        config.tier_limits[Tier::Tcp4 as usize] = 1;
    });
    let untracked = passed(PassReason::Untracked);
    assert_eq!(rig.ingress(&tcp_syn(peer, web)), untracked);
    assert_eq!(rig.egress(&tcp(web, peer, &segment("SA", 1, 2))), untracked);
    assert_eq!(rig.ingress(&mid), untracked);
    assert!(rig.flows4(maps::HALF_OPEN4_OUT).is_empty(), "no entry");
    // Replies to what the host begins pass by a rule of their own only, and
    // nothing else gets in either.
    let (host, other) = (End::V4(HOST, 40_001), End::V4(PEER, 81));
    assert_eq!(rig.egress(&tcp_syn(host, other)), untracked);
    let reply = tcp(other, host, &segment("SA", 1, 2));
    assert_eq!(rig.ingress(&reply), dropped(DropReason::TcpNoFlow));
    let odd = tcp(peer, web, &segment("SF", 1, 0));
    assert_eq!(rig.ingress(&odd), dropped(DropReason::TcpFlags));
    let data = tcp(PEER_END, HOST_END, &segment("A", 5001, 1001));
    assert_eq!(rig.ingress(&data), passed(PassReason::Established));
}

#[test]
fn every_entry_is_counted_in_and_out_of_its_table() {
    let mut rig = Rig::new();
    let at = |rig: &mut Rig, table| {
        let TableCounter { created, removed } = rig.table_counter(table);
        (created, removed)
    };
    handshake(&mut rig, HOST_END, PEER_END);
    assert_eq!(at(&mut rig, TableId::Inside4), (1, 1), "promoted");
    assert_eq!(at(&mut rig, TableId::Proved4), (1, 0));
    assert_eq!(at(&mut rig, TableId::Outside4), (0, 0));
    let key = rig.flow4(maps::FLOWS4).0.widen();
    rig.change4(maps::FLOWS4, |flow| flow.seen = long_ago());
    assert_eq!(rig.expire(&[key, key]), 1);
    assert_eq!(at(&mut rig, TableId::Proved4), (1, 1));
    assert_eq!(rig.event(Event::FlowExpired), 1);
}

#[test]
fn counts_of_user_space_are_added() {
    let mut rig = Rig::new();
    let counts = CtlCounts {
        tiers: [3, 0, -1, 0],
        created: [3, 2],
        ..CtlCounts::zeroed()
    };
    assert_eq!(rig.count(&counts), 4);
    assert_eq!(rig.count(&counts), 4);
    let tiers = rig.tier_counts().map(u64::cast_signed);
    assert_eq!(tiers, [6, 0, -2, 0]);
    assert_eq!(rig.table_counter(TableId::Proved4).created, 6);
    assert_eq!(rig.table_counter(TableId::Proved6).created, 4);
}

/// A flow that expired when the collector looked, and came back before it acted.
#[test]
fn a_flow_reopened_between_look_and_deletion_survives() {
    let mut rig = Rig::new();
    let seen_alive = (End::V4(HOST, 40_001), PEER_END);
    let reopened = (End::V4(HOST, 40_002), PEER_END);
    let gone = (End::V4(HOST, 40_003), PEER_END);
    for (host, peer) in [seen_alive, reopened, gone] {
        handshake(&mut rig, host, peer);
    }
    let found: Vec<_> = rig.flows4(maps::FLOWS4).values().map(|f| f.0).collect();
    let expired: Vec<_> = found.iter().map(|key| key.widen()).collect();
    // One gets a packet: the look found a moment in which the clock had stood
    // differently, that is all the program can know of it.
    let port = |key: &FlowKey4, port| key.lo_port() == port || key.hi_port() == port;
    for key in found.iter().filter(|key| !port(key, 40_001)) {
        rig.expire4(key);
    }
    // Its SYN finds the entry expired, and makes a new one under the same key.
    let syn = tcp(reopened.0, reopened.1, &segment("S", 9000, 0));
    assert_eq!(rig.egress(&syn), passed(PassReason::NewByRule));
    assert_eq!(rig.expire(&expired), 1);
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1, "the one with traffic");
    assert_eq!(rig.flows4(maps::HALF_OPEN4_IN).len(), 1, "the reopened one");
    handshake_again(&mut rig, reopened);
    assert_eq!(rig.expire(&expired), 0);
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 2);
}

fn handshake_again(rig: &mut Rig, (host, peer): (End, End)) {
    let syn_ack = tcp(peer, host, &segment("SA", 5000, 9001));
    assert_eq!(rig.ingress(&syn_ack), passed(PassReason::Established));
    let ack = tcp(host, peer, &segment("A", 9001, 5001));
    assert_eq!(rig.egress(&ack), passed(PassReason::Established));
}

//! What somebody would try who wants a packet through.

use std::process::Command;

use firewall_common::{
    abi::{ExpectKey, ExpectState, Iface, RULE_NONE, config_flags, maps},
    verdict::{DropReason, PassReason},
};

use nix::sched::{CloneFlags, unshare};

use crate::{
    control::with_pinhole,
    packets::{End, HOST, HOST6, PEER, PEER6, echo, icmpv6, segment, tcp, udp},
    rig::{OUTSIDE, Rig, dropped, long_ago, passed},
};

const KNOWN: PassReason = PassReason::Established;

/// A ping with identifier 0 has the ports that other ICMP messages do not have.
#[test]
fn an_answered_ping_lets_no_other_icmp_in() {
    let (host, peer) = (End::V4(HOST, 0), End::V4(PEER, 0));
    let mut rig = Rig::new();
    assert_eq!(
        rig.egress(&echo(host, peer, false)),
        passed(PassReason::NewByRule)
    );
    let reply = echo(peer, host, true);
    assert_eq!(rig.ingress(&reply), passed(KNOWN));
    // Redirect, router advertisement, timestamp and address mask requests.
    for kind in [5, 9, 13, 17] {
        let mut message = reply.clone();
        message[14 + 20] = kind;
        assert_eq!(rig.ingress(&message), dropped(DropReason::Policy), "{kind}");
    }
    assert_eq!(rig.flow4(maps::FLOWS4).1.packets, [1, 1]);
}

/// The source port that took a pinhole cannot use it for a second connection,
/// however the first one ended.
#[test]
fn a_pinhole_that_has_served_is_closed_to_its_taker_too() {
    let (data, listener) = (End::V4(PEER, 20), End::V4(HOST, 40_100));
    let syn = tcp(data, listener, &segment("S", 1000, 0));
    let answer = tcp(listener, data, &segment("SA", 5000, 1001));
    let ends: [&dyn Fn(&mut Rig); 3] = [
        &|rig| {
            let rst = tcp(data, listener, &segment("R", 1001, 0));
            assert_eq!(rig.ingress(&rst), passed(KNOWN));
        },
        &|rig| {
            let fin = |flags, seq, ack| segment(flags, seq, ack);
            rig.ingress(&tcp(data, listener, &fin("FA", 1001, 5001)));
            rig.egress(&tcp(listener, data, &fin("FA", 5001, 1002)));
            rig.ingress(&tcp(data, listener, &fin("A", 1002, 5002)));
        },
        &|rig| {
            let flows = rig.flows4(maps::FLOWS4);
            for (key, mut flow) in flows.into_values() {
                if flow.rule() == RULE_NONE {
                    flow.seen = long_ago();
                    rig.hash(maps::FLOWS4).insert(key, flow, 0).unwrap();
                }
            }
        },
    ];
    for (case, end) in ends.into_iter().enumerate() {
        let mut rig = Rig::new();
        let key: ExpectKey = with_pinhole(&mut rig, 40_100);
        assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
        assert_eq!(rig.egress(&answer), passed(KNOWN));
        let ack = tcp(data, listener, &segment("A", 1001, 5001));
        assert_eq!(rig.ingress(&ack), passed(KNOWN));
        end(&mut rig);
        let again = rig.ingress(&syn);
        assert_eq!(again, dropped(DropReason::ExpectationTaken), "case {case}");
        let taken = rig.pinhole(&key);
        assert_eq!(ExpectState::from_word(taken.state), ExpectState::Taken(20));
    }
}

/// A connection that never came about leaves the pinhole to its taker.
#[test]
fn a_refused_connection_may_be_tried_again() {
    let (data, listener) = (End::V4(PEER, 20), End::V4(HOST, 40_100));
    let mut rig = Rig::new();
    with_pinhole(&mut rig, 40_100);
    let syn = tcp(data, listener, &segment("S", 1000, 0));
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
    let refusal = tcp(listener, data, &segment("RA", 0, 1001));
    assert_eq!(rig.egress(&refusal), passed(KNOWN));
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
}

/// A gateway in a network namespace of this thread, with routes to `HOST` and
/// `HOST6` and a default route, through an interface of another zone.
pub(crate) fn gateway() -> Rig {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let script = "set -e
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip link set lo up
        ip link add gw0 index 77 type veth peer name gw1
        ip link set gw1 up
        ip link set gw0 up
        ip addr add 10.0.0.1/24 dev gw0
        ip addr add fd00::1/64 dev gw0 nodad
        ip route add default via 10.0.0.9";
    let status = Command::new("sh").args(["-c", script]).status().unwrap();
    assert!(status.success());
    // No rule admits anything.
    let mut rig = Rig::with_rules(&[]);
    let inside = Iface {
        zone: OUTSIDE + 1,
        ..bytemuck::Zeroable::zeroed()
    };
    rig.hash::<u32, Iface>(maps::IFACES)
        .insert(77, inside, 0)
        .unwrap();
    rig.configure(|config| config.flags |= config_flags::GATEWAY);
    rig
}

/// Neighbour discovery is for the gateway itself; it has hop limit 255 before a
/// router forwards it, not after.
#[test]
fn a_gateway_forwards_no_neighbour_discovery() {
    let mut rig = gateway();
    for kind in 133..=137 {
        let through = icmpv6(End::V6(PEER6, 0), End::V6(HOST6, 0), kind, 255);
        let outcome = rig.ingress(&through);
        assert_eq!(outcome, dropped(DropReason::Policy), "{kind}");
        let mut near = HOST6;
        near[..2].copy_from_slice(&[0xfe, 0x80]);
        let mut all = [0; 16];
        (all[0], all[1], all[15]) = (0xff, 2, 1);
        for dst in [near, all] {
            let on_link = icmpv6(End::V6(PEER6, 0), End::V6(dst, 0), kind, 255);
            let pass = passed(PassReason::NeighbourDiscovery);
            assert_eq!(rig.ingress(&on_link), pass, "{kind}");
        }
    }
}

/// The answer of a DHCP server to a gateway goes to everybody on the link.
#[test]
fn a_gateway_gets_its_address_by_dhcp() {
    let mut rig = gateway();
    let offer = udp(End::V4(PEER, 67), End::V4([255; 4], 68), b"offer");
    assert_eq!(rig.ingress(&offer), passed(PassReason::DhcpClient));
    let elsewhere = udp(End::V4(PEER, 67), End::V4(HOST, 68), b"x");
    let outcome = rig.ingress(&elsewhere);
    assert_eq!(outcome, dropped(DropReason::Policy));
}

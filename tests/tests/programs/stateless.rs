//! What passes without a flow: the essentials, and nothing beside them.

use firewall_common::{
    abi::maps,
    verdict::{DropReason, PassReason},
};

use crate::{
    packets::{End, HOST, HOST6, PEER, PEER6, ethertype, icmpv6, other, tcp_syn, udp},
    rig::{Rig, dropped, now_ns, passed},
};

#[test]
fn link_control_and_arp_pass_other_ethertypes_do_not() {
    let mut rig = Rig::new();
    assert_eq!(rig.ingress(&ethertype(0x0806)), passed(PassReason::Arp));
    for control in [0x88cc, 0x888e, 0x8809, 0x0026] {
        assert_eq!(
            rig.ingress(&ethertype(control)),
            passed(PassReason::LinkControl)
        );
    }
    // MPLS, PPPoE and tags of private types could carry IP past the rules.
    for carrier in [0x8847, 0x8864, 0x9100] {
        assert_eq!(
            rig.ingress(&ethertype(carrier)),
            dropped(DropReason::UnsupportedEthertype)
        );
    }
    rig.configure(|config| config.essentials = 0);
    assert_eq!(rig.ingress(&ethertype(0x0806)), dropped(DropReason::Policy));
}

#[test]
fn neighbour_discovery_passes_from_the_link_only() {
    let mut rig = Rig::new();
    let (host, peer) = (End::V6(HOST6, 0), End::V6(PEER6, 0));
    for kind in 133..=137 {
        assert_eq!(
            rig.ingress(&icmpv6(peer, host, kind, 255)),
            passed(PassReason::NeighbourDiscovery)
        );
        // Forwarded by a router: not a neighbour (RFC 4861, section 7.1.1).
        assert_eq!(
            rig.ingress(&icmpv6(peer, host, kind, 254)),
            dropped(DropReason::Policy)
        );
    }
    assert_eq!(
        rig.ingress(&icmpv6(peer, host, 143, 1)),
        passed(PassReason::MulticastListener)
    );
}

#[test]
fn dhcp_answers_reach_the_client_port_only() {
    let mut rig = Rig::new();
    let (server, client) = (End::V4(PEER, 67), End::V4(HOST, 68));
    assert_eq!(
        rig.ingress(&udp(server, client, b"offer")),
        passed(PassReason::DhcpClient)
    );
    assert_eq!(
        rig.ingress(&udp(server, End::V4(HOST, 69), b"offer")),
        dropped(DropReason::Policy)
    );
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let client6 = End::V6(HOST6, 546);
    let advertise = udp(End::V6(link_local, 547), client6, b"advertise");
    assert_eq!(rig.ingress(&advertise), passed(PassReason::Dhcpv6Client));
    let from_afar = udp(End::V6(PEER6, 547), client6, b"advertise");
    assert_eq!(rig.ingress(&from_afar), dropped(DropReason::Policy));
}

#[test]
fn without_confirmation_everything_passes_after_the_deadline() {
    let mut rig = Rig::new();
    let syn = tcp_syn(End::V4(PEER, 4000), End::V4(HOST, 80));
    rig.confirm_deadline(now_ns() + 60_000_000_000);
    assert_eq!(
        rig.ingress(&syn),
        dropped(DropReason::Policy),
        "the time runs"
    );
    rig.confirm_deadline(now_ns() - 1_000_000_000);
    assert_eq!(rig.ingress(&syn), passed(PassReason::Unconfirmed));
    assert_eq!(rig.egress(&syn), passed(PassReason::Unconfirmed));
    rig.confirm_deadline(0);
    assert_eq!(rig.ingress(&syn), dropped(DropReason::Policy), "confirmed");
}

#[test]
fn another_protocol_is_tracked_by_its_addresses() {
    const GRE: u8 = 47;
    let mut rig = Rig::new();
    let (host, peer) = (End::V4(HOST, 0), End::V4(PEER, 0));
    assert_eq!(
        rig.ingress(&other(peer, host, GRE)),
        dropped(DropReason::Policy)
    );
    assert_eq!(
        rig.egress(&other(host, peer, GRE)),
        passed(PassReason::NewByRule)
    );
    assert_eq!(
        rig.ingress(&other(peer, host, GRE)),
        passed(PassReason::Established)
    );
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
}

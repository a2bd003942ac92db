//! What stands before the IP header: Ethernet, VLAN tags, or nothing.

use firewall_common::{
    abi::{EventKind, event_flags, iface_flags},
    verdict::{DropReason, PassReason},
};

use crate::{
    packets::{End, HOST, HOST6, PEER, PEER6, ethertype, segment, tagged_as, tcp, tcp_syn, udp},
    rig::{OUTSIDE, Rig, accept, dropped, passed},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);
const HOST6_END: End = End::V6(HOST6, 40_000);
const PEER6_END: End = End::V6(PEER6, 80);
const ETHERNET: usize = 14;
const C_TAG: u16 = 0x8100;
const S_TAG: u16 = 0x88a8;
/// Every way to tag a frame that is followed, the outer tag first.
const TAGS: [&[u16]; 5] = [
    &[C_TAG],
    &[S_TAG],
    &[S_TAG, C_TAG],
    &[C_TAG, C_TAG],
    &[S_TAG, S_TAG],
];

fn tagged(tags: &[u16], frame: &[u8]) -> Vec<u8> {
    let inside_out = (1..).zip(tags.iter().rev());
    inside_out.fold(frame.to_vec(), |frame, (id, tag)| {
        tagged_as(*tag, &frame, id)
    })
}

fn data(src: End, dst: End) -> Vec<u8> {
    tcp(src, dst, &segment("A", 5001, 1001).carrying([1; 32]))
}

/// A rig with an established flow of each family.
fn established() -> Rig {
    let mut rig = Rig::new();
    handshake(&mut rig, HOST_END, PEER_END);
    handshake(&mut rig, HOST6_END, PEER6_END);
    rig
}

#[test]
fn a_tagged_packet_is_judged_as_what_it_carries() {
    let mut rig = established();
    let stranger = End::V4(PEER, 81);
    let syn = tcp_syn(stranger, HOST_END);
    for tags in TAGS {
        for (host, peer) in [(HOST_END, PEER_END), (HOST6_END, PEER6_END)] {
            let inwards = tagged(tags, &data(peer, host));
            assert_eq!(rig.ingress(&inwards), passed(PassReason::Established));
            let outwards = tagged(tags, &tcp(host, peer, &segment("A", 1001, 5033)));
            assert_eq!(rig.egress(&outwards), passed(PassReason::Established));
        }
        let refused = rig.ingress(&tagged(tags, &syn));
        assert_eq!(refused, dropped(DropReason::Policy), "{tags:x?}");
        let arp = rig.ingress(&tagged(tags, &ethertype(0x0806)));
        assert_eq!(arp, passed(PassReason::Arp), "{tags:x?}");
    }
    // The control: a rule lets the very same packet in.
    let mut open = Rig::with_rules(&[accept(OUTSIDE, 0)]);
    for (tags, port) in TAGS.iter().zip(81..) {
        let syn = tcp_syn(End::V4(PEER, port), HOST_END);
        let accepted = open.ingress(&tagged(tags, &syn));
        assert_eq!(accepted, passed(PassReason::NewByRule), "{tags:x?}");
    }
}

#[test]
fn more_tags_than_two_are_dropped_by_name() {
    let mut rig = established();
    for tags in [[S_TAG, C_TAG, C_TAG], [C_TAG; 3], [S_TAG; 3]] {
        let inwards = tagged(&tags, &data(PEER_END, HOST_END));
        assert_eq!(rig.ingress(&inwards), dropped(DropReason::VlanTags));
        let outwards = tagged(&tags, &data(HOST_END, PEER_END));
        assert_eq!(rig.egress(&outwards), dropped(DropReason::VlanTags));
    }
    let nested = tagged(&[C_TAG, C_TAG], &tagged(TAGS[3], &ethertype(0x0806)));
    assert_eq!(rig.ingress(&nested), dropped(DropReason::VlanTags));
}

#[test]
fn a_tag_cut_short_is_dropped_by_name() {
    let mut rig = established();
    for tags in TAGS {
        let frame = tagged(tags, &data(PEER_END, HOST_END));
        let whole = ETHERNET + 4 * tags.len();
        for len in ETHERNET..whole {
            let cut = rig.ingress(&frame[..len]);
            assert_eq!(cut, dropped(DropReason::MalformedVlan), "{tags:x?} {len}");
        }
        for len in whole..whole + 20 {
            let cut = rig.ingress(&frame[..len]);
            assert_eq!(cut, dropped(DropReason::MalformedIpv4), "{tags:x?} {len}");
        }
    }
}

#[test]
fn bytes_are_counted_from_layer_3_on() {
    let mut rig = established();
    let plain = data(PEER_END, HOST_END);
    let each = (plain.len() - ETHERNET) as u64;
    let reason = PassReason::Established.index();
    let before = rig.bytes(reason);
    let frames = [plain.clone(), tagged(&[S_TAG, C_TAG], &plain)];
    for frame in &frames {
        assert_eq!(rig.ingress(frame), passed(PassReason::Established));
    }
    rig.iface_with(OUTSIDE, iface_flags::NO_ETHERNET);
    let bare = rig.ingress(&plain[ETHERNET..]);
    assert_eq!(bare, passed(PassReason::Established));
    assert_eq!(rig.bytes(reason) - before, 3 * each);
}

/// Packets as a tun device gives them, with both programs on the same flows.
#[test]
fn without_ethernet_a_packet_begins_with_ip() {
    let mut rig = established();
    rig.iface_with(OUTSIDE, iface_flags::NO_ETHERNET);
    for (host, peer) in [(HOST_END, PEER_END), (HOST6_END, PEER6_END)] {
        let inwards = data(peer, host);
        let arrived = rig.ingress(&inwards[ETHERNET..]);
        assert_eq!(arrived, passed(PassReason::Established));
        let outwards = tcp(host, peer, &segment("A", 1001, 5033));
        let left = rig.egress(&outwards[ETHERNET..]);
        assert_eq!(left, passed(PassReason::Established));
        let intruder = udp(peer, host, b"?");
        let outcome = rig.ingress(&intruder[ETHERNET..]);
        assert_eq!(outcome, dropped(DropReason::Policy));
    }
}

#[test]
fn without_ethernet_everything_else_is_dropped_by_name() {
    let mut rig = established();
    rig.iface_with(OUTSIDE, iface_flags::NO_ETHERNET);
    // Ethernet frames, tagged or not: their first byte is that of an address.
    let frame = data(PEER_END, HOST_END);
    for other in [
        frame.clone(),
        tagged(&[C_TAG], &frame),
        ethertype(0x0806),
        vec![0; 60],
        vec![0x5f; 60],
    ] {
        assert_eq!(rig.ingress(&other), dropped(DropReason::NotIp));
    }
    // Cut short anywhere (BPF_PROG_RUN takes nothing below 14 bytes).
    let packet = &frame[ETHERNET..];
    for len in ETHERNET..packet.len() {
        let cut = rig.ingress(&packet[..len]);
        assert_eq!(cut, dropped(DropReason::MalformedIpv4), "{len}");
    }
}

/// A held SYN that is run again comes back behind an Ethernet header of zeroes.
#[test]
fn without_ethernet_a_packet_that_is_run_again_is_known() {
    let mut rig = established();
    rig.iface_with(OUTSIDE, iface_flags::NO_ETHERNET);
    for (host, peer) in [(HOST_END, PEER_END), (HOST6_END, PEER6_END)] {
        let mut frame = data(peer, host);
        assert_eq!(rig.ingress(&frame), dropped(DropReason::NotIp));
        frame[..12].fill(0);
        assert_eq!(rig.ingress(&frame), passed(PassReason::Established));
        for kind in [0x0806_u16, C_TAG, 0] {
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
            assert_eq!(rig.ingress(&frame), dropped(DropReason::NotIp));
        }
    }
}

#[test]
fn a_syn_held_without_ethernet_says_so() {
    let mut rig = Rig::new();
    rig.agent_lives();
    rig.configure(|config| config.flags |= firewall_common::abi::config_flags::HOLD);
    rig.session(HOST_END, PEER_END);
    let syn = tcp_syn(PEER_END, HOST_END);
    for (flags, frame, wanted) in [
        (0, &syn[..], 0),
        (
            iface_flags::NO_ETHERNET,
            &syn[ETHERNET..],
            event_flags::NO_ETHERNET,
        ),
    ] {
        rig.iface_with(OUTSIDE, flags);
        assert_eq!(rig.ingress(frame), dropped(DropReason::Policy));
        // What waits for the agent may be what announces it.
        assert_eq!(rig.ingress(frame), dropped(DropReason::Held));
        let records = rig.records();
        let [_, (header, bytes)] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!(header.kind, EventKind::SynHeld as u16);
        assert_eq!(header.flags & event_flags::NO_ETHERNET, wanted);
        assert_eq!(bytes, frame);
    }
}

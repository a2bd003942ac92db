//! Cut short, contradictory and hostile headers: counted by reason, never
//! passed as established, never an abort.

use firewall_common::verdict::{DropReason, PassReason, Verdict};

use crate::{
    packets::{End, HOST, HOST6, PEER, PEER6, echo, segment, tagged, tcp, tcp_syn, udp},
    rig::{OUTSIDE, Outcome, Rig, accept, dropped, passed, seed},
    tracking::handshake,
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);
const IP: usize = 14;
const L4: usize = IP + 20;
const L4_V6: usize = IP + 40;

fn data(src: End, dst: End) -> Vec<u8> {
    tcp(src, dst, &segment("A", 5001, 1001).carrying([1; 32]))
}

/// A rig with established flows of each protocol, and packets of theirs.
fn established() -> (Rig, Vec<Vec<u8>>) {
    let mut rig = Rig::new();
    let (host6, peer6) = (End::V6(HOST6, 40_000), End::V6(PEER6, 80));
    handshake(&mut rig, HOST_END, PEER_END);
    handshake(&mut rig, host6, peer6);
    let packets = vec![
        data(PEER_END, HOST_END),
        data(peer6, host6),
        tagged(&data(PEER_END, HOST_END), 5),
        udp(PEER_END, HOST_END, b"answer"),
        udp(peer6, host6, b"answer"),
        echo(PEER_END, End::V4(HOST, 80), true),
    ];
    assert_eq!(
        rig.egress(&udp(HOST_END, PEER_END, b"?")),
        passed(PassReason::NewByRule)
    );
    assert_eq!(
        rig.egress(&udp(host6, peer6, b"?")),
        passed(PassReason::NewByRule)
    );
    let ping = echo(End::V4(HOST, 80), End::V4(PEER, 80), false);
    assert_eq!(rig.egress(&ping), passed(PassReason::NewByRule));
    for packet in &packets {
        assert_eq!(rig.ingress(packet), passed(PassReason::Established));
    }
    (rig, packets)
}

fn is_drop(outcome: Outcome) -> bool {
    matches!(outcome.0, Verdict::Drop(_))
}

#[test]
fn a_packet_cut_short_anywhere_never_passes() {
    let (mut rig, packets) = established();
    for packet in packets {
        // BPF_PROG_RUN takes no frame below an Ethernet header.
        for len in 14..packet.len() {
            let outcome = rig.ingress(&packet[..len]);
            assert!(is_drop(outcome), "{len} of {}: {outcome:?}", packet.len());
        }
    }
}

#[test]
fn a_packet_cut_short_never_leaves_either() {
    let (mut rig, _) = established();
    let packet = data(HOST_END, PEER_END);
    // For a TC program the kernel takes nothing below an IPv4 header.
    for len in L4..packet.len() {
        assert!(is_drop(rig.egress(&packet[..len])), "{len}");
    }
}

#[test]
fn contradictory_headers_have_their_reasons() {
    let (mut rig, _) = established();
    let v4 = data(PEER_END, HOST_END);
    let v6 = data(End::V6(PEER6, 80), End::V6(HOST6, 40_000));
    let u4 = udp(PEER_END, HOST_END, b"answer");
    let set = |packet: &[u8], changes: &[(usize, u8)]| {
        let mut out = packet.to_vec();
        for &(at, value) in changes {
            out[at] = value;
        }
        out
    };
    use DropReason as R;
    let cases = [
        ("IPv4 version", set(&v4, &[(IP, 0x65)]), R::MalformedIpv4),
        (
            "header length below 20",
            set(&v4, &[(IP, 0x44)]),
            R::MalformedIpv4,
        ),
        (
            "total length beyond the frame",
            set(&v4, &[(IP + 2, 0xff)]),
            R::MalformedIpv4,
        ),
        (
            "total length below the header",
            set(&v4, &[(IP + 2, 0), (IP + 3, 19)]),
            R::MalformedIpv4,
        ),
        (
            "total length of zero",
            set(&v4, &[(IP + 2, 0), (IP + 3, 0)]),
            R::MalformedIpv4,
        ),
        (
            "total length without TCP",
            set(&v4, &[(IP + 2, 0), (IP + 3, 39)]),
            R::MalformedTcp,
        ),
        ("IPv6 version", set(&v6, &[(IP, 0x40)]), R::MalformedIpv6),
        (
            "payload length beyond the frame",
            set(&v6, &[(IP + 4, 0xff)]),
            R::MalformedIpv6,
        ),
        (
            "payload length of zero",
            set(&v6, &[(IP + 4, 0), (IP + 5, 0)]),
            R::MalformedTcp,
        ),
        (
            "data offset below 20",
            set(&v4, &[(L4 + 12, 0x40)]),
            R::MalformedTcp,
        ),
        (
            "data offset beyond the packet",
            set(&v4, &[(L4 + 12, 0xf0), (IP + 3, 60)]),
            R::MalformedTcp,
        ),
        (
            "data offset, IPv6",
            set(&v6, &[(L4_V6 + 12, 0x10)]),
            R::MalformedTcp,
        ),
        (
            "source port 0",
            set(&v4, &[(L4, 0), (L4 + 1, 0)]),
            R::MalformedTcp,
        ),
        (
            "UDP length below 8",
            set(&u4, &[(L4 + 4, 0), (L4 + 5, 7)]),
            R::MalformedUdp,
        ),
        (
            "UDP length beyond",
            set(&u4, &[(L4 + 4, 0), (L4 + 5, 15)]),
            R::MalformedUdp,
        ),
        (
            "ICMPv6 in IPv4",
            set(&v4, &[(IP + 9, 58)]),
            R::MalformedIcmp,
        ),
        ("loopback source", set(&v4, &[(IP + 12, 127)]), R::Martian),
        ("multicast source", set(&v4, &[(IP + 12, 224)]), R::Martian),
        ("broadcast source", set(&v4, &[(IP + 12, 255)]), R::Martian),
        (
            "multicast source, IPv6",
            set(&v6, &[(IP + 8, 0xff)]),
            R::Martian,
        ),
        (
            "fragment at 8",
            set(&v4, &[(IP + 6, 0), (IP + 7, 1)]),
            R::Fragment,
        ),
    ];
    for (what, frame, reason) in cases {
        assert_eq!(rig.ingress(&frame), dropped(reason), "{what}");
    }
}

#[test]
fn ethernet_padding_is_no_header() {
    let (mut rig, _) = established();
    // A packet whose own length ends before its TCP header, in a padded frame
    // where a whole one would stand.
    let mut frame = data(PEER_END, HOST_END);
    frame[IP + 2..IP + 4].copy_from_slice(&28_u16.to_be_bytes());
    assert_eq!(rig.ingress(&frame), dropped(DropReason::MalformedTcp));
}

const HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Puts extension headers before the TCP header of an IPv6 packet.
fn extended(headers: &[(u8, usize)]) -> Vec<u8> {
    let packet = data(End::V6(PEER6, 80), End::V6(HOST6, 40_000));
    let (head, tail) = packet.split_at(L4_V6);
    let mut out = head.to_vec();
    let mut chain = Vec::new();
    for (at, &(_, units)) in headers.iter().enumerate() {
        let next = headers.get(at + 1).map_or(6, |h| h.0);
        let mut header = vec![0; 8 * (units + 1)];
        header[0] = next;
        header[1] = units as u8;
        if headers[at].0 == ROUTING {
            // Type 4, nowhere left to go (RFC 8754).
            header[2] = 4;
        }
        chain.extend(header);
    }
    out[IP + 6] = headers[0].0;
    let len = (chain.len() + tail.len()) as u16;
    out[IP + 4..IP + 6].copy_from_slice(&len.to_be_bytes());
    out.extend(chain);
    out.extend(tail);
    out
}

#[test]
fn extension_headers_are_followed_so_far_and_no_further() {
    let (mut rig, _) = established();
    let short = extended(&[(HOP, 0), (ROUTING, 2), (DESTINATION, 0)]);
    assert_eq!(rig.ingress(&short), passed(PassReason::Established));
    let endless = extended(&[(DESTINATION, 0); 7]);
    assert_eq!(rig.ingress(&endless), dropped(DropReason::ExtensionHeaders));
    // Headers that name a length beyond the packet.
    for kind in [HOP, ROUTING, DESTINATION, AUTHENTICATION] {
        for units in [14, 200, 255] {
            let mut long = extended(&[(kind, 0)]);
            long[L4_V6 + 1] = units;
            let outcome = rig.ingress(&long);
            assert_eq!(
                outcome,
                dropped(DropReason::MalformedIpv6),
                "{kind}, {units}"
            );
        }
    }
    // Hop-by-hop options behind another header.
    let late = extended(&[(DESTINATION, 0), (HOP, 0)]);
    assert_eq!(rig.ingress(&late), dropped(DropReason::ExtensionHeaders));
    // The authentication header counts in units of four bytes, less two.
    let mut signed = extended(&[(AUTHENTICATION, 2)]);
    signed[L4_V6 + 1] = 4;
    assert_eq!(rig.ingress(&signed), passed(PassReason::Established));
    // Two fragment headers.
    let mut twice = extended(&[(44, 0), (44, 0)]);
    (twice[L4_V6 + 3], twice[L4_V6 + 11]) = (1, 1);
    assert_eq!(rig.ingress(&twice), dropped(DropReason::ExtensionHeaders));
    // An atomic fragment is a whole packet (RFC 6946).
    let atomic = extended(&[(44, 0)]);
    assert_eq!(rig.ingress(&atomic), passed(PassReason::Established));
}

/// Behind what the IPv6 header says is the end, there is nothing.
#[test]
fn extension_headers_end_with_their_packet() {
    let (mut rig, _) = established();
    let mut frame = extended(&[(DESTINATION, 0), (DESTINATION, 0)]);
    for len in 0..16_u16 {
        frame[IP + 4..IP + 6].copy_from_slice(&len.to_be_bytes());
        let outcome = rig.ingress(&frame);
        assert_eq!(outcome, dropped(DropReason::MalformedIpv6), "{len}");
    }
}

#[test]
fn a_packet_goes_where_it_says() {
    let (mut rig, _) = established();
    let source_route = dropped(DropReason::SourceRoute);
    let mut routed = extended(&[(ROUTING, 2)]);
    assert_eq!(rig.ingress(&routed), passed(PassReason::Established));
    // Segments left, of any type; and type 0 in any case (RFC 5095).
    for kind in [2, 3, 4, 253] {
        (routed[L4_V6 + 2], routed[L4_V6 + 3]) = (kind, 1);
        assert_eq!(rig.ingress(&routed), source_route, "{kind}");
    }
    for left in [0, 1, 255] {
        (routed[L4_V6 + 2], routed[L4_V6 + 3]) = (0, left);
        assert_eq!(rig.ingress(&routed), source_route, "{left}");
    }
    for kind in [131, 137] {
        let out = with_options(&[1, kind, 7, 4, 10, 0, 0, 1]);
        assert_eq!(rig.ingress(&out), source_route, "{kind}");
    }
}

/// An established flow's IPv4 packet with options, a multiple of four bytes.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut out = data(PEER_END, HOST_END);
    out.splice(L4..L4, options.iter().copied());
    out[IP] += (options.len() / 4) as u8;
    out[IP + 3] += options.len() as u8;
    out
}

#[test]
fn ip_options_lead_to_their_end() {
    let (mut rig, _) = established();
    let mut record = [0; 40];
    record[..3].copy_from_slice(&[7, 39, 4]);
    for good in [&[148, 4, 0, 0][..], &[1; 40], &[0, 131, 0, 0], &record] {
        let outcome = rig.ingress(&with_options(good));
        assert_eq!(outcome, passed(PassReason::Established), "{good:?}");
    }
    for bad in [[148, 0, 0, 0], [148, 1, 0, 0], [148, 5, 0, 0], [1, 1, 1, 7]] {
        let outcome = rig.ingress(&with_options(&bad));
        assert_eq!(outcome, dropped(DropReason::MalformedIpv4), "{bad:?}");
    }
}

/// Sent by, and to, the same address: "land". Of no use to anybody, and no part
/// of any flow.
#[test]
fn nobody_sends_to_oneself() {
    let land = dropped(DropReason::Land);
    let mut rig = Rig::with_rules(&[accept(OUTSIDE, 0)]);
    for (one, other) in [
        (HOST_END, End::V4(HOST, 80)),
        (End::V6(HOST6, 40_000), End::V6(HOST6, 80)),
    ] {
        assert_eq!(rig.ingress(&tcp_syn(one, one)), land);
        assert_eq!(rig.ingress(&tcp_syn(one, other)), land);
        assert_eq!(rig.ingress(&udp(one, one, b"x")), land);
        assert_eq!(rig.ingress(&echo(one, other, false)), land);
    }
}

/// Addresses that are never sent, under rules that accept everything.
#[test]
fn martians_pass_no_rule() {
    let mut rig = Rig::with_rules(&[accept(OUTSIDE, 0)]);
    let martian = dropped(DropReason::Martian);
    let host = End::V4(HOST, 9);
    for src in [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [240, 0, 0, 1],
    ] {
        assert_eq!(
            rig.ingress(&udp(End::V4(src, 9), host, b"x")),
            martian,
            "{src:?}"
        );
    }
    for dst in [[0, 0, 0, 0], [127, 0, 0, 1], [250, 0, 0, 1]] {
        assert_eq!(
            rig.ingress(&udp(PEER_END, End::V4(dst, 9), b"x")),
            martian,
            "{dst:?}"
        );
    }
    for many in [[255; 4], [239, 1, 2, 3]] {
        let syn = tcp_syn(PEER_END, End::V4(many, 9));
        assert_eq!(rig.ingress(&syn), martian, "{many:?}");
        let datagram = udp(PEER_END, End::V4(many, 9), b"x");
        assert_eq!(rig.ingress(&datagram), passed(PassReason::NewByRule));
    }
    let v6 = |text: &str| End::V6(text.parse::<std::net::Ipv6Addr>().unwrap().octets(), 9);
    for src in ["::", "::1", "::10.0.0.1", "::ffff:10.0.0.1", "ff02::1"] {
        assert_eq!(
            rig.ingress(&udp(v6(src), v6("fd00::2"), b"x")),
            martian,
            "{src}"
        );
    }
    for dst in ["::", "::1", "::ffff:10.0.0.1", "ff00::1", "ff01::1"] {
        assert_eq!(
            rig.ingress(&udp(v6("fd00::2"), v6(dst), b"x")),
            martian,
            "{dst}"
        );
    }
}

#[test]
fn any_bytes_give_one_verdict_and_no_abort() {
    let seed = seed();
    eprintln!("seed {seed}");
    let (mut rig, packets) = established();
    let mut state = seed;
    let mut random = move || {
        // xorshift64: enough to pick bytes with.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3000 {
        let mut packet = packets[random() as usize % packets.len()].clone();
        for _ in 0..=random() % 4 {
            let at = 12 + random() as usize % (packet.len() - 12);
            packet[at] = random() as u8;
        }
        // The rig asserts one counted verdict and a matching return code.
        let _ = rig.ingress(&packet);
        let _ = rig.egress(&packet);
    }
}

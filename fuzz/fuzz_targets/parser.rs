//! Any bytes as a frame: the header parser never panics, stays inside, and says
//! the same of the same bytes.
#![no_main]

use firewall_common::{
    abi::{FlowKey4, FlowKey6},
    key::{FlowKey, Heading},
    wire::{
        ETHERNET_LEN, Family, Fragment, Frame, Headers, Link, Parsed, Reader, inner, parse_l3,
        parse_link, parse_network, proto,
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    match how % 4 {
        // As a device with an Ethernet header gives it, and as one without.
        0 => frame(bytes, true),
        1 => frame(bytes, false),
        // Straight to layer 3, where the fuzzer need not find the EtherType first.
        2 => packet(bytes, Family::V4),
        _ => packet(bytes, Family::V6),
    }
});

/// Bytes that are read once more on a copy of which the rest is different: what
/// lies behind the packet must not count.
struct Padded<'a>(&'a [u8]);

impl Reader for Padded<'_> {
    fn frame_len(&self) -> usize {
        self.0.len() + 64
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut out = [0x5a; N];
        for (at, byte) in out.iter_mut().enumerate() {
            let at = offset.checked_add(at)?;
            if at >= self.frame_len() {
                return None;
            }
            if let Some(there) = self.0.get(at) {
                *byte = *there;
            }
        }
        Some(out)
    }
}

fn frame(bytes: &[u8], ethernet: bool) {
    let link = parse_link(bytes, ethernet);
    assert_eq!(link, parse_link(bytes, ethernet));
    let Ok(link) = link else {
        return;
    };
    assert_eq!(Link::unpack(link.pack()), link);
    assert!(usize::from(link.offset) <= bytes.len());
    assert!(link.offset == 0 || usize::from(link.offset) >= ETHERNET_LEN);
    let read = |h: &mut Headers| parse_network(bytes, link, h);
    if let (Ok(Frame::Ip), h) = twice(read) {
        check(bytes, &h);
    }
}

fn packet(bytes: &[u8], family: Family) {
    // The version is what chose the family.
    let mut bytes = bytes.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x0f
            | if matches!(family, Family::V4) {
                0x40
            } else {
                0x60
            };
    }
    let read = |h: &mut Headers| parse_l3(&bytes[..], family, 0, h);
    if let (Ok(()), h) = twice(read) {
        check(&bytes, &h);
        let behind = twice(|h: &mut Headers| parse_l3(&Padded(&bytes), family, 0, h));
        assert_eq!(behind, (Ok(()), h), "padding is no part of the packet");
    }
}

/// The result does not depend on what stood in the headers before.
fn twice<T: PartialEq + std::fmt::Debug>(
    read: impl Fn(&mut Headers) -> Parsed<T>,
) -> (Parsed<T>, Headers) {
    let (mut first, mut second) = (Headers::ZERO, stale());
    let result = read(&mut first);
    assert_eq!(result, read(&mut second));
    if result.is_ok() && first != Headers::ZERO {
        assert_eq!(first, second);
    }
    (result, first)
}

/// Headers of another packet.
fn stale() -> Headers {
    Headers {
        src: [u32::MAX; 4],
        seq: 7,
        sack: 9,
        l3_len: 65_535,
        payload_offset: 9999,
        sport: 1,
        window: 3,
        proto: 99,
        tcp_flags: 0xff,
        scale: 3,
        sack_permitted: true,
        icmp_type: 77,
        fragment: Fragment::Tail,
        ..Headers::ZERO
    }
}

fn check(bytes: &[u8], h: &Headers) {
    let end = usize::from(h.l3_offset) + h.l3_len as usize;
    assert!(end <= bytes.len(), "the packet ends in the frame");
    assert!(h.l3_offset < h.l4_offset && h.l4_offset <= h.payload_offset);
    assert!(h.payload_len() <= h.l3_len);
    let is_tail = matches!(h.fragment, Fragment::Tail);
    if has_header(h) && !is_tail {
        assert!(
            usize::from(h.payload_offset) <= end,
            "its headers are in it"
        );
        let known = usize::from(h.payload_offset) + h.payload_len() as usize;
        assert_eq!(known, end);
    }
    if h.proto == proto::TCP && !is_tail {
        assert!(h.sport != 0 && h.dport != 0);
    }
    keys(h);
    if h.is_icmp_error() && !is_tail {
        quoted(bytes, h);
    }
}

/// Is it of a protocol whose header is read?
fn has_header(h: &Headers) -> bool {
    matches!(
        h.proto,
        proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6
    )
}

/// Both directions of a flow have one key and opposite headings.
fn keys(h: &Headers) {
    match h.family {
        Family::V4 => both_ways::<FlowKey4>(h),
        Family::V6 => both_ways::<FlowKey6>(h),
    }
}

fn both_ways<K: FlowKey + PartialEq + std::fmt::Debug>(h: &Headers) {
    let back = Headers {
        src: h.dst,
        dst: h.src,
        sport: h.dport,
        dport: h.sport,
        icmp_type: match (h.proto, h.icmp_type) {
            (proto::ICMP, 8) => 0,
            (proto::ICMP, 0) => 8,
            (proto::ICMPV6, 128) => 129,
            (proto::ICMPV6, 129) => 128,
            (_, other) => other,
        },
        ..*h
    };
    let ((there, up), (here, down)) = (K::of(h), K::of(&back));
    if h.src == h.dst && h.sport == h.dport {
        // From oneself to oneself: there is no other way.
        assert_eq!((up, down), (Heading::Up, Heading::Up));
        return;
    }
    assert_eq!(there, here, "a flow has one key");
    assert_ne!(up, down, "and two headings");
}

fn quoted(bytes: &[u8], outer: &Headers) {
    let read = |h: &mut Headers| inner(bytes, outer, h);
    let (result, h) = twice(read);
    if result.is_err() {
        return;
    }
    assert!(outer.l4_offset < h.l3_offset && h.l3_offset < h.l4_offset);
    if has_header(&h) {
        let read = usize::from(h.l4_offset) + 8;
        assert!(read <= bytes.len(), "its ports were read inside");
    }
    assert_eq!(h.family as u8, outer.family as u8);
    assert!(!matches!(h.fragment, Fragment::Tail));
    keys(&h);
}

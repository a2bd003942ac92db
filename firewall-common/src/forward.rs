//! Forwarding: what a router does to a packet, and which packets it may do it to
//! without the kernel.

use crate::{
    abi::{FlowState, Hop, Kept, ZONE_HOST, flow_flags, hop_kind},
    time::{Tick, ticks_from_secs},
    wire::{ETHERNET_LEN, Family, Fragment, Headers},
};

/// How long packets to a next hop go past the kernel before one does not. Within
/// this time the kernel notices that a neighbour is gone, as it does of its own
/// packets.
pub const REFRESH: u32 = ticks_from_secs(5);

/// For how many ticks a route holds that was looked up: 67 ms at most.
pub const HOLDS: u32 = 4;

/// Shortest Ethernet frame, without its check sum: shorter ones are padded.
const FRAME_MIN: u32 = 60;
const IPV4_LEN: u16 = 20;
const IPV6_LEN: u16 = 40;

/// What the step of a packet says of its flow, in a word.
///
/// `zone ahead | CLAIMED | HELPER | ACCEPTED`; 0 if it was not accepted.
pub mod stepped {
    /// Its zone ahead of the packet is in the bits below.
    pub const ZONE: u32 = 0xff;
    /// Nobody has shown that the packet comes from whom it says: its flow is not in the
    /// proved tier, and it is one of who began that.
    pub const CLAIMED: u32 = 1 << 8;
    /// The helper reads it.
    pub const HELPER: u32 = 1 << 9;
    /// Its step, or its flow, was accepted.
    pub const ACCEPTED: u32 = 1 << 10;
}

/// The word of [`stepped`] for an accepted packet of the flow with `word`, whose
/// zone ahead is `zone`.
#[inline(always)]
#[must_use]
pub const fn accepted(word: FlowState, claimed: bool, zone: u8) -> u32 {
    let mut out = stepped::ACCEPTED | zone as u32;
    if claimed {
        out |= stepped::CLAIMED;
    }
    if word.has(flow_flags::HELPER_FTP) {
        out |= stepped::HELPER;
    }
    out
}

/// May a packet be forwarded without the kernel, as far as its flow and its headers
/// tell? `flow` is of [`stepped`], `frame_len` bytes are in its frame.
///
/// # Errors
///
/// Why it may not.
#[inline(always)]
pub const fn may_forward(h: &Headers, flow: u32, frame_len: u32) -> Result<(), Kept> {
    if flow & stepped::HELPER != 0 {
        return Err(Kept::Helper);
    }
    if flow & stepped::ZONE == ZONE_HOST as u32 {
        return Err(Kept::Local);
    }
    let ends = ETHERNET_LEN as u32 + h.l3_len;
    if h.l3_offset != ETHERNET_LEN as u16 || (frame_len > ends && frame_len > FRAME_MIN) {
        return Err(Kept::Frame);
    }
    let plain = if h.family as u8 == Family::V4 as u8 {
        IPV4_LEN
    } else {
        IPV6_LEN
    };
    // RFC 4291, section 2.5.6: a router must not forward these.
    if h.family as u8 == Family::V6 as u8 && u32::from_be(h.src[0]) >> 22 == 0xfe80 >> 6 {
        return Err(Kept::Route);
    }
    if h.fragment as u8 != Fragment::Whole as u8 || h.l4_offset != h.l3_offset + plain {
        return Err(Kept::Header);
    }
    // RFC 1812, section 5.3.1; RFC 8200, section 3.
    if h.ttl <= 1 {
        return Err(Kept::Ttl);
    }
    Ok(())
}

/// The checksum of an IPv4 header whose time to live becomes one less: it and
/// `check` are as in the header, in network byte order.
///
/// The word of TTL and protocol is 0x0100 less, so the complement of the sum is as
/// much more, in ones' complement (RFC 1624, equation 3). Like `ip_decrease_ttl` it
/// turns the zero that has two forms into none.
#[inline(always)]
#[must_use]
pub const fn one_hop_less(check: [u8; 2]) -> [u8; 2] {
    let sum = u16::from_be_bytes(check) as u32 + 0x0100;
    // Ones' complement: what is carried out is added again, and all ones are zero.
    let sum = if sum >= 0xffff { sum + 1 } else { sum };
    (sum as u16).to_be_bytes()
}

/// Is it time for a packet to a next hop to go through the kernel? `last` is the
/// tick in which one did, 0 if none.
#[inline(always)]
#[must_use]
pub const fn is_stale(last: u32, now: Tick) -> bool {
    last == 0 || now.0.wrapping_sub(last) >= REFRESH
}

/// Must the way back to who sent a packet be known before it is forwarded? `flow` is of
/// [`stepped`].
///
/// Of IPv4 the kernel forwards no packet that says to be from the router itself, and with
/// reverse path filtering none that comes in where its source is not routed to. Packets of
/// a proved flow are answered along that route. Of IPv6 it does not ask.
#[inline(always)]
#[must_use]
pub const fn must_lead_back(h: &Headers, flow: u32) -> bool {
    flow & stepped::CLAIMED != 0 && h.family as u8 == Family::V4 as u8
}

/// What a route depends on beside its destination where routing is plain.
#[inline(always)]
#[must_use]
pub const fn plain_service(h: &Headers) -> u32 {
    if h.family as u8 == Family::V4 as u8 {
        h.service
    } else {
        0
    }
}

/// Does what is known of `hop` hold for a packet to `dst` where routing is plain?
/// `service` is of [`plain_service`].
#[inline(always)]
#[must_use]
pub const fn holds_plain(hop: &Hop, dst: &[u32; 4], service: u32, now: Tick) -> bool {
    hop.kind == hop_kind::PLAIN
        && now.0.wrapping_sub(hop.at) < HOLDS
        && hop.service == service
        && same(&hop.dst, dst)
}

/// Does what is known of `hop` hold for a packet with these headers, which came in by
/// interface number `from`?
#[inline(always)]
#[must_use]
pub const fn holds(hop: &Hop, h: &Headers, from: u8, now: Tick) -> bool {
    hop.kind == hop_kind::STEADY
        && now.0.wrapping_sub(hop.at) < HOLDS
        && hop.from == from
        && hop.proto == h.proto
        && hop.service == h.service
        && same(&hop.dst, &h.dst)
        && same(&hop.src, &h.src)
}

/// Word by word: a comparison of arrays is a call that BPF has not.
#[inline(always)]
const fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
}

/// Which element of a table of routes, whose length is a power of two, is that of a
/// packet with these headers.
#[inline(always)]
#[must_use]
pub const fn route(h: &Headers, from: u8, len: u32) -> u32 {
    // The last octets differ most: a multiplication carries them upwards.
    let src = h.src[3] ^ h.src[2].rotate_left(7) ^ h.src[1] ^ h.src[0];
    let dst = h.dst[3] ^ h.dst[2].rotate_left(7) ^ h.dst[1] ^ h.dst[0];
    let mixed = u32::from_be(src).wrapping_mul(0x9e37_79b1)
        ^ u32::from_be(dst).wrapping_mul(0x85eb_ca6b)
        ^ h.service;
    let mixed = (mixed ^ from as u32).wrapping_mul(0x9e37_79b1);
    (mixed >> 16) & (len - 1)
}

/// Which element of a table of routes, whose length is a power of two, is that of packets
/// to `dst` where routing is plain.
#[inline(always)]
#[must_use]
pub const fn route_plain(dst: &[u32; 4], service: u32, len: u32) -> u32 {
    let dst = dst[3] ^ dst[2].rotate_left(7) ^ dst[1] ^ dst[0];
    let mixed = (u32::from_be(dst) ^ service).wrapping_mul(0x9e37_79b1);
    (mixed >> 16) & (len - 1)
}

/// Which element of a table of next hops, whose length is a power of two, is that
/// of hardware address `mac` behind interface `ifindex`.
#[inline(always)]
#[must_use]
pub const fn neighbour(mac: [u8; 6], ifindex: u32, len: u32) -> u32 {
    let low = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]);
    let high = u16::from_be_bytes([mac[0], mac[1]]) as u32;
    let mixed = (low ^ high ^ ifindex.rotate_left(16)).wrapping_mul(0x9e37_79b1);
    (mixed >> 16) & (len - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checksum, wire::proto};

    fn headers() -> Headers {
        Headers {
            proto: proto::UDP,
            l3_offset: 14,
            l4_offset: 34,
            l3_len: 28,
            ttl: 64,
            ..Headers::ZERO
        }
    }

    const FLOW: u32 = stepped::ACCEPTED | 2;

    #[test]
    fn a_plain_packet_is_forwarded() {
        assert_eq!(may_forward(&headers(), FLOW, 42), Ok(()));
        let first = may_forward(&headers(), FLOW | stepped::CLAIMED, 42);
        assert_eq!(first, Ok(()), "of whichever flow");
        assert_eq!(may_forward(&headers(), FLOW, 60), Ok(()), "padded");
        let v6 = Headers {
            family: Family::V6,
            l4_offset: 54,
            l3_len: 48,
            ..headers()
        };
        assert_eq!(may_forward(&v6, FLOW, 62), Ok(()));
        let near = Headers {
            src: [0xfe80_0000_u32.to_be(), 0, 0, 1],
            ..v6
        };
        assert_eq!(may_forward(&near, FLOW, 62), Err(Kept::Route));
    }

    #[test]
    fn what_needs_the_kernel_goes_to_it() {
        let kept = |change: fn(&mut Headers), flow: u32, frame: u32| {
            let mut h = headers();
            change(&mut h);
            may_forward(&h, flow, frame).unwrap_err()
        };
        let none: fn(&mut Headers) = |_| {};
        assert_eq!(kept(none, FLOW | stepped::HELPER, 42), Kept::Helper);
        assert_eq!(kept(none, FLOW & !stepped::ZONE, 42), Kept::Local);
        assert_eq!(kept(none, FLOW, 61), Kept::Frame, "bytes behind its end");
        assert_eq!(kept(|h| h.l3_offset = 18, FLOW, 46), Kept::Frame);
        assert_eq!(kept(|h| h.l4_offset = 38, FLOW, 42), Kept::Header);
        assert_eq!(
            kept(|h| h.fragment = Fragment::Tail, FLOW, 42),
            Kept::Header
        );
        assert_eq!(kept(|h| h.ttl = 1, FLOW, 42), Kept::Ttl);
        assert_eq!(kept(|h| h.ttl = 0, FLOW, 42), Kept::Ttl);
    }

    #[test]
    fn what_is_only_claimed_must_lead_back_over_ipv4() {
        let h = headers();
        let v6 = Headers {
            family: Family::V6,
            ..h
        };
        assert!(must_lead_back(&h, FLOW | stepped::CLAIMED));
        assert!(!must_lead_back(&h, FLOW));
        assert!(!must_lead_back(&v6, FLOW | stepped::CLAIMED));
    }

    #[test]
    fn where_routing_is_plain_the_destination_tells() {
        use bytemuck::Zeroable as _;
        let (dst, now) = ([0, 0, 7, 9], Tick(1000));
        let hop = Hop {
            dst,
            service: 8,
            at: 1000,
            kind: hop_kind::PLAIN,
            ..Hop::zeroed()
        };
        assert!(holds_plain(&hop, &dst, 8, now));
        assert!(holds_plain(&hop, &dst, 8, Tick(1000 + HOLDS - 1)));
        assert!(!holds_plain(&hop, &dst, 8, Tick(1000 + HOLDS)));
        assert!(!holds_plain(&hop, &dst, 0, now), "another service");
        assert!(!holds_plain(&hop, &[0, 0, 7, 8], 8, now));
        let other = Hop {
            kind: hop_kind::STEADY,
            ..hop
        };
        assert!(!holds_plain(&other, &dst, 8, now), "of more than that");
        assert!(!holds_plain(&Hop::zeroed(), &[0; 4], 0, Tick(0)), "none");
        let h = Headers {
            service: 8,
            ..headers()
        };
        assert_eq!(plain_service(&h), 8);
        let v6 = Headers {
            family: Family::V6,
            ..h
        };
        assert_eq!(plain_service(&v6), 0, "traffic class and flow label");
    }

    #[test]
    fn the_checksum_is_what_computing_it_anew_gives() {
        let mut header = [
            0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 1, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7,
        ];
        for id in 0..=u16::MAX {
            header[4..6].copy_from_slice(&id.to_be_bytes());
            for ttl in [2, 64, 255] {
                header[8] = ttl;
                header[10..12].fill(0);
                let check = !checksum::fold(checksum::add(0, &header));
                header[8] = ttl - 1;
                header[10..12].copy_from_slice(&one_hop_less(check.to_be_bytes()));
                assert_eq!(checksum::fold(checksum::add(0, &header)), 0xffff);
            }
        }
    }

    #[test]
    fn a_next_hop_is_refreshed_at_first_and_then_now_and_then() {
        let now = Tick(1000);
        assert!(is_stale(0, now));
        assert!(!is_stale(1000, now));
        assert!(!is_stale(1001, Tick(1000 + REFRESH)));
        assert!(is_stale(1000, Tick(1000 + REFRESH)));
    }

    #[test]
    fn a_route_holds_for_a_moment_and_for_its_like() {
        use bytemuck::Zeroable as _;
        let h = headers();
        let hop = Hop {
            at: 1000,
            from: 3,
            proto: proto::UDP,
            kind: hop_kind::STEADY,
            ..Hop::zeroed()
        };
        assert!(holds(&hop, &h, 3, Tick(1000)));
        assert!(holds(&hop, &h, 3, Tick(1000 + HOLDS - 1)));
        assert!(!holds(&hop, &h, 3, Tick(1000 + HOLDS)));
        assert!(!holds(&hop, &h, 3, Tick(999)), "not yet");
        assert!(!holds(&hop, &h, 4, Tick(1000)));
        let other = |change: fn(&mut Headers)| {
            let mut h = headers();
            change(&mut h);
            holds(&hop, &h, 3, Tick(1000))
        };
        assert!(!other(|h| h.src[0] = 1));
        assert!(!other(|h| h.dst[3] = 1));
        assert!(!other(|h| h.service = 8));
        assert!(!other(|h| h.proto = proto::TCP));
        assert!(other(|h| h.dport = 1), "ports make no difference");
        assert!(!holds(&Hop::zeroed(), &headers(), 0, Tick(0)), "none");
    }

    #[test]
    fn routes_spread() {
        let mut seen: Vec<_> = (0..64_u32)
            .map(|n| {
                let mut h = headers();
                h.src[3] = (0x1000_0000 + n).to_be();
                route(&h, 1, 2048)
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 56, "{}", seen.len());
        assert!(seen.iter().all(|at| *at < 2048));
        let mut seen: Vec<_> = (0..64_u32)
            .map(|n| route_plain(&[0, 0, 0, (0x1000_0000 + n).to_be()], 0, 2048))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 56, "{}", seen.len());
        assert!(seen.iter().all(|at| *at < 2048));
    }

    #[test]
    fn next_hops_spread() {
        let mut seen: Vec<_> = (0..64_u8)
            .map(|n| neighbour([2, 0, 0, 0, 0, n], 3, 4096))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 56, "{}", seen.len());
        assert!(seen.iter().all(|at| *at < 4096));
    }
}

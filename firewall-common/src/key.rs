//! Flow keys: one canonical entry a flow, whichever side a packet comes from.
//!
//! The smaller endpoint stands first. Which one is smaller has no meaning of
//! its own; it only has to be the same for both directions, so addresses are
//! compared as the machine words that they occupy in network byte order.

use crate::{
    abi::{FlowKey4, FlowKey6},
    wire::Headers,
};

/// Words 0 to 2 of an IPv4-mapped IPv6 address (`::ffff:0:0/96`), as stored.
pub const V4_MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// Which way a packet runs through its canonical key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Heading {
    /// From the smaller endpoint (`lo`) to the larger (`hi`).
    Up = 0,
    /// From `hi` to `lo`.
    Down = 1,
}

impl Heading {
    /// 0 or 1, to index per-direction fields.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The way of what comes from `lo` (0) or from `hi` (anything else), as the maps
    /// say which of a flow's ends is the client.
    #[must_use]
    pub const fn from_end(is_hi: u8) -> Self {
        match is_hi {
            0 => Self::Up,
            _ => Self::Down,
        }
    }
}

/// Which way a packet runs within its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// The way of the packet that created the flow.
    Original = 0,
    /// The other way.
    Reply = 1,
}

impl Direction {
    /// The direction of a packet heading `heading` in a flow whose first packet headed `first`.
    #[inline(always)]
    #[must_use]
    pub fn of(heading: Heading, first: Heading) -> Self {
        if heading == first {
            Self::Original
        } else {
            Self::Reply
        }
    }

    /// 0 or 1, to index per-direction fields.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other direction.
    #[inline(always)]
    #[must_use]
    pub const fn flip(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// Is `addr` (network byte order words) an IPv4-mapped address?
#[inline(always)]
#[must_use]
pub fn is_v4_mapped(addr: &[u32; 4]) -> bool {
    addr[0] == V4_MAPPED[0] && addr[1] == V4_MAPPED[1] && addr[2] == V4_MAPPED[2]
}

/// The IPv4-mapped form of an IPv4 address in network byte order.
#[inline(always)]
#[must_use]
pub const fn map_v4(addr: u32) -> [u32; 4] {
    [V4_MAPPED[0], V4_MAPPED[1], V4_MAPPED[2], addr]
}

#[inline(always)]
fn heads_up6(src: &[u32; 4], dst: &[u32; 4], sport: u16, dport: u16) -> bool {
    // Written out, not as a slice comparison: that becomes a call to memcmp,
    // which a BPF program does not have.
    if src[0] != dst[0] {
        return src[0] < dst[0];
    }
    if src[1] != dst[1] {
        return src[1] < dst[1];
    }
    if src[2] != dst[2] {
        return src[2] < dst[2];
    }
    if src[3] != dst[3] {
        return src[3] < dst[3];
    }
    sport <= dport
}

/// The part of an echo key that keeps two opposite pings of one identifier apart.
///
/// A request heading up and a reply heading down belong together (0); the
/// opposite pair is another flow (1). So a request is never taken for a reply:
/// it does not even find the flow (GHSA-c66w-hq56-4q97 is what happens else).
#[inline(always)]
const fn echo_aux(is_reply: bool, heading: Heading) -> u8 {
    (heading as u8) ^ (is_reply as u8)
}

/// A family's flow key, normalised by construction.
pub trait FlowKey: Copy {
    /// The canonical key of the flow that `h` belongs to, and the way `h` heads in it.
    fn of(h: &Headers) -> (Self, Heading);

    /// The same key in the form used where both families share one map.
    fn widen(&self) -> FlowKey6;

    /// A digest of all that tells one key from another, for [`crate::abi::incarnation`]:
    /// the high bits are mixed best. The same for both forms of an IPv4 key.
    fn digest(&self) -> u32;
}

/// Mixes a word into a digest (the multiplier is that of Knuth, volume 3, section 6.4).
#[inline(always)]
const fn mix(digest: u32, word: u32) -> u32 {
    (digest.rotate_left(15) ^ word).wrapping_mul(0x9e37_79b1)
}

#[inline(always)]
const fn mix_ports(digest: u32, lo_port: u16, hi_port: u16, proto: u8, aux: u8) -> u32 {
    let ports = (lo_port as u32) << 16 | hi_port as u32;
    mix(mix(digest, ports), (proto as u32) << 8 | aux as u32)
}

impl FlowKey for FlowKey4 {
    #[inline(always)]
    fn of(h: &Headers) -> (Self, Heading) {
        let up = if h.src[3] != h.dst[3] {
            h.src[3] < h.dst[3]
        } else {
            h.sport <= h.dport
        };
        let (lo, hi, lo_port, hi_port, heading) = if up {
            (h.src[3], h.dst[3], h.sport, h.dport, Heading::Up)
        } else {
            (h.dst[3], h.src[3], h.dport, h.sport, Heading::Down)
        };
        let aux = if h.is_echo() {
            echo_aux(h.is_echo_reply(), heading)
        } else {
            0
        };
        (
            Self::from_parts(lo, hi, lo_port, hi_port, h.proto, aux),
            heading,
        )
    }

    #[inline(always)]
    fn widen(&self) -> FlowKey6 {
        // The three leading words are equal, so the order of the endpoints is
        // the same in both forms and nothing has to be normalised again.
        FlowKey6::from_parts(
            map_v4(self.lo()),
            map_v4(self.hi()),
            self.lo_port(),
            self.hi_port(),
            self.proto(),
            self.aux(),
        )
    }

    #[inline(always)]
    fn digest(&self) -> u32 {
        mix_ports(
            mix(mix(0, self.lo()), self.hi()),
            self.lo_port(),
            self.hi_port(),
            self.proto(),
            self.aux(),
        )
    }
}

impl FlowKey for FlowKey6 {
    #[inline(always)]
    fn of(h: &Headers) -> (Self, Heading) {
        let (lo, hi, lo_port, hi_port, heading) = if heads_up6(&h.src, &h.dst, h.sport, h.dport) {
            (h.src, h.dst, h.sport, h.dport, Heading::Up)
        } else {
            (h.dst, h.src, h.dport, h.sport, Heading::Down)
        };
        let aux = if h.is_echo() {
            echo_aux(h.is_echo_reply(), heading)
        } else {
            0
        };
        (
            Self::from_parts(lo, hi, lo_port, hi_port, h.proto, aux),
            heading,
        )
    }

    #[inline(always)]
    fn widen(&self) -> FlowKey6 {
        *self
    }

    #[inline(always)]
    fn digest(&self) -> u32 {
        let (lo, hi) = (self.lo(), self.hi());
        let addresses = if is_v4_mapped(&lo) && is_v4_mapped(&hi) {
            mix(mix(0, lo[3]), hi[3])
        } else {
            let low = mix(mix(mix(mix(0, lo[0]), lo[1]), lo[2]), lo[3]);
            mix(mix(mix(mix(low, hi[0]), hi[1]), hi[2]), hi[3])
        };
        mix_ports(
            addresses,
            self.lo_port(),
            self.hi_port(),
            self.proto(),
            self.aux(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto;

    fn headers(src: u32, dst: u32, sport: u16, dport: u16) -> Headers {
        Headers {
            family: crate::wire::Family::V4,
            proto: proto::TCP,
            src: map_v4(src.to_be()),
            dst: map_v4(dst.to_be()),
            sport,
            dport,
            ..Headers::ZERO
        }
    }

    fn echo(src: u32, dst: u32, kind: u8) -> Headers {
        Headers {
            proto: proto::ICMP,
            icmp_type: kind,
            ..headers(src, dst, 77, 77)
        }
    }

    #[test]
    fn both_directions_share_a_key() {
        let (a, ha) = FlowKey4::of(&headers(0x0a000001, 0xc0000207, 4000, 21));
        let (b, hb) = FlowKey4::of(&headers(0xc0000207, 0x0a000001, 21, 4000));
        assert_eq!(a, b);
        assert_ne!(ha, hb);
    }

    #[test]
    fn a_request_never_finds_the_flow_of_the_opposite_ping() {
        let (request, up) = FlowKey4::of(&echo(1, 2, 8));
        let (reply, down) = FlowKey4::of(&echo(2, 1, 0));
        let (opposite, _) = FlowKey4::of(&echo(2, 1, 8));
        assert_eq!(request, reply);
        assert_ne!(up, down);
        assert_ne!(request, opposite);
    }

    #[test]
    fn widening_keeps_the_order() {
        let h = headers(0xc0000207, 0x0a000001, 21, 4000);
        let (narrow, heading) = FlowKey4::of(&h);
        let (wide, wide_heading) = FlowKey6::of(&h);
        assert_eq!(narrow.widen(), wide);
        assert_eq!(heading, wide_heading);
        assert_eq!(narrow.digest(), wide.digest());
    }

    #[test]
    fn digests_tell_keys_apart() {
        let digest = |sport| {
            let (key, _) = FlowKey4::of(&headers(0xc0000207, 0x0a000001, sport, 21));
            key.digest() >> 20
        };
        let all: std::collections::BTreeSet<u32> = (1000..2000).map(digest).collect();
        assert!(all.len() > 800, "{} of 1000", all.len());
    }
}

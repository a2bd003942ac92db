//! IPv4 (RFC 791), IPv6 and its extension headers (RFC 8200).

use super::{Family, Fragment, Headers, Parsed, Reader, transport};
use crate::{
    key::{is_v4_mapped, map_v4},
    verdict::DropReason,
};

const V4_MIN: usize = 20;
const V6_LEN: usize = 40;
/// Extension headers followed before a packet counts as hostile.
const MAX_EXTENSIONS: usize = 6;
/// A later fragment below this offset (bytes) could rewrite a transport header
/// that the first fragment was judged by (RFC 3128).
const MIN_TAIL_OFFSET: u16 = 64;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Parses the IP packet at `offset` into `h`.
#[inline(always)]
pub fn parse_l3<R: Reader + ?Sized>(
    r: &R,
    family: Family,
    offset: usize,
    h: &mut Headers,
) -> Parsed<()> {
    *h = Headers::ZERO;
    match family {
        Family::V4 => parse_v4(r, offset, h, false)?,
        Family::V6 => parse_v6(r, offset, h, false)?,
    }
    if is_martian(h) {
        return Err(DropReason::Martian);
    }
    if h.fragment as u8 != Fragment::Tail as u8 {
        transport::parse(r, h)?;
    }
    Ok(())
}

/// Parses the packet that the ICMP error `outer` carries, as far as its ports, into `h`.
///
/// Routers quote as little as the IP header and eight bytes (RFC 792), so only
/// those are asked for.
#[inline(always)]
pub fn inner<R: Reader + ?Sized>(r: &R, outer: &Headers, h: &mut Headers) -> Parsed<()> {
    // ICMP and ICMPv6 errors: eight bytes of header, then the quoted packet.
    let offset = (outer.l4_offset as usize & transport::OFFSET_MASK) + 8;
    *h = Headers::ZERO;
    match outer.family {
        Family::V4 => parse_v4(r, offset, h, true)?,
        Family::V6 => parse_v6(r, offset, h, true)?,
    }
    if h.fragment as u8 == Fragment::Tail as u8 {
        return Err(DropReason::IcmpUnrelated);
    }
    transport::parse_quoted(r, h)
}

#[inline(always)]
fn parse_v4<R: Reader + ?Sized>(r: &R, offset: usize, h: &mut Headers, quoted: bool) -> Parsed<()> {
    let Some(b) = r.read::<V4_MIN>(offset) else {
        return Err(DropReason::MalformedIpv4);
    };
    let header_len = ((b[0] & 0x0f) as usize) << 2;
    let room = r.frame_len().wrapping_sub(offset) as u32;
    let total = match u16::from_be_bytes([b[2], b[3]]) {
        0 if R::UNCUT => room,
        field => field as u32,
    };
    if b[0] >> 4 != 4 || header_len < V4_MIN || (total as usize) < header_len {
        return Err(DropReason::MalformedIpv4);
    }
    // A total length beyond the frame is a lie. (A quoted packet is cut short
    // by the router that quotes it.)
    if !quoted && total > room {
        return Err(DropReason::MalformedIpv4);
    }
    let fragment = u16::from_be_bytes([b[6], b[7]]);
    h.fragment = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        (at, _) if at < MIN_TAIL_OFFSET / 8 => return Err(DropReason::Fragment),
        _ => Fragment::Tail,
    };
    h.family = Family::V4;
    h.src = map_v4(u32::from_ne_bytes([b[12], b[13], b[14], b[15]]));
    h.dst = map_v4(u32::from_ne_bytes([b[16], b[17], b[18], b[19]]));
    h.proto = b[9];
    h.ttl = b[8];
    h.l3_len = total;
    h.l3_offset = offset as u16;
    h.l4_offset = (offset + header_len) as u16;
    h.payload_offset = h.l4_offset;
    Ok(())
}

#[inline(always)]
fn parse_v6<R: Reader + ?Sized>(r: &R, offset: usize, h: &mut Headers, quoted: bool) -> Parsed<()> {
    let Some(b) = r.read::<8>(offset) else {
        return Err(DropReason::MalformedIpv6);
    };
    let Some(addresses) = r.read::<32>(offset + 8) else {
        return Err(DropReason::MalformedIpv6);
    };
    let room = r.frame_len().wrapping_sub(offset) as u32;
    let total = match u16::from_be_bytes([b[4], b[5]]) {
        0 if R::UNCUT => room,
        field => V6_LEN as u32 + field as u32,
    };
    if b[0] >> 4 != 6 || (!quoted && total > room) {
        return Err(DropReason::MalformedIpv6);
    }
    h.family = Family::V6;
    h.src = words(&addresses, 0);
    h.dst = words(&addresses, 16);
    h.ttl = b[7];
    h.l3_len = total;
    h.l3_offset = offset as u16;
    h.fragment = Fragment::Whole;
    let (next, at) = extensions(r, b[6], offset + V6_LEN, h)?;
    h.proto = next;
    h.l4_offset = at as u16;
    h.payload_offset = h.l4_offset;
    Ok(())
}

/// Walks the extension headers; returns the transport protocol and its offset.
#[inline(always)]
fn extensions<R: Reader + ?Sized>(
    r: &R,
    first: u8,
    start: usize,
    h: &mut Headers,
) -> Parsed<(u8, usize)> {
    let mut next = first;
    let mut at = start;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let Some(e) = r.read::<2>(at) else {
                    return Err(DropReason::MalformedIpv6);
                };
                next = e[0];
                at += (e[1] as usize + 1) << 3;
            }
            FRAGMENT => {
                let Some(e) = r.read::<8>(at) else {
                    return Err(DropReason::MalformedIpv6);
                };
                if h.fragment as u8 != Fragment::Whole as u8 {
                    return Err(DropReason::ExtensionHeaders);
                }
                let field = u16::from_be_bytes([e[2], e[3]]);
                next = e[0];
                at += 8;
                h.fragment = match (field & 0xfff8, field & 1) {
                    // An atomic fragment (RFC 6946) is a whole packet.
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    (byte, _) if byte < MIN_TAIL_OFFSET => return Err(DropReason::Fragment),
                    _ => Fragment::Tail,
                };
                if h.fragment as u8 == Fragment::Tail as u8 {
                    return Ok((next, at));
                }
            }
            _ => return Ok((next, at)),
        }
    }
    Err(DropReason::ExtensionHeaders)
}

#[inline(always)]
fn words(b: &[u8; 32], at: usize) -> [u32; 4] {
    let word =
        |i: usize| u32::from_ne_bytes([b[at + i], b[at + i + 1], b[at + i + 2], b[at + i + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// Addresses that can stand in no packet from the wire (RFC 1122, section
/// 3.2.1.3; RFC 4291, sections 2.5 to 2.7).
///
/// 0.0.0.0 and `::` as a source are left to DHCP and neighbour discovery.
#[inline(always)]
fn is_martian(h: &Headers) -> bool {
    if h.family as u8 == Family::V4 as u8 {
        let src = u32::from_be(h.src[3]);
        let dst = u32::from_be(h.dst[3]);
        // Loopback either way; multicast, reserved and broadcast as a source.
        return src >> 24 == 127 || dst >> 24 == 127 || src >= 0xe000_0000 || dst == 0;
    }
    // The unspecified destination, loopback, multicast source, and IPv4-mapped
    // addresses, which would meet IPv4 flows where both families share a map.
    is_small(&h.dst)
        || (h.src[0] == 0 && h.src[1] == 0 && h.src[2] == 0 && h.src[3] == 1_u32.to_be())
        || u32::from_be(h.src[0]) >> 24 == 0xff
        || is_v4_mapped(&h.src)
        || is_v4_mapped(&h.dst)
}

/// `::` or `::1`.
#[inline(always)]
fn is_small(a: &[u32; 4]) -> bool {
    a[0] == 0 && a[1] == 0 && a[2] == 0 && u32::from_be(a[3]) <= 1
}

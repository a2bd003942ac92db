//! IPv4 (RFC 791), IPv6 and its extension headers (RFC 8200).

use super::{Family, Fragment, Headers, Parsed, Reader, martian, transport};
use crate::{fragment::Piece, key::map_v4, verdict::DropReason};

const V4_MIN: usize = 20;
const V6_LEN: usize = 40;
/// Of the first word of an IPv6 header all but the version.
const VERSION_LESS: u32 = 0x0fff_ffff_u32.to_be();
/// Extension headers followed before a packet counts as hostile.
const MAX_EXTENSIONS: usize = 6;
/// A later fragment below this offset (bytes) could rewrite a transport header
/// that the first fragment was judged by (RFC 3128).
const MIN_TAIL_OFFSET: u16 = 64;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
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
        Family::V4 if R::COPIES => v4_apart(r, offset, h, false)?,
        Family::V6 if R::COPIES => v6_apart(r, offset, h, false)?,
        Family::V4 => parse_v4(r, offset, h, false)?,
        Family::V6 => parse_v6(r, offset, h, false)?,
    }
    if let Some(reason) = martian::check(h) {
        return Err(reason);
    }
    if h.fragment as u8 != Fragment::Whole as u8 && Piece::of(h).is_none() {
        return Err(DropReason::Fragment);
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
        Family::V4 if R::COPIES => v4_apart(r, offset, h, true)?,
        Family::V6 if R::COPIES => v6_apart(r, offset, h, true)?,
        Family::V4 => parse_v4(r, offset, h, true)?,
        Family::V6 => parse_v6(r, offset, h, true)?,
    }
    if h.fragment as u8 == Fragment::Tail as u8 {
        return Err(DropReason::IcmpUnrelated);
    }
    transport::parse_quoted(r, h)
}

#[inline(never)]
fn v4_apart<R: Reader + ?Sized>(r: &R, offset: usize, h: &mut Headers, quoted: bool) -> Parsed<()> {
    parse_v4(r, offset, h, quoted)
}

#[inline(never)]
fn v6_apart<R: Reader + ?Sized>(r: &R, offset: usize, h: &mut Headers, quoted: bool) -> Parsed<()> {
    parse_v6(r, offset, h, quoted)
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
    h.fragment_id = u16::from_ne_bytes([b[4], b[5]]) as u32;
    h.fragment_at = fragment & 0x1fff;
    h.fragment_more = fragment & 0x2000 != 0;
    h.fragment_len = total.wrapping_sub(header_len as u32);
    h.family = Family::V4;
    h.src = map_v4(u32::from_ne_bytes([b[12], b[13], b[14], b[15]]));
    h.dst = map_v4(u32::from_ne_bytes([b[16], b[17], b[18], b[19]]));
    h.service = b[1] as u32;
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
    if !addresses(r, offset + 8, h) {
        return Err(DropReason::MalformedIpv6);
    }
    let room = r.frame_len().wrapping_sub(offset) as u32;
    let total = match u16::from_be_bytes([b[4], b[5]]) {
        0 if R::UNCUT => room,
        field => V6_LEN as u32 + field as u32,
    };
    if b[0] >> 4 != 6 || (!quoted && total > room) {
        return Err(DropReason::MalformedIpv6);
    }
    h.family = Family::V6;
    h.service = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) & VERSION_LESS;
    h.ttl = b[7];
    h.l3_len = total;
    h.l3_offset = offset as u16;
    h.fragment = Fragment::Whole;
    h.proto = b[6];
    h.l4_offset = (offset + V6_LEN) as u16;
    extensions(r, h)?;
    h.payload_offset = h.l4_offset;
    Ok(())
}

#[inline(always)]
fn addresses<R: Reader + ?Sized>(r: &R, at: usize, h: &mut Headers) -> bool {
    if R::COPIES {
        return r.address(at, &mut h.src) && r.address(at + 16, &mut h.dst);
    }
    // One read, and one bound for the verifier.
    let Some(both) = r.read::<32>(at) else {
        return false;
    };
    let both: [[u32; 4]; 2] = bytemuck::cast(both);
    [h.src, h.dst] = both;
    true
}

/// Walks the extension headers from `h.l4_offset`, the first of which is of type
/// `h.proto`, to the transport header, whose offset and protocol stand there then.
///
/// All of them must be in the packet by its own length: a frame may go on beyond
/// it (Ethernet pads to 60 bytes).
///
/// Not inlined: of the ways through the headers, the verifier carries none on.
#[inline(never)]
fn extensions<R: Reader + ?Sized>(r: &R, h: &mut Headers) -> Parsed<()> {
    let start = h.l4_offset as usize & transport::OFFSET_MASK;
    let end = h.l3_offset as usize + h.l3_len as usize;
    let mut next = h.proto;
    let mut at = start;
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        ) {
            return Ok(());
        }
        let Some(e) = r.read::<8>(at) else {
            return Err(DropReason::MalformedIpv6);
        };
        // Only directly behind the IPv6 header (RFC 8200, section 4.1).
        if next == HOP_BY_HOP && at != start {
            return Err(DropReason::ExtensionHeaders);
        }
        // A packet that is not where it says that it goes would be judged by
        // the wrong destination. Type 0 is dropped in any case (RFC 5095).
        if next == ROUTING && (e[2] == 0 || e[3] != 0) {
            return Err(DropReason::SourceRoute);
        }
        at += match next {
            FRAGMENT => 8,
            // In units of four bytes, less two (RFC 4302, section 2.2).
            AUTHENTICATION => (e[1] as usize + 2) << 2,
            _ => (e[1] as usize + 1) << 3,
        };
        if at > end {
            return Err(DropReason::MalformedIpv6);
        }
        if next == FRAGMENT {
            if h.fragment as u8 != Fragment::Whole as u8 {
                return Err(DropReason::ExtensionHeaders);
            }
            fragment_header(e, (end - at) as u32, h)?;
        }
        next = e[0];
        h.proto = next;
        h.l4_offset = at as u16;
        if h.fragment as u8 == Fragment::Tail as u8 {
            return Ok(());
        }
    }
    Err(DropReason::ExtensionHeaders)
}

/// Reads the fragment header `e`, which `len` bytes of the datagram follow.
#[inline(always)]
fn fragment_header(e: [u8; 8], len: u32, h: &mut Headers) -> Parsed<()> {
    let field = u16::from_be_bytes([e[2], e[3]]);
    h.fragment = match (field & 0xfff8, field & 1) {
        // An atomic fragment (RFC 6946) is a whole packet.
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        (byte, _) if byte < MIN_TAIL_OFFSET => return Err(DropReason::Fragment),
        _ => Fragment::Tail,
    };
    h.fragment_id = u32::from_ne_bytes([e[4], e[5], e[6], e[7]]);
    h.fragment_at = field >> 3;
    h.fragment_more = field & 1 != 0;
    h.fragment_len = len;
    Ok(())
}

//! TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792, RFC 4443), as far as tracking needs them.

use super::{Fragment, Headers, Parsed, Reader, proto};
use crate::verdict::DropReason;

const TCP_MIN: usize = 20;
const UDP_LEN: usize = 8;
const ICMP_LEN: usize = 8;
/// Offsets are masked with this so that the verifier sees their bound: the
/// longest chain of headers that is followed ends below it.
pub(super) const OFFSET_MASK: usize = 0x3fff;

/// Reads the transport header at `h.l4_offset` into `h`.
#[inline(always)]
pub(super) fn parse<R: Reader + ?Sized>(r: &R, h: &mut Headers) -> Parsed<()> {
    let at = h.l4_offset as usize & OFFSET_MASK;
    match h.proto {
        proto::TCP => tcp(r, h, at),
        proto::UDP => udp(r, h, at),
        proto::ICMP | proto::ICMPV6 => icmp(r, h, at),
        _ => Ok(()),
    }
}

/// Reads the ports of a quoted packet, of which eight bytes must be there if
/// its protocol has any.
#[inline(always)]
pub(super) fn parse_quoted<R: Reader + ?Sized>(r: &R, h: &mut Headers) -> Parsed<()> {
    let at = h.l4_offset as usize & OFFSET_MASK;
    if !matches!(
        h.proto,
        proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6
    ) {
        return Ok(());
    }
    let Some(b) = r.read::<8>(at) else {
        return Err(DropReason::MalformedIcmp);
    };
    match h.proto {
        proto::TCP | proto::UDP => {
            h.sport = u16::from_be_bytes([b[0], b[1]]);
            h.dport = u16::from_be_bytes([b[2], b[3]]);
            // Of TCP these are the sequence number.
            h.seq = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
            Ok(())
        }
        _ => {
            h.icmp_type = b[0];
            if !h.is_echo() {
                return Err(DropReason::IcmpUnrelated);
            }
            h.sport = u16::from_be_bytes([b[4], b[5]]);
            h.dport = h.sport;
            Ok(())
        }
    }
}

/// Does the IP packet's own length cover `need` bytes of transport header?
///
/// The frame may be longer than the packet (Ethernet pads to 60 bytes), so the
/// reader's bound alone would take padding for a header.
#[inline(always)]
fn covers(h: &Headers, need: usize) -> bool {
    let head = (h.l4_offset as u32).wrapping_sub(h.l3_offset as u32);
    head + need as u32 <= h.l3_len
}

#[inline(always)]
fn tcp<R: Reader + ?Sized>(r: &R, h: &mut Headers, at: usize) -> Parsed<()> {
    let Some(b) = r.read::<TCP_MIN>(at) else {
        return Err(DropReason::MalformedTcp);
    };
    let header_len = ((b[12] >> 4) as usize) << 2;
    // A first fragment that is too short for its own header is an attack (RFC 3128).
    if header_len < TCP_MIN || !covers(h, header_len) {
        return Err(DropReason::MalformedTcp);
    }
    h.sport = u16::from_be_bytes([b[0], b[1]]);
    h.dport = u16::from_be_bytes([b[2], b[3]]);
    if h.sport == 0 || h.dport == 0 {
        return Err(DropReason::MalformedTcp);
    }
    h.seq = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
    h.ack = u32::from_be_bytes([b[8], b[9], b[10], b[11]]);
    h.tcp_flags = b[13];
    h.window = u16::from_be_bytes([b[14], b[15]]);
    h.sack = h.ack;
    h.payload_offset = (at + header_len) as u16;
    Ok(())
}

#[inline(always)]
fn udp<R: Reader + ?Sized>(r: &R, h: &mut Headers, at: usize) -> Parsed<()> {
    let Some(b) = r.read::<UDP_LEN>(at) else {
        return Err(DropReason::MalformedUdp);
    };
    if !covers(h, UDP_LEN) {
        return Err(DropReason::MalformedUdp);
    }
    let len = u16::from_be_bytes([b[4], b[5]]) as u32;
    let room = h.l3_len - ((h.l4_offset as u32).wrapping_sub(h.l3_offset as u32));
    // A length of 0 is for IPv6 jumbograms only (RFC 2675), which are not followed.
    let fits = match h.fragment {
        Fragment::First => len >= UDP_LEN as u32,
        _ => len >= UDP_LEN as u32 && len <= room,
    };
    if !fits {
        return Err(DropReason::MalformedUdp);
    }
    h.sport = u16::from_be_bytes([b[0], b[1]]);
    h.dport = u16::from_be_bytes([b[2], b[3]]);
    if h.dport == 0 {
        return Err(DropReason::MalformedUdp);
    }
    h.payload_offset = (at + UDP_LEN) as u16;
    Ok(())
}

#[inline(always)]
fn icmp<R: Reader + ?Sized>(r: &R, h: &mut Headers, at: usize) -> Parsed<()> {
    // The other family's ICMP means nothing (RFC 4443, section 1).
    let mismatched = (h.proto == proto::ICMP) != (h.family as u8 == super::Family::V4 as u8);
    let Some(b) = r.read::<ICMP_LEN>(at) else {
        return Err(DropReason::MalformedIcmp);
    };
    if mismatched || !covers(h, ICMP_LEN) {
        return Err(DropReason::MalformedIcmp);
    }
    h.icmp_type = b[0];
    h.payload_offset = (at + ICMP_LEN) as u16;
    if h.is_echo() {
        h.sport = u16::from_be_bytes([b[4], b[5]]);
        h.dport = h.sport;
    }
    Ok(())
}

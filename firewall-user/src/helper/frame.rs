//! A held frame, made fit to be run again.

use firewall_common::{
    checksum::{add, fold, pseudo_header},
    wire::{Family, Fragment, Frame, Headers, parse_frame, parse_l3, proto},
};

/// Offset of the checksum in the TCP header (RFC 9293, section 3.1).
const CHECKSUM: usize = 16;

/// Completes the TCP checksum of a copied `frame`, if its sender left that to
/// the device (`CHECKSUM_PARTIAL`, as between the ends of a veth): the field then
/// holds the folded sum of the pseudo-header. Returns whether it did.
///
/// Any other checksum is left as it is, right or wrong: its receiver judges.
pub fn complete_checksum(frame: &mut [u8]) -> bool {
    let Some(headers) = headers(frame) else {
        return false;
    };
    let segment = usize::from(headers.l4_offset)..usize::from(headers.l3_offset) + len(&headers);
    let Some(bytes) = frame.get_mut(segment) else {
        return false;
    };
    let Ok(tcp_len) = u32::try_from(bytes.len()) else {
        return false;
    };
    let pseudo = pseudo(&headers, tcp_len);
    let sum = fold(add(pseudo, bytes));
    let partial = fold(pseudo);
    let Some(field) = bytes.get(CHECKSUM..CHECKSUM + 2) else {
        return false;
    };
    // All ones: the checksum is complete, and right.
    if sum == 0xffff || field != partial.to_be_bytes() {
        return false;
    }
    // The field itself stands for the pseudo-header in this sum.
    let complete = !fold(add(0, bytes));
    if let Some(field) = bytes.get_mut(CHECKSUM..CHECKSUM + 2) {
        field.copy_from_slice(&complete.to_be_bytes());
    }
    true
}

/// Headers of a whole TCP packet, with or without an Ethernet header before it.
fn headers(frame: &[u8]) -> Option<Headers> {
    let mut h = Headers::ZERO;
    let whole = |h: Headers| {
        let tcp = h.proto == proto::TCP && h.fragment == Fragment::Whole;
        tcp.then_some(h)
    };
    if parse_frame(frame, &mut h) == Ok(Frame::Ip) {
        return whole(h);
    }
    let family = match frame.first().map(|byte| byte >> 4) {
        Some(4) => Family::V4,
        Some(6) => Family::V6,
        _ => return None,
    };
    parse_l3(frame, family, 0, &mut h).ok()?;
    whole(h)
}

fn len(headers: &Headers) -> usize {
    usize::try_from(headers.l3_len).unwrap_or(usize::MAX / 2)
}

/// An IPv4 address in mapped form adds 0xffff to the sum, so it goes in as what it is.
fn pseudo(headers: &Headers, tcp_len: u32) -> u32 {
    let octets = |words: [u32; 4]| -> [u8; 16] { bytemuck::cast(words) };
    let (src, dst) = (octets(headers.src), octets(headers.dst));
    let from = match headers.family {
        Family::V4 => 12,
        Family::V6 => 0,
    };
    pseudo_header(
        src.get(from..).unwrap_or_default(),
        dst.get(from..).unwrap_or_default(),
        proto::TCP,
        tcp_len,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn syn(v6: bool) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 {
            ethernet.ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 2], [192, 0, 2, 7], 64)
        };
        let tcp = ip
            .tcp(41822, 50053, 7, 1000)
            .syn()
            .options_raw(&[2, 4, 5, 180])
            .unwrap();
        let mut frame = Vec::new();
        tcp.write(&mut frame, &[]).unwrap();
        frame
    }

    fn checksum_at(v6: bool) -> std::ops::Range<usize> {
        let at = 14 + if v6 { 40 } else { 20 } + CHECKSUM;
        at..at + 2
    }

    #[test]
    fn a_partial_checksum_is_completed_to_what_it_should_be() {
        for v6 in [false, true] {
            let right = syn(v6);
            let mut frame = right.clone();
            let pseudo = pseudo(&headers(&frame).unwrap(), 24);
            frame[checksum_at(v6)].copy_from_slice(&fold(pseudo).to_be_bytes());
            assert!(complete_checksum(&mut frame));
            assert_eq!(frame, right);
            // Padding of the frame is no part of the segment, and a second time changes nothing.
            frame.resize(80, 0xaa);
            let padded = frame.clone();
            assert!(!complete_checksum(&mut frame));
            assert_eq!(frame, padded);
        }
    }

    #[test]
    fn any_other_checksum_is_left_alone() {
        let right = syn(false);
        let mut frame = right.clone();
        assert!(!complete_checksum(&mut frame));
        assert_eq!(frame, right);
        frame[checksum_at(false)].copy_from_slice(&[0x12, 0x34]);
        let wrong = frame.clone();
        assert!(!complete_checksum(&mut frame));
        assert_eq!(frame, wrong);
    }

    #[test]
    fn frames_without_ethernet_and_other_bytes_are_taken_as_they_are() {
        let mut packet = syn(false).split_off(14);
        let pseudo = pseudo(&headers(&packet).unwrap(), 24);
        packet[36..38].copy_from_slice(&fold(pseudo).to_be_bytes());
        assert!(complete_checksum(&mut packet));
        assert!(!complete_checksum(&mut []));
        assert!(!complete_checksum(&mut [0x45; 30]));
    }
}

//! A held frame, made fit to be run again.

use firewall_common::{
    checksum::{add, fold, pseudo_header},
    wire::{
        Family, Fragment, Frame, Headers, header_to_run_again, parse_link, parse_network, proto,
    },
};

/// Offset of the checksum in the TCP header (RFC 9293, section 3.1).
const CHECKSUM: usize = 16;

/// The frame to run again of held `bytes`, its checksum complete. `bare` bytes, from
/// a device without Ethernet headers, get one, because BPF_PROG_RUN takes no frame
/// without.
pub fn to_run_again(bytes: &[u8], bare: bool) -> Vec<u8> {
    let header = if bare {
        header_to_run_again(bytes)
    } else {
        None
    };
    let mut frame = header.map_or_else(Vec::new, Vec::from);
    frame.extend_from_slice(bytes);
    complete_checksum(&mut frame);
    frame
}

/// As [`to_run_again`], of a frame that was on its way out: it goes out as it is,
/// without an Ethernet header where there is none.
pub fn to_send_again(bytes: &[u8], bare: bool) -> Vec<u8> {
    let mut frame = to_run_again(bytes, bare);
    frame.split_off(frame.len().saturating_sub(bytes.len()))
}

/// Completes the TCP checksum of a copied `frame`, if its sender left that to
/// the device (`CHECKSUM_PARTIAL`, as between the ends of a veth): the field then
/// holds the folded sum of the pseudo-header. Returns whether it did.
///
/// Any other checksum is left as it is, right or wrong: its receiver judges.
fn complete_checksum(frame: &mut [u8]) -> bool {
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

/// Headers of a whole TCP packet in an Ethernet frame.
fn headers(frame: &[u8]) -> Option<Headers> {
    let mut h = Headers::ZERO;
    let link = parse_link(frame, true).ok()?;
    let found = parse_network(frame, link, &mut h).ok()?;
    let whole = h.proto == proto::TCP && h.fragment == Fragment::Whole;
    (found == Frame::Ip && whole).then_some(h)
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
    fn a_packet_without_ethernet_gets_a_header_that_the_stack_takes_for_its_own() {
        for (v6, kind) in [(false, [8, 0]), (true, [0x86, 0xdd])] {
            let right = syn(v6);
            let mut packet = right.clone();
            let pseudo = pseudo(&headers(&packet).unwrap(), 24);
            packet[checksum_at(v6)].copy_from_slice(&fold(pseudo).to_be_bytes());
            let frame = to_run_again(&packet[14..], true);
            assert_eq!((&frame[..12], &frame[12..14]), (&[0; 12][..], &kind[..]));
            assert_eq!(frame[14..], right[14..]);
            // On its way out it needs none.
            assert_eq!(to_send_again(&packet[14..], true), right[14..]);
            assert_eq!(to_send_again(&packet, false), right);
            // With a header of its own it keeps that.
            assert_eq!(to_run_again(&packet, false), right);
        }
    }

    #[test]
    fn a_frame_with_tags_is_completed_too() {
        let right = syn(false);
        let mut partial = right.clone();
        let pseudo = pseudo(&headers(&right).unwrap(), 24);
        partial[checksum_at(false)].copy_from_slice(&fold(pseudo).to_be_bytes());
        let tag = |frame: &[u8]| {
            let (addresses, rest) = frame.split_at(12);
            [addresses, &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2], rest].concat()
        };
        assert_eq!(to_run_again(&tag(&partial), false), tag(&right));
    }

    #[test]
    fn other_bytes_are_taken_as_they_are() {
        for bytes in [&[][..], &[0x45; 30], &[0x15; 30]] {
            assert_eq!(to_run_again(bytes, false), bytes);
        }
        assert_eq!(to_run_again(&[0x15; 30], true), [0x15; 30]);
    }
}

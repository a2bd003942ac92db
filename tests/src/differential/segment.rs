//! TCP segments between two ends, and the frames that carry them.

use std::fmt;

use firewall_common::wire::tcp_flags::{ACK, FIN, RST, SYN, URG};

use crate::lab::Family;

/// PSH, ECE and CWR, of which connection tracking takes no notice.
pub const PSH: u8 = 0x08;
/// See [`PSH`].
pub const ECE: u8 = 0x40;
/// See [`PSH`].
pub const CWR: u8 = 0x80;

/// Bytes of the Ethernet header in front of every frame.
pub const ETHERNET: usize = 14;
const TCP_HEADER: usize = 20;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const MAX_OPTIONS: usize = 40;

/// Which end of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The guarded host: what it sends goes through the egress program.
    Inside,
    /// Its peer: what it sends goes through the ingress program.
    Outside,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Inside, Self::Outside];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }
}

/// TCP options as they stand in the header, padded to a multiple of four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Options {
    bytes: [u8; MAX_OPTIONS],
    len: u8,
}

impl Options {
    /// No options.
    pub const NONE: Self = Self {
        bytes: [0; MAX_OPTIONS],
        len: 0,
    };

    /// Those bytes, without what does not fit, and end-of-list up to a multiple of four.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut options = Self::NONE;
        let used = bytes.len().min(MAX_OPTIONS);
        options.bytes[..used].copy_from_slice(&bytes[..used]);
        options.len = used.next_multiple_of(4) as u8;
        options
    }

    /// As in the header.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// One segment of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sends it.
    pub from: Side,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, in the header whether or not ACK is set.
    pub ack: u32,
    /// The eight flags.
    pub flags: u8,
    /// The window field as it stands, unscaled.
    pub window: u16,
    /// Bytes of payload, all zero.
    pub len: u16,
    /// Options.
    pub options: Options,
}

impl Segment {
    /// Sequence number after the segment: payload, SYN and FIN count.
    #[must_use]
    pub fn end(&self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(u32::from(self.len) + flags)
    }

    /// In words, with each side's sequence numbers counted from its base.
    #[must_use]
    pub fn told(&self, bases: [u32; 2]) -> String {
        let arrow = match self.from {
            Side::Inside => "in->out",
            Side::Outside => "out->in",
        };
        let from = |side: Side, number: u32| number.wrapping_sub(bases[side as usize]) as i32;
        let seq = from(self.from, self.seq);
        let flags = letters(self.flags);
        let mut text = format!("{arrow} {flags:<5} seq {seq}");
        if self.has(ACK) {
            text += &format!(" ack {}", from(self.from.other(), self.ack));
        }
        // Trackers look at the field now and then, whether it counts or not.
        if self.has(ACK) == (self.ack == 0) {
            text += &format!(" (field {})", self.ack);
        }
        text += &format!(" win {}", self.window);
        if self.len > 0 {
            text += &format!(" len {}", self.len);
        }
        if !self.options.bytes().is_empty() {
            text += &format!(" options {:?}", self.options);
        }
        text
    }

    /// Is one of `flags` set?
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// Flags by their letters, as tcpdump has them; `none` without any.
#[must_use]
pub fn letters(flags: u8) -> String {
    let all = [
        (SYN, 'S'),
        (FIN, 'F'),
        (RST, 'R'),
        (PSH, 'P'),
        (ACK, 'A'),
        (URG, 'U'),
        (ECE, 'E'),
        (CWR, 'W'),
    ];
    let text: String = all
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, letter)| letter)
        .collect();
    if text.is_empty() { "none".into() } else { text }
}

/// An address and a port; IPv4 addresses take the first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Network byte order.
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u16,
}

/// The two ends of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Address family of both.
    pub family: Family,
    /// By [`Side`].
    pub ends: [End; 2],
}

impl Ends {
    /// The end of a side.
    #[must_use]
    pub const fn of(&self, side: Side) -> &End {
        &self.ends[side as usize]
    }

    /// Bytes of an address.
    #[must_use]
    pub const fn address_len(&self) -> usize {
        match self.family {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// Writes the Ethernet frame of `segment`, checksums right, into `frame`.
    pub fn frame(&self, segment: &Segment, frame: &mut Vec<u8>) {
        let (src, dst) = (self.of(segment.from), self.of(segment.from.other()));
        let tcp_len = TCP_HEADER + segment.options.bytes().len() + usize::from(segment.len);
        frame.clear();
        frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        match self.family {
            Family::V4 => ipv4(frame, src, dst, tcp_len),
            Family::V6 => ipv6(frame, src, dst, tcp_len),
        }
        let at = frame.len();
        frame.extend(src.port.to_be_bytes());
        frame.extend(dst.port.to_be_bytes());
        frame.extend(segment.seq.to_be_bytes());
        frame.extend(segment.ack.to_be_bytes());
        let words = (TCP_HEADER + segment.options.bytes().len()) / 4;
        frame.extend([(words as u8) << 4, segment.flags]);
        frame.extend(segment.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(segment.options.bytes());
        // The payload is zero and does not count in the sum.
        let n = self.address_len();
        let mut sum = Sum::default();
        sum.add(&src.address[..n]);
        sum.add(&dst.address[..n]);
        sum.0 += 6 + tcp_len as u64;
        sum.add(&frame[at..]);
        frame[at + 16..at + 18].copy_from_slice(&sum.finish());
        frame.resize(at + tcp_len, 0);
    }
}

fn ipv4(frame: &mut Vec<u8>, src: &End, dst: &End, payload: usize) {
    frame.extend([0x08, 0x00]);
    let at = frame.len();
    frame.extend([0x45, 0]);
    frame.extend(((IPV4_HEADER + payload) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(&src.address[..4]);
    frame.extend(&dst.address[..4]);
    let mut sum = Sum::default();
    sum.add(&frame[at..]);
    frame[at + 10..at + 12].copy_from_slice(&sum.finish());
}

fn ipv6(frame: &mut Vec<u8>, src: &End, dst: &End, payload: usize) {
    frame.extend([0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((payload as u16).to_be_bytes());
    frame.extend([6, 64]);
    frame.extend(&src.address);
    frame.extend(&dst.address);
}

/// Where the TCP header begins in the IP packet.
#[must_use]
pub const fn ip_header(family: Family) -> usize {
    match family {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    }
}

/// The Internet checksum (RFC 1071) over an even number of bytes at a time.
#[derive(Default)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let words = bytes.chunks_exact(2);
        self.0 += words
            .map(|w| u64::from(u16::from_be_bytes([w[0], w[1]])))
            .sum::<u64>();
    }

    fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    fn ends(family: Family) -> Ends {
        let end = |last, port| {
            let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            address[3] = last;
            End { address, port }
        };
        Ends {
            family,
            ends: [end(1, 40_000), end(2, 80)],
        }
    }

    #[test]
    fn a_frame_is_what_the_segment_says() {
        let segment = Segment {
            from: Side::Outside,
            seq: 0xdead_beef,
            ack: 7,
            flags: SYN | ACK | ECE,
            window: 1234,
            len: 33,
            options: Options::new(&[2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2]),
        };
        assert_eq!(segment.end(), 0xdead_beef + 34);
        for family in Family::BOTH {
            let mut frame = Vec::new();
            ends(family).frame(&segment, &mut frame);
            let parsed = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let Some(TransportHeader::Tcp(tcp)) = parsed.transport else {
                panic!("{frame:x?}");
            };
            let payload = parsed.payload.slice();
            let sum = match parsed.net.unwrap() {
                NetHeaders::Ipv4(ip, _) => {
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    tcp.calc_checksum_ipv4(&ip, payload).unwrap()
                }
                NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, payload).unwrap(),
                NetHeaders::Arp(_) => panic!("no IP"),
            };
            assert_eq!(tcp.checksum, sum, "{family:?}");
            assert_eq!((tcp.source_port, tcp.destination_port), (80, 40_000));
            assert_eq!(
                (tcp.sequence_number, tcp.acknowledgment_number),
                (segment.seq, 7)
            );
            assert!(tcp.syn && tcp.ack && tcp.ece && !tcp.fin);
            assert_eq!((tcp.window_size, payload.len()), (1234, 33));
            assert_eq!(tcp.options.as_slice()[..10], segment.options.bytes()[..10]);
        }
    }

    #[test]
    fn options_are_padded_and_cut() {
        assert_eq!(
            Options::new(&[1, 3, 3, 7, 4]).bytes(),
            [1, 3, 3, 7, 4, 0, 0, 0]
        );
        assert_eq!(Options::new(&[1; 99]).bytes(), [1; 40]);
    }
}

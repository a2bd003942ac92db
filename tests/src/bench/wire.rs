//! Addresses of the benchmark's three namespaces, and frames between them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::{
    plan::{self, L4_4, L4_6, LEN4, LEN6, WORD4, WORD6},
    traffic::{Packet, Proto},
};
use crate::lab::Family;

/// Where flows come from: their addresses are counted up in the last word.
pub const SOURCES4: &str = "16.0.0.0/4";
/// Likewise.
pub const SOURCES6: &str = "2001:db8:f::/64";
const FIRST4: u32 = 0x1000_0000;
const FIRST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0);
/// The port to which all flows go.
pub const PORT: u16 = 9000;
const IP: usize = 14;

/// Where an IPv4 flow comes from.
#[must_use]
pub fn sender4(flow: u32) -> SocketAddrV4 {
    let (address, port) = plan::flow(FIRST4, flow);
    SocketAddrV4::new(address.into(), port)
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Ethernet addresses: of the receiver, and of the sender.
    pub macs: [[u8; 6]; 2],
    /// The server's addresses.
    pub server: (Ipv4Addr, Ipv6Addr),
}

impl Wire {
    /// The last word of the address of flow 0, host byte order.
    pub(super) fn first_word(&self, family: Family) -> u32 {
        match family {
            Family::V4 => FIRST4,
            Family::V6 => 0,
        }
    }

    /// A frame with zero in what differs by flow, and in the checksums; and the sums of
    /// its IPv4 header and of its layer 4 with the pseudo header.
    pub(super) fn template(
        &self,
        family: Family,
        proto: Proto,
        packet: &Packet,
    ) -> ([u8; 80], [u32; 2]) {
        let mut frame = [0; 80];
        frame[..6].copy_from_slice(&self.macs[0]);
        frame[6..12].copy_from_slice(&self.macs[1]);
        let length = match proto {
            Proto::Udp => 26,
            Proto::Tcp if packet.data => 26,
            Proto::Tcp => 20,
        };
        let l4 = match family {
            Family::V4 => self.ip4(&mut frame, proto, packet, length),
            Family::V6 => self.ip6(&mut frame, proto, packet, length),
        };
        transport(&mut frame[l4..], proto, packet, length);
        let addresses = match family {
            Family::V4 => IP + 12..IP + 20,
            Family::V6 => IP + 8..IP + 40,
        };
        let pseudo = sum(&frame[addresses]) + u32::from(length) + number(proto);
        let end = l4 + usize::from(length);
        let header = match family {
            Family::V4 => sum(&frame[IP..l4]),
            Family::V6 => 0,
        };
        (frame, [header, pseudo + sum(&frame[l4..end])])
    }

    /// A whole frame of a flow, as the generator would write it.
    pub(super) fn frame(
        &self,
        (family, proto): (Family, Proto),
        packet: &Packet,
        flow: u32,
        server_port: u16,
    ) -> Vec<u8> {
        let (mut frame, mut sums) = self.template(family, proto, packet);
        sums[1] += u32::from(server_port) - u32::from(PORT);
        let (l4, words, length) = match family {
            Family::V4 => (L4_4, WORD4, LEN4),
            Family::V6 => (L4_6, WORD6, LEN6),
        };
        let reply = usize::from(packet.reply);
        let (word, port) = plan::flow(self.first_word(family), flow);
        frame[words[reply]..words[reply] + 4].copy_from_slice(&word.to_be_bytes());
        let (own, other) = (l4 + 2 * reply, l4 + 2 * (1 - reply));
        frame[own..own + 2].copy_from_slice(&port.to_be_bytes());
        frame[other..other + 2].copy_from_slice(&server_port.to_be_bytes());
        let varies = halves(word);
        if family == Family::V4 {
            frame[24..26].copy_from_slice(&check(sums[0] + varies));
        }
        let mut sum = sums[1] + varies + u32::from(port);
        let at = match proto {
            Proto::Udp => l4 + 6,
            Proto::Tcp => {
                frame[l4 + 4..l4 + 8].copy_from_slice(&packet.seq.to_be_bytes());
                sum += halves(packet.seq);
                l4 + 16
            }
        };
        frame[at..at + 2].copy_from_slice(&check(sum));
        frame[..length].to_vec()
    }

    fn ip4(&self, frame: &mut [u8; 80], proto: Proto, packet: &Packet, length: u16) -> usize {
        frame[12] = 0x08;
        let ip = &mut frame[IP..];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        ip[6] = 0x40;
        ip[8] = 64;
        ip[9] = number(proto) as u8;
        let at = if packet.reply { 12 } else { 16 };
        ip[at..at + 4].copy_from_slice(&self.server.0.octets());
        34
    }

    fn ip6(&self, frame: &mut [u8; 80], proto: Proto, packet: &Packet, length: u16) -> usize {
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        let ip = &mut frame[IP..];
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        ip[6] = number(proto) as u8;
        ip[7] = 64;
        let ends = [FIRST6, self.server.1];
        let [src, dst] = if packet.reply {
            [ends[1], ends[0]]
        } else {
            ends
        };
        ip[8..24].copy_from_slice(&src.octets());
        ip[24..40].copy_from_slice(&dst.octets());
        54
    }
}

fn transport(l4: &mut [u8], proto: Proto, packet: &Packet, length: u16) {
    let at = if packet.reply { 0 } else { 2 };
    l4[at..at + 2].copy_from_slice(&PORT.to_be_bytes());
    match proto {
        Proto::Udp => l4[4..6].copy_from_slice(&length.to_be_bytes()),
        Proto::Tcp => {
            l4[8..12].copy_from_slice(&packet.ack.to_be_bytes());
            l4[12] = 5 << 4;
            l4[13] = packet.flags;
            l4[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        }
    }
}

fn number(proto: Proto) -> u32 {
    match proto {
        Proto::Udp => 17,
        Proto::Tcp => 6,
    }
}

/// Of 16-bit words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()))
        .sum()
}

fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// The checksum of a sum, network byte order.
fn check(sum: u32) -> [u8; 2] {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::field::{data, opening};

    fn wire() -> Wire {
        Wire {
            macs: [[2; 6], [4; 6]],
            server: (
                Ipv4Addr::new(203, 0, 113, 2),
                Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 2),
            ),
        }
    }

    /// The sum over what a checksum covers, itself included, is all ones (RFC 1071).
    fn is_right(bytes: u32) -> bool {
        check(bytes) == [0, 0]
    }

    #[test]
    fn checksums_are_right() {
        for proto in [Proto::Udp, Proto::Tcp] {
            for packet in opening(proto).into_iter().chain([data()]) {
                let v4 = wire().frame((Family::V4, proto), &packet, 12_345, PORT);
                assert!(is_right(sum(&v4[14..34])));
                let end = 14 + usize::from(u16::from_be_bytes([v4[16], v4[17]]));
                let pseudo = sum(&v4[26..34]) + number(proto) + (end - 34) as u32;
                assert!(is_right(pseudo + sum(&v4[34..end])), "{proto:?} {packet:?}");

                let v6 = wire().frame((Family::V6, proto), &packet, 12_345, PORT + 1);
                let length = u16::from_be_bytes([v6[18], v6[19]]);
                let pseudo = sum(&v6[22..54]) + number(proto) + u32::from(length);
                let end = 54 + usize::from(length);
                assert!(is_right(pseudo + sum(&v6[54..end])), "{proto:?} {packet:?}");
            }
        }
    }

    #[test]
    fn flows_differ_by_address_and_port() {
        let frame = |flow| wire().frame((Family::V4, Proto::Udp), &data(), flow, PORT);
        let (first, next, other) = (frame(0), frame(1), frame(16));
        assert_eq!(first[26..30], [16, 0, 0, 0]);
        assert_eq!(
            (first[26..30] == next[26..30], first[34..36] == next[34..36]),
            (true, false)
        );
        assert_eq!((other[29], other[34..36] == first[34..36]), (1, true));
    }
}

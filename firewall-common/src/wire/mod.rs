//! Header parsing over a bounded reader: never panics, never reads past the end.
//!
//! One parser serves the XDP program (packet memory), the TC program (helper
//! calls), BPF_PROG_RUN tests and host tests (slices). The result is a plain
//! [`Headers`], so that everything after it is free of packet memory.

mod ip;
mod link;
mod martian;
mod options;
mod transport;

pub use ip::{inner, parse_l3};
pub use link::{ETHERNET_LEN, Link, header_to_run_again, parse_link, parse_network};
pub use options::{Options, check_options, options_of};

use crate::{abi::flow_flags::NO_SCALE, verdict::DropReason};

/// Bytes that can be read at an offset, or not.
pub trait Reader {
    /// Whether packets may be segments that the host's own stack has not cut
    /// yet: one longer than 64 kB carries 0 in its length field.
    const UNCUT: bool = false;
    /// Whether what is read is copied: headers are then parsed in functions of
    /// their own, so that the copies are gone from the stack when they return.
    const COPIES: bool = false;

    /// Bytes in the frame.
    fn frame_len(&self) -> usize;

    /// `N` bytes at `offset`, or `None` past the end of what can be read.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// An IPv6 address at `offset` to `to`, where it may stand at once; false past
    /// the end.
    #[inline(always)]
    fn address(&self, offset: usize, to: &mut [u32; 4]) -> bool {
        let read = self.read::<16>(offset);
        if let Some(bytes) = read {
            *to = bytemuck::cast(bytes);
        }
        read.is_some()
    }

    /// VLAN tags of the frame that are not among its bytes: the device or the
    /// stack keeps them beside it.
    #[inline(always)]
    fn tags_beside(&self) -> u32 {
        0
    }
}

impl Reader for [u8] {
    fn frame_len(&self) -> usize {
        self.len()
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

/// IP protocol numbers (IANA).
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// TCP flags, as in byte 13 of the header.
pub mod tcp_flags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// URG.
    pub const URG: u8 = 0x20;
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// What the headers of an IP packet say, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address, network byte order, IPv4 in mapped form.
    pub src: [u32; 4],
    /// Destination address, as `src`.
    pub dst: [u32; 4],
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Highest right edge of the selective acknowledgements; `ack` where
    /// there are none.
    pub sack: u32,
    /// Bytes of layer 3 upwards, as the IP header says.
    pub l3_len: u32,
    /// Identification of the fragmented datagram, network byte order.
    pub fragment_id: u32,
    /// What routes may depend on: of IPv4 the type of service, as a number; of
    /// IPv6 the traffic class and the flow label, network byte order.
    pub service: u32,
    /// Bytes of the fragmented datagram in this packet.
    pub fragment_len: u32,
    /// Where they begin in the datagram, in units of eight bytes.
    pub fragment_at: u16,
    /// Offset of the IP header in the frame.
    pub l3_offset: u16,
    /// Offset of the transport header in the frame.
    pub l4_offset: u16,
    /// Offset of the transport payload in the frame.
    pub payload_offset: u16,
    /// Source port, host byte order; the identifier for ICMP echo.
    pub sport: u16,
    /// Destination port, host byte order; the identifier for ICMP echo.
    pub dport: u16,
    /// TCP window as it stands in the header, not scaled.
    pub window: u16,
    /// Family.
    pub family: Family,
    /// IP protocol number of the transport header.
    pub proto: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// Window scale that a SYN offers, 0 to 14, or [`NO_SCALE`].
    pub scale: u8,
    /// Does a SYN allow selective acknowledgements?
    pub sack_permitted: bool,
    /// Is one of the TCP options cut short, or of a length that cannot be? Known
    /// once they were read ([`crate::tcp::options::parse`]); false before.
    pub options_malformed: bool,
    /// ICMP type.
    pub icmp_type: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Fragment position.
    pub fragment: Fragment,
    /// More fragments follow.
    pub fragment_more: bool,
}

/// Where a packet stands in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// Not fragmented.
    Whole = 0,
    /// The first fragment: has the transport header.
    First = 1,
    /// A later fragment: has none, ports are 0.
    Tail = 2,
}

impl Headers {
    /// All zero, to build others from.
    pub const ZERO: Self = Self {
        src: [0; 4],
        dst: [0; 4],
        seq: 0,
        ack: 0,
        sack: 0,
        l3_len: 0,
        fragment_id: 0,
        service: 0,
        fragment_len: 0,
        fragment_at: 0,
        l3_offset: 0,
        l4_offset: 0,
        payload_offset: 0,
        sport: 0,
        dport: 0,
        window: 0,
        family: Family::V4,
        proto: 0,
        tcp_flags: 0,
        scale: NO_SCALE,
        sack_permitted: false,
        options_malformed: false,
        icmp_type: 0,
        ttl: 0,
        fragment: Fragment::Whole,
        fragment_more: false,
    };

    /// Is this an echo request or reply of the packet's family?
    #[inline(always)]
    #[must_use]
    pub const fn is_echo(&self) -> bool {
        match self.proto {
            proto::ICMP => self.icmp_type == 8 || self.icmp_type == 0,
            proto::ICMPV6 => self.icmp_type == 128 || self.icmp_type == 129,
            _ => false,
        }
    }

    /// Is this an echo reply?
    #[inline(always)]
    #[must_use]
    pub const fn is_echo_reply(&self) -> bool {
        match self.proto {
            proto::ICMP => self.icmp_type == 0,
            proto::ICMPV6 => self.icmp_type == 129,
            _ => false,
        }
    }

    /// Is this an ICMP error, which carries the head of another packet?
    ///
    /// RFC 792: 3, 4, 5, 11, 12; redirects (5) are not errors about a flow and
    /// are left out, as in nf_conntrack. RFC 4443: types below 128.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp_error(&self) -> bool {
        match self.proto {
            proto::ICMP => matches!(self.icmp_type, 3 | 4 | 11 | 12),
            proto::ICMPV6 => self.icmp_type >= 1 && self.icmp_type <= 4,
            _ => false,
        }
    }

    /// Bytes of TCP options.
    #[inline(always)]
    #[must_use]
    pub const fn options_len(&self) -> usize {
        const TCP_MIN: u16 = 20;
        self.payload_offset
            .wrapping_sub(self.l4_offset)
            .wrapping_sub(TCP_MIN) as usize
    }

    /// Transport payload in bytes, as the headers say.
    #[inline(always)]
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        let head = (self.payload_offset as u32).wrapping_sub(self.l3_offset as u32);
        self.l3_len.saturating_sub(head)
    }
}

/// What a segment that the host has not cut yet amounts to on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnWire {
    /// Packets.
    pub packets: u32,
    /// Bytes of layer 3 upwards, of all of them.
    pub bytes: u32,
}

impl Headers {
    /// As one packet.
    #[inline(always)]
    #[must_use]
    pub const fn as_one(&self) -> OnWire {
        OnWire {
            packets: 1,
            bytes: self.l3_len,
        }
    }

    /// As the packets that segmentation makes of it (`gso_segs` and `gso_size` of
    /// the kernel's socket buffer): each gets the headers again. The number of
    /// segments can be missing (`SKB_GSO_DODGY`, from a virtual machine).
    #[inline(always)]
    #[must_use]
    pub const fn on_wire(&self, gso_segs: u32, gso_size: u32) -> OnWire {
        if gso_size == 0 {
            return self.as_one();
        }
        let payload = self.payload_len();
        let packets = if gso_segs == 0 {
            payload.div_ceil(gso_size)
        } else {
            gso_segs
        };
        if packets <= 1 {
            return self.as_one();
        }
        let headers = self.l3_len.wrapping_sub(payload);
        OnWire {
            packets,
            bytes: self.l3_len.wrapping_add(headers.wrapping_mul(packets - 1)),
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An IP packet, whose headers were written.
    Ip,
    /// ARP.
    Arp,
    /// LLDP, 802.1X, slow protocols or LLC (spanning tree).
    LinkControl,
}

/// Result of parsing: the packet is dropped for the reason in `Err`.
pub type Parsed<T> = Result<T, DropReason>;

#[cfg(test)]
mod tests {
    use super::*;

    /// TCP over IPv4 with 12 bytes of options, and `payload` bytes.
    fn segment(payload: u32) -> Headers {
        Headers {
            l3_len: 20 + 32 + payload,
            l3_offset: 14,
            l4_offset: 34,
            payload_offset: 66,
            ..Headers::ZERO
        }
    }

    fn wire(payload: u32, gso_segs: u32, gso_size: u32) -> (u32, u32) {
        let on_wire = segment(payload).on_wire(gso_segs, gso_size);
        (on_wire.packets, on_wire.bytes)
    }

    #[test]
    fn a_segment_counts_as_what_it_is_cut_into() {
        assert_eq!(wire(1448, 0, 0), (1, 1500), "not to be cut");
        assert_eq!(wire(1448, 1, 1448), (1, 1500));
        assert_eq!(wire(2896, 2, 1448), (2, 3000));
        assert_eq!(
            wire(2897, 3, 1448),
            (3, 2897 + 3 * 52),
            "a last one of a byte"
        );
        assert_eq!(wire(2897, 0, 1448), (3, 2897 + 3 * 52), "no number given");
        assert_eq!(wire(0, 0, 1448), (1, 52));
        assert_eq!(
            segment(2896).as_one(),
            OnWire {
                packets: 1,
                bytes: 2948
            }
        );
    }
}

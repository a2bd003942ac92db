//! Ethernet, VLAN tags, and links without either.

use super::{Family, Frame, Headers, Parsed, Reader, parse_l3};
use crate::verdict::DropReason;

const ETHERTYPE: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
/// VLAN tags that a frame may carry: QinQ (IEEE 802.1ad) has two.
const MAX_TAGS: u32 = 2;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// IEEE 802.1Q.
const C_TAG: u16 = 0x8100;
/// IEEE 802.1ad, the outer tag of a provider's.
const S_TAG: u16 = 0x88a8;
const EAPOL: u16 = 0x888e;
const LLDP: u16 = 0x88cc;
const SLOW: u16 = 0x8809;
/// Below this value the field is a length (IEEE 802.3), and LLC follows.
const FIRST_TYPE: u16 = 0x0600;

/// What a packet's link header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// EtherType of what follows, host byte order.
    pub kind: u16,
    /// Where that begins, in bytes: 0, or 14 and 4 for each tag.
    pub offset: u16,
}

impl Link {
    /// An Ethernet header, and nothing known of what follows.
    pub const ETHERNET: Self = Self {
        kind: 0,
        offset: ETHERNET_LEN as u16,
    };

    /// Both fields in one word.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u32 {
        (self.kind as u32) << 16 | self.offset as u32
    }

    /// The reverse of [`Link::pack`]; the offset is below 32 whatever `word` holds.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u32) -> Self {
        Self {
            kind: (word >> 16) as u16,
            offset: (word & 31) as u16,
        }
    }
}

/// Reads the link header of a packet: an Ethernet header with at most two VLAN
/// tags, 802.1Q or 802.1ad, or with `ethernet` off none.
#[inline(always)]
pub fn parse_link<R: Reader + ?Sized>(r: &R, ethernet: bool) -> Parsed<Link> {
    if ethernet { tagged(r) } else { bare(r) }
}

#[inline(always)]
fn tagged<R: Reader + ?Sized>(r: &R) -> Parsed<Link> {
    let Some(kind) = r.read::<2>(ETHERTYPE) else {
        return Err(DropReason::MalformedEthernet);
    };
    let mut kind = u16::from_be_bytes(kind);
    let mut offset = ETHERNET_LEN;
    let mut tags = r.tags_beside();
    while kind == C_TAG || kind == S_TAG {
        if tags >= MAX_TAGS {
            return Err(DropReason::VlanTags);
        }
        // Two bytes of identifier and priority, then the type of what follows.
        let Some(inner) = r.read::<2>(offset + 2) else {
            return Err(DropReason::MalformedVlan);
        };
        kind = u16::from_be_bytes(inner);
        offset += TAG_LEN;
        tags += 1;
    }
    Ok(Link {
        kind,
        offset: offset as u16,
    })
}

/// A device without a link header gives IP packets, told apart by their version.
///
/// A held SYN that is run again on such a device has an Ethernet header, because
/// BPF_PROG_RUN takes no frame without: both addresses are zero, so that the
/// stack takes it for its own. Nothing else that begins so is IP.
#[inline(always)]
fn bare<R: Reader + ?Sized>(r: &R) -> Parsed<Link> {
    // Two bytes, because the verifier learns nothing from a test for one: it is
    // compiled to `data < data_end`.
    let Some([first, _]) = r.read::<2>(0) else {
        return Err(DropReason::NotIp);
    };
    let kind = match first >> 4 {
        4 => IPV4,
        6 => IPV6,
        _ => return run_again(r),
    };
    Ok(Link { kind, offset: 0 })
}

#[inline(always)]
fn run_again<R: Reader + ?Sized>(r: &R) -> Parsed<Link> {
    let Some(b) = r.read::<ETHERNET_LEN>(0) else {
        return Err(DropReason::NotIp);
    };
    let kind = u16::from_be_bytes([b[12], b[13]]);
    let addresses = [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
    ];
    if addresses[0] | addresses[1] | addresses[2] != 0 || (kind != IPV4 && kind != IPV6) {
        return Err(DropReason::NotIp);
    }
    Ok(Link {
        kind,
        ..Link::ETHERNET
    })
}

/// The Ethernet header to run an IP packet without one again: zero addresses,
/// and the type by its version. `None` if it is not IP.
#[must_use]
pub const fn header_to_run_again(packet: &[u8]) -> Option<[u8; ETHERNET_LEN]> {
    let [first, ..] = packet else {
        return None;
    };
    let [high, low] = match *first >> 4 {
        4 => IPV4.to_be_bytes(),
        6 => IPV6.to_be_bytes(),
        _ => return None,
    };
    Some([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low])
}

/// Parses what follows the link header; an IP packet into `h`.
#[inline(always)]
pub fn parse_network<R: Reader + ?Sized>(r: &R, link: Link, h: &mut Headers) -> Parsed<Frame> {
    let offset = link.offset as usize;
    match link.kind {
        IPV4 => match parse_l3(r, Family::V4, offset, h) {
            Ok(()) => Ok(Frame::Ip),
            Err(reason) => Err(reason),
        },
        IPV6 => match parse_l3(r, Family::V6, offset, h) {
            Ok(()) => Ok(Frame::Ip),
            Err(reason) => Err(reason),
        },
        ARP => Ok(Frame::Arp),
        EAPOL | LLDP | SLOW => Ok(Frame::LinkControl),
        kind if kind < FIRST_TYPE => Ok(Frame::LinkControl),
        _ => Err(DropReason::UnsupportedEthertype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with these tags, and the type of what follows.
    fn frame(tags: &[u16], kind: u16) -> Vec<u8> {
        let mut out = vec![2; 12];
        for tag in tags {
            out.extend(tag.to_be_bytes());
            out.extend([0x20, 5]);
        }
        out.extend(kind.to_be_bytes());
        out
    }

    /// A frame of which the stack keeps some tags beside the bytes.
    struct Beside(Vec<u8>, u32);

    impl Reader for Beside {
        fn frame_len(&self) -> usize {
            self.0.len()
        }

        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0[..].read(offset)
        }

        fn tags_beside(&self) -> u32 {
            self.1
        }
    }

    #[test]
    fn up_to_two_tags_of_either_kind_are_taken_off() {
        let shapes: [&[u16]; 6] = [
            &[],
            &[C_TAG],
            &[S_TAG],
            &[S_TAG, C_TAG],
            &[C_TAG, C_TAG],
            &[S_TAG, S_TAG],
        ];
        for tags in shapes {
            for kind in [IPV4, IPV6, ARP] {
                let offset = (ETHERNET_LEN + TAG_LEN * tags.len()) as u16;
                let link = parse_link(&frame(tags, kind)[..], true);
                assert_eq!(link, Ok(Link { kind, offset }), "{tags:x?}");
            }
        }
        let three = frame(&[S_TAG, C_TAG, C_TAG], IPV4);
        assert_eq!(parse_link(&three[..], true), Err(DropReason::VlanTags));
    }

    #[test]
    fn a_tag_beside_the_frame_counts() {
        let one = Link {
            kind: IPV4,
            offset: 18,
        };
        let frames = [
            (frame(&[], IPV4), 1, Ok(Link { offset: 14, ..one })),
            (frame(&[C_TAG], IPV4), 1, Ok(one)),
            (frame(&[C_TAG, C_TAG], IPV4), 1, Err(DropReason::VlanTags)),
        ];
        for (bytes, beside, wanted) in frames {
            assert_eq!(parse_link(&Beside(bytes, beside), true), wanted);
        }
    }

    #[test]
    fn a_header_cut_short_anywhere_has_its_reason() {
        let whole = frame(&[S_TAG, C_TAG], IPV4);
        for len in 0..whole.len() {
            let wanted = if len < ETHERNET_LEN {
                DropReason::MalformedEthernet
            } else {
                DropReason::MalformedVlan
            };
            assert_eq!(parse_link(&whole[..len], true), Err(wanted), "{len}");
        }
    }

    #[test]
    fn without_ethernet_the_version_tells() {
        let link = |kind, offset| Ok(Link { kind, offset });
        assert_eq!(parse_link(&[0x45, 0][..], false), link(IPV4, 0));
        assert_eq!(parse_link(&[0x60, 0][..], false), link(IPV6, 0));
        for other in [&[][..], &[0x45], &[0x50; 40], &[0; 40], &frame(&[], IPV4)] {
            assert_eq!(parse_link(other, false), Err(DropReason::NotIp));
        }
    }

    #[test]
    fn a_packet_that_is_run_again_is_found_behind_its_header() {
        for (first, kind) in [(0x45, IPV4), (0x60, IPV6)] {
            let mut frame = header_to_run_again(&[first, 1, 2]).unwrap().to_vec();
            frame.push(first);
            let wanted = Link { kind, offset: 14 };
            assert_eq!(parse_link(&frame[..], false), Ok(wanted));
            // On Ethernet it is a frame like any other.
            assert_eq!(parse_link(&frame[..], true), Ok(wanted));
            frame[11] = 1;
            assert_eq!(parse_link(&frame[..], false), Err(DropReason::NotIp));
        }
        assert_eq!(header_to_run_again(&[]), None);
        assert_eq!(header_to_run_again(&[0x20]), None);
    }

    #[test]
    fn packing_loses_nothing() {
        for offset in [0, 14, 18, 22] {
            let link = Link { kind: IPV6, offset };
            assert_eq!(Link::unpack(link.pack()), link);
        }
        assert!(Link::unpack(u32::MAX).offset < 32);
    }
}

//! Ethernet and VLAN.

use super::{Family, Frame, Headers, Parsed, Reader, parse_l3};
use crate::verdict::DropReason;

const ETHERTYPE: usize = 12;
const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const EAPOL: u16 = 0x888e;
const LLDP: u16 = 0x88cc;
const SLOW: u16 = 0x8809;
/// Below this value the field is a length (IEEE 802.3), and LLC follows.
const FIRST_TYPE: u16 = 0x0600;

/// Parses an Ethernet frame with at most one 802.1Q tag; of an IP packet into `h`.
#[inline(always)]
pub fn parse_frame<R: Reader + ?Sized>(r: &R, h: &mut Headers) -> Parsed<Frame> {
    let Some(kind) = r.read::<2>(ETHERTYPE) else {
        return Err(DropReason::MalformedEthernet);
    };
    let kind = u16::from_be_bytes(kind);
    if kind != VLAN {
        return dispatch(r, kind, ETHERNET_LEN, h);
    }
    // The tag's type field stands where the payload of an untagged frame begins.
    let Some(inner) = r.read::<2>(ETHERNET_LEN + 2) else {
        return Err(DropReason::MalformedEthernet);
    };
    dispatch(r, u16::from_be_bytes(inner), ETHERNET_LEN + TAG_LEN, h)
}

#[inline(always)]
fn dispatch<R: Reader + ?Sized>(r: &R, kind: u16, offset: usize, h: &mut Headers) -> Parsed<Frame> {
    match kind {
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

//! A packet as the programs take it.

use std::{net::IpAddr, time::Duration};

use firewall_common::{
    verdict::DropReason,
    wire::{
        self, ETHERNET_LEN, Family, Fragment, Frame, Headers, parse_link, parse_network, proto,
        tcp_flags,
    },
};

use super::{Link, capture::Record};
use crate::bpf::private::{MAX_FRAME, MIN_FRAME};

/// Payload of the segments that a longer one is cut into.
const SEGMENT: usize = 1400;
/// `PACKET_OUTGOING` of a cooked capture.
const OUTGOING: u16 = 4;

/// A packet to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// An Ethernet frame. What a capture cut off is filled up with zeros: only
    /// the headers count.
    pub frame: Vec<u8>,
    /// Were its Ethernet addresses there, or were they made up?
    pub addressed: bool,
    /// Did the host send it? As far as its capture tells.
    pub outgoing: Option<bool>,
    /// When it was captured, since 1970.
    pub at: Option<Duration>,
    /// Bytes that the capture had of it, and that it has.
    pub captured: (usize, usize),
}

impl Packet {
    /// From an IP packet.
    #[must_use]
    pub fn ip(bytes: &[u8]) -> Self {
        Self::of(bytes, Link::Ip)
    }

    /// From bytes that begin with `link`.
    #[must_use]
    pub fn of(bytes: &[u8], link: Link) -> Self {
        Self::whole(bytes, bytes.len(), link, None)
    }

    /// From a capture.
    #[must_use]
    pub fn captured(record: &Record<'_>) -> Self {
        Self::whole(record.bytes, record.len, record.link, Some(record.at))
    }

    fn whole(bytes: &[u8], len: usize, link: Link, at: Option<Duration>) -> Self {
        let half = |at: usize| match bytes.get(at..at + 2) {
            Some(&[a, b]) => Some(u16::from_be_bytes([a, b])),
            _ => None,
        };
        let cooked = match link {
            Link::Ethernet => None,
            Link::Ip => Some((0, ethertype(bytes), None)),
            Link::Cooked => Some((16, half(14).unwrap_or(0), half(0))),
            Link::Cooked2 => Some((
                20,
                half(0).unwrap_or(0),
                bytes.get(10).map(|kind| u16::from(*kind)),
            )),
        };
        let (mut frame, skipped, outgoing) = match cooked {
            None => (bytes.to_vec(), 0, None),
            Some((header, kind, way)) => {
                let mut frame = vec![0; 12];
                frame.extend(kind.to_be_bytes());
                frame.extend(bytes.get(header..).unwrap_or_default());
                (frame, header, way.map(|way| way == OUTGOING))
            }
        };
        let added = if cooked.is_some() { ETHERNET_LEN } else { 0 };
        let wanted = len.saturating_sub(skipped) + added;
        if wanted > frame.len() {
            frame.resize(wanted, 0);
        }
        Self {
            frame,
            addressed: link == Link::Ethernet,
            outgoing,
            at,
            captured: (bytes.len(), len),
        }
    }

    /// Its headers, if it is an IP packet; else why it is none that could be judged.
    ///
    /// # Errors
    ///
    /// The reason for which the programs drop it.
    pub fn headers(&self) -> Result<Option<Headers>, DropReason> {
        headers(&self.frame)
    }

    /// The frames to run in its stead: itself, or the segments that a TCP segment
    /// is cut into which is longer than the programs can be run on. Captures show
    /// such ones where the card cuts them up, or the host puts them together.
    ///
    /// On a `bare` interface, where packets begin with IP, both Ethernet addresses
    /// are zero: the programs pass over such a header there.
    ///
    /// # Errors
    ///
    /// What is wrong with its length.
    pub fn frames(&self, bare: bool) -> Result<Vec<Vec<u8>>, String> {
        let len = self.frame.len();
        if len < MIN_FRAME {
            return Err(format!("{len} bytes are less than an Ethernet header has"));
        }
        let whole = (len <= MAX_FRAME).then(|| vec![self.frame.clone()]);
        let mut frames = whole.or_else(|| self.segments()).ok_or_else(|| {
            format!(
                "{len} bytes are more than BPF_PROG_RUN takes ({MAX_FRAME}), and only a whole TCP \
                 segment can be cut"
            )
        })?;
        for addresses in frames.iter_mut().filter_map(|frame| frame.get_mut(..12)) {
            if bare {
                addresses.fill(0);
            }
        }
        Ok(frames)
    }

    fn segments(&self) -> Option<Vec<Vec<u8>>> {
        let h = self.headers().ok()??;
        let splits = h.proto == proto::TCP && h.fragment == Fragment::Whole;
        if !splits || h.tcp_flags & (tcp_flags::SYN | tcp_flags::RST) != 0 {
            return None;
        }
        let head = self.frame.get(..usize::from(h.payload_offset))?;
        let payload = usize::try_from(h.payload_len()).ok()?;
        let starts: Vec<usize> = (0..payload).step_by(SEGMENT).collect();
        let last = *starts.last()?;
        let cut = |&start: &usize| {
            let len = SEGMENT.min(payload - start);
            let from = head.len() + start;
            let mut frame = head.to_vec();
            frame.extend(self.frame.get(from..from + len)?);
            rewrite(&mut frame, &h, start, start == last)?;
            Some(frame)
        };
        starts.iter().map(cut).collect()
    }
}

/// Makes the copied headers those of the segment that begins `start` bytes further on.
fn rewrite(frame: &mut [u8], h: &Headers, start: usize, last: bool) -> Option<()> {
    let l3 = usize::from(h.l3_offset);
    let l4 = usize::from(h.l4_offset);
    let len = frame.len() - l3;
    let (field, len) = match h.family {
        Family::V4 => (l3 + 2, len),
        Family::V6 => (l3 + 4, len - 40),
    };
    let len = u16::try_from(len).ok()?.to_be_bytes();
    frame.get_mut(field..field + 2)?.copy_from_slice(&len);
    let seq = h.seq.wrapping_add(u32::try_from(start).ok()?).to_be_bytes();
    frame.get_mut(l4 + 4..l4 + 8)?.copy_from_slice(&seq);
    if !last {
        *frame.get_mut(l4 + 13)? &= !tcp_flags::FIN;
    }
    Some(())
}

/// The headers of an Ethernet frame that carries IP.
///
/// # Errors
///
/// The reason for which the programs drop it.
pub fn headers(frame: &[u8]) -> Result<Option<Headers>, DropReason> {
    let mut h = Headers::ZERO;
    let link = parse_link(frame, true)?;
    match parse_network(frame, link, &mut h)? {
        Frame::Ip => Ok(Some(h)),
        Frame::Arp | Frame::LinkControl => Ok(None),
    }
}

/// The headers of the packet that an ICMP error quotes.
#[must_use]
pub fn quoted(frame: &[u8], outer: &Headers) -> Option<Headers> {
    let mut h = Headers::ZERO;
    let quotes = outer.is_icmp_error() && outer.fragment != Fragment::Tail;
    (quotes && wire::inner(frame, outer, &mut h).is_ok()).then_some(h)
}

/// Source and destination of an IP packet, whatever else its headers say. `None` if
/// it is none, or too short for them.
#[must_use]
pub fn ends(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let link = parse_link(frame, true).ok()?;
    let ip = frame.get(usize::from(link.offset)..)?;
    // RFC 791, section 3.1, and RFC 8200, section 3.
    match ip.first()? >> 4 {
        4 => Some([address::<4>(ip, 12)?, address::<4>(ip, 16)?]),
        6 => Some([address::<16>(ip, 8)?, address::<16>(ip, 24)?]),
        _ => None,
    }
}

fn address<const LEN: usize>(ip: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; LEN]>,
{
    let bytes: [u8; LEN] = ip.get(at..at + LEN)?.try_into().ok()?;
    Some(bytes.into())
}

fn ethertype(ip: &[u8]) -> u16 {
    match ip.first().map(|byte| byte >> 4) {
        Some(6) => 0x86dd,
        _ => 0x0800,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::why::tuple::{Detail, Tuple};

    fn segment(payload: u16, flags: u8, v6: bool) -> Vec<u8> {
        let (src, dst) = if v6 {
            ("[2001:db8::1]:1000", "[2001:db8::2]:80")
        } else {
            ("192.0.2.1:1000", "192.0.2.2:80")
        };
        let detail = Detail {
            flags,
            seq: u32::MAX - 1000,
            ack: 7,
            window: 100,
            payload,
            icmp_type: 0,
            icmp_code: 0,
            id: 0,
        };
        Tuple::parse("tcp", src, dst).unwrap().packet(&detail)
    }

    #[test]
    fn every_link_becomes_ethernet() {
        let ip = segment(10, 0x10, false);
        let wanted = headers(&Packet::ip(&ip).frame).unwrap();
        assert!(wanted.is_some());
        let mut cooked = vec![0, 4, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 8, 0];
        cooked.extend(&ip);
        let packet = Packet::of(&cooked, Link::Cooked);
        assert_eq!(packet.headers().unwrap(), wanted);
        assert_eq!(packet.outgoing, Some(true));
        let mut second = vec![8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0];
        second.extend(&ip);
        let packet = Packet::of(&second, Link::Cooked2);
        assert_eq!(packet.headers().unwrap(), wanted);
        assert_eq!((packet.outgoing, packet.addressed), (Some(false), false));
        let frame = Packet::ip(&ip).frame;
        let packet = Packet::of(&frame, Link::Ethernet);
        assert_eq!(packet.headers().unwrap(), wanted);
        assert_eq!((packet.outgoing, packet.addressed), (None, true));
    }

    #[test]
    fn what_was_cut_off_is_filled_up() {
        let frame = Packet::ip(&segment(1000, 0x10, true)).frame;
        let record = Record {
            at: Duration::ZERO,
            link: Link::Ethernet,
            bytes: &frame[..96],
            len: frame.len(),
        };
        let packet = Packet::captured(&record);
        assert_eq!(packet.headers().unwrap().unwrap().payload_len(), 1000);
        assert_eq!(packet.captured, (96, frame.len()));
    }

    #[test]
    fn long_segments_are_cut_where_the_card_would() {
        for v6 in [false, true] {
            let packet = Packet::ip(&segment(10_000, 0x11, v6));
            let frames = packet.frames(false).unwrap();
            assert_eq!(frames.len(), 8);
            let mut next = u32::MAX - 1000;
            for (at, frame) in frames.iter().enumerate() {
                let h = headers(frame).unwrap().unwrap();
                assert_eq!(h.seq, next);
                assert_eq!(h.tcp_flags & tcp_flags::FIN != 0, at == 7);
                next = next.wrapping_add(h.payload_len());
            }
            assert_eq!(next, (u32::MAX - 1000).wrapping_add(10_000));
        }
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        let short = Packet::of(&[1; 13], Link::Ethernet)
            .frames(false)
            .unwrap_err();
        assert!(short.contains("13 bytes"), "{short}");
        let long = Packet::of(&[1; 4000], Link::Ethernet)
            .frames(false)
            .unwrap_err();
        assert!(long.contains("4000 bytes"), "{long}");
        let one = Packet::ip(&segment(100, 0x10, false));
        assert_eq!(one.frames(false).unwrap(), [one.frame]);
    }

    #[test]
    fn a_device_without_ethernet_gets_no_addresses() {
        let packet = Packet::ip(&segment(0, 0x10, false));
        let addressed = Packet::of(
            &[[9; 12].as_slice(), &packet.frame[12..]].concat(),
            Link::Ethernet,
        );
        assert_ne!(addressed.frame, packet.frame);
        assert_eq!(addressed.frames(true).unwrap(), [packet.frame]);
    }
}

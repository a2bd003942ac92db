//! A packet described by its addresses and ports, and its bytes.

use std::net::{IpAddr, SocketAddr};

use firewall_common::{
    checksum::{add, fold, pseudo_header},
    wire::{Family, Headers, proto, tcp_flags},
};

use super::FORMS;
use crate::{bpf::words, error::Usage, protocol};

/// Names of TCP flags, in the order of their bits.
const FLAGS: [(&str, u8); 8] = [
    ("FIN", tcp_flags::FIN),
    ("SYN", tcp_flags::SYN),
    ("RST", tcp_flags::RST),
    ("PSH", 0x08),
    ("ACK", tcp_flags::ACK),
    ("URG", tcp_flags::URG),
    ("ECE", 0x40),
    ("CWR", 0x80),
];

const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Of packets that say nothing else.
const HOPS: u8 = 64;

/// Who sends what to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Protocol number.
    pub proto: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Source port, 0 for a protocol without ports.
    pub sport: u16,
    /// Destination port, as `sport`.
    pub dport: u16,
}

/// What the transport header says beside the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// TCP flags, as in byte 13 of the header.
    pub flags: u8,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// TCP window, as in the header: not scaled.
    pub window: u16,
    /// Bytes of payload.
    pub payload: u16,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Identifier of an ICMP echo.
    pub id: u16,
}

impl Tuple {
    /// From `tcp 192.0.2.1:40000 198.51.100.2:21`, or `icmp 192.0.2.1 198.51.100.2`.
    ///
    /// # Errors
    ///
    /// [`Usage`], with the right form.
    pub fn parse(protocol: &str, src: &str, dst: &str) -> Result<Self, Usage> {
        let proto = protocol::number(protocol)
            .map_err(|says| wrong(&format!("`{protocol}` is no protocol: {says}")))?;
        let (src, sport) = end(src, has_ports(proto))?;
        let (dst, dport) = end(dst, has_ports(proto))?;
        let own_icmp = match proto {
            proto::ICMP => src.is_ipv4(),
            proto::ICMPV6 => src.is_ipv6(),
            _ => true,
        };
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(wrong(&format!("{src} and {dst} are of two families")));
        }
        if !own_icmp {
            return Err(wrong(&format!(
                "{protocol} is not for {src}: IPv4 has `icmp`, IPv6 `icmpv6`"
            )));
        }
        Ok(Self {
            proto,
            src,
            dst,
            sport,
            dport,
        })
    }

    /// Does the protocol have ports?
    #[must_use]
    pub const fn has_ports(&self) -> bool {
        has_ports(self.proto)
    }

    /// The headers by which its flow is found.
    #[must_use]
    pub fn headers(&self, detail: &Detail) -> Headers {
        let (sport, dport) = if matches!(self.proto, proto::ICMP | proto::ICMPV6) {
            (detail.id, detail.id)
        } else {
            (self.sport, self.dport)
        };
        Headers {
            family: if self.src.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            },
            proto: self.proto,
            src: words(self.src),
            dst: words(self.dst),
            sport,
            dport,
            icmp_type: detail.icmp_type,
            ..Headers::ZERO
        }
    }

    /// The packet, from its IP header on, with right checksums.
    #[must_use]
    pub fn packet(&self, detail: &Detail) -> Vec<u8> {
        let transport = self.transport(detail);
        let mut out = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = (V4_LEN + transport.len()) as u16;
                let mut header = [0; V4_LEN];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&len.to_be_bytes());
                header[8] = HOPS;
                header[9] = self.proto;
                header[12..16].copy_from_slice(&src.octets());
                header[16..20].copy_from_slice(&dst.octets());
                let sum = !fold(add(0, &header));
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header.to_vec()
            }
            (src, dst) => {
                let mut header = [0; V6_LEN];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&(transport.len() as u16).to_be_bytes());
                header[6] = self.proto;
                header[7] = HOPS;
                header[8..24].copy_from_slice(&octets(src));
                header[24..40].copy_from_slice(&octets(dst));
                header.to_vec()
            }
        };
        out.extend(transport);
        out
    }

    fn transport(&self, detail: &Detail) -> Vec<u8> {
        let (mut bytes, checksum) = match self.proto {
            proto::TCP => (self.tcp(detail), 16),
            proto::UDP => (self.udp(detail), 6),
            proto::ICMP | proto::ICMPV6 => (icmp(detail), 2),
            _ => return vec![0; 8 + usize::from(detail.payload)],
        };
        let len = bytes.len() as u32;
        let sum = match self.proto {
            // ICMP of IPv4 alone has no pseudo-header (RFC 792).
            proto::ICMP => 0,
            number => match (self.src, self.dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    pseudo_header(&src.octets(), &dst.octets(), number, len)
                }
                (src, dst) => pseudo_header(&octets(src), &octets(dst), number, len),
            },
        };
        let sum = !fold(add(sum, &bytes));
        if let Some(field) = bytes.get_mut(checksum..checksum + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    fn tcp(&self, detail: &Detail) -> Vec<u8> {
        let mut header = [0; 20];
        header[0..2].copy_from_slice(&self.sport.to_be_bytes());
        header[2..4].copy_from_slice(&self.dport.to_be_bytes());
        header[4..8].copy_from_slice(&detail.seq.to_be_bytes());
        header[8..12].copy_from_slice(&detail.ack.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = detail.flags;
        header[14..16].copy_from_slice(&detail.window.to_be_bytes());
        with_payload(&header, detail.payload)
    }

    fn udp(&self, detail: &Detail) -> Vec<u8> {
        let mut header = [0; 8];
        header[0..2].copy_from_slice(&self.sport.to_be_bytes());
        header[2..4].copy_from_slice(&self.dport.to_be_bytes());
        header[4..6].copy_from_slice(&(8 + detail.payload).to_be_bytes());
        with_payload(&header, detail.payload)
    }
}

fn icmp(detail: &Detail) -> Vec<u8> {
    let mut header = [0; 8];
    header[0] = detail.icmp_type;
    header[1] = detail.icmp_code;
    header[4..6].copy_from_slice(&detail.id.to_be_bytes());
    with_payload(&header, detail.payload)
}

fn with_payload(header: &[u8], payload: u16) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.resize(header.len() + usize::from(payload), 0);
    bytes
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

const fn has_ports(number: u8) -> bool {
    matches!(number, proto::TCP | proto::UDP)
}

fn end(text: &str, has_port: bool) -> Result<(IpAddr, u16), Usage> {
    if has_port {
        let parsed = text.parse::<SocketAddr>().map_err(|_| {
            wrong(&format!(
                "`{text}` is not ADDRESS:PORT, as 192.0.2.1:21 or [2001:db8::1]:21"
            ))
        })?;
        if parsed.port() == 0 {
            return Err(wrong(&format!("`{text}`: there is no port 0")));
        }
        return Ok((parsed.ip(), parsed.port()));
    }
    let address = text.parse().map_err(|_| {
        wrong(&format!(
            "`{text}` is not an address, as 192.0.2.1 or 2001:db8::1; this protocol has no ports"
        ))
    })?;
    Ok((address, 0))
}

/// TCP flags from `SYN,ACK`; in small letters, too.
///
/// # Errors
///
/// What is wrong, with the right form.
pub fn flags(text: &str) -> Result<u8, String> {
    let names = text.split([',', '|', '+']).map(str::trim);
    let mut set = 0;
    for name in names.filter(|name| !name.eq_ignore_ascii_case("none")) {
        let known = FLAGS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        let (_, bit) = known.ok_or_else(|| {
            format!(
                "`{name}` is no TCP flag: use {} with commas between, or NONE",
                FLAGS.map(|(name, _)| name).join(", ")
            )
        })?;
        set |= bit;
    }
    Ok(set)
}

/// `SYN,ACK`, or `NONE`.
#[must_use]
pub fn flag_names(set: u8) -> String {
    let names = FLAGS.iter().filter(|(_, bit)| set & bit != 0);
    let names: Vec<&str> = names.map(|(name, _)| *name).collect();
    if names.is_empty() {
        "NONE".into()
    } else {
        names.join(",")
    }
}

fn wrong(what: &str) -> Usage {
    Usage::new(format!("{what}\n{FORMS}"))
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const DETAIL: Detail = Detail {
        flags: tcp_flags::SYN | tcp_flags::ACK,
        seq: 0x0102_0304,
        ack: 0x0506_0708,
        window: 1000,
        payload: 3,
        icmp_type: 8,
        icmp_code: 0,
        id: 77,
    };

    #[test]
    fn packets_are_what_they_are_called() {
        for (src, dst) in [
            ("192.0.2.1:40000", "198.51.100.2:21"),
            ("[2001:db8::1]:40000", "[2001:db8::2]:21"),
        ] {
            let tuple = Tuple::parse("tcp", src, dst).unwrap();
            let bytes = tuple.packet(&DETAIL);
            let parsed = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else {
                panic!("{bytes:?}");
            };
            assert!(tcp.syn() && tcp.ack() && !tcp.fin());
            assert_eq!((tcp.source_port(), tcp.destination_port()), (40000, 21));
            assert_eq!(tcp.sequence_number(), DETAIL.seq);
            assert_eq!(tcp.acknowledgment_number(), DETAIL.ack);
            assert_eq!((tcp.window_size(), tcp.payload().len()), (1000, 3));
            let right = match parsed.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                    tcp.to_header().calc_checksum_ipv4(&header, tcp.payload())
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header().to_header();
                    tcp.to_header().calc_checksum_ipv6(&header, tcp.payload())
                }
                NetSlice::Arp(_) => panic!("no IP"),
            };
            assert_eq!(tcp.checksum(), right.unwrap());
        }
    }

    #[test]
    fn pinhole_parses_what_is_built() {
        for (proto, src, dst) in [
            ("udp", "192.0.2.1:5353", "198.51.100.2:53"),
            ("icmp", "192.0.2.1", "198.51.100.2"),
            ("icmpv6", "2001:db8::1", "2001:db8::2"),
            ("gre", "192.0.2.1", "198.51.100.2"),
            ("132", "2001:db8::1", "2001:db8::2"),
        ] {
            let tuple = Tuple::parse(proto, src, dst).unwrap();
            let detail = Detail {
                icmp_type: if proto == "icmpv6" { 128 } else { 8 },
                ..DETAIL
            };
            let bytes = tuple.packet(&detail);
            let family = tuple.headers(&detail).family;
            let mut parsed = Headers::ZERO;
            firewall_common::wire::parse_l3(bytes.as_slice(), family, 0, &mut parsed).unwrap();
            let wanted = tuple.headers(&detail);
            assert_eq!(
                (
                    parsed.src,
                    parsed.dst,
                    parsed.sport,
                    parsed.dport,
                    parsed.proto
                ),
                (
                    wanted.src,
                    wanted.dst,
                    wanted.sport,
                    wanted.dport,
                    wanted.proto
                ),
                "{proto}"
            );
        }
    }

    #[test]
    fn wrong_tuples_show_the_right_form() {
        for (bad, says) in [
            (["tcq", "192.0.2.1:1", "192.0.2.2:1"], "no protocol"),
            (["256", "192.0.2.1", "192.0.2.2"], "no protocol"),
            (["tcp", "192.0.2.1", "192.0.2.2:1"], "ADDRESS:PORT"),
            (["tcp", "192.0.2.1:0", "192.0.2.2:1"], "no port 0"),
            (["tcp", "192.0.2.1:99999", "192.0.2.2:1"], "ADDRESS:PORT"),
            (["icmp", "192.0.2.1:8", "192.0.2.2"], "no ports"),
            (["udp", "192.0.2.1:1", "[2001:db8::1]:1"], "two families"),
            (["icmpv6", "192.0.2.1", "192.0.2.2"], "IPv6 `icmpv6`"),
        ] {
            let error = Tuple::parse(bad[0], bad[1], bad[2])
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{bad:?}: {error}");
            assert!(error.contains("pinhole why tcp 192.0.2.1:40000"), "{error}");
        }
    }

    #[test]
    fn flags_have_names() {
        assert_eq!(flags("SYN,ACK"), Ok(0x12));
        assert_eq!(flags("fin, psh,ack"), Ok(0x19));
        assert_eq!(flags("none"), Ok(0));
        assert!(flags("SYN,XYZ").unwrap_err().contains("`XYZ`"));
        assert!(flags("").is_err());
        assert_eq!(flag_names(0x12), "SYN,ACK");
        assert_eq!(flag_names(0), "NONE");
    }
}

//! ctnetlink: connections that nf_conntrack tracks, where it is there.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Message, Socket, array, attr, nested, read_be16};

const CT_GET: u16 = (1 << 8) | 1;
const CT_NEW: u16 = 1 << 8;
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// One direction of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
}

impl Tuple {
    /// The other way.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
        }
    }
}

/// A tracked TCP or UDP connection that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// IP protocol number.
    pub protocol: u8,
    /// Originator to replier, before any address translation.
    pub original: Tuple,
    /// Replier to originator, as the replier sends: differs from the reverse of
    /// `original` if addresses are translated.
    pub reply: Tuple,
    /// `TCP_CONNTRACK_*`, numbered as [`firewall_common::tcp::State`]; `None` for UDP.
    pub tcp_state: Option<u8>,
}

/// A connection of any protocol, answered or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What every connection has. Protocols without ports have 0 in their place,
    /// ICMP and ICMPv6 their identifier.
    pub tracked: Tracked,
    /// Was a packet of the reply direction seen (`IPS_SEEN_REPLY`)?
    pub replied: bool,
    /// Type of the first packet of ICMP or ICMPv6.
    pub icmp_type: Option<u8>,
    /// Seconds until it is forgotten, if nothing comes.
    pub left_s: u32,
}

/// The answered connections that nf_conntrack knows in this namespace; none if
/// the kernel has no ctnetlink.
///
/// # Errors
///
/// What the kernel says.
pub fn tracked() -> io::Result<Vec<Tracked>> {
    let entries = entries()?.unwrap_or_default();
    Ok(entries.iter().filter_map(answered).collect())
}

/// Every connection that nf_conntrack knows in this namespace; `None` if the
/// kernel has no ctnetlink.
///
/// # Errors
///
/// What the kernel says.
pub fn entries() -> io::Result<Option<Vec<Entry>>> {
    let mut entries = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let Ok(mut socket) = Socket::open(libc::NETLINK_NETFILTER) else {
            return Ok(None);
        };
        let request = Message::dump(CT_GET, &[family as u8, 0, 0, 0]);
        let asked = socket.ask(request, |kind, payload| {
            if kind == CT_NEW {
                entries.extend(parse(payload));
            }
        });
        match asked {
            Err(e) if is_unsupported(&e) => return Ok(None),
            other => other?,
        }
    }
    Ok(Some(entries))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)
    )
}

fn answered(entry: &Entry) -> Option<Tracked> {
    const PROTOCOLS: [i32; 2] = [libc::IPPROTO_TCP, libc::IPPROTO_UDP];
    let tracked = entry.tracked;
    (entry.replied && PROTOCOLS.contains(&i32::from(tracked.protocol))).then_some(tracked)
}

fn parse(payload: &[u8]) -> Option<Entry> {
    let attributes = payload.get(NFGENMSG..)?;
    let number = |kind| Some(u32::from_be_bytes(array(attr(attributes, kind)?, 0)?));
    let original = attr(attributes, CTA_TUPLE_ORIG)?;
    let proto = attr(original, CTA_TUPLE_PROTO)?;
    let byte = |kind| attr(proto, kind).and_then(|v| v.first().copied());
    Some(Entry {
        tracked: Tracked {
            protocol: byte(CTA_PROTO_NUM)?,
            original: tuple(original)?,
            reply: tuple(attr(attributes, CTA_TUPLE_REPLY)?)?,
            tcp_state: nested(
                attributes,
                &[CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE],
            )
            .and_then(|v| v.first().copied()),
        },
        replied: number(CTA_STATUS)? & IPS_SEEN_REPLY != 0,
        icmp_type: byte(CTA_PROTO_ICMP_TYPE).or_else(|| byte(CTA_PROTO_ICMPV6_TYPE)),
        left_s: number(CTA_TIMEOUT).unwrap_or(0),
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let ip = attr(bytes, CTA_TUPLE_IP)?;
    let proto = attr(bytes, CTA_TUPLE_PROTO)?;
    let port = |kind| {
        let kinds = [kind, CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID];
        let value = kinds.iter().find_map(|kind| attr(proto, *kind));
        value.and_then(|value| read_be16(value, 0)).unwrap_or(0)
    };
    Some(Tuple {
        src: SocketAddr::new(
            address(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            port(CTA_PROTO_SRC_PORT),
        ),
        dst: SocketAddr::new(
            address(ip, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            port(CTA_PROTO_DST_PORT),
        ),
    })
}

fn address(ip: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(value) = attr(ip, v4) {
        return Some(Ipv4Addr::from(array::<4>(value, 0)?).into());
    }
    Some(Ipv6Addr::from(array::<16>(attr(ip, v6)?, 0)?).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::bytes;

    /// As the kernel sent it: 127.0.0.1:40000 to port 2121, established.
    const ESTABLISHED: &str = "020000003400018014000180080001007f000001080002007f0000011c000280\
         0500010006000000060002009c40000006000300084900003400028014000180\
         080001007f000001080002007f0000011c000280050001000600000006000200\
         08490000060003009c400000080003000000018e080008000000000008000c00\
         cb80f47a08000b00000000010800070000069780300004802c00018005000100\
         03000000050002000a000000050003000a000000060004002300000006000500\
         23000000";

    #[test]
    fn a_tracked_connection_is_read() {
        let entry = parse(&bytes(ESTABLISHED)).unwrap();
        assert_eq!((entry.replied, entry.icmp_type), (true, None));
        assert_eq!(entry.left_s, 0x69780);
        let tracked = answered(&entry).unwrap();
        assert_eq!(tracked.protocol, 6);
        assert_eq!(tracked.tcp_state, Some(3));
        assert_eq!(tracked.original.src, "127.0.0.1:40000".parse().unwrap());
        assert_eq!(tracked.original.dst, "127.0.0.1:2121".parse().unwrap());
        assert_eq!(tracked.original, tracked.reply.reversed());
    }

    #[test]
    fn what_is_unanswered_or_cut_off_is_left_out() {
        // IPS_SEEN_REPLY is bit 1 of the status, here 0x18e.
        let unanswered = ESTABLISHED.replacen("0000018e", "00000188", 1);
        assert_ne!(unanswered, ESTABLISHED);
        let entry = parse(&bytes(&unanswered)).unwrap();
        assert!(!entry.replied);
        assert_eq!(answered(&entry), None);
        let mut payload = bytes(ESTABLISHED);
        payload.truncate(20);
        assert_eq!(parse(&payload), None);
    }

    #[test]
    fn an_echo_has_its_identifier_for_ports() {
        let numbers = |kinds: [u16; 2]| {
            let value = |kind: u16, bytes: &[u8]| {
                let mut out = ((4 + bytes.len()) as u16).to_ne_bytes().to_vec();
                out.extend(kind.to_ne_bytes());
                out.extend(bytes);
                out.resize(out.len().next_multiple_of(4), 0);
                out
            };
            let proto: Vec<u8> = [
                value(CTA_PROTO_NUM, &[1]),
                value(kinds[0], &77_u16.to_be_bytes()),
                value(kinds[1], &[8]),
            ]
            .concat();
            let ip = [
                value(CTA_IP_V4_SRC, &[10, 0, 0, 1]),
                value(CTA_IP_V4_DST, &[10, 0, 0, 2]),
            ]
            .concat();
            let tuple = [value(CTA_TUPLE_IP, &ip), value(CTA_TUPLE_PROTO, &proto)].concat();
            let all = [
                vec![0; NFGENMSG],
                value(CTA_TUPLE_ORIG, &tuple),
                value(CTA_TUPLE_REPLY, &tuple),
                value(CTA_STATUS, &8_u32.to_be_bytes()),
            ]
            .concat();
            parse(&all).unwrap()
        };
        for kinds in [
            [CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE],
            [CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE],
        ] {
            let entry = numbers(kinds);
            assert_eq!(entry.icmp_type, Some(8));
            assert_eq!(entry.tracked.original.src, "10.0.0.1:77".parse().unwrap());
            assert_eq!(entry.tracked.original.dst.port(), 77);
        }
    }
}

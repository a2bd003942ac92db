//! Frames between one inside and one outside host, built with etherparse.

use etherparse::{EtherType, IpNumber, PacketBuilder, PacketBuilderStep, VlanId};

pub(crate) const HOST: [u8; 4] = [10, 0, 0, 2];
pub(crate) const PEER: [u8; 4] = [198, 51, 100, 7];
pub(crate) const THIRD: [u8; 4] = [203, 0, 113, 9];
pub(crate) const HOST6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const PEER6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// TCP flags by their letters.
pub(crate) struct Tcp {
    pub(crate) flags: &'static str,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Tcp {
    /// The same with a payload.
    pub(crate) fn carrying(self, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            payload: payload.into(),
            ..self
        }
    }
}

pub(crate) fn segment(flags: &'static str, seq: u32, ack: u32) -> Tcp {
    Tcp {
        flags,
        seq,
        ack,
        window: 64_240,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

/// A SYN of which the sequence number does not matter.
pub(crate) fn tcp_syn(src: End, dst: End) -> Vec<u8> {
    tcp(src, dst, &segment("S", 1, 0))
}

/// One end of a conversation.
#[derive(Clone, Copy)]
pub(crate) enum End {
    V4([u8; 4], u16),
    V6([u8; 16], u16),
}

impl End {
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::V4(_, port) | Self::V6(_, port) => port,
        }
    }

    pub(crate) fn mapped(self) -> [u32; 4] {
        match self {
            Self::V4(a, _) => firewall_common::key::map_v4(u32::from_ne_bytes(a)),
            Self::V6(a, _) => bytemuck::cast(a),
        }
    }
}

fn step(src: End, dst: End, ttl: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (src, dst) {
        (End::V4(s, _), End::V4(d, _)) => ethernet.ipv4(s, d, ttl),
        (End::V6(s, _), End::V6(d, _)) => ethernet.ipv6(s, d, ttl),
        _ => panic!("two ends of one family"),
    }
}

pub(crate) fn tcp(src: End, dst: End, segment: &Tcp) -> Vec<u8> {
    let mut b = step(src, dst, 64)
        .tcp(src.port(), dst.port(), segment.seq, segment.window)
        .options_raw(&segment.options)
        .unwrap();
    for flag in segment.flags.chars() {
        b = match flag {
            'S' => b.syn(),
            'F' => b.fin(),
            'R' => b.rst(),
            'P' => b.psh(),
            'U' => b.urg(0),
            'A' => b.ack(segment.ack),
            other => panic!("flag {other}"),
        };
    }
    let mut out = Vec::new();
    b.write(&mut out, &segment.payload).unwrap();
    out
}

pub(crate) fn udp(src: End, dst: End, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    step(src, dst, 64)
        .udp(src.port(), dst.port())
        .write(&mut out, payload)
        .unwrap();
    out
}

/// ICMP echo; the ports are the identifier.
pub(crate) fn echo(src: End, dst: End, reply: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let ip = step(src, dst, 64);
    match (src, reply) {
        (End::V4(..), false) => ip
            .icmpv4_echo_request(src.port(), 1)
            .write(&mut out, b"abcd"),
        (End::V4(..), true) => ip.icmpv4_echo_reply(src.port(), 1).write(&mut out, b"abcd"),
        (End::V6(..), false) => ip
            .icmpv6_echo_request(src.port(), 1)
            .write(&mut out, b"abcd"),
        (End::V6(..), true) => ip.icmpv6_echo_reply(src.port(), 1).write(&mut out, b"abcd"),
    }
    .unwrap();
    out
}

/// Cuts the IP packet of `frame` into fragments of `size` bytes of payload each,
/// a multiple of eight.
pub(crate) fn fragments(frame: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    let v6 = frame[14] >> 4 == 6;
    let (head, payload) = frame.split_at(if v6 { 54 } else { 34 });
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(n, chunk)| fragment(head, chunk, n * size / 8, n + 1 < count, id))
        .collect()
}

/// A fragment with the headers of `frame`, or with those that `frame` is.
pub(crate) fn fragment(frame: &[u8], payload: &[u8], at: usize, more: bool, id: u32) -> Vec<u8> {
    let v6 = frame[14] >> 4 == 6;
    let mut out = frame[..if v6 { 54 } else { 34 }].to_vec();
    let more = u16::from(more);
    if v6 {
        let field = (at as u16) << 3 | more;
        out[18..20].copy_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
        out.extend([out[20], 0]);
        out[20] = 44;
        out.extend(field.to_be_bytes());
        out.extend(id.to_be_bytes());
    } else {
        let field = at as u16 | more << 13;
        out[16..18].copy_from_slice(&(payload.len() as u16 + 20).to_be_bytes());
        out[18..20].copy_from_slice(&(id as u16).to_be_bytes());
        out[20..22].copy_from_slice(&field.to_be_bytes());
    }
    out.extend(payload);
    out
}

/// "Fragmentation needed" from `router` to `to`, about the IP packet of `frame`.
pub(crate) fn frag_needed(router: End, to: End, frame: &[u8]) -> Vec<u8> {
    error(router, to, 3, frame, 28)
}

/// An ICMP or ICMPv6 error of the family of `router`, quoting `len` bytes of the
/// IP packet of `frame`.
pub(crate) fn error(router: End, to: End, kind: u8, frame: &[u8], len: usize) -> Vec<u8> {
    let quoted = &frame[14..frame.len().min(14 + len)];
    let ip = step(router, to, 64);
    let mut out = Vec::new();
    match router {
        End::V4(..) => ip.icmpv4_raw(kind, 0, [0; 4]).write(&mut out, quoted),
        End::V6(..) => ip.icmpv6_raw(kind, 0, [0; 4]).write(&mut out, quoted),
    }
    .unwrap();
    out
}

/// An ICMPv6 message of any type and hop limit.
pub(crate) fn icmpv6(src: End, dst: End, kind: u8, hop_limit: u8) -> Vec<u8> {
    let mut out = Vec::new();
    step(src, dst, hop_limit)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut out, &[0; 16])
        .unwrap();
    out
}

/// Another IP protocol with some payload.
pub(crate) fn other(src: End, dst: End, protocol: u8) -> Vec<u8> {
    let mut out = Vec::new();
    step(src, dst, 64)
        .write(&mut out, IpNumber(protocol), &[0; 16])
        .unwrap();
    out
}

/// Puts an 802.1Q tag into a frame.
pub(crate) fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    tagged_as(EtherType::VLAN_TAGGED_FRAME.0, frame, vlan)
}

/// Puts a tag of any type into a frame, outside those that it has.
pub(crate) fn tagged_as(kind: u16, frame: &[u8], vlan: u16) -> Vec<u8> {
    let id = VlanId::try_new(vlan).unwrap();
    let mut out = frame[..12].to_vec();
    out.extend(kind.to_be_bytes());
    out.extend(id.value().to_be_bytes());
    out.extend(&frame[12..]);
    out
}

/// A frame of another EtherType.
pub(crate) fn ethertype(kind: u16) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    out.extend(kind.to_be_bytes());
    out.extend([0; 46]);
    out
}

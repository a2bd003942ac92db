//! Datagrams of every size, and what answers them: ping, traceroute, fragments
//! made by hand.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use firewall_common::checksum;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Netns;

/// Longer than any answer in the lab takes.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of payload in a fragment made by hand, a multiple of eight.
const PIECE: usize = 1400;
/// First port of traceroute's probes.
const TRACE_PORT: u16 = 33_434;

/// What traceroute sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// UDP to a port that nobody listens at.
    Udp,
    /// Echo requests.
    Echo,
}

/// A raw socket for ICMP of the family of `with`, or for whole IP packets.
fn raw(ns: &Netns, with: IpAddr, packets: bool) -> Result<UdpSocket> {
    let (domain, icmp) = match with {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    // IPPROTO_RAW: the caller writes the IP header.
    let protocol = if packets { Protocol::from(255) } else { icmp };
    let socket = ns.within(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket.into())
}

/// An echo request of `len` bytes of data. The kernel completes the checksum of
/// ICMPv6.
fn echo(to: IpAddr, id: u16, len: usize) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut out = vec![kind, 0, 0, 0];
    out.extend(id.to_be_bytes());
    out.extend([0, 1]);
    out.extend((0..len).map(|n| n as u8));
    if to.is_ipv4() {
        let sum = !checksum::fold(checksum::add(0, &out));
        out[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

/// The ICMP message in what a raw socket gives: of IPv4 the header is there.
fn message(packet: &[u8], family: IpAddr) -> Option<&[u8]> {
    match family {
        IpAddr::V4(_) => packet.get((*packet.first()? as usize & 0xf) * 4..),
        IpAddr::V6(_) => Some(packet),
    }
}

/// `ping -c 1 -s LEN`: does the reply come, with the same data?
///
/// # Errors
/// No raw socket, or the request cannot be sent.
pub fn ping(from: &Netns, to: IpAddr, len: usize) -> Result<bool> {
    let id = 4711;
    let socket = raw(from, to, false)?;
    let request = echo(to, id, len);
    socket.send_to(&request, (to, 0))?;
    let mut buffer = vec![0; 1 << 16];
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        let Ok((got, source)) = socket.recv_from(&mut buffer) else {
            break;
        };
        let reply = message(&buffer[..got], to).filter(|m| matches!(m.first(), Some(0 | 129)));
        if source.ip() == to && reply.is_some_and(|m| m.get(4..) == request.get(4..)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `traceroute`: who answers a probe, hop by hop, until `to` does; at most eight.
/// `None` where nobody does.
///
/// # Errors
/// As [`ping`].
pub fn trace(from: &Netns, to: IpAddr, probe: Probe) -> Result<Vec<Option<IpAddr>>> {
    let answers = raw(from, to, false)?;
    let mut hops = Vec::new();
    for hop in 1..=8_u16 {
        let id = TRACE_PORT + hop;
        let socket = match probe {
            Probe::Udp => from.within(|| UdpSocket::bind((unspecified(to), 0)))??,
            Probe::Echo => raw(from, to, false)?,
        };
        match to {
            IpAddr::V4(_) => SockRef::from(&socket).set_ttl_v4(hop.into())?,
            IpAddr::V6(_) => SockRef::from(&socket).set_unicast_hops_v6(hop.into())?,
        }
        match probe {
            Probe::Udp => socket.send_to(b"probe", (to, id))?,
            Probe::Echo => socket.send_to(&echo(to, id, 8), (to, 0))?,
        };
        let answer = answer(&answers, to, id)?;
        hops.push(answer);
        if answer == Some(to) {
            break;
        }
    }
    Ok(hops)
}

/// Who sent an error, or a reply, about the probe with `id`.
fn answer(socket: &UdpSocket, to: IpAddr, id: u16) -> Result<Option<IpAddr>> {
    let mut buffer = [0; 2048];
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        let (got, source) = match socket.recv_from(&mut buffer) {
            Ok(some) => some,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                break;
            }
            Err(e) => return Err(e.into()),
        };
        if message(&buffer[..got], to).is_some_and(|m| is_about(m, to, id)) {
            return Ok(Some(source.ip()));
        }
    }
    Ok(None)
}

/// Does an ICMP message answer the probe with `id`?
fn is_about(message: &[u8], to: IpAddr, id: u16) -> bool {
    let word = |at: usize| message.get(at..at + 2) == Some(&id.to_be_bytes()[..]);
    let quoted = 8 + if to.is_ipv4() { 20 } else { 40 };
    match message.first() {
        Some(0 | 129) => word(4),
        // The destination port of UDP, the identifier of an echo.
        Some(1 | 3 | 11) => word(quoted + 2) || word(quoted + 4),
        _ => false,
    }
}

const fn unspecified(with: IpAddr) -> IpAddr {
    match with {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// Sends a UDP datagram in fragments made by hand, the last one first.
///
/// # Errors
/// As [`ping`].
pub fn send_reversed(
    ns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    id: u32,
) -> Result<()> {
    let socket = raw(ns, to.ip(), true)?;
    let datagram = udp(from, to, payload);
    let pieces: Vec<&[u8]> = datagram.chunks(PIECE).collect();
    for (n, piece) in pieces.iter().enumerate().rev() {
        let more = n + 1 < pieces.len();
        let packet = fragment(from.ip(), to.ip(), n * PIECE / 8, more, id, piece);
        socket.send_to(&packet, (to.ip(), 0))?;
    }
    Ok(())
}

/// A UDP datagram with its header.
fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() + 8) as u16;
    let mut out = Vec::new();
    for word in [from.port(), to.port(), len, 0] {
        out.extend(word.to_be_bytes());
    }
    out.extend(payload);
    let (src, dst) = (bytes(from.ip()), bytes(to.ip()));
    let sum = checksum::pseudo_header(&src, &dst, 17, len.into());
    // Zero would say that there is none (RFC 768).
    let sum = match !checksum::fold(checksum::add(sum, &out)) {
        0 => 0xffff,
        sum => sum,
    };
    out[6..8].copy_from_slice(&sum.to_be_bytes());
    out
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An IP packet that is a fragment of a UDP datagram, `at` units of eight bytes
/// from its beginning.
fn fragment(src: IpAddr, dst: IpAddr, at: usize, more: bool, id: u32, piece: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if src.is_ipv4() {
        // The kernel writes total length and checksum.
        out.extend([0x45, 0, 0, 0]);
        out.extend((id as u16).to_be_bytes());
        out.extend((at as u16 | u16::from(more) << 13).to_be_bytes());
        out.extend([64, 17, 0, 0]);
    } else {
        out.extend([0x60, 0, 0, 0]);
        out.extend((piece.len() as u16 + 8).to_be_bytes());
        out.extend([44, 64]);
    }
    out.extend(bytes(src));
    out.extend(bytes(dst));
    if src.is_ipv6() {
        out.extend([17, 0]);
        out.extend(((at as u16) << 3 | u16::from(more)).to_be_bytes());
        out.extend(id.to_be_bytes());
    }
    out.extend(piece);
    out
}

/// Sends "port unreachable" about a datagram that `to` never sent.
///
/// # Errors
/// As [`ping`].
pub fn send_unsolicited_error(from: &Netns, to: IpAddr, about: SocketAddr) -> Result<()> {
    let kind = if to.is_ipv4() { 3 } else { 1 };
    let mut out = vec![kind, if to.is_ipv4() { 3 } else { 4 }, 0, 0, 0, 0, 0, 0];
    let quoted = udp(SocketAddr::new(to, 40_000), about, b"never sent");
    let mut packet = fragment(to, about.ip(), 0, false, 1, &quoted);
    if to.is_ipv4() {
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
    }
    out.extend(packet);
    if to.is_ipv4() {
        let sum = !checksum::fold(checksum::add(0, &out));
        out[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    raw(from, to, false)?.send_to(&out, (to, 0))?;
    Ok(())
}

/// Two UDP sockets of two nodes.
#[derive(Debug)]
pub struct Pair {
    near: UdpSocket,
    far: UdpSocket,
}

impl Pair {
    /// Binds both.
    ///
    /// # Errors
    /// An address is taken.
    pub fn bind(near: (&Netns, SocketAddr), far: (&Netns, SocketAddr)) -> Result<Self> {
        let bind = |(ns, at): (&Netns, SocketAddr)| -> Result<UdpSocket> {
            let socket = ns.within(|| UdpSocket::bind(at))??;
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(socket)
        };
        Ok(Self {
            near: bind(near)?,
            far: bind(far)?,
        })
    }

    /// Sends `payload` from the near end to the far one and back.
    ///
    /// # Errors
    /// It does not come, or not as it was sent.
    pub fn there_and_back(&self, payload: &[u8]) -> Result<()> {
        self.near.send_to(payload, self.far.local_addr()?)?;
        self.arrives(true, payload)?;
        self.far.send_to(payload, self.near.local_addr()?)?;
        self.arrives(false, payload)
    }

    /// Is the next datagram at the far end, or the near one, `payload`?
    ///
    /// # Errors
    /// None comes, or another one.
    pub fn arrives(&self, far: bool, payload: &[u8]) -> Result<()> {
        let socket = if far { &self.far } else { &self.near };
        let mut buffer = vec![0; 1 << 16];
        let len = socket.recv(&mut buffer)?;
        ensure!(buffer[..len] == *payload, "another datagram came, of {len}");
        Ok(())
    }

    /// Does nothing arrive at the near end for so long?
    ///
    /// # Errors
    /// The socket is gone.
    pub fn is_silent(&self, patience: Duration) -> Result<bool> {
        self.near.set_read_timeout(Some(patience))?;
        Ok(self.near.recv(&mut [0; 1 << 16]).is_err())
    }
}

/// Reads until the other end closes; how many bytes came.
///
/// # Errors
/// Nothing comes for two seconds.
pub fn read_all(mut stream: std::net::TcpStream) -> io::Result<usize> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)
}

//! A01, A03: packets that neither end has sent.

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use firewall_tests::lab::{Netns, Node, wire};
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{Case, Listener::Server};

/// ETH_P_ALL, in network order as packet(7) wants it.
const ALL: i32 = (3_u16).to_be() as i32;
const TTL: u8 = 64;
/// Farther than any window.
const FAR: u32 = 1 << 30;

/// Hears what a namespace sends and receives.
#[derive(Debug)]
struct Tap(Socket);

/// A TCP segment that was on a wire.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Hardware addresses: source, destination.
    ethernet: [[u8; 6]; 2],
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
    ack: u32,
    window: u16,
    len: u32,
}

impl Tap {
    fn on(ns: &Netns) -> Result<Self> {
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL)));
        let socket = ns.within(open)??;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The last segment with payload that went from one end to the other.
    fn last(&self, src: SocketAddr, dst: SocketAddr) -> Result<Heard> {
        let mut last = None;
        let mut frame = [0; 4096];
        loop {
            let len = match (&self.0).read(&mut frame) {
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            };
            let heard = Heard::parse(&frame[..len]);
            last = heard
                .filter(|h| h.src == src && h.dst == dst && h.len > 0)
                .or(last);
        }
        last.context("nothing was heard")
    }
}

impl Heard {
    fn parse(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
            (packet.net, packet.transport)
        else {
            return None;
        };
        let (from, to): (IpAddr, IpAddr) = {
            let header = ip.header();
            let (src, dst) = (header.source_addr(), header.destination_addr());
            (src.into(), dst.into())
        };
        Some(Self {
            ethernet: [frame[6..12].try_into().ok()?, frame[..6].try_into().ok()?],
            src: SocketAddr::new(from, tcp.source_port()),
            dst: SocketAddr::new(to, tcp.destination_port()),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            len: u32::try_from(tcp.payload().len()).ok()?,
        })
    }

    /// The segment that would come next, with this payload.
    fn next(&self) -> Self {
        Self {
            seq: self.seq.wrapping_add(self.len),
            ..*self
        }
    }

    fn frame(&self, payload: &str) -> Result<Vec<u8>> {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (self.src.ip(), self.dst.ip()) else {
            bail!("the case is over IPv4");
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.ethernet[0], self.ethernet[1])
            .ipv4(src.octets(), dst.octets(), TTL)
            .tcp(self.src.port(), self.dst.port(), self.seq, self.window)
            .ack(self.ack)
            .psh()
            .write(&mut frame, payload.as_bytes())?;
        Ok(frame)
    }
}

/// The client has asked where to connect to: the segment in which the server would
/// tell, as `node` knows it of what it heard before.
fn reply_due(case: &mut Case, node: Node) -> Result<Heard> {
    let tap = Tap::on(case.world.lab.ns(node))?;
    case.c("PASV\r\n")?;
    case.s("150 wait\r\n")?;
    let client = case.talk().client();
    let last = tap.last(client.peer_addr()?, client.local_addr()?)?;
    Ok(last.next())
}

/// The client's own network sends a reply in the server's name, and no filter of
/// the kernel's looks where it comes from.
#[test]
fn a01_227_spoofed_from_the_clients_side() -> Result<()> {
    let mut case = Case::ready()?;
    let lab = &case.world.lab;
    for key in ["all", "in0"] {
        let key = format!("net/ipv4/conf/{key}/rp_filter");
        lab.ns(Node::FwA).sysctl(&key, "0")?;
    }
    let mut forged = reply_due(&mut case, Node::Client)?;
    forged.ethernet.reverse();
    let dropped = || -> Result<u64> { Ok(case.world.fw_a().stats()?.dropped("zone-mismatch")) };
    let before = dropped()?;
    let frame = forged.frame(&case.pasv_reply(50999))?;
    wire::send(case.world.lab.ns(Node::Client), "eth0", &[frame])?;
    ensure!(
        dropped()? > before,
        "it was not dropped for where it came from"
    );
    case.stays_shut(Server, 50999)?;
    case.s(case.pasv_reply(50075))?;
    case.opens(Server, 50075)
}

/// Somebody on the way injects replies, and guesses the sequence numbers.
#[test]
fn a03_out_of_window_injection() -> Result<()> {
    let mut case = Case::ready()?;
    let next = reply_due(&mut case, Node::Net)?;
    let reply = case.pasv_reply(50999);
    let guesses = [
        Heard {
            seq: next.seq.wrapping_add(FAR),
            ..next
        },
        Heard {
            seq: next.seq.wrapping_sub(FAR),
            ..next
        },
        Heard {
            ack: next.ack.wrapping_add(FAR),
            ..next
        },
    ];
    let judged = || -> Result<(u64, u64)> {
        let stats = case.world.fw_a().stats()?;
        let over = ["tcp-seq-over", "tcp-ack-over"].map(|reason| stats.dropped(reason));
        Ok((over.iter().sum(), stats.passed("tcp-old-data")))
    };
    let before = judged()?;
    let frames = guesses.map(|guess| guess.frame(&reply));
    let frames = frames.into_iter().collect::<Result<Vec<_>>>()?;
    wire::send(case.world.lab.ns(Node::Net), "a0", &frames)?;
    let (over, old) = judged()?;
    ensure!(over >= before.0 + 2, "they were let through");
    // What is older than the window is for the client to answer, but nothing is read of it.
    ensure!(old > before.1, "the old one was judged otherwise");
    case.stays_shut(Server, 50999)?;
    case.nothing_happened(0)?;
    case.s(case.pasv_reply(50075))?;
    case.opens(Server, 50075)
}

/// The control of both: the forgery is right but for where it comes from and its
/// numbers. With both right it is the server's word, and opens.
#[test]
fn a03_the_same_forgery_within_the_window_would_open() -> Result<()> {
    let mut case = Case::ready()?;
    let next = reply_due(&mut case, Node::Net)?;
    let frame = next.frame(&case.pasv_reply(50075))?;
    wire::send(case.world.lab.ns(Node::Net), "a0", &[frame])?;
    let open = || case.pinholes(case.world.fw_a()).unwrap_or_default();
    firewall_tests::lab::process::await_some(
        "the forged reply opens",
        std::time::Duration::from_secs(10),
        || open().contains(&50075).then_some(()),
    )
}

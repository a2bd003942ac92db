//! What passes on links, seen by packet sockets and by nobody whom it concerns.

use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use firewall_common::wire::{Headers, parse_link, parse_network};
use firewall_user::bpf::{address, sys::monotonic_ns};
use nix::{
    cmsg_space, libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
};
use socket2::{Domain, Socket, Type};

use super::filter::{KEPT, Wanted, program};
use crate::lab::Netns;

/// Room for what is not yet read: far more than a run's packets of interest.
const BUFFER: usize = 16 << 20;
/// Between the last packet and the end of a tap.
const SETTLE: Duration = Duration::from_millis(100);

/// A packet on a link.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// On which of the links, in the order given.
    pub link: usize,
    /// Did it leave there, or arrive?
    pub outgoing: bool,
    /// Which CPU had it; known of those that leave.
    pub cpu: Option<u32>,
    /// Its sender.
    pub from: SocketAddr,
    /// Its receiver.
    pub to: SocketAddr,
    /// What it is.
    pub what: What,
}

/// What a packet on a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It opens a connection, with this sequence number.
    Syn(u32),
    /// It negotiates one, to this port.
    Line(u16),
}

/// Sockets that listen to links.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<Seen>>>,
}

/// A socket, and what all of its packets have in common.
struct Ear {
    socket: Socket,
    link: usize,
    outgoing: bool,
    cpu: Option<u32>,
}

impl Tap {
    /// Listens to interfaces from now on.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn start(links: &[(&Netns, &str)]) -> Result<Self> {
        let mut ears = Vec::new();
        for (link, (ns, interface)) in links.iter().enumerate() {
            ears.extend(ns.within(|| listen(link, interface))??);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let reader = thread::spawn(move || read(&ears, &seen));
        Ok(Self { stop, reader })
    }

    /// All that was seen, in the order of time.
    ///
    /// # Errors
    /// Something was missed.
    pub fn finish(self) -> Result<Vec<Seen>> {
        thread::sleep(SETTLE);
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.reader.join();
        let mut seen = seen.map_err(|_| anyhow!("the tap panicked"))??;
        seen.sort_by_key(|packet| packet.at_ns);
        Ok(seen)
    }
}

/// SYNs of data connections on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syns {
    /// Connections.
    pub connections: usize,
    /// SYNs beyond the first of each.
    pub again: usize,
}

impl Syns {
    /// Counts those of `seen` that pass `link` in one direction.
    #[must_use]
    pub fn count(seen: &[Seen], link: usize, outgoing: bool) -> Self {
        let mut times: HashMap<(SocketAddr, SocketAddr, u32), usize> = HashMap::new();
        for packet in seen {
            let What::Syn(seq) = packet.what else {
                continue;
            };
            let control =
                packet.to.port() == super::CONTROL || packet.from.port() == super::CONTROL;
            if packet.link == link && packet.outgoing == outgoing && !control {
                *times.entry((packet.from, packet.to, seq)).or_default() += 1;
            }
        }
        Self {
            connections: times.len(),
            again: times.values().map(|times| times - 1).sum(),
        }
    }
}

fn listen(link: usize, interface: &str) -> Result<Vec<Ear>> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let cpus = thread::available_parallelism().map_or(1, usize::from) as u32;
    let leaving = (0..cpus).map(|cpu| (true, Some(cpu)));
    leaving
        .chain([(false, None)])
        .map(|(outgoing, cpu)| {
            let wanted = Wanted {
                interface: index,
                outgoing,
                cpu,
            };
            let socket = socket(wanted).with_context(|| format!("listen to {interface}"))?;
            Ok(Ear {
                socket,
                link,
                outgoing,
                cpu,
            })
        })
        .collect()
}

fn socket(wanted: Wanted) -> Result<Socket> {
    const ALL: u16 = libc::ETH_P_ALL as u16;
    // Of no protocol, and so deaf, until it has its filter.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    socket.attach_filter(&program(wanted))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    let at = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ALL.to_be(),
        sll_ifindex: wanted.interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a whole `sockaddr_ll`, and its size is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const at).cast(),
            size_of_val(&at) as libc::socklen_t,
        )
    };
    ensure!(bound == 0, "bind: {}", io::Error::last_os_error());
    Ok(socket)
}

fn read(ears: &[Ear], stop: &AtomicBool) -> Result<Vec<Seen>> {
    let behind = realtime_ahead()?;
    let mut seen = Vec::new();
    let mut last = false;
    loop {
        let mut wait: Vec<_> = ears
            .iter()
            .map(|ear| PollFd::new(ear.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut wait, PollTimeout::from(50_u8))?;
        for ear in ears {
            while let Some(packet) = ear.next(behind)? {
                seen.push(packet);
            }
        }
        if last {
            break;
        }
        // Once more, for what came in between.
        last = stop.load(Ordering::Relaxed);
    }
    for ear in ears {
        ensure!(ear.missed()? == 0, "the tap missed packets");
    }
    Ok(seen)
}

/// How far `CLOCK_REALTIME`, which packets are stamped with, is ahead of
/// `CLOCK_MONOTONIC`, ns.
fn realtime_ahead() -> Result<u64> {
    let before = monotonic_ns();
    let realtime = nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?);
    let after = monotonic_ns();
    Ok(realtime - u64::midpoint(before, after))
}

fn nanoseconds(at: TimeSpec) -> u64 {
    at.tv_sec() as u64 * 1_000_000_000 + at.tv_nsec() as u64
}

impl Ear {
    /// The next packet that waits, if it is one that can be read.
    fn next(&self, ahead: u64) -> Result<Option<Seen>> {
        let mut bytes = [0; KEPT as usize];
        let mut space = cmsg_space!(TimeSpec);
        loop {
            let mut rooms = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut rooms,
                Some(&mut space),
                MsgFlags::empty(),
            );
            let (len, at) = match got {
                Ok(message) => {
                    let at = message.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::ScmTimestampns(at) => Some(nanoseconds(at)),
                        _ => None,
                    });
                    (message.bytes, at.context("a packet without a time")?)
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if let Some((from, to, what)) = understand(&bytes[..len]) {
                return Ok(Some(Seen {
                    at_ns: at - ahead,
                    link: self.link,
                    outgoing: self.outgoing,
                    cpu: self.cpu,
                    from,
                    to,
                    what,
                }));
            }
        }
    }

    /// Packets that found no room, since the last call.
    fn missed(&self) -> Result<u32> {
        let mut stats = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: both pointers are to whole values, and the size is given.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        ensure!(
            got == 0,
            "packet statistics: {}",
            io::Error::last_os_error()
        );
        Ok(stats.tp_drops)
    }
}

fn understand(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, What)> {
    let mut h = Headers::ZERO;
    let link = parse_link(packet, false).ok()?;
    parse_network(packet, link, &mut h).ok()?;
    let from = SocketAddr::new(address(h.src), h.sport);
    let to = SocketAddr::new(address(h.dst), h.dport);
    let payload = packet
        .get(usize::from(h.payload_offset)..)
        .unwrap_or_default();
    let what = match super::port_of(payload) {
        Some(port) => What::Line(port),
        None if h.payload_len() == 0 => What::Syn(h.seq),
        None => return None,
    };
    Some((from, to, what))
}

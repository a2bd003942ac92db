//! Three namespaces on two wires, and what stands in the middle.
//!
//! ```text
//! client eth0 ── in0 middle out0 ── eth0 server
//! ```

mod mode;
mod rules;
mod stage;

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    ops::Range,
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;

pub use self::mode::Mode;
pub(super) use self::rules::policy;
use self::stage::{MIDDLE, Stage, V4, V6, pass, redirect};
use super::{
    room::Room,
    traffic::{self, Amount, End, Flows, Packet, Proto, Sent, plan},
    wire::{self, Wire},
};
use crate::lab::{Family, Netns, id::LabId, pinhole::Firewall, process};

/// Flows that are opened together, on all CPUs: half of those for which there is room while
/// nobody has answered them yet (`half-open`, which [`policy`] never makes smaller than twice
/// this).
const CHUNK: u32 = 1 << 15;
/// Times that a step is repeated of which not all packets arrived.
const TRIES: usize = 5;
/// How long the last packets are waited for.
const LATE_MS: u32 = 50;
/// Until the memory of flows that are gone is free again, which takes CPU time.
const FREED: Duration = Duration::from_millis(20);

/// The namespaces with their ends, and what is in the middle.
#[derive(Debug)]
pub struct Field {
    mode: Mode,
    firewall: Option<Firewall>,
    /// Programs that are not pinhole's.
    _programs: Vec<Ebpf>,
    ends: Option<[End; 2]>,
    wires: [Wire; 2],
    ifindex: u32,
    _room: Room,
    service: Option<UdpSocket>,
    nodes: [Netns; 3],
    dir: PathBuf,
    fresh: u64,
    /// So many, from the first one on.
    established: HashMap<(Family, Proto), u32>,
}

/// What is at the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// Generator and sink.
    Numbered,
    /// Hosts with a stack; do they leave work to their network card?
    Hosts(bool),
}

impl Field {
    /// Sets it up, with room for so many flows of one protocol.
    ///
    /// # Errors
    /// Something of the lab fails.
    pub fn new(mode: Mode, flows: u32) -> Result<Self> {
        Self::make(mode, flows, 0, Ends::Numbered)
    }

    /// As [`Field::new`], with so many rules that match nothing before the one that does.
    ///
    /// # Errors
    /// As [`Field::new`], and pinhole may refuse so many.
    pub fn with_rules(mode: Mode, flows: u32, rules: u32) -> Result<Self> {
        Self::make(mode, flows, rules, Ends::Numbered)
    }

    /// As [`Field::new`], with hosts at the ends instead of generator and sink, which leave
    /// checksums and segments to their network card, or do not.
    ///
    /// # Errors
    /// As [`Field::new`].
    pub fn between_hosts(mode: Mode, offloads: bool) -> Result<Self> {
        Self::make(mode, 0, 0, Ends::Hosts(offloads))
    }

    fn make(mode: Mode, flows: u32, fillers: u32, ends: Ends) -> Result<Self> {
        let id = LabId::new()?;
        let dir = id.make_dir()?;
        let offloads = ends == Ends::Hosts(true);
        let Stage { nodes, links } = Stage::lay(&id, offloads)?;
        let mut programs = Vec::new();
        // Before pinhole looks whether they take what is redirected to them.
        let numbered = match ends {
            Ends::Numbered => Some([
                End::new(&nodes[0], "eth0", links[0].index)?,
                End::new(&nodes[2], "eth0", links[3].index)?,
            ]),
            // With GRO they would, too, but would have it done.
            Ends::Hosts(false) => {
                for node in [0, 2] {
                    programs.push(pass(&nodes[node], &["eth0"])?);
                }
                None
            }
            Ends::Hosts(true) => None,
        };
        let firewall = if mode.is_pinhole() {
            let text = rules::policy(mode, flows, fillers, !offloads);
            let name = id.name("fw");
            Some(Firewall::start_in(&nodes[MIDDLE], &dir, name, &text)?)
        } else {
            None
        };
        match mode {
            Mode::Ceiling => programs.push(redirect(&nodes[MIDDLE], &links, "redirect")?),
            Mode::Insert => programs.push(redirect(&nodes[MIDDLE], &links, "insert")?),
            Mode::Lookup => programs.push(redirect(&nodes[MIDDLE], &links, "lookup")?),
            mode if mode.is_pinhole() || (ends != Ends::Numbered && mode != Mode::Open) => {}
            // Without a program of its own a veth takes no frame of a redirect. The other
            // way, GRO, would cost the kernel more.
            _ => programs.push(pass(&nodes[MIDDLE], &["in0", "out0"])?),
        }
        let room = Room::for_flows(if mode.is_tracked_by_kernel() {
            rules::peer(&nodes[MIDDLE], mode)?;
            flows
        } else {
            0
        })?;
        let service = if mode.is_host() {
            rules::sink(&nodes[MIDDLE], mode)?;
            Some(nodes[MIDDLE].within(|| UdpSocket::bind((V4[1], wire::PORT)))??)
        } else {
            None
        };
        let server = if mode.is_host() { 1 } else { 3 };
        let server = (V4[server].parse()?, V6[server].parse()?);
        let wire = |to: usize, from: usize| Wire {
            macs: [links[to].mac, links[from].mac],
            server,
        };
        Ok(Self {
            mode,
            firewall,
            _programs: programs,
            ends: numbered,
            wires: [wire(1, 0), wire(2, 3)],
            ifindex: links[1].index,
            _room: room,
            service,
            nodes,
            dir,
            fresh: 1 << 24,
            established: HashMap::new(),
        })
    }

    /// What is in the middle.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// pinhole, if it is in the middle.
    #[must_use]
    pub const fn firewall(&self) -> Option<&Firewall> {
        self.firewall.as_ref()
    }

    /// Ends pinhole's agent; enforcement stays.
    pub fn stop_agent(&mut self) {
        if let Some(firewall) = &mut self.firewall {
            firewall.stop_agent();
        }
    }

    /// The namespace in the middle.
    #[must_use]
    pub const fn middle(&self) -> &Netns {
        &self.nodes[MIDDLE]
    }

    /// The namespaces of the client and the server.
    #[must_use]
    pub const fn hosts(&self) -> [&Netns; 2] {
        [&self.nodes[0], &self.nodes[2]]
    }

    /// The server's IPv4 address.
    #[must_use]
    pub const fn server(&self) -> Ipv4Addr {
        self.wires[0].server.0
    }

    /// Of the interface of the middle that is towards the client.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// A frame of a flow, whole; to the port that the rules accept, or to the next one.
    #[must_use]
    pub fn frame(
        &self,
        what: (Family, Proto),
        packet: &Packet,
        flow: u32,
        accepted: bool,
    ) -> Vec<u8> {
        let port = wire::PORT + u16::from(!accepted);
        self.wires[usize::from(packet.reply)].frame(what, packet, flow, port)
    }

    /// Numbers of `count` flows that were never used before; the first.
    pub fn take_fresh(&mut self, count: u64) -> u64 {
        let first = self.fresh;
        self.fresh += count;
        first
    }

    /// Empties the kernel's table, if it tracks: unlike pinhole's it keeps all that was
    /// begun before, and gets slower the longer the benchmark takes.
    ///
    /// # Errors
    /// `conntrack -F` fails.
    pub fn forget(&mut self) -> Result<()> {
        if self.mode.is_tracked_by_kernel() {
            let mut flush = self.middle().command("conntrack");
            process::check(flush.arg("-F"))?;
            self.established.clear();
            thread::sleep(FREED);
        }
        Ok(())
    }

    /// Sends one packet of each flow, or of as many as there is time for.
    ///
    /// # Errors
    /// The kernel refuses to run the program.
    pub fn send(
        &mut self,
        what: (Family, Proto),
        packet: &Packet,
        flows: Flows,
        amount: Amount,
    ) -> Result<Sent> {
        let from = usize::from(packet.reply);
        let plan = plan(&self.wires[from], what, packet, flows, amount.cpus());
        let node = &self.nodes[2 * from];
        let ends = self.ends.as_mut().context("no generator")?;
        ends[from].send(node, &plan, flows, amount)
    }

    /// Packets that came out so far: TCP SYNs over IPv4, and all others.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn seen(&self, reply: bool) -> Result<[u64; 2]> {
        if !self.mode.is_host() || reply {
            let ends = self.ends.as_ref().context("no sink")?;
            return ends[usize::from(!reply)].seen();
        }
        Ok([0, rules::counted(&self.nodes[MIDDLE], "bench", "seen")?])
    }

    /// Packets that the kernel's flow table left to the rules so far.
    ///
    /// # Errors
    /// There is no such table in the middle.
    pub fn left_over(&self) -> Result<u64> {
        rules::counted(&self.nodes[MIDDLE], "guard", "slow")
    }

    /// Sends a step of a conversation for each of these flows, again where packets are lost.
    fn step(&mut self, what: (Family, Proto), packet: &Packet, flows: Range<u32>) -> Result<()> {
        let wanted = u64::from(flows.end - flows.start);
        let tolerated = wanted - wanted / 1000;
        let mut arrived = 0;
        for _ in 0..TRIES {
            arrived = self.part(what, packet, flows.start.into(), wanted, tolerated)?;
            if arrived >= tolerated {
                return Ok(());
            }
        }
        bail!("{packet:?}: {arrived} of {wanted} packets arrived")
    }

    /// One packet of each of `count` flows; how many arrived, as soon as `enough` did.
    fn part(
        &mut self,
        what: (Family, Proto),
        packet: &Packet,
        first: u64,
        count: u64,
        enough: u64,
    ) -> Result<u64> {
        let before: u64 = self.seen(packet.reply)?.iter().sum();
        self.send(what, packet, Flows::From(first), Amount::Packets(count))?;
        let mut arrived = 0;
        // The kernel's threads may still have some of them.
        for _ in 0..LATE_MS {
            arrived = self.seen(packet.reply)?.iter().sum::<u64>() - before;
            if arrived >= enough {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(arrived)
    }

    /// Makes the first `count` flows established ones, where anybody keeps track of them.
    ///
    /// # Errors
    /// Packets get lost.
    pub fn establish(&mut self, what: (Family, Proto), count: u32) -> Result<()> {
        if !self.mode.is_stateful() {
            return Ok(());
        }
        let opening = opening(what.1);
        if self.mode.is_host() {
            return opening
                .iter()
                .try_for_each(|packet| self.host_step(what, packet, count));
        }
        // Some were, perhaps, for a smaller load.
        let mut first = self.established.get(&what).copied().unwrap_or(0);
        while first < count {
            let end = count.min(first.saturating_add(CHUNK));
            for packet in &opening {
                self.step(what, packet, first..end)?;
            }
            first = end;
            self.established.insert(what, first);
        }
        Ok(())
    }

    /// The host's own packets leave it as datagrams of a raw socket do; its rules swallow
    /// what arrives before it is established.
    fn host_step(&mut self, what: (Family, Proto), packet: &Packet, count: u32) -> Result<()> {
        if !packet.reply {
            let amount = Amount::Packets(u64::from(count));
            return self.send(what, packet, Flows::Of(count), amount).map(drop);
        }
        ensure!(what == (Family::V4, Proto::Udp), "IPv4 and UDP only");
        let service = self.service.as_ref().context("no service")?;
        for flow in 0..count {
            service.send_to(&[0; 18], wire::sender4(flow))?;
        }
        Ok(())
    }

    /// Sends, and gives what came out.
    ///
    /// # Errors
    /// Nothing comes out.
    pub fn rate(
        &mut self,
        what: (Family, Proto),
        packet: &Packet,
        flows: Flows,
        amount: Amount,
    ) -> Result<Rate> {
        let before: u64 = self.seen(packet.reply)?.iter().sum();
        let sent = self.send(what, packet, flows, amount)?;
        thread::sleep(Duration::from_millis(2));
        let seen = self.seen(packet.reply)?.iter().sum::<u64>() - before;
        ensure!(
            seen > 0,
            "{}: none of {} packets came out",
            self.mode.title(),
            sent.packets
        );
        Ok(Rate::new(seen, &sent))
    }
}

/// What came out of what was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Packets that the CPU time was spent on.
    pub packets: u64,
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Packets that ought to have come out, and those that did.
    pub out: [u64; 2],
}

impl Rate {
    /// Of so many that came out.
    #[must_use]
    pub const fn new(seen: u64, sent: &Sent) -> Self {
        Self {
            packets: seen,
            cpu_ns: sent.cpu_ns,
            out: [sent.packets, seen],
        }
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            cpu_ns: self.cpu_ns + other.cpu_ns,
            out: [self.out[0] + other.out[0], self.out[1] + other.out[1]],
        }
    }

    /// Millions of packets a second of CPU.
    #[must_use]
    pub fn mpps(&self) -> f64 {
        self.packets as f64 / self.cpu_ns as f64 * 1000.0
    }

    /// Of the packets that ought to have come out.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.out[1] as f64 / self.out[0] as f64
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What makes a flow an established one: client, server, client.
#[must_use]
pub fn opening(proto: Proto) -> [Packet; 3] {
    use traffic::flag::{ACK, SYN};
    let packet = |reply, flags, seq, ack| Packet {
        reply,
        flags,
        seq,
        ack,
        data: false,
        advance: false,
    };
    match proto {
        Proto::Udp => [false, true, false].map(|reply| packet(reply, 0, 0, 0)),
        Proto::Tcp => [
            packet(false, SYN, 999, 0),
            packet(true, SYN | ACK, 4999, 1000),
            packet(false, ACK, 1000, 5000),
        ],
    }
}

/// What an established flow sends.
#[must_use]
pub const fn data() -> Packet {
    Packet {
        reply: false,
        flags: traffic::flag::ACK | traffic::flag::PSH,
        seq: 1000,
        ack: 5000,
        data: true,
        advance: true,
    }
}

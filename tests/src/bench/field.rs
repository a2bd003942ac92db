//! Three namespaces on two wires, and what stands in the middle.
//!
//! ```text
//! client eth0 ── in0 middle out0 ── eth0 server
//! ```

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{Ebpf, maps::Array, programs::xdp::XdpMode};
use serde_json::Value;

use super::{
    room::Room,
    traffic::{self, Amount, End, Flows, Packet, Plan, Proto, Sent},
    wire::{self, Wire},
};
use crate::lab::{Family, Netns, id::LabId, pinhole::Firewall, process};

/// What stands in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// An XDP program that redirects, and nothing else.
    Ceiling,
    /// The kernel forwards.
    Forward,
    /// The kernel forwards, nftables with `ct state` rules.
    Nft,
    /// Likewise, with nf_conntrack_ftp attached for port 21.
    NftFtp,
    /// pinhole, its packets forwarded by the kernel.
    Pass,
    /// pinhole, packets of established flows forwarded in XDP where it does that.
    Fast,
    /// The packets are for the host itself: no firewall.
    HostOpen,
    /// For the host itself: nftables with `ct state` rules.
    HostNft,
    /// For the host itself: pinhole.
    HostPinhole,
}

impl Mode {
    /// Short name, part of ids.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Forward => "forward",
            Self::Nft => "nft",
            Self::NftFtp => "nft_ftp",
            Self::Pass => "pass",
            Self::Fast => "fwd",
            Self::HostOpen => "host_open",
            Self::HostNft => "host_nft",
            Self::HostPinhole => "host",
        }
    }

    /// In words.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Ceiling => "redirect, no tracking",
            Self::Forward => "kernel forward",
            Self::Nft => "kernel forward, nftables `ct state`",
            Self::NftFtp => "the same, nf_conntrack_ftp attached",
            Self::Pass => "pinhole, kernel forward",
            Self::Fast => "pinhole, XDP forward",
            Self::HostOpen => "host, no firewall",
            Self::HostNft => "host, nftables `ct state`",
            Self::HostPinhole => "host, pinhole",
        }
    }

    /// Are the packets for the host in the middle?
    #[must_use]
    pub const fn is_host(self) -> bool {
        matches!(self, Self::HostOpen | Self::HostNft | Self::HostPinhole)
    }

    const fn is_pinhole(self) -> bool {
        matches!(self, Self::Pass | Self::Fast | Self::HostPinhole)
    }
}

const MIDDLE: usize = 1;
/// Addresses: of the client, of the middle towards it, of the middle towards the
/// server, of the server.
const V4: [&str; 4] = ["192.0.2.2", "192.0.2.1", "203.0.113.1", "203.0.113.2"];
const V6: [&str; 4] = [
    "2001:db8:a::2",
    "2001:db8:a::1",
    "2001:db8:b::1",
    "2001:db8:b::2",
];
/// Seconds: no flow ends for want of packets.
const LIFE: u32 = 7200;
/// Times that a step is repeated of which not all packets arrived.
const TRIES: usize = 5;

/// The namespaces with their ends, and what is in the middle.
#[derive(Debug)]
pub struct Field {
    mode: Mode,
    firewall: Option<Firewall>,
    /// The programs of the middle that are not pinhole's.
    _middle: Vec<Ebpf>,
    ends: Option<[End; 2]>,
    wires: [Wire; 2],
    ifindex: u32,
    _room: Room,
    service: Option<UdpSocket>,
    nodes: [Netns; 3],
    dir: PathBuf,
    fresh: u64,
}

/// Sets up a host at an end.
type SetHost<'a> = dyn Fn(&Netns) -> Result<()> + 'a;

struct Link {
    index: u32,
    mac: [u8; 6],
}

impl Field {
    /// Sets it up, with room for so many flows of one protocol.
    ///
    /// # Errors
    /// Something of the lab fails.
    pub fn new(mode: Mode, flows: u32) -> Result<Self> {
        Self::make(mode, flows, 0, None)
    }

    /// As [`Field::new`], with so many rules that match nothing before the one that does.
    ///
    /// # Errors
    /// As [`Field::new`], and pinhole may refuse so many.
    pub fn with_rules(mode: Mode, flows: u32, rules: u32) -> Result<Self> {
        Self::make(mode, flows, rules, None)
    }

    /// As [`Field::new`], with hosts at the ends instead of generator and sink; `set` is
    /// called with each before anything stands in the middle.
    ///
    /// # Errors
    /// As [`Field::new`], and those of `set`.
    pub fn between_hosts(mode: Mode, set: impl Fn(&Netns) -> Result<()>) -> Result<Self> {
        Self::make(mode, 0, 0, Some(&set))
    }

    fn make(mode: Mode, flows: u32, fillers: u32, hosts: Option<&SetHost<'_>>) -> Result<Self> {
        let id = LabId::new()?;
        let dir = id.make_dir()?;
        let made = |what: &str| Netns::new(id.name(what));
        let nodes = [made("client")?, made("middle")?, made("server")?];
        lay(&nodes)?;
        let links = links(&nodes)?;
        address(&nodes, &links)?;
        if let Some(set) = hosts {
            set(&nodes[0])?;
            set(&nodes[2])?;
        }
        // Before pinhole looks whether they take what is redirected to them.
        let ends = if hosts.is_none() {
            Some([
                End::new(&nodes[0], "eth0", links[0].index)?,
                End::new(&nodes[2], "eth0", links[3].index)?,
            ])
        } else {
            None
        };
        let firewall = if mode.is_pinhole() {
            let text = policy(mode, flows, fillers);
            Some(Firewall::start_in(
                &nodes[MIDDLE],
                &dir,
                id.name("fw"),
                &text,
            )?)
        } else {
            None
        };
        let middle = match mode {
            Mode::Ceiling => vec![redirect(&nodes[MIDDLE], &links)?],
            mode if mode.is_pinhole() || hosts.is_some() => Vec::new(),
            // Without a program of its own a veth takes no frame of a redirect. The other
            // way, GRO, would cost the kernel more.
            _ => vec![pass(&nodes[MIDDLE])?],
        };
        let room = Room::for_flows(
            if matches!(mode, Mode::Nft | Mode::NftFtp | Mode::HostNft) {
                rules(&nodes[MIDDLE], mode)?;
                flows
            } else {
                0
            },
        )?;
        let service = if mode.is_host() {
            sink_rules(&nodes[MIDDLE], mode)?;
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
            _middle: middle,
            ends,
            wires: [wire(1, 0), wire(2, 3)],
            ifindex: links[1].index,
            _room: room,
            service,
            nodes,
            dir,
            fresh: 1 << 24,
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
        let cpus = match amount {
            Amount::Packets(_) => 1,
            Amount::For(_, cpus) => cpus,
        };
        let plan = Plan::new(&self.wires[from], what, packet, flows, cpus);
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
        let mut nft = self.nodes[MIDDLE].command("nft");
        nft.args(["-j", "list", "counter", "inet", "bench", "seen"]);
        let counter: Value = serde_json::from_str(&process::check(&mut nft)?)?;
        let counters = counter["nftables"].as_array().into_iter().flatten();
        let mut packets = counters.filter_map(|entry| entry["counter"]["packets"].as_u64());
        Ok([0, packets.next().context("no counter")?])
    }

    /// Sends a step of a conversation for each of its flows, again where packets are lost.
    ///
    /// # Errors
    /// Too many get lost.
    pub fn step(
        &mut self,
        what: (Family, Proto),
        packet: &Packet,
        flows: Flows,
        count: u32,
    ) -> Result<Sent> {
        let (mut sent, mut arrived) = (Sent::default(), 0);
        for _ in 0..TRIES {
            let before: u64 = self.seen(packet.reply)?.iter().sum();
            let once = self.send(what, packet, flows, Amount::Packets(u64::from(count)))?;
            sent = sent.and(once);
            arrived = self.seen(packet.reply)?.iter().sum::<u64>() - before;
            if arrived >= u64::from(count - count / 1000) {
                return Ok(sent);
            }
        }
        anyhow::bail!(
            "{}: {packet:?}: {arrived} of {count} packets arrived",
            self.mode.title()
        )
    }

    /// Makes the first `count` flows established ones.
    ///
    /// # Errors
    /// Packets get lost.
    pub fn establish(&mut self, what: (Family, Proto), count: u32) -> Result<()> {
        let flows = Flows::Of(count);
        for packet in opening(what.1) {
            if self.mode.is_host() {
                self.host_step(what, &packet, count)?;
            } else {
                self.step(what, &packet, flows, count)?;
            }
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
            let address = Ipv4Addr::from(0x1000_0000 + flow / 16);
            let port = 32768 + (flow % 16) as u16;
            service.send_to(&[0; 18], (address, port))?;
        }
        Ok(())
    }

    /// Sends established traffic for so long, and gives packets that came out per second of
    /// CPU, and the share that did.
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
        std::thread::sleep(Duration::from_millis(2));
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

/// What came out.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Millions of packets a second of CPU.
    pub mpps: f64,
    /// Of the packets that were sent.
    pub share: f64,
    /// Millions of packets a second by the clock, all CPUs.
    pub wall_mpps: f64,
}

impl Rate {
    /// Of so many that came out.
    #[must_use]
    pub fn new(seen: u64, sent: &Sent) -> Self {
        Self {
            mpps: seen as f64 / sent.cpu_ns as f64 * 1000.0,
            share: seen as f64 / sent.packets as f64,
            wall_mpps: seen as f64 / sent.wall_ns as f64 * 1000.0,
        }
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

/// Both wires, with as many queues as there are CPUs.
fn lay(nodes: &[Netns; 3]) -> Result<()> {
    let queues = traffic::cpus().to_string();
    for (end, middle, interface) in [(0, MIDDLE, "in0"), (2, MIDDLE, "out0")] {
        let mut ip = std::process::Command::new("ip");
        ip.args(["link", "add", "eth0", "netns", nodes[end].name()]);
        ip.args([
            "numtxqueues",
            &queues,
            "numrxqueues",
            &queues,
            "type",
            "veth",
        ]);
        ip.args(["peer", "name", interface, "netns", nodes[middle].name()]);
        process::check(ip.args(["numtxqueues", &queues, "numrxqueues", &queues]))?;
    }
    for (node, interface) in [(0, "eth0"), (MIDDLE, "in0"), (MIDDLE, "out0"), (2, "eth0")] {
        // A redirect does not complete a checksum that was left to the device.
        let mut ethtool = nodes[node].command("ethtool");
        process::check(ethtool.args(["-K", interface, "tx", "off"]))?;
        nodes[node].ip(&format!("link set {interface} up\n"))?;
    }
    nodes[MIDDLE].forward()
}

/// Of the client, of the middle towards it, of the middle towards the server, of the server.
fn links(nodes: &[Netns; 3]) -> Result<[Link; 4]> {
    let of = |node: usize, interface: &str| {
        let mut ip = nodes[node].command("ip");
        let text = process::check(ip.args(["-j", "link", "show", "dev", interface]))?;
        let value: Value = serde_json::from_str(&text)?;
        let mac = value[0]["address"].as_str().unwrap_or_default();
        let bytes: Vec<u8> = mac
            .split(':')
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        Ok::<_, anyhow::Error>(Link {
            index: u32::try_from(value[0]["ifindex"].as_u64().context("no index")?)?,
            mac: bytes.try_into().ok().context("no Ethernet address")?,
        })
    };
    Ok([
        of(0, "eth0")?,
        of(1, "in0")?,
        of(1, "out0")?,
        of(2, "eth0")?,
    ])
}

/// Addresses, routes, and neighbours that are known for good.
fn address(nodes: &[Netns; 3], links: &[Link; 4]) -> Result<()> {
    let places = [
        (0, "eth0", 1),
        (1, "in0", 0),
        (1, "out0", 3),
        (2, "eth0", 2),
    ];
    for (at, (node, interface, peer)) in places.into_iter().enumerate() {
        let mac = links[peer].mac.map(|byte| format!("{byte:02x}")).join(":");
        nodes[node].ip(&format!(
            "addr add {}/24 dev {interface}\naddr add {}/64 dev {interface} nodad\n\
             neigh replace {} lladdr {mac} dev {interface} nud permanent\n\
             neigh replace {} lladdr {mac} dev {interface} nud permanent\n",
            V4[at], V6[at], V4[peer], V6[peer]
        ))?;
    }
    nodes[0].ip(&format!(
        "route add default via {}\nroute add default via {}\n",
        V4[1], V6[1]
    ))?;
    nodes[2].ip(&format!(
        "route add default via {}\nroute add default via {}\n",
        V4[2], V6[2]
    ))?;
    nodes[MIDDLE].ip(&format!(
        "route add {} via {}\nroute add {} via {}\n",
        wire::SOURCES4,
        V4[0],
        wire::SOURCES6,
        V6[0]
    ))
}

fn redirect(middle: &Netns, links: &[Link; 4]) -> Result<Ebpf> {
    let mut ebpf = Ebpf::load(&traffic::object()?)?;
    let mut hops: Array<_, [u8; 16]> = Array::try_from(ebpf.map_mut("HOPS").context("HOPS")?)?;
    for (from, out, to) in [(1, 2, 3), (2, 1, 0)] {
        let mut hop = [0; 16];
        hop[..4].copy_from_slice(&links[out].index.to_ne_bytes());
        hop[4..10].copy_from_slice(&links[to].mac);
        hop[10..].copy_from_slice(&links[out].mac);
        hops.set(links[from].index & 15, hop, 0)?;
    }
    attach(middle, ebpf, "redirect")
}

fn pass(middle: &Netns) -> Result<Ebpf> {
    attach(middle, Ebpf::load(&traffic::object()?)?, "pass")
}

/// A program on both interfaces of the middle, in the driver.
fn attach(middle: &Netns, mut ebpf: Ebpf, name: &str) -> Result<Ebpf> {
    let program = traffic::xdp(&mut ebpf, name)?;
    program.load()?;
    middle.within(|| {
        program.attach("in0", XdpMode::Driver)?;
        program.attach("out0", XdpMode::Driver)
    })??;
    Ok(ebpf)
}

/// The usual `ct state` rules. The checksums of all packets are right, and a NIC would
/// have said so: the kernel is not to compute them here.
fn rules(middle: &Netns, mode: Mode) -> Result<()> {
    let helper = if mode == Mode::NftFtp {
        "ct helper ftp-std { type \"ftp\" protocol tcp; }\n\
         chain attach { type filter hook prerouting priority filter; policy accept;\n\
         tcp dport 21 ct helper set \"ftp-std\"\n}\n"
    } else {
        ""
    };
    let hook = if mode.is_host() { "input" } else { "forward" };
    let text = format!(
        "table inet guard {{\n{helper}chain guard {{\n\
         type filter hook {hook} priority filter; policy drop;\n\
         ct state established,related accept\n\
         iifname \"in0\" ct state new accept\n}}\n}}\n"
    );
    process::check_with_input(middle.command("nft").args(["-f", "-"]), &text)?;
    let life = LIFE.to_string();
    for (key, value) in [
        ("nf_conntrack_checksum", "0"),
        ("nf_conntrack_udp_timeout_stream", &life),
        ("nf_conntrack_tcp_timeout_max_retrans", &life),
        ("nf_conntrack_tcp_timeout_unacknowledged", &life),
    ] {
        middle.sysctl(&format!("net/netfilter/{key}"), value)?;
    }
    Ok(())
}

/// In host mode, packets are counted and dropped when the host has accepted them: of the
/// peer's, those of established flows.
fn sink_rules(middle: &Netns, mode: Mode) -> Result<()> {
    let state = if mode == Mode::HostNft {
        "ct state established "
    } else {
        ""
    };
    let text = format!(
        "table inet bench {{\ncounter seen {{}}\nchain sink {{\n\
         type filter hook input priority 10; policy accept;\n\
         {state}udp dport {} counter name \"seen\" drop\n}}\n}}\n",
        wire::PORT
    );
    process::check_with_input(middle.command("nft").args(["-f", "-"]), &text)
}

/// pinhole's, which says the same as the kernel's rules; after so many that match nothing.
/// Without numbered flows, the ends are hosts, whose checksums may be incomplete.
pub(super) fn policy(mode: Mode, flows: u32, fillers: u32) -> String {
    let mut text = if mode.is_host() {
        "[zones.outside]\ninterfaces = [\"in0\"]\n"
    } else {
        "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
         [zones.outside]\ninterfaces = [\"out0\"]\n"
    }
    .to_owned();
    for at in 0..fillers {
        // Of the network that is set aside for benchmarks (RFC 2544).
        let address = Ipv4Addr::from(0xc612_0000 + at);
        let _ = writeln!(
            text,
            "[[rule]]\nname = \"filler-{at}\"\nproto = \"udp\"\ndst = \"{address}\"\n\
             dport = {}\naction = \"accept\"",
            wire::PORT
        );
    }
    if mode.is_host() {
        for proto in ["tcp", "udp"] {
            let _ = writeln!(
                text,
                "[[rule]]\nname = \"in-{proto}\"\nfrom = \"outside\"\nto = \"host\"\n\
                 proto = \"{proto}\"\ndport = {}\naction = \"accept\"",
                wire::PORT
            );
        }
        text.push_str("[[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n");
    } else {
        text.push_str("[[rule]]\nname = \"out\"\nfrom = \"inside\"\naction = \"accept\"\n");
    }
    // A quarter of the table is for what is not TCP.
    let table = (flows * 4).next_power_of_two().max(1 << 16);
    let half_open = flows.next_power_of_two().max(1 << 16);
    let fast = mode == Mode::Fast;
    // The generator writes whole checksums.
    let complete = if fast && flows > 0 {
        "complete-checksums = [\"in0\", \"out0\"]\n"
    } else {
        ""
    };
    let _ = write!(
        text,
        "[timeouts]\nudp-stream = {LIFE}\ntcp-unacknowledged = {LIFE}\n\
         [tables]\nflows = {table}\nhalf-open = {half_open}\n\
         [fast-path]\nenabled = {fast}\n{complete}"
    );
    text
}

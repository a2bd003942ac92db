//! A flood from random sources, while a thousand flows live.
//!
//! Ten times as many packets as the half-open table has room for, as fast as one
//! core makes them; half of them to a service that answers. The default is small;
//! `cargo xtask flood` sends ten million.

use std::{
    collections::HashSet,
    env,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use firewall_common::{
    abi::{Flow, FlowKey4, TableCounter, TableId, maps},
    key::FlowKey as _,
    wire::{Family as Ip, Headers, proto},
};
use firewall_tests::lab::{
    Family, Lab, Netns, Node,
    generator::{self, Aim, Generator, Kind},
    pinhole::{Attach, Firewall},
};
use firewall_user::bpf::maps::all;
use serde_json::Value;

const FLOWS: usize = 1000;
/// Every so many of them is idle while the flood lasts.
const IDLE: usize = 4;
/// The service that answers, a port where nobody listens, and the sender's own service.
const OPEN: u16 = 7000;
const CLOSED: u16 = 7001;
const BEYOND: u16 = 7002;
/// Under a flood a packet may have to be sent again, more than once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a large table the collector takes its time: two passes at 2 % of a CPU.
const COUNTING: Duration = Duration::from_secs(600);
/// Between two new flows from inside.
const APART: Duration = Duration::from_millis(20);
/// Time-outs in seconds: nothing makes room but what the table displaces, however
/// slow the machine.
const LIFE: u32 = 7200;
/// Packets between two looks at how many have arrived.
const CHUNK: u64 = 8192;
/// What `cargo xtask flood` sets.
const PACKETS: &str = "PINHOLE_FLOOD_PACKETS";
const DEFAULT_PACKETS: u64 = 163_840;

fn packets() -> Result<u64> {
    env::var(PACKETS).map_or(Ok(DEFAULT_PACKETS), |text| {
        text.parse().with_context(|| format!("{PACKETS}={text}"))
    })
}

/// The sender's node, the receiver behind its firewall, and the way between.
struct Field {
    lab: Lab,
    firewall: Firewall,
    half_open: u64,
    packets: u64,
}

impl Field {
    fn new() -> Result<Self> {
        let packets = packets()?;
        let tenth = packets / 10;
        let half_open = (1_u64 << tenth.max(1).ilog2()).max(1024);
        let (lab, life) = (Lab::line()?, LIFE);
        let policy = format!(
            "[zones.outside]\ninterfaces = [\"eth0\"]\n\
             [[rule]]\nname = \"tcp\"\nfrom = \"outside\"\nto = \"host\"\nproto = \"tcp\"\n\
             dport = [{OPEN}, {CLOSED}]\naction = \"accept\"\n\
             [[rule]]\nname = \"udp\"\nfrom = \"outside\"\nto = \"host\"\nproto = \"udp\"\n\
             dport = [{OPEN}, {CLOSED}]\naction = \"accept\"\n\
             [[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n\
             [timeouts]\nudp = {life}\nudp-stream = {life}\n\
             tcp-syn-sent = {life}\ntcp-syn-recv = {life}\ntcp-close = {life}\n\
             [tables]\nhalf-open = {half_open}\n"
        );
        let attach = Attach::default();
        let firewall = Firewall::start(&lab, Node::Server, Some(&policy), attach)?;
        let field = Self {
            lab,
            firewall,
            half_open,
            packets,
        };
        generator::prepare(&field.aim()?, field.sender()?)?;
        Ok(field)
    }

    fn inside(&self) -> &Netns {
        self.lab.ns(Node::Server)
    }

    fn outside(&self) -> &Netns {
        self.lab.ns(Node::FwB)
    }

    fn receiver(&self) -> Result<Ipv4Addr> {
        match self.lab.server_ip(Family::V4) {
            std::net::IpAddr::V4(address) => Ok(address),
            other => anyhow::bail!("{other} is not IPv4"),
        }
    }

    /// Of the sender's node, at the wire to the receiver.
    fn sender(&self) -> Result<Ipv4Addr> {
        let [a, b, c, _] = self.receiver()?.octets();
        Ok(Ipv4Addr::new(a, b, c, 1))
    }

    fn aim(&self) -> Result<Aim<'_>> {
        Ok(Aim {
            from: (self.outside(), "in0"),
            to: (self.inside(), "eth0"),
            address: self.receiver()?,
            ports: [OPEN, CLOSED],
            source: None,
        })
    }

    /// Sends the flood, while `traffic` is called over and over in one thread and
    /// `open` in another; both must succeed each time. Returns how often they did.
    fn flood(
        &self,
        kind: Kind,
        mut traffic: impl FnMut() -> Result<()> + Send,
        mut open: impl FnMut() -> Result<()> + Send,
    ) -> Result<[u32; 2]> {
        let mut generator = Generator::new(&self.aim()?, kind, 1)?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| repeat(&over, Duration::ZERO, &mut traffic));
            let open = scope.spawn(|| repeat(&over, APART, &mut open));
            let sent = self.send(&mut generator);
            over.store(true, Ordering::Relaxed);
            let done = [
                joined(traffic).context("traffic of the flows that live")?,
                joined(open).context("new flows from inside")?,
            ];
            let took = sent?.as_secs_f64();
            println!(
                "{} packets in {took:.1} s ({:.0} a second); meanwhile {} rounds of traffic, {} \
                 new flows from inside",
                self.packets,
                self.packets as f64 / took,
                done[0],
                done[1],
            );
            Ok(done)
        })
    }

    /// Sends until the table has taken as many packets as were asked for: what
    /// the wire loses at this rate does not count.
    fn send(&self, generator: &mut Generator<'_>) -> Result<Duration> {
        let data = MapData::from_pin(self.firewall.pins().join(maps::TABLE_COUNTERS))?;
        let counters: PerCpuArray<_, TableCounter> = Map::from_map_data(data)?.try_into()?;
        let taken = || -> Result<u64> {
            let of_cpus = counters.get(&(TableId::Outside4 as u32), 0)?;
            Ok(TableCounter::sum(of_cpus.iter()).created)
        };
        let (began, before) = (Instant::now(), taken()?);
        let mut sent = 0;
        while taken()? - before < self.packets {
            ensure!(sent < 20 * self.packets, "of {sent} hardly any arrive");
            generator.send(CHUNK)?;
            sent += CHUNK;
        }
        println!("{sent} packets sent");
        Ok(began.elapsed())
    }

    /// Keys of the proved IPv4 flows.
    fn proved(&self) -> Result<HashSet<FlowKey4>> {
        let data = MapData::from_pin(self.firewall.pins().join(maps::FLOWS4))?;
        let map: HashMap<_, FlowKey4, Flow> = Map::from_map_data(data)?.try_into()?;
        Ok(all(&map)?.into_iter().map(|(key, _)| key).collect())
    }

    /// That the flood has been what it claims: the table took it, and displaced
    /// all of it but what there is room for; the collector says so, too.
    fn check_flood(&self) -> Result<()> {
        let deadline = Instant::now() + COUNTING;
        loop {
            let stats = self.firewall.json(&["stats"])?;
            let table = named(&stats["tables"], "map", maps::HALF_OPEN4_OUT)?;
            let number = |key: &str| table[key].as_u64().unwrap_or_default();
            let [created, removed] = ["created", "removed"].map(number);
            let [present, evicted] = ["present", "evicted"].map(number);
            ensure!(created >= self.packets, "lost on the way: {table}");
            ensure!(number("size") == self.half_open, "{table}");
            if evicted > 0 && created == removed + evicted + present {
                ensure!(present <= self.half_open, "{table}");
                println!("{table:#}");
                println!("collector: {}", stats["collector"]);
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the count does not come out: {table}"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
}

fn named<'a>(list: &'a Value, key: &str, name: &str) -> Result<&'a Value> {
    let found = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e[key] == name);
    found.with_context(|| format!("no {name} in {list}"))
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

fn repeat(over: &AtomicBool, pause: Duration, act: &mut impl FnMut() -> Result<()>) -> Result<u32> {
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        act()?;
        times += 1;
        thread::sleep(pause);
    }
    Ok(times)
}

/// Both ends of a connection, and how far its transfer has come.
struct Connection {
    near: TcpStream,
    far: TcpStream,
    line: u64,
}

impl Connection {
    fn new(from: &Netns, listener: &TcpListener, to: SocketAddr) -> Result<Self> {
        let near = from.connect(to, PATIENCE)?.context("connect")?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_nodelay(true)?;
        }
        Ok(Self { near, far, line: 0 })
    }

    /// Sends a kilobyte that was never sent before each way, and looks at what arrives.
    fn transfer(&mut self) -> Result<()> {
        self.line += 1;
        let block = self.line.to_ne_bytes().repeat(128);
        let mut got = vec![0; block.len()];
        self.near.write_all(&block)?;
        self.far.read_exact(&mut got)?;
        ensure!(got == block, "line {} is another there", self.line);
        self.far.write_all(&block)?;
        self.near.read_exact(&mut got)?;
        ensure!(got == block, "line {} is another back", self.line);
        Ok(())
    }

    fn key(&self) -> Result<FlowKey4> {
        key(proto::TCP, self.near.local_addr()?, self.near.peer_addr()?)
    }
}

fn key(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Result<FlowKey4> {
    let address = |of: SocketAddr| match of {
        SocketAddr::V4(v4) => Ok(firewall_common::key::map_v4(u32::from_ne_bytes(
            v4.ip().octets(),
        ))),
        SocketAddr::V6(_) => anyhow::bail!("{of} is not IPv4"),
    };
    let headers = Headers {
        family: Ip::V4,
        proto: protocol,
        src: address(src)?,
        dst: address(dst)?,
        sport: src.port(),
        dport: dst.port(),
        ..Headers::ZERO
    };
    Ok(FlowKey4::of(&headers).0)
}

/// What must be in the proved table, and how much of it is not.
fn missing(keys: &[FlowKey4], proved: &HashSet<FlowKey4>) -> usize {
    keys.iter().filter(|key| !proved.contains(key)).count()
}

#[test]
fn a_thousand_connections_survive_a_flood_of_syns() -> Result<()> {
    let field = Field::new()?;
    let to = SocketAddr::from((field.receiver()?, OPEN));
    let listener = field.inside().listen(to)?;
    let mut connections = (0..FLOWS)
        .map(|_| Connection::new(field.outside(), &listener, to))
        .collect::<Result<Vec<_>>>()?;
    let keys = connections
        .iter()
        .map(Connection::key)
        .collect::<Result<Vec<_>>>()?;
    for connection in &mut connections {
        connection.transfer()?;
    }
    ensure!(missing(&keys, &field.proved()?) == 0, "before the flood");
    let beyond = SocketAddr::from((field.sender()?, BEYOND));
    let outer = field.outside().listen(beyond)?;
    let [rounds, opened] = field.flood(
        Kind::Syn,
        || {
            let live = connections.iter_mut().enumerate();
            let mut live = live.filter(|(index, _)| index % IDLE != 0);
            live.try_for_each(|(_, connection)| connection.transfer())
        },
        || Connection::new(field.inside(), &outer, beyond)?.transfer(),
    )?;
    ensure!(rounds > 0 && opened > 0, "nothing happened meanwhile");
    ensure!(missing(&keys, &field.proved()?) == 0, "after the flood");
    for connection in &mut connections {
        connection.transfer()?;
    }
    field.check_flood()
}

/// A service that answers each datagram with itself.
fn answer(socket: &UdpSocket, over: &AtomicBool) -> Result<()> {
    let mut datagram = [0; 64];
    while !over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut datagram) {
            Ok((length, from)) => {
                // The sender of a flood has no way back; that is its trouble.
                let _ = socket.send_to(&datagram[..length], from);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn udp(ns: &Netns, at: SocketAddr) -> Result<UdpSocket> {
    let socket = ns.within(|| UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(socket)
}

/// A datagram there and back; sent again when one of both gets lost.
fn exchange(socket: &UdpSocket, line: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut got = [0; 8];
    while Instant::now() < deadline {
        socket.send(&line.to_ne_bytes())?;
        // What was late the last time comes first.
        while socket.recv(&mut got).is_ok() {
            if got == line.to_ne_bytes() {
                return Ok(());
            }
        }
    }
    anyhow::bail!("no answer to line {line} within {PATIENCE:?}")
}

#[test]
fn a_thousand_udp_flows_survive_a_flood_of_datagrams() -> Result<()> {
    let field = Field::new()?;
    let to = SocketAddr::from((field.receiver()?, OPEN));
    let beyond = SocketAddr::from((field.sender()?, BEYOND));
    let (service, outer) = (udp(field.inside(), to)?, udp(field.outside(), beyond)?);
    let any = SocketAddr::from((field.sender()?, 0));
    let sockets = (0..FLOWS)
        .map(|_| {
            let socket = udp(field.outside(), any)?;
            socket.connect(to)?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    let keys = sockets
        .iter()
        .map(|socket| key(proto::UDP, socket.local_addr()?, to))
        .collect::<Result<Vec<_>>>()?;
    let own = SocketAddr::from((field.receiver()?, 0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let services = [&service, &outer].map(|socket| scope.spawn(|| answer(socket, &over)));
        let done = udp_flood(&field, &sockets, &keys, own, beyond);
        over.store(true, Ordering::Relaxed);
        for service in services {
            joined(service)?;
        }
        done
    })
}

fn udp_flood(
    field: &Field,
    sockets: &[UdpSocket],
    keys: &[FlowKey4],
    own: SocketAddr,
    beyond: SocketAddr,
) -> Result<()> {
    sockets.iter().try_for_each(|socket| exchange(socket, 0))?;
    ensure!(missing(keys, &field.proved()?) == 0, "before the flood");
    let mut line = 0;
    let [_, opened] = field.flood(
        Kind::Udp,
        || {
            line += 1;
            let mut live = sockets.iter().enumerate().filter(|(i, _)| i % IDLE != 0);
            live.try_for_each(|(_, socket)| exchange(socket, line))
        },
        || {
            let socket = udp(field.inside(), own)?;
            socket.connect(beyond)?;
            exchange(&socket, 1)
        },
    )?;
    ensure!(opened > 0, "no flow from inside was opened meanwhile");
    ensure!(missing(keys, &field.proved()?) == 0, "after the flood");
    sockets
        .iter()
        .try_for_each(|socket| exchange(socket, u64::MAX))?;
    field.check_flood()
}

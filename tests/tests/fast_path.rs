//! The fast path of a gateway: what takes it arrives as if the kernel had forwarded
//! it, and what needs the kernel gets it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    client::{self, FtpCommand, Request},
    datagram::{self, Pair},
    fast, passage,
    pinhole::{Attach, Firewall, XdpMode, config, view::Flow},
    process,
    server::{self, FtpServer},
};
use socket2::SockRef;

const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(2);
/// Longer than what was looked up holds.
const A_MOMENT: Duration = Duration::from_millis(200);
/// A port that the policy refuses.
const REFUSED: u16 = 9999;
const OFF: &str = "[fast-path]\nenabled = false\n";

/// Everything may pass fw-b but one port; `more` stands before it.
fn policy(more: &str) -> String {
    format!(
        "{more}[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
         [zones.outside]\ninterfaces = [\"out0\", \"out1\"]\n\
         [[rule]]\nname = \"no\"\nproto = \"tcp\"\ndport = {REFUSED}\naction = \"drop\"\n\
         [[rule]]\nname = \"out\"\nfrom = \"inside\"\nto = \"outside\"\naction = \"accept\"\n\
         [[rule]]\nname = \"in\"\nfrom = \"outside\"\nto = \"inside\"\naction = \"accept\"\n"
    )
}

/// A lab whose wires at fw-b are fit for the fast path, with a second one to the net:
/// `out1` to `b1`.
fn lab() -> Result<Lab> {
    let lab = Lab::line()?;
    fast::complete_checksums(&lab)?;
    fast::take_redirects(&lab)?;
    let (gateway, net) = (lab.ns(Node::FwB), lab.ns(Node::Net));
    gateway.ip(&format!(
        "link add out1 type veth peer name b1 netns {}\n\
         addr add 198.51.100.9/30 dev out1\nlink set out1 up\n",
        net.name()
    ))?;
    net.ip("addr add 198.51.100.10/30 dev b1\nlink set b1 up\n")?;
    fast::prepare_end(net, "b1")?;
    Ok(lab)
}

fn guard(lab: &Lab, more: &str) -> Result<Firewall> {
    Firewall::start(lab, Node::FwB, Some(&policy(more)), Attach::default())
}

/// A lab and a guard with the fast path on.
fn rig() -> Result<(Firewall, Lab)> {
    let lab = lab()?;
    let firewall = guard(&lab, "")?;
    for interface in ["in0", "out0"] {
        let fast = firewall.fast(interface)?;
        ensure!(fast.from && fast.to, "{fast:?}: {}", firewall.said());
    }
    Ok((firewall, lab))
}

/// A TCP transfer that runs until it is told to end.
struct Stream {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicUsize>,
    ends: [JoinHandle<Result<usize>>; 2],
}

impl Stream {
    /// From the server to the client, which connected.
    fn begin(lab: &Lab, family: Family) -> Result<Self> {
        let (near, far) = connection(lab, family)?;
        let (stop, arrived) = (Arc::default(), Arc::default());
        let ends = [
            thread::spawn({
                let stop = Arc::clone(&stop);
                move || send(far, &stop)
            }),
            thread::spawn({
                let arrived = Arc::clone(&arrived);
                move || receive(near, &arrived)
            }),
        ];
        let stream = Self {
            stop,
            arrived,
            ends,
        };
        stream.goes_on()?;
        Ok(stream)
    }

    /// Waits for half a megabyte more.
    fn goes_on(&self) -> Result<()> {
        let wanted = self.arrived.load(Ordering::Relaxed) + 500_000;
        process::await_some("the transfer goes on", SOON, || {
            (self.arrived.load(Ordering::Relaxed) >= wanted).then_some(())
        })
    }

    /// Ends it: all that was sent has arrived.
    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let [sent, received] = self.ends.map(|end| {
            let ended = end.join().map_err(|_| anyhow!("an end panicked"));
            ended.and_then(|result| result)
        });
        let (sent, received) = (sent?, received?);
        ensure!(sent == received, "{received} of {sent} bytes arrived");
        Ok(())
    }
}

fn send(mut to: TcpStream, stop: &AtomicBool) -> Result<usize> {
    to.set_write_timeout(Some(SOON))?;
    let chunk: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        to.write_all(&chunk).context("send")?;
        sent += chunk.len();
        // A few megabytes a second are enough.
        thread::sleep(Duration::from_millis(3));
    }
    Ok(sent)
}

fn receive(mut from: TcpStream, arrived: &AtomicUsize) -> Result<usize> {
    from.set_read_timeout(Some(SOON))?;
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer).context("receive")?;
        if count == 0 {
            return Ok(total);
        }
        for (at, byte) in (total..).zip(&buffer[..count]) {
            ensure!(*byte == (at % 20_000 % 251) as u8, "byte {at} is another");
        }
        total += count;
        arrived.store(total, Ordering::Relaxed);
    }
}

/// A connection from client to server: its ends.
fn connection(lab: &Lab, family: Family) -> Result<(TcpStream, TcpStream)> {
    let (listener, to): (TcpListener, _) = listen(lab, family)?;
    let near = lab.ns(Node::Client).connect(to, SOON)?.context("connect")?;
    Ok((near, listener.accept()?.0))
}

fn listen(lab: &Lab, family: Family) -> Result<(TcpListener, SocketAddr)> {
    let at = SocketAddr::new(lab.server_ip(family), 0);
    let listener = lab.ns(Node::Server).listen(at)?;
    let to = listener.local_addr()?;
    Ok((listener, to))
}

/// Two UDP sockets, client's and server's, with an established flow between them.
fn talk(lab: &Lab, family: Family) -> Result<(UdpSocket, UdpSocket)> {
    let socket = |node, at: SocketAddr| -> Result<UdpSocket> {
        let socket = lab.ns(node).within(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(SHORT))?;
        Ok(socket)
    };
    let near = socket(Node::Client, SocketAddr::new(lab.client_ip(family), 0))?;
    let far = socket(Node::Server, SocketAddr::new(lab.server_ip(family), 0))?;
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    for _ in 0..4 {
        says(&near, &far)?;
        says(&far, &near)?;
    }
    Ok((near, far))
}

fn says(from: &UdpSocket, to: &UdpSocket) -> Result<()> {
    from.send(b"datagram")?;
    let mut buffer = [0; 64];
    let len = to.recv(&mut buffer).context("a datagram is lost")?;
    ensure!(&buffer[..len] == b"datagram");
    Ok(())
}

fn flow_of(firewall: &Firewall, socket: &UdpSocket) -> Result<Flow> {
    let ends = (socket.local_addr()?, socket.peer_addr()?);
    let mut flows = firewall.flows()?.into_iter();
    flows
        .find(|flow| flow.ends() == Some(ends))
        .context("the flow")
}

/// TCP, UDP of one and of several fragments, and echo: on and off they arrive alike,
/// and are counted alike; new flows are judged alike.
#[test]
fn what_arrives_is_the_same_on_and_off() -> Result<()> {
    let lab = lab()?;
    let mut counted = Vec::new();
    for more in ["", OFF] {
        let firewall = guard(&lab, more)?;
        for family in Family::BOTH {
            let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
            let [near, far] = [lab.client_ip(family), lab.server_ip(family)];
            passage::transfer(client, server, SocketAddr::new(far, 7000))?;
            passage::transfer(server, client, SocketAddr::new(near, 7000))?;
            ensure!(passage::is_dropped(
                client,
                server,
                SocketAddr::new(far, REFUSED)
            )?);
            ensure!(datagram::ping(client, far, 56)?, "{family:?}");
            let pair = Pair::bind(
                (client, SocketAddr::new(near, 7001)),
                (server, SocketAddr::new(far, 7001)),
            )?;
            for len in [1, 1000, 8000, 1000] {
                let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
                pair.there_and_back(&payload)?;
            }
            let (near, far) = talk(&lab, family)?;
            for _ in 0..20 {
                says(&near, &far)?;
            }
            let flow = flow_of(&firewall, &near)?;
            counted.push((family, flow.original.bytes, flow.reply.bytes));
        }
        let listed = firewall.json(&["stats", "--all"])?;
        let fast = listed["fast_path"].as_array().context("fast_path")?;
        let packets: u64 = fast.iter().filter_map(|f| f["packets"].as_u64()).sum();
        let status = firewall.cli(&["status"])?.stdout;
        if more.is_empty() {
            for interface in ["in0", "out0"] {
                let fast = firewall.fast(interface)?;
                ensure!(fast.packets > 1000, "{fast:?}");
                ensure!(fast.share.is_some_and(|share| share > 0.5), "{fast:?}");
                // Fragments of what takes it do not take it.
                ensure!(fast.kept("header") > 0, "{fast:?}");
                ensure!(fast.kept("unproved") == 0, "{fast:?}");
            }
            ensure!(status.contains("FAST PATH"), "{status}");
        } else {
            ensure!(packets == 0, "{listed}");
            ensure!(
                status.contains("fast path: off, as the policy says"),
                "{status}"
            );
            ensure!(
                firewall
                    .said()
                    .contains("fast path: off, as the policy says")
            );
        }
    }
    let (on, off) = counted.split_at(2);
    ensure!(on == off, "counted {on:?} and {off:?}");
    Ok(())
}

#[test]
fn a_transfer_goes_on_across_changes_of_route_mtu_and_link() -> Result<()> {
    let (firewall, lab) = rig()?;
    let (gateway, net) = (lab.ns(Node::FwB), lab.ns(Node::Net));
    let stream = Stream::begin(&lab, Family::V4)?;
    let before = firewall.fast("out1")?.packets;
    gateway.ip("route replace default via 198.51.100.10\n")?;
    net.ip("route replace 203.0.113.0/24 via 198.51.100.9\n")?;
    stream.goes_on()?;
    let after = firewall.fast("out1")?;
    ensure!(
        after.packets > before,
        "{after:?}: nothing came by the new way"
    );

    net.ip("link set b1 mtu 1200\n")?;
    gateway.ip("link set out1 mtu 1200\n")?;
    stream.goes_on()?;
    ensure!(firewall.fast("in0")?.kept("too-big") > 0);

    gateway.ip("link set out1 down\n")?;
    thread::sleep(Duration::from_millis(300));
    // What the kernel forgot with it, and the operator puts back.
    gateway.ip("link set out1 up\nroute replace default via 198.51.100.10\n")?;
    let lost = firewall.fast("in0")?.packets;
    stream.goes_on()?;
    let fast = firewall.fast("in0")?;
    ensure!(fast.packets > lost, "{fast:?}");
    ensure!(
        fast.kept("route") + fast.kept("no-neighbour") > 0,
        "{fast:?}"
    );
    stream.end()
}

/// With the fast path on and off alike: the sender is told by the gateway.
#[test]
fn what_is_too_big_gets_its_answer() -> Result<()> {
    for more in ["", OFF] {
        // A new one each time: what the server learns of a path it remembers.
        let lab = lab()?;
        lab.ns(Node::Net).ip("link set b0 mtu 1300")?;
        lab.ns(Node::FwB).ip("link set out0 mtu 1300")?;
        let firewall = guard(&lab, more)?;
        for family in Family::BOTH {
            let (_near, far) = talk(&lab, family)?;
            far.send(&[7; 1400])?;
            process::await_some("the sender learns the MTU", SHORT, || {
                // The error about the first, or the refusal of another.
                far.send(&[7; 1400]).err()
            })?;
        }
        if more.is_empty() {
            ensure!(firewall.fast("in0")?.kept("too-big") > 0);
        }
    }
    Ok(())
}

#[test]
fn a_time_to_live_of_one_gets_its_answer() -> Result<()> {
    let (firewall, lab) = rig()?;
    for family in Family::BOTH {
        let (near, far) = talk(&lab, family)?;
        let before = firewall.fast("in0")?;
        let answers = Answers::listen(&lab, family)?;
        set_hops(&far, 1)?;
        far.send(b"datagram")?;
        ensure!(answers.time_exceeded(), "{family:?}: no answer");
        let after = firewall.fast("in0")?;
        ensure!(after.kept("ttl") == before.kept("ttl") + 1, "{after:?}");
        // The control: with one hop more it passes the gateway, and the next answers.
        set_hops(&far, 2)?;
        far.send(b"datagram")?;
        ensure!(answers.time_exceeded());
        ensure!(firewall.fast("in0")?.packets == after.packets + 1);
        set_hops(&far, 64)?;
        says(&far, &near)?;
    }
    Ok(())
}

/// ICMP as the server gets it.
struct Answers {
    socket: UdpSocket,
    kind: u8,
    header: usize,
}

impl Answers {
    fn listen(lab: &Lab, family: Family) -> Result<Self> {
        use socket2::{Domain, Protocol, Socket, Type};
        let (domain, protocol, kind, header) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4, 11, 20),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6, 3, 0),
        };
        let server = lab.ns(Node::Server);
        let socket = server.within(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
        socket.set_read_timeout(Some(SHORT))?;
        Ok(Self {
            socket: socket.into(),
            kind,
            header,
        })
    }

    fn time_exceeded(&self) -> bool {
        let mut buffer = [0; 2048];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            if len > self.header && buffer[self.header] == self.kind {
                return true;
            }
        }
        false
    }
}

fn set_hops(socket: &UdpSocket, hops: u32) -> Result<()> {
    match socket.local_addr()?.ip() {
        IpAddr::V4(_) => SockRef::from(socket).set_ttl_v4(hops)?,
        IpAddr::V6(_) => SockRef::from(socket).set_unicast_hops_v6(hops)?,
    }
    Ok(())
}

#[test]
fn a_packet_to_a_forgotten_neighbour_arrives() -> Result<()> {
    let (firewall, lab) = rig()?;
    for family in Family::BOTH {
        let (near, far) = talk(&lab, family)?;
        let before = firewall.fast("out0")?;
        let server = lab.server_ip(family);
        lab.ns(Node::FwB)
            .ip(&format!("neigh del {server} dev in0"))?;
        thread::sleep(A_MOMENT);
        says(&near, &far)?;
        let after = firewall.fast("out0")?;
        let unknown = |fast: &fast::Fast| fast.kept("no-neighbour");
        ensure!(unknown(&after) > unknown(&before), "{after:?}");
        says(&near, &far)?;
        ensure!(firewall.fast("out0")?.packets > after.packets, "{family:?}");
    }
    Ok(())
}

/// From the first packet on, and to the last: nothing of a connection needs the kernel, and
/// no packet is counted twice or not at all.
#[test]
fn whole_connections_take_it() -> Result<()> {
    let (firewall, lab) = rig()?;
    for family in Family::BOTH {
        // The next hops are known, and need no refreshing for some seconds.
        talk(&lab, family)?;
        let at = |interface| firewall.fast(interface);
        let before = (at("in0")?, at("out0")?);
        for _ in 0..5 {
            let (near, far) = connection(&lab, family)?;
            SockRef::from(&far).set_linger(Some(Duration::ZERO))?;
            drop(far);
            drop(near);
            let (near, far) = connection(&lab, family)?;
            drop(near);
            drop(far);
            talk(&lab, family)?;
        }
        let after = (at("in0")?, at("out0")?);
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            let took = after.packets - before.packets;
            let fresh = after.kept("refresh") - before.kept("refresh");
            let kept = after.kernel_packets - before.kernel_packets;
            // Handshakes and ends of ten connections, and twenty datagrams.
            ensure!(took >= 40, "{before:?} {after:?}");
            // Neighbours that nobody has asked for in a while, IPv6 of the next hop.
            let unknown = after.kept("no-neighbour") - before.kept("no-neighbour");
            ensure!(kept == fresh + unknown && kept <= 4, "{before:?} {after:?}");
        }
    }
    Ok(())
}

#[test]
fn a_new_flow_to_an_unknown_neighbour_comes_about() -> Result<()> {
    let (firewall, lab) = rig()?;
    for family in Family::BOTH {
        let server = lab.server_ip(family);
        for _ in 0..2 {
            let before = firewall.fast("out0")?;
            lab.ns(Node::FwB)
                .ip(&format!("neigh del {server} dev in0"))
                .or_else(|_| lab.ns(Node::FwB).ip("neigh flush dev in0"))?;
            thread::sleep(A_MOMENT);
            let (mut near, mut far) = connection(&lab, family)?;
            far.write_all(b"x")?;
            near.read_exact(&mut [0])?;
            let after = firewall.fast("out0")?;
            let unknown = |fast: &fast::Fast| fast.kept("no-neighbour");
            ensure!(unknown(&after) > unknown(&before), "{after:?}");
        }
    }
    Ok(())
}

/// Whoever borrows an address in the first packet of a flow is for the kernel to judge: it
/// forwards nothing that says to be from itself.
#[test]
fn a_source_that_does_not_lead_back_is_the_kernels_to_judge() -> Result<()> {
    use socket2::{Domain, Socket, Type};
    let (firewall, lab) = rig()?;
    let server = SocketAddr::new(lab.server_ip(Family::V4), 0);
    let far = lab.ns(Node::Server).within(|| UdpSocket::bind(server))??;
    far.set_read_timeout(Some(SHORT))?;
    let port = far.local_addr()?;
    // The gateway's own; one of the server's network; one that is routed to where it is.
    for (source, arrives, kept) in [
        ("198.51.100.5", false, 2),
        ("203.0.113.77", true, 2),
        ("192.0.2.77", true, 0),
    ] {
        let socket = lab.ns(Node::Net).within(|| -> Result<UdpSocket> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SocketAddr::new(source.parse()?, 0).into())?;
            Ok(socket.into())
        })??;
        let before = firewall.fast("out0")?;
        for _ in 0..2 {
            socket.send_to(b"datagram", port)?;
            let arrived = far.recv(&mut [0; 64]).is_ok();
            ensure!(arrived == arrives, "{source}: {arrived}");
        }
        let after = firewall.fast("out0")?;
        let unproved = after.kept("unproved") - before.kept("unproved");
        ensure!(unproved == kept, "{source}: {after:?}");
    }
    Ok(())
}

/// Routing by more than the destination: what it holds for is looked up, and the first
/// packets of a flow are left to the kernel.
#[test]
fn routing_by_source_leaves_first_packets_to_the_kernel() -> Result<()> {
    let (firewall, lab) = rig()?;
    let (near, far) = talk(&lab, Family::V4)?;
    let unproved = || Ok::<_, anyhow::Error>(firewall.fast("out0")?.kept("unproved"));
    ensure!(unproved()? == 0);
    lab.ns(Node::FwB)
        .ip("rule add from 192.0.2.0/24 lookup main
")?;
    process::await_some("a new flow is left to the kernel", SOON, || {
        talk(&lab, Family::V4).ok()?;
        (unproved().ok()? > 0).then_some(())
    })?;
    let before = firewall.fast("out0")?;
    says(&near, &far)?;
    let after = firewall.fast("out0")?;
    let refresh = after.kept("refresh") - before.kept("refresh");
    ensure!(after.packets + refresh == before.packets + 1, "{after:?}");
    Ok(())
}

/// A steady flow: a packet for each of its next hops goes to the kernel now and then.
#[test]
fn neighbours_stay_fresh() -> Result<()> {
    let (firewall, lab) = rig()?;
    let (near, far) = talk(&lab, Family::V4)?;
    let before = firewall.fast("out0")?;
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        says(&near, &far)?;
        thread::sleep(Duration::from_millis(20));
    }
    let after = firewall.fast("out0")?;
    let times = after.kept("refresh") - before.kept("refresh");
    ensure!((1..=4).contains(&times), "{times} times in 12 s");
    let took = after.packets - before.packets;
    ensure!(took > 20 * times, "{took} took it");
    Ok(())
}

/// Rules of the kernel's are not bypassed: not those that are there, nor those that
/// come later.
#[test]
fn rules_of_the_kernel_turn_it_off() -> Result<()> {
    let lab = lab()?;
    let gateway = lab.ns(Node::FwB);
    let nft = |text: &str| {
        let mut command = gateway.command("nft");
        process::check_with_input(command.args(["-f", "-"]), text)
    };
    nft(
        "table ip site { chain through { type filter hook forward priority 0;\n\
         udp dport 1 counter drop; }\n}\n",
    )?;
    let firewall = guard(&lab, "")?;
    let said = firewall.said();
    ensure!(said.contains("fast path: off, the kernel forwards: chain through of table ip site (forward), with 1 rule"), "{said}");
    ensure!(said.contains("nft delete chain ip site through"), "{said}");
    let (near, far) = talk(&lab, Family::V4)?;
    let fast = firewall.fast("out0")?;
    ensure!(
        fast.obstacles == ["kernel-rules"] && fast.packets == 0,
        "{fast:?}"
    );
    nft("delete table ip site\n")?;
    process::await_some("the fast path is on", SOON, || {
        says(&near, &far).ok()?;
        (firewall.fast("out0").ok()?.packets > 0).then_some(())
    })?;
    nft(
        "table ip site { chain through { type filter hook forward priority 0;\n\
         meta l4proto udp drop; }\n}\n",
    )?;
    process::await_some("the rule is obeyed", SOON, || {
        near.send(b"datagram").ok()?;
        far.recv(&mut [0; 64]).is_err().then_some(())
    })?;
    ensure!(
        firewall.said().contains("meta") || firewall.said().matches("chain through").count() == 2
    );
    Ok(())
}

/// Senders on a veth that leave checksums to the device: found out in their own
/// namespaces, said, and left to the kernel. The control is an operator who vouches
/// for them all the same.
#[test]
fn unwritten_checksums_turn_it_off() -> Result<()> {
    let lab = Lab::line()?;
    fast::take_redirects(&lab)?;
    let text = |more: &str| policy(more).replace(", \"out1\"", "");
    let attach = Attach::default();
    {
        let firewall = Firewall::start(&lab, Node::FwB, Some(&text("")), attach)?;
        let said = firewall.said();
        for (interface, peer) in [("in0", "eth0"), ("out0", "b0")] {
            let wanted = format!(
                "fast path: {interface}: the kernel forwards what arrives there: {peer}, its other end"
            );
            ensure!(said.contains(&wanted), "{said}");
            ensure!(
                said.contains(&format!("`ethtool -K {peer} tx off` there")),
                "{said}"
            );
            let fast = firewall.fast(interface)?;
            ensure!(
                fast.obstacles == ["partial-checksums"] && fast.to && !fast.from,
                "{fast:?}"
            );
        }
        Stream::begin(&lab, Family::V4)?.end()?;
        ensure!(firewall.fast("in0")?.packets == 0);
    }
    let vouched = "[fast-path]\ncomplete-checksums = [\"in0\", \"out0\"]\n";
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text(vouched)), attach)?;
    let (mut near, mut far) = connection(&lab, Family::V4)?;
    near.set_read_timeout(Some(SHORT))?;
    far.set_nodelay(true)?;
    // The first of all goes through the kernel: nobody has asked for its neighbour yet.
    for _ in 0..20 {
        far.write_all(&[7; 100])?;
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(
        near.read_exact(&mut [0; 2000]).is_err(),
        "the checksums were whole after all"
    );
    ensure!(firewall.fast("in0")?.packets > 0);
    Ok(())
}

/// The far end of a veth that takes no packets from XDP: it would lose them all.
#[test]
fn a_device_that_takes_no_redirect_turns_it_off() -> Result<()> {
    let lab = Lab::line()?;
    fast::complete_checksums(&lab)?;
    let text = policy("").replace(", \"out1\"", "");
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    let fast = firewall.fast("in0")?;
    ensure!(
        fast.obstacles == ["no-redirect"] && !fast.to && fast.from,
        "{fast:?}"
    );
    Stream::begin(&lab, Family::V6)?.end()?;
    let fast = firewall.fast("in0")?;
    ensure!(fast.packets == 0 && fast.kept("way-out") > 0, "{fast:?}");
    // Once it does, it is found out.
    fast::take_redirects(&lab)?;
    process::await_some("the devices take redirects", SOON, || {
        firewall.fast("out0").ok()?.to.then_some(())
    })?;
    Stream::begin(&lab, Family::V6)?.end()?;
    ensure!(firewall.fast("in0")?.packets > 0);
    Ok(())
}

#[test]
fn shaping_and_generic_mode_turn_it_off() -> Result<()> {
    let lab = lab()?;
    let gateway = lab.ns(Node::FwB);
    let shaped = "qdisc add dev out0 root tbf rate 100mbit burst 64kb latency 50ms";
    process::check(gateway.command("tc").args(shaped.split(' ')))?;
    {
        let firewall = guard(&lab, "")?;
        let fast = firewall.fast("out0")?;
        ensure!(
            fast.obstacles == ["shaping"] && fast.from && !fast.to,
            "{fast:?}"
        );
        ensure!(
            firewall
                .said()
                .contains("its queueing discipline tbf would be bypassed")
        );
        Stream::begin(&lab, Family::V4)?.end()?;
        ensure!(firewall.fast("in0")?.packets == 0, "past the shaper");
        ensure!(firewall.fast("out0")?.packets > 0, "the other way is free");
    }
    process::check(
        gateway
            .command("tc")
            .args("qdisc del dev out0 root".split(' ')),
    )?;
    let generic = Attach {
        xdp: XdpMode::Generic,
        ..Attach::default()
    };
    let firewall = Firewall::start(&lab, Node::FwB, Some(&policy("")), generic)?;
    let fast = firewall.fast("in0")?;
    ensure!(fast.obstacles == ["generic-xdp"], "{fast:?}");
    Stream::begin(&lab, Family::V4)?.end()?;
    ensure!(firewall.fast("in0")?.packets == 0);
    Ok(())
}

#[test]
fn routing_by_mark_turns_it_off_and_forwarding_is_the_kernels_to_grant() -> Result<()> {
    let (firewall, lab) = rig()?;
    let gateway = lab.ns(Node::FwB);
    let (near, far) = talk(&lab, Family::V4)?;
    // The kernel's switch stops the fast path.
    gateway.sysctl("net/ipv4/ip_forward", "0")?;
    thread::sleep(A_MOMENT);
    near.send(b"datagram")?;
    ensure!(far.recv(&mut [0; 64]).is_err(), "forwarded all the same");
    ensure!(firewall.fast("out0")?.kept("route") > 0);
    gateway.sysctl("net/ipv4/ip_forward", "1")?;
    says(&near, &far)?;
    gateway.ip("rule add fwmark 7 lookup 100\n")?;
    process::await_some("the rule is seen", SOON, || {
        let fast = firewall.fast("in0").ok()?;
        (fast.obstacles == ["mark-routing"]).then_some(())
    })?;
    let before = firewall.fast("out0")?.packets;
    says(&near, &far)?;
    ensure!(firewall.fast("out0")?.packets == before);
    Ok(())
}

#[test]
fn without_an_agent_the_kernel_forwards() -> Result<()> {
    let (mut firewall, lab) = rig()?;
    let (near, far) = talk(&lab, Family::V4)?;
    let takes = |firewall: &Firewall| -> Result<bool> {
        let before = firewall.fast("out0")?.packets;
        for _ in 0..3 {
            says(&near, &far)?;
        }
        Ok(firewall.fast("out0")?.packets > before)
    };
    process::await_some("it is fast", SOON, || takes(&firewall).ok()?.then_some(()))?;
    firewall.kill_agent();
    process::await_some("it is the kernel's", SOON, || {
        (!takes(&firewall).ok()?).then_some(())
    })?;
    Ok(())
}

#[test]
fn shadow_mode_forwards_nothing_itself() -> Result<()> {
    let lab = lab()?;
    let text = policy("");
    let firewall = Firewall::start_with(
        &lab,
        Node::FwB,
        Some(&text),
        Attach::default(),
        &["--shadow"],
    )?;
    ensure!(firewall.said().contains("fast path: off in shadow mode"));
    Stream::begin(&lab, Family::V4)?.end()?;
    let stats = firewall.json(&["stats", "--all"])?;
    let fast = stats["fast_path"].as_array().context("fast_path")?;
    ensure!(fast.iter().all(|f| f["packets"] == 0), "{stats}");
    Ok(())
}

/// Control connections go through the kernel, their data through the fast path.
#[test]
fn ftp_works_through_it() -> Result<()> {
    let lab = lab()?;
    let text = config::gateway(Node::FwB, true);
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    let server = FtpServer::start(&lab, server::Kind::Pyftpdlib)?;
    for (command, family) in [
        (FtpCommand::Pasv, Family::V4),
        (FtpCommand::Port, Family::V4),
        (FtpCommand::Epsv, Family::V6),
        (FtpCommand::Eprt, Family::V6),
    ] {
        let outcome = Request::new(&lab, client::Kind::Ftplib, command, family).run(&lab)?;
        ensure!(
            outcome.is(server.payload()),
            "{command:?} {family:?}: {outcome:?}"
        );
    }
    let fast = firewall.fast("in0")?;
    ensure!(fast.kept("control") > 0 && fast.packets > 1000, "{fast:?}");
    // The control: without the helper no data connection comes about.
    drop(firewall);
    let text = config::gateway(Node::FwB, false);
    let _firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    let outcome =
        Request::new(&lab, client::Kind::Ftplib, FtpCommand::Pasv, Family::V4).run(&lab)?;
    ensure!(outcome.hung_at_data(), "{outcome:?}");
    Ok(())
}

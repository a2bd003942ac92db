//! Paths with VLAN tags, and paths without Ethernet: a transfer completes, an
//! intruder is dropped, and without the firewall gets in.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Netns, Node,
    passage::{is_dropped, transfer},
    pinhole::{self, Attach, Firewall, TcKind, XdpMode},
    process,
    tun_wire::{self, TunWire},
    vlan::{self, C_TAG, S_TAG, VlanEnd},
};

/// The port that the policies here open.
const OPEN: u16 = 8000;
/// One that they do not.
const CLOSED: u16 = 2222;
const SOON: Duration = Duration::from_secs(5);

/// How the wire between the server and its router is tagged, the outer tag first.
const SHAPES: [&[u16]; 3] = [&[C_TAG], &[S_TAG, C_TAG], &[C_TAG, C_TAG]];

fn host(interface: &str) -> String {
    format!(
        "[zones.outside]\ninterfaces = [\"{interface}\"]\n\
         [[rule]]\nname = \"open\"\nfrom = \"outside\"\nto = \"host\"\nproto = \"tcp\"\n\
         dport = {OPEN}\naction = \"accept\"\n\
         [[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n"
    )
}

fn gateway(inside: &str, outside: &str) -> String {
    format!(
        "[zones.inside]\ninterfaces = [\"{inside}\"]\ntrusted = true\n\
         [zones.outside]\ninterfaces = [\"{outside}\"]\n\
         [[rule]]\nname = \"open\"\nfrom = \"outside\"\nto = \"inside\"\nproto = \"tcp\"\n\
         dport = {OPEN}\naction = \"accept\"\n\
         [[rule]]\nname = \"out\"\nfrom = \"inside\"\nto = \"outside\"\naction = \"accept\"\n"
    )
}

/// A transfer to the open port and one back out complete; the closed one is dropped
/// by policy, and no rule of this policy would have been needed to reach it.
fn guarded(firewall: &Firewall, from: &Netns, to: &Netns, far: IpAddr, near: IpAddr) -> Result<()> {
    transfer(from, to, SocketAddr::new(far, OPEN)).context("to the open port")?;
    transfer(to, from, SocketAddr::new(near, CLOSED)).context("from inside")?;
    let before = firewall.stats()?.dropped("policy");
    ensure!(
        is_dropped(from, to, SocketAddr::new(far, CLOSED))?,
        "the intruder got in"
    );
    let dropped = firewall.stats()?.dropped("policy") - before;
    ensure!(dropped > 0, "what dropped the intruder was not the policy");
    Ok(())
}

/// The wire between the server and its router, with VLAN end points.
struct Tagged {
    _ends: [VlanEnd; 2],
}

impl Tagged {
    /// Tags all frames, leaving the outer tag beside them where `offload` is on.
    fn wire(lab: &Lab, tags: &[u16], offload: bool) -> Result<Self> {
        let (router, server) = (lab.ns(Node::FwB), lab.ns(Node::Server));
        vlan::offload(router, "in0", offload)?;
        vlan::offload(server, "eth0", offload)?;
        // Room for the tags: a veth takes four bytes beyond its MTU.
        server.ip("route change default via 203.0.113.1 mtu 1400\n\
             route change default via 2001:db8:b::1 mtu 1400\n")?;
        Ok(Self {
            _ends: [
                VlanEnd::attach(router, "in0", tags, lab.name("vlan-router"))?,
                VlanEnd::attach(server, "eth0", tags, lab.name("vlan-server"))?,
            ],
        })
    }
}

fn tagged_path_is_guarded(node: Node, config: &str, attach: Attach, offload: bool) -> Result<()> {
    let lab = Lab::line()?;
    let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let firewall = Firewall::start(&lab, node, Some(config), attach)?;
    for tags in SHAPES {
        let _tagged = Tagged::wire(&lab, tags, offload)?;
        for family in Family::BOTH {
            let (far, near) = (lab.server_ip(family), lab.client_ip(family));
            guarded(&firewall, client, server, far, near)
                .with_context(|| format!("{tags:x?} over {family:?}: {:?}", firewall.stats()))?;
        }
    }
    drop(firewall);
    let _tagged = Tagged::wire(&lab, SHAPES[1], offload)?;
    for family in Family::BOTH {
        let far = SocketAddr::new(lab.server_ip(family), CLOSED);
        ensure!(
            !is_dropped(client, server, far)?,
            "unguarded, the same attempt does not get in"
        );
    }
    Ok(())
}

#[test]
fn vlan_and_qinq_to_a_host() -> Result<()> {
    tagged_path_is_guarded(Node::Server, &host("eth0"), Attach::default(), false)
}

#[test]
fn vlan_and_qinq_to_a_host_with_generic_xdp_and_clsact() -> Result<()> {
    let attach = Attach {
        xdp: XdpMode::Generic,
        tc: TcKind::Clsact,
    };
    tagged_path_is_guarded(Node::Server, &host("eth0"), attach, false)
}

#[test]
fn vlan_and_qinq_through_a_gateway() -> Result<()> {
    let config = gateway("in0", "out0");
    tagged_path_is_guarded(Node::FwB, &config, Attach::default(), false)
}

/// The other end of the wire hides the outer tag, in a namespace that pinhole does
/// not reach: what is judged is the packet within, in the zone of the interface.
#[test]
fn an_offloaded_tag_is_no_way_around_a_zone() -> Result<()> {
    tagged_path_is_guarded(Node::Server, &host("eth0"), Attach::default(), true)
}

#[test]
fn three_tags_are_dropped_by_name_either_way() -> Result<()> {
    let lab = Lab::line()?;
    let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let firewall = Firewall::start(&lab, Node::Server, Some(&host("eth0")), Attach::default())?;
    let _tagged = Tagged::wire(&lab, &[S_TAG, C_TAG, C_TAG], false)?;
    let (far, near) = (lab.server_ip(Family::V4), lab.client_ip(Family::V4));
    let ways = [
        (client, server, SocketAddr::new(far, OPEN)),
        // Here one of them stands beside the frame: the program counts it.
        (server, client, SocketAddr::new(near, OPEN)),
    ];
    for (from, to, at) in ways {
        let before = firewall.stats()?.dropped("vlan-tags");
        ensure!(is_dropped(from, to, at)?, "{at} was reached");
        let dropped = firewall.stats()?.dropped("vlan-tags") - before;
        ensure!(dropped > 0, "{at}: {:?}", firewall.stats()?);
    }
    Ok(())
}

/// With both ends of a veth in its namespace, attaching turns off what hides tags,
/// unloading turns it on again, and in between XDP sees every tag.
#[test]
fn attaching_turns_vlan_offload_off_and_unloading_on_again() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Stranger);
    ns.ip("link add v0 type veth peer name v1\n\
         link set v0 up\nlink set v1 up\n\
         addr add 10.8.0.1/30 dev v1\n\
         neigh add 10.8.0.2 lladdr 02:00:00:00:00:02 dev v1 nud permanent\n")?;
    let on = |interface| vlan::offloads(ns, interface);
    let before = (on("v0")?, on("v1")?);
    ensure!(
        before.0.len() == 4 && before.1.len() == 4,
        "a veth begins with other offloads: {before:?}"
    );
    let mut firewall = Firewall::start(&lab, Node::Stranger, Some(&host("v0")), Attach::default())?;
    let during = (on("v0")?, on("v1")?);
    ensure!(
        during.0 == ["tx-vlan-offload", "tx-vlan-stag-hw-insert"]
            && during.1 == ["rx-vlan-offload", "rx-vlan-stag-hw-parse"],
        "{during:?}"
    );
    let _end = VlanEnd::attach(ns, "v1", &[S_TAG, C_TAG, C_TAG], lab.name("vlan-v1"))?;
    let socket = ns.within(|| UdpSocket::bind("10.8.0.1:0"))??;
    let seen = || -> Result<(u64, u64)> {
        let count = || -> Result<(u64, u64)> {
            let stats = firewall.stats()?;
            Ok((stats.dropped("vlan-tags"), stats.dropped("policy")))
        };
        let before = count()?;
        socket.send_to(b"tagged", "10.8.0.2:4000")?;
        process::await_some("the frame is judged", SOON, || {
            let now = count().ok()?;
            (now != before).then_some((now.0 - before.0, now.1 - before.1))
        })
    };
    ensure!(seen()? == (1, 0), "a tag is hidden from XDP");
    // The control: where the offload is on, one tag is, and only two are counted.
    vlan::offload(ns, "v1", true)?;
    ensure!(seen()? == (0, 1), "the offload hides nothing here");
    firewall.unload()?;
    let after = (on("v0")?, on("v1")?);
    ensure!(after == before, "{after:?}, not {before:?}");
    Ok(())
}

#[test]
fn a_tun_device_of_a_host() -> Result<()> {
    tun_host(Attach::default())
}

#[test]
fn a_tun_device_of_a_host_with_clsact() -> Result<()> {
    tun_host(Attach {
        tc: TcKind::Clsact,
        ..Attach::default()
    })
}

fn tun_host(attach: Attach) -> Result<()> {
    let lab = Lab::line()?;
    let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let _wire = TunWire::lay(client, server)?;
    let config = host(tun_wire::DEVICE);
    let firewall = Firewall::start(&lab, Node::Server, Some(&config), attach)?;
    ensure!(
        firewall.said().contains("XDP generic (no Ethernet header)"),
        "it does not say what it got: {}",
        firewall.said()
    );
    for family in Family::BOTH {
        let (far, near) = (tun_wire::far(family), tun_wire::near(family));
        guarded(&firewall, client, server, far, near).with_context(|| format!("{family:?}"))?;
    }
    let stats = firewall.stats()?;
    ensure!(stats.dropped("not-ip") == 0, "{stats:?}");
    drop(firewall);
    for family in Family::BOTH {
        let at = SocketAddr::new(tun_wire::far(family), CLOSED);
        ensure!(
            !is_dropped(client, server, at)?,
            "unguarded, the same attempt does not get in"
        );
    }
    Ok(())
}

/// From a tun device to an Ethernet one and back, routed by the kernel.
#[test]
fn a_tun_device_of_a_gateway() -> Result<()> {
    let lab = Lab::line()?;
    let (road, server) = (lab.ns(Node::Stranger), lab.ns(Node::Server));
    let _wire = TunWire::lay(road, lab.ns(Node::FwB))?;
    road.ip("route add 203.0.113.0/24 dev tun0\nroute add 2001:db8:b::/64 dev tun0\n")?;
    let config = gateway("in0", tun_wire::DEVICE);
    let firewall = Firewall::start(&lab, Node::FwB, Some(&config), Attach::default())?;
    for family in Family::BOTH {
        let (far, near) = (lab.server_ip(family), tun_wire::near(family));
        guarded(&firewall, road, server, far, near).with_context(|| format!("{family:?}"))?;
    }
    drop(firewall);
    let at = SocketAddr::new(lab.server_ip(Family::V4), CLOSED);
    ensure!(
        !is_dropped(road, server, at)?,
        "unguarded, the same attempt does not get in"
    );
    Ok(())
}

#[test]
fn native_mode_is_refused_without_ethernet() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Client);
    let _wire = TunWire::lay(ns, lab.ns(Node::Server))?;
    let args = |more| {
        let instance = lab.name("refused");
        let args = ["--instance", &instance, "run", "--iface", tun_wire::DEVICE];
        pinhole::run_in(ns, &[&args[..], more].concat())
    };
    let refused = args(&["--mode", "native"])?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("no Ethernet header"),
        "{refused:?}"
    );
    Ok(())
}

/// The SYN of an active data connection comes in before the agent has read the
/// lines that let it: it is held, and run again on a device without Ethernet.
#[test]
fn a_syn_held_on_a_tun_device_is_run_again() -> Result<()> {
    for family in Family::BOTH {
        held_on_tun(family).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

fn held_on_tun(family: Family) -> Result<()> {
    let lab = Lab::line()?;
    let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let _wire = TunWire::lay(client, server)?;
    // Active FTP through the built-in rules: the server's connection has to get in.
    let config = "[zones.outside]\ninterfaces = [\"tun0\"]\n\
        [[rule]]\nname = \"ftp\"\nfrom = \"host\"\nproto = \"tcp\"\ndport = [21]\n\
        action = \"accept\"\nhelper = \"ftp\"\n\
        [[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n";
    let firewall = Firewall::start(&lab, Node::Client, Some(config), Attach::default())?;
    let control = server.listen(SocketAddr::new(tun_wire::far(family), 21))?;
    let mut session = Script::begin(client, &control)?;
    session.logs_in()?;
    let own = tun_wire::near(family);
    let data = client.listen(SocketAddr::new(own, 0))?;
    let at = data.local_addr()?;
    let kind = if own.is_ipv4() { 1 } else { 2 };
    // Only between the hosts of a session that the agent knows are SYNs held.
    process::await_some("the session is known", SOON, || {
        (firewall.sessions().ok()?.len() == 1).then_some(())
    })?;
    firewall.pause_agent(true)?;
    session.client_says(&format!("EPRT |{kind}|{own}|{}|\r\n", at.port()))?;
    let tried = thread::scope(|scope| -> Result<TcpStream> {
        let said = session.server_says("200 EPRT command successful.\r\n");
        let connecting = scope.spawn(|| server.connect(at, SOON));
        let held = process::await_some("the SYN is held", SOON, || {
            (firewall.stats().ok()?.dropped("held") > 0).then_some(())
        });
        firewall.pause_agent(false)?;
        said.and(held)
            .with_context(|| format!("{:?}", firewall.stats()))?;
        let joined = connecting.join();
        Ok(joined.map_err(|_| anyhow::anyhow!("the connection panicked"))???)
    })?;
    let (mut accepted, _) = data.accept()?;
    send(&tried, &mut accepted, b"by the data connection")?;
    let stats = firewall.stats()?;
    ensure!(stats.happened("reinjected") > 0, "{stats:?}");
    // The stack took it: else TCP's own second try would have been the one.
    ensure!(stats.passed("ignored") == 0, "{stats:?}");
    Ok(())
}

/// Both ends of an FTP control connection, played by the test.
struct Script {
    client: TcpStream,
    server: TcpStream,
}

impl Script {
    fn begin(client: &Netns, control: &TcpListener) -> Result<Self> {
        let client = client.connect(control.local_addr()?, SOON)??;
        let (server, _) = control.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(SOON))?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    fn logs_in(&mut self) -> Result<()> {
        self.server_says("220 ready\r\n")?;
        self.client_says("USER u\r\n")?;
        self.server_says("331 password\r\n")?;
        self.client_says("PASS p\r\n")?;
        self.server_says("230 welcome\r\n")
    }

    fn client_says(&mut self, line: &str) -> Result<()> {
        send(&self.client, &mut self.server, line.as_bytes())
    }

    fn server_says(&mut self, line: &str) -> Result<()> {
        send(&self.server, &mut self.client, line.as_bytes())
    }
}

fn send(mut from: &TcpStream, to: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    use std::io::{Read, Write};

    to.set_read_timeout(Some(SOON))?;
    from.write_all(bytes)?;
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got)?;
    ensure!(got == bytes, "other bytes arrived");
    Ok(())
}

//! The wires, and programs that are not pinhole's.

use std::process::Command;

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, maps::Array, programs::xdp::XdpMode};

use super::{traffic, wire};
use crate::lab::{Netns, ether::Ether, id::LabId, process};

pub(super) const MIDDLE: usize = 1;
/// Addresses: of the client, of the middle towards it, of the middle towards the
/// server, of the server.
pub(super) const V4: [&str; 4] = ["192.0.2.2", "192.0.2.1", "203.0.113.1", "203.0.113.2"];
/// Likewise.
pub(super) const V6: [&str; 4] = [
    "2001:db8:a::2",
    "2001:db8:a::1",
    "2001:db8:b::1",
    "2001:db8:b::2",
];
/// What a stack leaves to its network card.
const OFFLOADS: [&str; 4] = ["tx", "tso", "gso", "gro"];

/// The namespaces on their wires: of the client, the middle, the server.
pub(super) struct Stage {
    pub(super) nodes: [Netns; 3],
    /// Of the client, of the middle towards it, of the middle towards the server, of the
    /// server.
    pub(super) links: [Ether; 4],
}

impl Stage {
    /// With addresses and routes. Without offloads everybody writes whole checksums, which a
    /// redirect does not.
    pub(super) fn lay(id: &LabId, offloads: bool) -> Result<Self> {
        let made = |what: &str| Netns::new(id.name(what));
        let nodes = [made("client")?, made("middle")?, made("server")?];
        wires(&nodes, offloads)?;
        let [client, middle, server] = &nodes;
        let links = [
            client.ether("eth0")?,
            middle.ether("in0")?,
            middle.ether("out0")?,
            server.ether("eth0")?,
        ];
        address(&nodes, &links)?;
        Ok(Self { nodes, links })
    }
}

/// Both, with as many queues as there are CPUs.
fn wires(nodes: &[Netns; 3], offloads: bool) -> Result<()> {
    let queues = traffic::cpus().to_string();
    let queues = ["numtxqueues", &queues, "numrxqueues", &queues];
    for (end, middle, interface) in [(0, MIDDLE, "in0"), (2, MIDDLE, "out0")] {
        let mut ip = Command::new("ip");
        ip.args(["link", "add", "eth0", "netns", nodes[end].name()]);
        ip.args(queues).args(["type", "veth"]);
        ip.args(["peer", "name", interface, "netns", nodes[middle].name()]);
        process::check(ip.args(queues))?;
    }
    for (node, interface) in [(0, "eth0"), (MIDDLE, "in0"), (MIDDLE, "out0"), (2, "eth0")] {
        // In the middle they are on by themselves, but for GRO, which is for end points.
        if !offloads || node != MIDDLE {
            let mut ethtool = nodes[node].command("ethtool");
            ethtool.args(["-K", interface]);
            for offload in OFFLOADS {
                ethtool.args([offload, if offloads { "on" } else { "off" }]);
            }
            process::check(&mut ethtool)?;
        }
        nodes[node].ip(&format!("link set {interface} up\n"))?;
    }
    nodes[MIDDLE].forward()
}

/// Addresses, routes, and neighbours that are known for good.
fn address(nodes: &[Netns; 3], links: &[Ether; 4]) -> Result<()> {
    let places = [
        (0, "eth0", 1),
        (1, "in0", 0),
        (1, "out0", 3),
        (2, "eth0", 2),
    ];
    for (at, (node, interface, peer)) in places.into_iter().enumerate() {
        let mac = links[peer].mac_text();
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

/// Entries of the table of `insert`: as many as pinhole has room for, by default, of flows
/// that nobody has answered yet.
const HALF_OPEN: u32 = 1 << 14;

/// A program in the middle that redirects, and nothing else.
pub(super) fn redirect(middle: &Netns, links: &[Ether; 4], program: &str) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    if program == "insert" {
        loader.map_max_entries("ENTRIES", HALF_OPEN);
    }
    let mut ebpf = loader.load(&traffic::object()?)?;
    let mut hops: Array<_, [u8; 16]> = Array::try_from(ebpf.map_mut("HOPS").context("HOPS")?)?;
    for (from, out, to) in [(1, 2, 3), (2, 1, 0)] {
        let mut hop = [0; 16];
        hop[..4].copy_from_slice(&links[out].index.to_ne_bytes());
        hop[4..10].copy_from_slice(&links[to].mac);
        hop[10..].copy_from_slice(&links[out].mac);
        hops.set(links[from].index & 15, hop, 0)?;
    }
    attach(middle, ebpf, program, &["in0", "out0"])
}

/// A program that does nothing.
pub(super) fn pass(ns: &Netns, interfaces: &[&str]) -> Result<Ebpf> {
    attach(ns, Ebpf::load(&traffic::object()?)?, "pass", interfaces)
}

/// In the driver.
fn attach(ns: &Netns, mut ebpf: Ebpf, name: &str, interfaces: &[&str]) -> Result<Ebpf> {
    let program = traffic::xdp(&mut ebpf, name)?;
    program.load()?;
    ns.within(|| {
        interfaces
            .iter()
            .try_for_each(|interface| program.attach(interface, XdpMode::Driver).map(drop))
    })??;
    Ok(ebpf)
}

//! Container-like namespaces behind a bridge of a node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Result, ensure};

use super::{Family, Lab, Netns, Node, process};

/// How many find room behind the bridge.
const MAX: u8 = 200;

/// Makes a namespace with 172.16.0.2 and fd00::2 behind a bridge on the
/// client, which forwards for it, as container engines do. The other nodes
/// route those addresses to the client.
///
/// # Errors
/// The kernel lacks bridges.
pub fn behind_client(lab: &Lab) -> Result<Netns> {
    bridge(lab)?;
    container(lab, 0)
}

/// As [`behind_client`], `count` of them: the addresses go on from .2 and ::2.
///
/// # Errors
/// As [`behind_client`], or there are too many.
pub fn several_behind_client(lab: &Lab, count: u8) -> Result<Vec<Netns>> {
    ensure!(count <= MAX, "no room for {count} containers");
    bridge(lab)?;
    (0..count).map(|n| container(lab, n)).collect()
}

/// The addresses of the n-th container, from 0.
#[must_use]
pub fn address(n: u8, family: Family) -> IpAddr {
    let host = n.saturating_add(2);
    match family {
        Family::V4 => Ipv4Addr::new(172, 16, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)).into(),
    }
}

fn bridge(lab: &Lab) -> Result<()> {
    let host = lab.ns(Node::Client);
    host.forward()?;
    host.ip("link add br0 type bridge\n\
         addr add 172.16.0.1/24 dev br0\n\
         addr add fd00::1/64 dev br0 nodad\n\
         link set br0 up\n")
}

fn container(lab: &Lab, n: u8) -> Result<Netns> {
    let host = lab.ns(Node::Client);
    let port = format!("port{n}");
    let container = Netns::new(lab.name(&format!("container{n}")))?;
    process::check(Command::new("ip").args([
        "link",
        "add",
        &port,
        "netns",
        host.name(),
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        container.name(),
    ]))?;
    host.ip(&format!("link set {port} master br0\nlink set {port} up\n"))?;
    // Else the first packets that a neighbour is asked for cost a second each.
    container.sysctl("net/ipv6/neigh/eth0/retrans_time_ms", "50")?;
    container.ip(&format!(
        "addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 172.16.0.1\n\
         route add default via fd00::1\n",
        address(n, Family::V4),
        address(n, Family::V6),
    ))?;
    Ok(container)
}

//! A container-like namespace behind a bridge of a node.

use std::process::Command;

use anyhow::Result;

use super::{Lab, Netns, Node, process};

/// Makes a namespace with 172.16.0.2 and fd00::2 behind a bridge on the
/// client, which forwards for it, as container engines do. The other nodes
/// route those addresses to the client.
///
/// # Errors
/// The kernel lacks bridges.
pub fn behind_client(lab: &Lab) -> Result<Netns> {
    let host = lab.ns(Node::Client);
    let container = Netns::new(lab.name("container"))?;
    host.forward()?;
    host.ip("link add br0 type bridge\n\
         addr add 172.16.0.1/24 dev br0\n\
         addr add fd00::1/64 dev br0 nodad\n\
         link set br0 up\n")?;
    process::check(Command::new("ip").args([
        "link",
        "add",
        "port0",
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
    host.ip("link set port0 master br0\nlink set port0 up\n")?;
    container.ip("addr add 172.16.0.2/24 dev eth0\n\
         addr add fd00::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 172.16.0.1\n\
         route add default via fd00::1\n")?;
    Ok(container)
}

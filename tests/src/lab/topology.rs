//! The wires of a lab.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Netns, id::LabId, process};

/// A machine of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Where FTP clients run: `eth0`.
    Client,
    /// Router of the client's network: `in0` to the client, `out0` to the net.
    FwA,
    /// The net between: `a0`, `b0` and `c0` to the stranger.
    Net,
    /// Router of the server's network: `in0` to the server, `out0` to the net.
    FwB,
    /// Where FTP servers run: `eth0`.
    Server,
    /// A third host, reached through the net: `eth0`.
    Stranger,
}

impl Node {
    const ALL: [Self; 6] = [
        Self::Client,
        Self::FwA,
        Self::Net,
        Self::FwB,
        Self::Server,
        Self::Stranger,
    ];

    /// Its name, the last part of the namespace's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::FwA => "fw-a",
            Self::Net => "net",
            Self::FwB => "fw-b",
            Self::Server => "server",
            Self::Stranger => "stranger",
        }
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `v4` or `v6`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// A wire between two nodes: the ends' interfaces and addresses.
struct Wire {
    ends: [(Node, &'static str); 2],
    v4: [&'static str; 2],
    v6: [&'static str; 2],
}

const WIRES: [Wire; 5] = [
    Wire {
        ends: [(Node::Client, "eth0"), (Node::FwA, "in0")],
        v4: ["192.0.2.2/24", "192.0.2.1/24"],
        v6: ["2001:db8:a::2/64", "2001:db8:a::1/64"],
    },
    Wire {
        ends: [(Node::FwA, "out0"), (Node::Net, "a0")],
        v4: ["198.51.100.1/30", "198.51.100.2/30"],
        v6: ["2001:db8:1::1/64", "2001:db8:1::2/64"],
    },
    Wire {
        ends: [(Node::FwB, "out0"), (Node::Net, "b0")],
        v4: ["198.51.100.5/30", "198.51.100.6/30"],
        v6: ["2001:db8:2::1/64", "2001:db8:2::2/64"],
    },
    Wire {
        ends: [(Node::Server, "eth0"), (Node::FwB, "in0")],
        v4: ["203.0.113.2/24", "203.0.113.1/24"],
        v6: ["2001:db8:b::2/64", "2001:db8:b::1/64"],
    },
    Wire {
        ends: [(Node::Stranger, "eth0"), (Node::Net, "c0")],
        v4: ["198.51.100.66/28", "198.51.100.65/28"],
        v6: ["2001:db8:c::2/64", "2001:db8:c::1/64"],
    },
];

/// Routes beyond the wires: node, and its `ip route add` arguments.
/// 172.16.0.0/12 and fd00::/8 are containers at the client's.
const ROUTES: [(Node, &str); 18] = [
    (Node::Client, "default via 192.0.2.1"),
    (Node::Client, "default via 2001:db8:a::1"),
    (Node::FwA, "default via 198.51.100.2"),
    (Node::FwA, "default via 2001:db8:1::2"),
    (Node::FwA, "172.16.0.0/12 via 192.0.2.2"),
    (Node::FwA, "fd00::/8 via 2001:db8:a::2"),
    (Node::Net, "192.0.2.0/24 via 198.51.100.1"),
    (Node::Net, "2001:db8:a::/64 via 2001:db8:1::1"),
    (Node::Net, "172.16.0.0/12 via 198.51.100.1"),
    (Node::Net, "fd00::/8 via 2001:db8:1::1"),
    (Node::Net, "203.0.113.0/24 via 198.51.100.5"),
    (Node::Net, "2001:db8:b::/64 via 2001:db8:2::1"),
    (Node::FwB, "default via 198.51.100.6"),
    (Node::FwB, "default via 2001:db8:2::2"),
    (Node::Server, "default via 203.0.113.1"),
    (Node::Server, "default via 2001:db8:b::1"),
    (Node::Stranger, "default via 198.51.100.65"),
    (Node::Stranger, "default via 2001:db8:c::1"),
];

/// Namespaces and wires. All of it goes when the handle does.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<Netns>,
    dir: PathBuf,
    id: LabId,
}

impl Lab {
    /// client, fw-a, net, fw-b, server, and a stranger at the net; all routed, nothing guarded.
    ///
    /// # Errors
    /// The caller is not root, or the kernel lacks namespaces or veth.
    pub fn line() -> Result<Self> {
        let id = LabId::new()?;
        let dir = id.make_dir()?;
        let mut lab = Self {
            nodes: Vec::new(),
            dir,
            id,
        };
        for node in Node::ALL {
            lab.nodes.push(Netns::new(lab.id.name(node.name()))?);
        }
        for node in [Node::FwA, Node::Net, Node::FwB] {
            lab.ns(node).forward()?;
        }
        for wire in &WIRES {
            lab.lay(wire)?;
        }
        for node in Node::ALL {
            let routes: String = ROUTES
                .iter()
                .filter(|(of, _)| *of == node)
                .map(|(_, route)| format!("route add {route}\n"))
                .collect();
            lab.ns(node).ip(&routes)?;
        }
        lab.await_links()?;
        Ok(lab)
    }

    /// The namespace of a node.
    #[must_use]
    pub fn ns(&self, node: Node) -> &Netns {
        &self.nodes[node as usize]
    }

    /// `ph-<pid>-<n>-<what>`, for pinhole instances and the like.
    #[must_use]
    pub fn name(&self, what: &str) -> String {
        self.id.name(what)
    }

    /// Where the lab's files are; removed with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The client's address.
    #[must_use]
    pub fn client_ip(&self, family: Family) -> IpAddr {
        address(&WIRES[0], family)
    }

    /// The server's address.
    #[must_use]
    pub fn server_ip(&self, family: Family) -> IpAddr {
        address(&WIRES[3], family)
    }

    /// The stranger's address.
    #[must_use]
    pub fn stranger_ip(&self, family: Family) -> IpAddr {
        address(&WIRES[4], family)
    }

    /// Where the server's FTP port is.
    #[must_use]
    pub fn ftp(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.server_ip(family), 21)
    }

    /// Links come up within a second of being told to; until then IPv6 finds no
    /// neighbour. A closed port that refuses shows that there is a way.
    fn await_links(&self) -> Result<()> {
        let at = SocketAddr::new(self.server_ip(Family::V6), 9);
        for node in [Node::Client, Node::Stranger] {
            process::await_some("a route to the server", process::SHORT, || {
                let tried = self.ns(node).connect(at, Duration::from_secs(1)).ok()?;
                tried
                    .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
                    .then_some(())
            })?;
        }
        Ok(())
    }

    fn lay(&self, wire: &Wire) -> Result<()> {
        let [(left, left_if), (right, right_if)] = wire.ends;
        let (left_ns, right_ns) = (self.ns(left), self.ns(right));
        // Both ends are made where they belong: no name of theirs is ever seen outside.
        process::check(std::process::Command::new("ip").args([
            "link",
            "add",
            left_if,
            "netns",
            left_ns.name(),
            "type",
            "veth",
            "peer",
            "name",
            right_if,
            "netns",
            right_ns.name(),
        ]))
        .with_context(|| format!("wire {} to {}", left.name(), right.name()))?;
        for (i, (ns, interface)) in [(left_ns, left_if), (right_ns, right_if)]
            .into_iter()
            .enumerate()
        {
            // Else the solicitations that are lost while a link comes up cost a second each.
            let retrans = format!("net/ipv6/neigh/{interface}/retrans_time_ms");
            ns.sysctl(&retrans, "50")?;
            ns.ip(&format!(
                "addr add {} dev {interface}\naddr add {} dev {interface} nodad\nlink set {interface} up\n",
                wire.v4[i], wire.v6[i]
            ))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.nodes.clear();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Address of a wire's first end.
fn address(wire: &Wire, family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => wire.v4[0],
        Family::V6 => wire.v6[0],
    };
    let plain = text.split('/').next().unwrap_or(text);
    plain
        .parse()
        .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

//! The firewalls of a [`Stage`], one at each end.

use std::{fmt::Write, ops::Range, thread};

use anyhow::{Result, anyhow};

use super::Column;
use crate::lab::{
    Family, Lab, Node, Place, container,
    kernel::NftFirewall,
    pinhole::{Attach, Firewall},
    place::Guarded,
    server::{FTP, FTPS},
};

/// Ports for data on either side: what each server is told to offer in passive
/// mode, and what the system gives to clients, and to inetutils-ftpd, which cannot
/// be told.
pub const DATA_PORTS: (u16, u16) = (50000, 59999);

/// Clients that the lab needs.
pub const CLIENTS: u8 = 10;

/// Columns that are run through the same firewalls, at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No firewall.
    Open,
    /// pinhole, whose rules go by the client's address: so each column stands beside
    /// the others, and what one's clients are granted must be of no use to another's.
    Pinhole,
    /// nftables with `nf_conntrack_ftp`.
    Kernel,
}

impl Stage {
    /// In the order in which they are run.
    pub const ALL: [Self; 3] = [Self::Open, Self::Pinhole, Self::Kernel];

    /// Its columns, and the numbers of the clients that run each.
    #[must_use]
    pub const fn columns(self) -> &'static [(Column, Range<u8>)] {
        match self {
            Self::Open => &[(Column::Open, 0..6)],
            Self::Pinhole => &[
                (Column::Off, 0..2),
                (Column::Pinhole, 2..6),
                (Column::Fixed, 6..8),
                (Column::Session, 8..10),
            ],
            Self::Kernel => &[(Column::Kernel, 0..6)],
        }
    }

    /// Puts the firewalls up.
    ///
    /// # Errors
    /// One of them cannot be put up.
    pub fn guard(self, lab: &Lab) -> Result<Guarded> {
        let mut guarded = Guarded::default();
        let nodes = Place::BothEnds.nodes();
        match self {
            Self::Open => {}
            Self::Kernel => {
                for &node in nodes {
                    let firewall = NftFirewall::start(lab.ns(node), true)?;
                    guarded.kernels.push(firewall);
                }
            }
            Self::Pinhole => guarded.pinholes = pinholes(lab, nodes)?,
        }
        Ok(guarded)
    }
}

/// All at once: the verifier keeps a CPU busy for seconds.
fn pinholes(lab: &Lab, nodes: &[Node]) -> Result<Vec<Firewall>> {
    thread::scope(|scope| {
        let starting: Vec<_> = nodes
            .iter()
            .map(|&node| {
                scope.spawn(move || {
                    Firewall::start(lab, node, Some(&config(lab, node)), Attach::default())
                })
            })
            .collect();
        starting
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("pinhole's start panicked"))?
            })
            .collect()
    })
}

/// Control connections from the clients' side to the server's; what each column
/// grants its clients; and otherwise replies only.
fn config(lab: &Lab, node: Node) -> String {
    // fw-a has the clients at in0; fw-b has them beyond out0.
    let (client, server) = match node {
        Node::FwA => ("inside", "outside"),
        _ => ("outside", "inside"),
    };
    let at = Family::BOTH.map(|family| lab.server_ip(family).to_string());
    let mut text = "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
                    [zones.outside]\ninterfaces = [\"out0\"]\n"
        .to_owned();
    for (column, clients) in Stage::Pinhole.columns() {
        let src = addresses(clients.clone());
        let name = column.name();
        let helper = match column {
            Column::Off => "",
            _ => "helper = \"ftp\"\n",
        };
        let _ = write!(
            text,
            "[[rule]]\nname = \"{name}\"\nfrom = \"{client}\"\nto = \"{server}\"\nproto = \"tcp\"\n\
             src = {src:?}\ndport = [{FTP}, {FTPS}]\naction = \"accept\"\n{helper}"
        );
        match column {
            Column::Fixed => text += &fixed_range([client, server], [&src, &at]),
            Column::Session => text += &session_range([&src, &at]),
            _ => {}
        }
    }
    text
}

/// For either mode; the clients come first.
fn fixed_range([client, server]: [&str; 2], [clients, servers]: [&[String]; 2]) -> String {
    let (first, last) = DATA_PORTS;
    format!(
        "[[ftp.fixed-range]]\nclients = {clients:?}\nservers = {servers:?}\n\
         ports = \"{first}-{last}\"\nactive = true\n\
         client-zone = \"{client}\"\nserver-zone = \"{server}\"\n"
    )
}

fn session_range([clients, servers]: [&[String]; 2]) -> String {
    let (first, last) = DATA_PORTS;
    format!(
        "[[ftp.session-range]]\nclients = {clients:?}\nservers = {servers:?}\n\
         ports = \"{first}-{last}\"\nactive = true\n"
    )
}

fn addresses(clients: Range<u8>) -> Vec<String> {
    clients
        .flat_map(|n| Family::BOTH.map(|family| container::address(n, family).to_string()))
        .collect()
}

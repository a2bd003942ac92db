//! The firewalls of a [`Column`], one at each end.

use std::fmt::Write;

use anyhow::Result;

use super::Column;
use crate::lab::{
    Family, Lab, Node, Place, container,
    kernel::NftFirewall,
    pinhole::{Attach, Firewall},
    place::Guarded,
    server::{FTP, FTPS},
};

/// Ports of the servers: what each is told to offer in passive mode, and what the
/// system gives to inetutils-ftpd, which cannot be told.
pub const SERVER_PORTS: (u16, u16) = (50000, 50999);
/// Ports that the system gives to clients.
pub const CLIENT_PORTS: (u16, u16) = (40000, 40999);

/// Puts a column's firewalls up, for as many clients behind the lab's client.
///
/// # Errors
/// One of them cannot be put up.
pub fn put(lab: &Lab, column: Column, clients: u8) -> Result<Guarded> {
    let mut guarded = Guarded::default();
    for &node in Place::BothEnds.nodes() {
        match column {
            Column::Open => {}
            Column::Kernel => {
                let firewall = NftFirewall::start(lab.ns(node), true)?;
                guarded.kernels.push(firewall);
            }
            Column::Off | Column::Pinhole | Column::Fixed => {
                let text = config(lab, node, column, clients);
                let firewall = Firewall::start(lab, node, Some(&text), Attach::default())?;
                guarded.pinholes.push(firewall);
            }
        }
    }
    Ok(guarded)
}

/// Control connections from the clients' side to the server's; what the column
/// adds; and otherwise replies only.
fn config(lab: &Lab, node: Node, column: Column, clients: u8) -> String {
    // fw-a has the clients at in0; fw-b has them beyond out0.
    let (client, server) = match node {
        Node::FwA => ("inside", "outside"),
        _ => ("outside", "inside"),
    };
    let helper = match column {
        Column::Off => "",
        _ => "helper = \"ftp\"\n",
    };
    let mut text = format!(
        "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
         [zones.outside]\ninterfaces = [\"out0\"]\n\
         [[rule]]\nname = \"ftp\"\nfrom = \"{client}\"\nto = \"{server}\"\n\
         proto = \"tcp\"\ndport = [{FTP}, {FTPS}]\naction = \"accept\"\n{helper}"
    );
    if column == Column::Fixed {
        let inside = addresses(clients);
        let at = Family::BOTH.map(|family| lab.server_ip(family).to_string());
        for (name, from, to, src, dst, ports) in [
            (
                "data-passive",
                client,
                server,
                &inside[..],
                &at[..],
                SERVER_PORTS,
            ),
            (
                "data-active",
                server,
                client,
                &at[..],
                &inside[..],
                CLIENT_PORTS,
            ),
        ] {
            let _ = write!(
                text,
                "[[rule]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\nproto = \"tcp\"\n\
                 src = {src:?}\ndst = {dst:?}\ndport = \"{}-{}\"\naction = \"accept\"\n",
                ports.0, ports.1
            );
        }
    }
    text
}

fn addresses(clients: u8) -> Vec<String> {
    (0..clients)
        .flat_map(|n| Family::BOTH.map(|family| container::address(n, family).to_string()))
        .collect()
}

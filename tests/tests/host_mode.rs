//! pinhole on a host's own NIC: control payloads that the host sends pass TC
//! egress, and what containers behind the host send is tracked there, too.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    client::{self, FtpCommand, Request},
    container,
    live::LiveConnection,
    matrix,
    pinhole::{Attach, Firewall, config},
    server::{self, FtpServer},
};

const HANGS: Duration = Duration::from_secs(3);

/// Active FTP: the server's connection to the client is the one to be let in.
/// This is also the test of the embedded default policy.
#[test]
fn on_the_clients_nic_active_ftp() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let with_helper = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    transfers(&lab, &server, FtpCommand::is_active, true)?;
    // What the host itself begins needs no helper.
    transfers(&lab, &server, |c| !c.is_active(), true)?;
    drop(with_helper);

    let text = config::client_host(false);
    let _without = Firewall::start(&lab, Node::Client, Some(&text), Attach::default())?;
    transfers(&lab, &server, FtpCommand::is_active, false)
}

/// Passive FTP: the client's connection to the server is the one to be let in.
#[test]
fn on_the_servers_nic_passive_ftp() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let text = config::server_host(true);
    let with_helper = Firewall::start(&lab, Node::Server, Some(&text), Attach::default())?;
    transfers(&lab, &server, |_| true, true)?;
    drop(with_helper);

    let text = config::server_host(false);
    let _without = Firewall::start(&lab, Node::Server, Some(&text), Attach::default())?;
    transfers(&lab, &server, |c| !c.is_active(), false)
}

#[test]
fn a_container_behind_the_host_reaches_out() -> Result<()> {
    let lab = Lab::line()?;
    let container = container::behind_client(&lab)?;
    let inside: SocketAddr = "172.16.0.2:4000".parse()?;
    let _listener = container.listen(inside)?;
    let from_outside = || lab.ns(Node::Server).connect(inside, HANGS);
    // The container is reachable as such: what is dropped later is dropped by pinhole.
    from_outside()?.context("reach the unguarded container")?;

    let _firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    for family in Family::BOTH {
        let at = SocketAddr::new(lab.server_ip(family), 5000);
        let mut live = LiveConnection::between(&container, lab.ns(Node::Server), at)?;
        ensure!(
            live.is_alive(),
            "the container gets its replies over {family:?}"
        );
    }
    let refused = from_outside()?.err().map(|e| e.kind());
    ensure!(
        refused == Some(ErrorKind::TimedOut),
        "a connection into the container ended in {refused:?}"
    );
    Ok(())
}

fn transfers(
    lab: &Lab,
    server: &FtpServer,
    which: impl Fn(FtpCommand) -> bool,
    works: bool,
) -> Result<()> {
    for (command, family) in matrix::cells().filter(|(command, _)| which(*command)) {
        let mut request = Request::new(lab, client::Kind::Curl, command, family);
        if !works {
            request = request.patience(HANGS);
        }
        let outcome = request.run(lab)?;
        let as_told = if works {
            outcome.is(server.payload())
        } else {
            outcome.hung_at_data()
        };
        ensure!(
            as_told,
            "{} over {}, to work: {works}: {outcome:?}",
            command.name(),
            family.name()
        );
    }
    Ok(())
}

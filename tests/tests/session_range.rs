//! A session range lets in data connections of an encrypted session, and of
//! nothing else.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    client::{FtpCommand, Kind, Request},
    fake_server::{Dialogue, tls_record},
    live::LiveConnection,
    pinhole::{Attach, Firewall, config},
    process,
    server::{self, FtpServer},
};

const HANGS: Duration = Duration::from_secs(4);
const TRY: Duration = Duration::from_millis(1500);
const PORTS: &str = "50000-50100";

/// A range for the lab's client and server.
fn range(lab: &Lab, more: &str) -> String {
    let of = |ip: fn(&Lab, Family) -> std::net::IpAddr| {
        let both = Family::BOTH.map(|family| format!("\"{}\"", ip(lab, family)));
        both.join(", ")
    };
    format!(
        "[[ftp.session-range]]\nclients = [{}]\nservers = [{}]\nports = \"{PORTS}\"\n{more}\n",
        of(Lab::client_ip),
        of(Lab::server_ip)
    )
}

/// The server's own firewall, or that of its network.
fn server_end(lab: &Lab, host: bool, more: &str) -> Result<Firewall> {
    let (node, text) = if host {
        (Node::Server, config::server_host(true))
    } else {
        (Node::FwB, config::gateway(Node::FwB, true))
    };
    let text = format!("{text}{more}");
    Firewall::start(lab, node, Some(&text), Attach::default())
}

/// A log-in that turns encrypted, as far as a firewall can see.
fn encrypted(lab: &Lab) -> Result<Dialogue> {
    let mut dialogue = in_clear(lab)?;
    dialogue.client_says(b"AUTH TLS\r\n")?;
    dialogue.server_says(b"234 go\r\n")?;
    dialogue.client_says(&tls_record(b"hello"))?;
    dialogue.server_says(&tls_record(b"hello"))?;
    Ok(dialogue)
}

fn in_clear(lab: &Lab) -> Result<Dialogue> {
    let mut dialogue = Dialogue::begin(lab, Family::V4)?;
    dialogue.login()?;
    Ok(dialogue)
}

fn at(lab: &Lab, port: u16) -> SocketAddr {
    SocketAddr::new(lab.server_ip(Family::V4), port)
}

/// Does a connection of `from` to a port where the server listens come about?
fn opens(lab: &Lab, from: Node, port: u16) -> Result<bool> {
    let at = at(lab, port);
    let _listener = lab.ns(Node::Server).listen(at)?;
    match lab.ns(from).connect(at, TRY)? {
        Ok(_) => Ok(true),
        Err(error) => {
            let hangs = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
            ensure!(hangs, "{error}");
            Ok(false)
        }
    }
}

fn refused(firewall: &Firewall) -> Result<Option<String>> {
    let sessions = firewall.json(&["ftp", "list"])?;
    let reason = sessions[0]["last_refusal"].as_str();
    Ok(reason.map(str::to_owned))
}

#[test]
fn ftps_works_through_a_gateway_at_the_servers_end() -> Result<()> {
    ftps_works(false)
}

#[test]
fn ftps_works_through_the_servers_own_firewall() -> Result<()> {
    ftps_works(true)
}

fn ftps_works(host: bool) -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Proftpd)?;
    let request = |family| {
        let mut request = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, family);
        request.tls = true;
        request.patience(HANGS)
    };
    let mut firewall = server_end(&lab, host, "")?;
    // The control: without the range it hangs.
    let outcome = request(Family::V4).run(&lab)?;
    ensure!(outcome.hung_at_data(), "without a range: {outcome:?}");

    firewall.stop_agent();
    let text = if host {
        config::server_host(true)
    } else {
        config::gateway(Node::FwB, true)
    };
    firewall.start_agent_with(&format!("{text}{}", range(&lab, "")), &[])?;
    for family in Family::BOTH {
        let outcome = request(family)
            .patience(Duration::from_secs(10))
            .run(&lab)?;
        ensure!(outcome.is(server.payload()), "with the range: {outcome:?}");
    }
    // In clear as ever, by the port in the reply.
    let plain = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, Family::V4).run(&lab)?;
    ensure!(plain.is(server.payload()), "in clear: {plain:?}");
    Ok(())
}

#[test]
fn it_is_for_two_hosts_while_their_session_is_encrypted() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = server_end(&lab, false, &range(&lab, ""))?;
    ensure!(!opens(&lab, Node::Client, 50_001)?, "without a session");
    let clear = in_clear(&lab)?;
    ensure!(!opens(&lab, Node::Client, 50_002)?, "in a session in clear");
    drop(clear);

    let session = encrypted(&lab)?;
    ensure!(!opens(&lab, Node::Stranger, 50_003)?, "a third host");
    ensure!(!opens(&lab, Node::Client, 50_101)?, "a port outside");
    // The control of all of these.
    ensure!(opens(&lab, Node::Client, 50_004)?, "the client");
    let ns = (lab.ns(Node::Client), lab.ns(Node::Server));
    let mut data = LiveConnection::between(ns.0, ns.1, at(&lab, 50_005))?;
    ensure!(data.is_alive(), "a data connection that stays");
    let flows = firewall.flows()?;
    ensure!(
        flows.iter().any(|flow| flow.original.dport == Some(50_005)),
        "{flows:?}"
    );

    drop(session);
    process::await_some("its flow is cut", HANGS, || {
        let flows = firewall.flows().ok()?;
        let gone = flows.iter().all(|flow| flow.original.dport != Some(50_005));
        gone.then_some(())
    })?;
    ensure!(!data.is_alive(), "its session has ended");
    ensure!(!opens(&lab, Node::Client, 50_006)?, "after the session");
    Ok(())
}

#[test]
fn so_many_at_once_and_no_more() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = server_end(&lab, false, &range(&lab, "max = 2"))?;
    let _session = encrypted(&lab)?;
    let (from, to) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let mut first = LiveConnection::between(from, to, at(&lab, 50_001))?;
    let mut second = LiveConnection::between(from, to, at(&lab, 50_002))?;
    ensure!(first.is_alive() && second.is_alive(), "two");
    ensure!(!opens(&lab, Node::Client, 50_003)?, "a third");
    ensure!(refused(&firewall)?.as_deref() == Some("range-full"));
    drop(first);
    ensure!(opens(&lab, Node::Client, 50_004)?, "once one has ended");
    ensure!(second.is_alive(), "the other goes on");
    Ok(())
}

#[test]
fn so_many_a_minute_and_no_more() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = server_end(&lab, false, &range(&lab, "per-minute = 2"))?;
    let _session = encrypted(&lab)?;
    ensure!(opens(&lab, Node::Client, 50_001)?, "one");
    ensure!(opens(&lab, Node::Client, 50_002)?, "two");
    ensure!(!opens(&lab, Node::Client, 50_003)?, "three");
    ensure!(refused(&firewall)?.as_deref() == Some("range-rate"));
    Ok(())
}

#[test]
fn the_server_connects_only_where_the_range_says_so() -> Result<()> {
    for (more, want) in [("", false), ("active = true", true)] {
        let lab = Lab::line()?;
        let text = format!("{}{}", config::client_host(true), range(&lab, more));
        let _firewall = Firewall::start(&lab, Node::Client, Some(&text), Attach::default())?;
        let _session = encrypted(&lab)?;
        let at = SocketAddr::new(lab.client_ip(Family::V4), 50_001);
        let _listener = lab.ns(Node::Client).listen(at)?;
        let came = lab.ns(Node::Server).connect(at, TRY)?.is_ok();
        ensure!(came == want, "{more}: {came}");
    }
    Ok(())
}

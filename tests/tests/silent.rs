//! A control connection that says nothing for longer than its time-out, while its
//! transfer runs and the tables are flooded.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    generator::{self, Aim, Generator, Kind},
    paced::PacedTransfer,
    pinhole::{Attach, Firewall, config},
    server::{self, FtpServer},
};

/// Seconds that an established connection may be silent for.
const ESTABLISHED: u64 = 6;
/// Elements of each table.
const TABLE: u64 = 1024;
/// A service that answers.
const OPEN: u16 = 7000;
const SOON: Duration = Duration::from_secs(10);

fn policy(helper: bool) -> String {
    let data = "[[rule]]\nname = \"data\"\nfrom = \"outside\"\nto = \"host\"\nproto = \"tcp\"\n\
                dport = \"40000-65535\"\naction = \"accept\"\n";
    format!(
        "{}{}[[rule]]\nname = \"open\"\nfrom = \"outside\"\nto = \"host\"\nproto = \"tcp\"\n\
         dport = {OPEN}\naction = \"accept\"\n\
         [timeouts]\ntcp-established = {ESTABLISHED}\n\
         [tables]\nflows = {TABLE}\nhalf-open = {TABLE}\n",
        config::server_host(helper),
        if helper { "" } else { data },
    )
}

/// Runs a transfer, silent for twice the time-out and flooded; what became of it.
fn transfer(helper: bool) -> Result<Result<()>> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let policy = policy(helper);
    let firewall = Firewall::start(&lab, Node::Server, Some(&policy), Attach::default())?;
    let running = PacedTransfer::begin(&lab, Family::V4)?;
    let silent = Instant::now();
    flood(&lab, &firewall)?;
    let rest = Duration::from_secs(2 * ESTABLISHED).saturating_sub(silent.elapsed());
    thread::sleep(rest);
    ensure!(
        running.is_running(),
        "the transfer broke off or was too short"
    );
    Ok(running.finish(server.payload()))
}

/// Twice as many flows as either table has room for: half-open ones from anywhere,
/// and connections that came about.
fn flood(lab: &Lab, firewall: &Firewall) -> Result<()> {
    let IpAddr::V4(address) = lab.server_ip(Family::V4) else {
        bail!("the server's address is not IPv4");
    };
    let [a, b, c, _] = address.octets();
    let aim = Aim {
        from: (lab.ns(Node::FwB), "in0"),
        to: (lab.ns(Node::Server), "eth0"),
        address,
        ports: [OPEN, OPEN],
        source: None,
    };
    generator::prepare(&aim, [a, b, c, 1].into())?;
    let generator = Generator::new(&aim, Kind::Syn, 1)?;
    let at = SocketAddr::new(address.into(), OPEN);
    let listener = lab.ns(Node::Server).listen(at)?;
    let acceptor = thread::spawn(move || {
        for _ in 0..2 * TABLE {
            listener.accept()?;
        }
        std::io::Result::Ok(())
    });
    lab.ns(Node::Stranger).within(|| -> Result<()> {
        for _ in 0..2 * TABLE {
            std::net::TcpStream::connect_timeout(&at, SOON).context("a further connection")?;
        }
        Ok(())
    })??;
    acceptor.join().ok().context("the acceptor panicked")??;
    // In small portions: the wire has a queue of 256.
    for _ in 0..2 * TABLE / 64 {
        generator.send(64)?;
        thread::sleep(Duration::from_millis(1));
    }
    let created = firewall.stats()?.happened("flow-created");
    ensure!(
        created >= 4 * TABLE,
        "the flood was of {created} flows only"
    );
    Ok(())
}

#[test]
fn a_transfer_keeps_its_silent_control_connection() -> Result<()> {
    transfer(true)?.context("the transfer, or its 226")
}

/// The same data connection, let in by a rule: nobody knows whose it is, and the
/// control connection expires.
#[test]
fn a_connection_that_is_not_known_as_data_keeps_nothing() -> Result<()> {
    let outcome = transfer(false)?;
    ensure!(outcome.is_err(), "226 came over an expired connection");
    Ok(())
}

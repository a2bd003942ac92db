//! Attaching cuts nobody off, and undoes itself unless it is confirmed.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node, kernel,
    live::LiveConnection,
    paced::PacedTransfer,
    pinhole::{Attach, Firewall, TcKind, XdpMode, config},
    process,
    remains::Remains,
    server::{self, FtpServer},
};

/// A port that no policy here opens: as SSH's where it was forgotten.
const PORT: u16 = 2222;
const TRY: Duration = Duration::from_secs(2);

#[test]
fn live_connections_of_a_host_survive_the_first_attach() -> Result<()> {
    let lab = Lab::line()?;
    survive(
        &lab,
        Node::Server,
        &config::server_host(true),
        Attach::default(),
    )
}

#[test]
fn so_they_do_with_clsact_and_generic_xdp() -> Result<()> {
    let lab = Lab::line()?;
    let attach = Attach {
        xdp: XdpMode::Generic,
        tc: TcKind::Clsact,
    };
    survive(&lab, Node::Server, &config::server_host(true), attach)
}

/// A router has no sockets of those it forwards for; its conntrack knows them.
#[test]
fn live_connections_through_a_tracking_router_survive_the_first_attach() -> Result<()> {
    let lab = Lab::line()?;
    kernel::track(lab.ns(Node::FwB))?;
    let text = config::gateway(Node::FwB, true);
    survive(&lab, Node::FwB, &text, Attach::default())
}

fn survive(lab: &Lab, node: Node, config: &str, attach: Attach) -> Result<()> {
    let server = FtpServer::start(lab, server::Kind::Vsftpd)?;
    let mut live = Family::BOTH
        .into_iter()
        .map(|family| LiveConnection::to_server(lab, family, PORT))
        .collect::<Result<Vec<_>>>()?;
    let transfer = PacedTransfer::begin(lab, Family::V4)?;
    let firewall = Firewall::start(lab, node, Some(config), attach)?;
    ensure!(live.iter_mut().all(LiveConnection::is_alive), "right after");
    // The control: it does guard; the same connection, begun now, is dropped.
    for family in Family::BOTH {
        ensure!(is_dropped(lab, family)?, "a new connection was let in");
    }
    ensure!(
        transfer.is_running(),
        "the transfer ended too early to tell"
    );
    transfer.finish(server.payload())?;
    ensure!(live.iter_mut().all(LiveConnection::is_alive), "afterwards");
    drop(firewall);
    Ok(())
}

#[test]
fn unconfirmed_it_detaches_in_time() -> Result<()> {
    unconfirmed(|_| {})
}

#[test]
fn unconfirmed_it_detaches_though_the_agent_was_killed() -> Result<()> {
    unconfirmed(Firewall::kill_agent)
}

#[test]
fn unconfirmed_it_detaches_though_the_shell_is_gone() -> Result<()> {
    unconfirmed(Firewall::hang_up_agent)
}

fn unconfirmed(then: impl Fn(&mut Firewall)) -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Server);
    let mut live = LiveConnection::to_server(&lab, Family::V4, 80)?;
    let text = config::server_host(true);
    let start = Instant::now();
    let mut firewall = Firewall::start_with(
        &lab,
        Node::Server,
        Some(&text),
        Attach::default(),
        &["--confirm", "8s"],
    )?;
    let ready = Instant::now();
    then(&mut firewall);
    ensure!(
        is_dropped(&lab, Family::V4)?,
        "unconfirmed, it does not guard"
    );
    let pins = firewall.pins();
    process::await_some("it detaches", Duration::from_secs(15), || {
        let remains = Remains::find(ns, &pins).ok()?;
        (remains == Remains::default()).then_some(())
    })?;
    let (most, least) = (start.elapsed(), ready.elapsed());
    ensure!(
        most > Duration::from_secs(8),
        "detached after {most:?} already"
    );
    ensure!(
        least < Duration::from_secs(12),
        "detached after {least:?} only"
    );
    ensure!(!is_dropped(&lab, Family::V4)?, "detached, it still guards");
    ensure!(live.is_alive(), "the live connection was cut");
    process::await_some("the agent ends", Duration::from_secs(3), || {
        firewall.is_agent_gone().then_some(())
    })
}

#[test]
fn confirmed_it_stays() -> Result<()> {
    let lab = Lab::line()?;
    let text = config::server_host(true);
    let firewall = Firewall::start_with(
        &lab,
        Node::Server,
        Some(&text),
        Attach::default(),
        &["--confirm", "3s"],
    )?;
    let confirmed = firewall.cli(&["confirm"])?;
    ensure!(confirmed.success(), "{confirmed:?}");
    thread::sleep(Duration::from_secs(5));
    ensure!(
        is_dropped(&lab, Family::V4)?,
        "confirmed, it does not guard"
    );
    let remains = Remains::find(lab.ns(Node::Server), &firewall.pins())?;
    ensure!(!remains.attached.is_empty() && !remains.pins.is_empty());
    Ok(())
}

/// The line of README's: the policy opens no port for SSH, the switch does.
#[test]
fn admit_ssh_opens_the_port_of_new_sessions() -> Result<()> {
    let lab = Lab::line()?;
    let port = PORT.to_string();
    let _firewall = Firewall::start_with(
        &lab,
        Node::Server,
        None,
        Attach::default(),
        &["--admit-ssh", &port],
    )?;
    let mut live = LiveConnection::to_server(&lab, Family::V4, PORT)?;
    ensure!(live.is_alive());
    let other = SocketAddr::new(lab.server_ip(Family::V4), PORT + 1);
    let refused = lab.ns(Node::Client).connect(other, TRY)?;
    ensure!(refused.is_err_and(|e| e.kind() == ErrorKind::TimedOut));
    Ok(())
}

/// A SYN to [`PORT`] is not even reset.
fn is_dropped(lab: &Lab, family: Family) -> Result<bool> {
    let at = SocketAddr::new(lab.server_ip(family), PORT);
    let tried = lab.ns(Node::Client).connect(at, TRY)?;
    Ok(tried.is_err_and(|e| e.kind() == ErrorKind::TimedOut))
}

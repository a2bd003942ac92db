//! A pinhole serves one connection of one host, and ends with its session.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Node, Place,
    pinhole::{Attach, Firewall, config},
    process,
    script::Session,
    server::{self, FtpServer},
};

const SOON: Duration = Duration::from_secs(3);
const TRY: Duration = Duration::from_millis(1500);

/// How a control connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// QUIT; the server says 221.
    Quit,
    /// The client closes.
    Fin,
    /// The client resets: it closes with a reply unread.
    Rst,
}

#[test]
fn h10_closed_when_the_session_quits() -> Result<()> {
    closed_after(End::Quit)
}

#[test]
fn h10_closed_when_the_client_closes() -> Result<()> {
    closed_after(End::Fin)
}

#[test]
fn h10_closed_when_the_client_resets() -> Result<()> {
    closed_after(End::Rst)
}

/// Nobody says a word for longer than an established connection may be silent:
/// with that its pinhole ends, although it could live for longer itself.
#[test]
fn h10_closed_when_the_session_is_silent() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let text = config::gateway(Node::FwB, true)
        + "[timeouts]\ntcp-established = 4\n[ftp]\nexpectation-timeout = 60\n";
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    // The control: a pause that is shorter.
    let mut session = Session::login(&lab, Family::V4)?;
    let at = negotiate(&mut session, &firewall)?;
    thread::sleep(Duration::from_secs(1));
    let tried = try_from(&lab, Node::Client, at)?;
    ensure!(tried.is_ok(), "after a short pause: {tried:?}");
    drop((tried, session));

    let mut silent = Session::login(&lab, Family::V4)?;
    let at = negotiate(&mut silent, &firewall)?;
    thread::sleep(Duration::from_secs(6));
    let tried = try_from(&lab, Node::Client, at)?;
    ensure!(timed_out(&tried), "after a long silence: {tried:?}");
    // The agent looks for such sessions every ten seconds.
    process::await_some("the expectation goes", Duration::from_secs(20), || {
        firewall.expectations().ok()?.is_empty().then_some(())
    })
}

fn negotiate(session: &mut Session, firewall: &Firewall) -> Result<SocketAddr> {
    let at = session.epsv()?;
    await_pinhole(firewall, at)?;
    Ok(at)
}

fn closed_after(end: End) -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;

    // The control: unguarded, the same attempt is answered, if only by a reset.
    let at = negotiate_and(&lab, Family::V4, end, None)?;
    let answered = try_from(&lab, Node::Client, at)?;
    ensure!(!timed_out(&answered), "unguarded: {answered:?}");

    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &guarded.pinholes[0];
    for family in Family::BOTH {
        let at = negotiate_and(&lab, family, end, Some(firewall))?;
        let at_once = try_from(&lab, Node::Client, at)?;
        ensure!(timed_out(&at_once), "{end:?}, at once: {at_once:?}");
        let left = firewall.expectations()?;
        ensure!(left.is_empty(), "{end:?}: {left:?}");
        thread::sleep(Duration::from_secs(5));
        let later = try_from(&lab, Node::Client, at)?;
        ensure!(timed_out(&later), "{end:?}, later: {later:?}");
    }
    Ok(())
}

/// Negotiates a passive port, sees its pinhole open, and ends the session.
fn negotiate_and(
    lab: &Lab,
    family: Family,
    end: End,
    firewall: Option<&Firewall>,
) -> Result<SocketAddr> {
    let mut session = Session::login(lab, family)?;
    let at = session.epsv()?;
    if let Some(firewall) = firewall {
        await_pinhole(firewall, at)?;
    }
    match end {
        End::Quit => session.command("QUIT")?.be(221)?,
        End::Fin => {}
        End::Rst => {
            session.send("NOOP")?;
            session.stream().peek(&mut [0])?;
        }
    }
    Ok(at)
}

/// The data path honours no pinhole whose session has ended, agent or not; this
/// is about the agent, which removes it.
#[test]
fn h10_the_expectation_is_gone_within_100_ms() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &guarded.pinholes[0];
    for end in [End::Fin, End::Rst, End::Quit] {
        let mut took = Vec::new();
        for _ in 0..5 {
            negotiate_and(&lab, Family::V4, end, Some(firewall))?;
            let ended = Instant::now();
            process::await_some("the expectation goes", SOON, || {
                firewall.expectations().ok()?.is_empty().then_some(())
            })?;
            took.push(ended.elapsed());
        }
        took.sort_unstable();
        // The median, and how long it takes to ask is in it: the machine has other
        // things to do.
        ensure!(took[2] < Duration::from_millis(100), "{end:?}: {took:?}");
    }
    Ok(())
}

#[test]
fn a_pinhole_serves_one_connection_of_its_own_host() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let mut session = Session::login(&lab, Family::V4)?;
    let at = session.epsv()?;
    // The control: unguarded, a stranger takes the client's data connection.
    let stolen = try_from(&lab, Node::Stranger, at)?;
    ensure!(stolen.is_ok(), "unguarded: {stolen:?}");
    drop((stolen, session));

    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    for family in Family::BOTH {
        let mut session = Session::login(&lab, family)?;
        let at = session.epsv()?;
        await_pinhole(&guarded.pinholes[0], at)?;
        let stranger = try_from(&lab, Node::Stranger, at)?;
        ensure!(timed_out(&stranger), "the stranger: {stranger:?}");
        let first = try_from(&lab, Node::Client, at)?;
        ensure!(first.is_ok(), "the client: {first:?}");
        let second = try_from(&lab, Node::Client, at)?;
        ensure!(timed_out(&second), "a second connection: {second:?}");
    }
    Ok(())
}

#[test]
fn an_active_pinhole_is_the_servers_alone() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ClientEnd, true)?;
    for family in Family::BOTH {
        let mut session = Session::login(&lab, family)?;
        let listener = session.eprt(&lab)?;
        let at = listener.local_addr()?;
        await_pinhole(&guarded.pinholes[0], at)?;
        let stranger = try_from(&lab, Node::Stranger, at)?;
        ensure!(timed_out(&stranger), "the stranger: {stranger:?}");
        session.send("RETR payload.bin")?;
        let (mut data, from) = listener.accept()?;
        ensure!(from.ip() == lab.server_ip(family), "data from {from}");
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut data, &mut bytes)?;
        ensure!(bytes.len() as u64 == server.payload().len);
    }
    Ok(())
}

fn await_pinhole(firewall: &Firewall, at: SocketAddr) -> Result<()> {
    process::await_some("the pinhole opens", SOON, || {
        let open = firewall.expectations().ok()?;
        open.iter()
            .any(|e| e.dst == at.ip() && e.dport == at.port())
            .then_some(())
    })
}

fn try_from(lab: &Lab, node: Node, at: SocketAddr) -> Result<io::Result<TcpStream>> {
    lab.ns(node).connect(at, TRY).context("try")
}

fn timed_out(tried: &io::Result<TcpStream>) -> bool {
    tried
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::TimedOut)
}

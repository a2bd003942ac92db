//! Without its agent pinhole enforces what it enforced, shows what it knows,
//! and opens nothing; the next agent takes over where the last one stopped.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Node, Place,
    client::{FtpCommand, Kind, Request},
    fake_server::{Dialogue, tls_record},
    paced::PacedTransfer,
    pinhole::{Attach, Firewall, TcKind, view::Flow},
    process,
    remains::Remains,
    script::Session,
    server::{self, FtpServer},
};

const TRY: Duration = Duration::from_secs(2);
/// How old what is on the ring may be for an agent that begins, and more.
const OLD: Duration = Duration::from_millis(1500);

/// How long no agent lives. A longer time can be asked for.
fn alone() -> Duration {
    let asked = std::env::var("PINHOLE_TEST_AGENTLESS_SECONDS").ok();
    Duration::from_secs(asked.and_then(|s| s.parse().ok()).unwrap_or(10))
}

#[test]
fn a_transfer_goes_on_and_the_next_agent_loses_no_flow() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];
    let transfer = PacedTransfer::begin(&lab, Family::V4)?;
    let before = firewall.flows()?;
    ensure!(
        established(&before).len() == 2,
        "control and data: {before:?}"
    );
    let sessions = firewall.sessions()?.len();
    firewall.kill_agent();
    let after = firewall.flows()?;
    ensure!(
        established(&after) == established(&before),
        "before: {before:?}, after: {after:?}"
    );
    ensure!(firewall.sessions()?.len() == sessions && sessions == 1);

    firewall.start_agent()?;
    let taken_over = firewall.flows()?;
    ensure!(
        established(&taken_over) == established(&before),
        "before: {before:?}, taken over: {taken_over:?}"
    );
    let oldest = |flows: &[Flow]| flows.iter().map(|f| f.age_s).fold(0.0, f64::max);
    ensure!(
        oldest(&taken_over) > oldest(&before),
        "the flows were made anew"
    );
    ensure!(
        transfer.is_running(),
        "the transfer ended too early to tell"
    );
    transfer.finish(server.payload())?;
    // And the new agent does its work.
    let next = Request::new(&lab, Kind::Curl, FtpCommand::Epsv, Family::V6).run(&lab)?;
    ensure!(next.is(server.payload()), "{next:?}");
    Ok(())
}

/// Unlike links, filters have no pins: they stay by themselves, and the next
/// agent must not put its own beside them.
#[test]
fn clsact_filters_stay_and_are_adopted() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let attach = Attach {
        tc: TcKind::Clsact,
        ..Attach::default()
    };
    let mut guarded = Guard::Pinhole(attach).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];
    let ns = lab.ns(Node::FwB);
    let before = Remains::find(ns, &firewall.pins())?;
    firewall.kill_agent();
    ensure!(
        Remains::find(ns, &firewall.pins())? == before,
        "without an agent"
    );
    let closed = SocketAddr::new(lab.server_ip(Family::V4), 2222);
    ensure!(
        timed_out(&try_from_client(&lab, closed)?),
        "it does not guard"
    );
    firewall.start_agent()?;
    let after = Remains::find(ns, &firewall.pins())?;
    ensure!(after == before, "{before:?}, then {after:?}");
    ensure!(
        timed_out(&try_from_client(&lab, closed)?),
        "it does not guard"
    );
    let mut session = Session::login(&lab, Family::V4)?;
    let at = session.epsv()?;
    let tried = try_from_client(&lab, at)?;
    ensure!(tried.is_ok(), "a new session: {tried:?}");
    Ok(())
}

/// Lines that nobody was woken for are read before an agent ends: its successor would take
/// a session for missed that has lines as old on the ring.
#[test]
fn a_session_that_rests_goes_on_with_the_next_agent() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];
    let mut rests = Session::login(&lab, Family::V4)?;
    let mut goes_on = Session::login(&lab, Family::V4)?;
    rests.command("PWD")?.be(257)?;
    firewall.stop_agent();
    // The control: what is said without an agent is missed.
    goes_on.command("PWD")?.be(257)?;
    std::thread::sleep(OLD);
    firewall.start_agent()?;
    let at = goes_on.epsv()?;
    ensure!(timed_out(&try_from_client(&lab, at)?), "{at} is open");
    let at = rests.epsv()?;
    let tried = try_from_client(&lab, at)?;
    ensure!(tried.is_ok(), "a session that rested: {tried:?}");
    Ok(())
}

#[test]
fn without_an_agent_control_goes_on_and_nothing_opens() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];
    let mut old = Session::login(&lab, Family::V4)?;
    // The control: with the agent, this session opens a port.
    let open = old.epsv()?;
    ensure!(try_from_client(&lab, open)?.is_ok());

    firewall.kill_agent();
    let end = std::time::Instant::now() + alone();
    let mut new = None;
    while std::time::Instant::now() < end {
        ensure!(old.is_alive(), "the old control connection was cut");
        let at = old.epsv()?;
        ensure!(timed_out(&try_from_client(&lab, at)?), "{at} is open");
        // A session begun without an agent works as far as it can.
        let fresh = match &mut new {
            Some(session) => session,
            none => none.insert(Session::login(&lab, Family::V6)?),
        };
        let at = fresh.epsv()?;
        ensure!(timed_out(&try_from_client(&lab, at)?), "{at} is open");
    }
    let left = firewall.expectations()?;
    ensure!(left.iter().all(|e| e.state == "taken"), "{left:?}");

    firewall.start_agent()?;
    // What was missed cannot be known: those sessions open nothing any more.
    for session in [Some(&mut old), new.as_mut()].into_iter().flatten() {
        ensure!(session.is_alive());
        let at = session.epsv()?;
        ensure!(timed_out(&try_from_client(&lab, at)?), "{at} is open");
    }
    let mut next = Session::login(&lab, Family::V4)?;
    let at = next.epsv()?;
    let tried = try_from_client(&lab, at)?;
    ensure!(tried.is_ok(), "a new session: {tried:?}");
    Ok(())
}

/// The bytes that a parser of clear text would take for a negotiation, inside TLS records.
#[test]
fn a_tls_session_is_not_parsed_as_clear_by_the_next_agent() -> Result<()> {
    let lab = Lab::line()?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];

    // The control: the same negotiation in clear opens the port.
    let mut clear = Dialogue::begin(&lab, Family::V4)?;
    clear.login()?;
    let listener = clear.negotiate(&lab)?;
    let tried = try_from_client(&lab, listener.local_addr()?)?;
    ensure!(tried.is_ok(), "in clear: {tried:?}");
    drop(clear);

    let mut tls = Dialogue::begin(&lab, Family::V4)?;
    tls.client_says(b"AUTH TLS\r\n")?;
    tls.server_says(b"234 go ahead\r\n")?;
    tls.client_says(&tls_record(b"hello"))?;
    tls.server_says(&tls_record(b"hello"))?;
    await_tls(firewall)?;
    firewall.kill_agent();
    firewall.start_agent()?;
    await_tls(firewall)?;
    let (listener, reply) = tls.passive(&lab)?;
    tls.client_says(&tls_record(b"x\r\nPASV\r\n"))?;
    tls.server_says(&tls_record(format!("x\r\n{reply}").as_bytes()))?;
    let tried = try_from_client(&lab, listener.local_addr()?)?;
    ensure!(timed_out(&tried), "within TLS: {tried:?}");
    ensure!(firewall.expectations()?.is_empty());
    await_tls(firewall)
}

fn await_tls(firewall: &Firewall) -> Result<()> {
    process::await_some("the session is known as TLS", TRY, || {
        let sessions = firewall.sessions().ok()?;
        sessions
            .iter()
            .any(|s| s.encrypted && s.phase == "tls" && s.opened == 0)
            .then_some(())
    })
}

/// Ends of the established TCP flows, in an order that does not depend on the list's.
fn established(flows: &[Flow]) -> Vec<(SocketAddr, SocketAddr)> {
    let mut found: Vec<_> = flows
        .iter()
        .filter(|flow| flow.is_established())
        .filter_map(Flow::ends)
        .collect();
    found.sort_unstable();
    found
}

fn try_from_client(lab: &Lab, at: SocketAddr) -> Result<io::Result<TcpStream>> {
    lab.ns(Node::Client).connect(at, TRY).context("try")
}

fn timed_out(tried: &io::Result<TcpStream>) -> bool {
    tried
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::TimedOut)
}

//! The first packet of a data connection is never lost to the race with the helper:
//! transfers right after one another, counted on the wire. `cargo xtask race` runs
//! ten thousand of each kind and measures them.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Mode, Node,
    fake_server::Dialogue,
    generator::{Aim, Generator, Kind},
    pinhole::{Attach, Firewall, XdpMode, config},
    process,
    race::{
        Field, Way,
        fleet::{self, Ends, Load},
        hold_nothing,
        tap::{Syns, Tap},
    },
};

/// Transfers of one kind.
const TRANSFERS: usize = 100;
const AT_ONCE: usize = 50;
/// For what happens by itself, on a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// How long an agent stands still: long for a SYN, short for a heartbeat.
const STILL: Duration = Duration::from_millis(300);
/// Spoofed SYNs that arrive at least.
const FLOOD: u64 = 20_000;
/// The lab's third host.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);

fn generic() -> Attach {
    Attach {
        xdp: XdpMode::Generic,
        ..Attach::default()
    }
}

/// Every data connection comes about with one SYN, which arrives once.
fn raced(way: Way, family: Family, at_once: usize) -> Result<()> {
    let field = Field::new(way, family)?;
    for mode in Mode::BOTH {
        let load = Load {
            mode,
            transfers: TRANSFERS,
            at_once,
        };
        let raced = field.race(load)?;
        let (sent, arrived, slow) = (raced.sent(), raced.arrived(), raced.slow());
        for firewall in field.firewalls() {
            println!("{load:?}: held {}", firewall.stats()?.dropped("held"));
        }
        ensure!(
            raced.opened.len() == TRANSFERS,
            "{} transfers",
            raced.opened.len()
        );
        for syns in [sent, arrived] {
            ensure!(
                syns.connections == TRANSFERS && syns.again == 0,
                "{way:?} {family:?} {load:?}: sent {sent:?}, arrived {arrived:?}"
            );
        }
        ensure!(
            slow == 0,
            "{way:?} {family:?} {load:?}: {slow} took a second"
        );
    }
    Ok(())
}

#[test]
fn through_routers_one_after_another() -> Result<()> {
    raced(
        Way::Routers(Guard::Pinhole(Attach::default())),
        Family::V4,
        1,
    )
}

#[test]
fn through_routers_fifty_at_once() -> Result<()> {
    raced(
        Way::Routers(Guard::Pinhole(Attach::default())),
        Family::V4,
        AT_ONCE,
    )
}

#[test]
fn through_routers_in_generic_mode() -> Result<()> {
    raced(Way::Routers(Guard::Pinhole(generic())), Family::V6, AT_ONCE)
}

#[test]
fn on_the_nics_of_both_hosts() -> Result<()> {
    raced(Way::Hosts(Attach::default()), Family::V4, AT_ONCE)
}

#[test]
fn on_the_nics_of_both_hosts_in_generic_mode() -> Result<()> {
    raced(Way::Hosts(generic()), Family::V4, 1)
}

#[test]
fn on_a_device_without_ethernet() -> Result<()> {
    raced(Way::Tun, Family::V4, AT_ONCE)
}

/// A session of the lab's client behind the firewall of the server's end, whose agent
/// stands still while the server announces a port and the client connects to it.
/// Returns the SYNs that the client sent.
fn while_the_agent_stands_still(hold: bool) -> Result<Syns> {
    let lab = Lab::line()?;
    let config = config::gateway(Node::FwB, true);
    let firewall = Firewall::start(&lab, Node::FwB, Some(&config), Attach::default())?;
    if !hold {
        hold_nothing(&firewall.pins())?;
    }
    let mut dialogue = Dialogue::begin(&lab, Family::V4)?;
    dialogue.login()?;
    dialogue.client_says(b"PASV\r\n")?;
    process::await_some("the agent has read PASV", SOON, || {
        let sessions = firewall.sessions().ok()?;
        sessions.iter().any(|s| s.phase == "ready").then_some(())
    })?;
    let (listener, announcement) = dialogue.passive(&lab)?;
    let tap = Tap::start(&[(lab.ns(Node::Client), "eth0")])?;
    firewall.pause_agent(true)?;
    dialogue.server_says(announcement.as_bytes())?;
    let at = listener.local_addr()?;
    thread::scope(|scope| {
        let connection = scope.spawn(|| lab.ns(Node::Client).connect(at, SOON));
        thread::sleep(STILL);
        firewall.pause_agent(false)?;
        let connection = connection.join().map_err(|_| anyhow!("it panicked"))?;
        connection??;
        anyhow::Ok(())
    })?;
    Ok(Syns::count(&tap.finish()?, 0, true))
}

#[test]
fn a_syn_that_comes_before_its_pinhole_waits_for_it() -> Result<()> {
    let syns = while_the_agent_stands_still(true)?;
    ensure!(syns.connections == 1 && syns.again == 0, "{syns:?}");
    Ok(())
}

/// What the count of the other tests would show if nothing were held.
#[test]
fn a_syn_that_is_not_held_is_sent_again_and_counted() -> Result<()> {
    let syns = while_the_agent_stands_still(false)?;
    ensure!(syns.connections == 1 && syns.again > 0, "{syns:?}");
    Ok(())
}

/// Spoofed SYNs between the client and the server, to any port, while another host's
/// transfers go on.
#[test]
fn a_flood_between_the_hosts_of_a_session_delays_no_other_session() -> Result<()> {
    let lab = Lab::line()?;
    let policy = config::server_host(true);
    let firewall = Firewall::start(&lab, Node::Server, Some(&policy), Attach::default())?;
    let (IpAddr::V4(client), IpAddr::V4(server)) =
        (lab.client_ip(Family::V4), lab.server_ip(Family::V4))
    else {
        bail!("the lab's addresses are not IPv4");
    };
    let aim = Aim {
        from: (lab.ns(Node::FwB), "in0"),
        to: (lab.ns(Node::Server), "eth0"),
        address: server,
        ports: [0, 0],
        source: Some(client),
    };
    let mut dialogue = Dialogue::begin(&lab, Family::V4)?;
    dialogue.login()?;
    let stranger = (lab.ns(Node::Stranger), IpAddr::from(STRANGER));
    let ends = Ends {
        client: stranger,
        server: (lab.ns(Node::Server), server.into()),
    };
    let load = Load {
        mode: Mode::Passive,
        transfers: 3 * TRANSFERS,
        at_once: 10,
    };
    let tap = Tap::start(&[(stranger.0, "eth0"), (lab.ns(Node::Server), "eth0")])?;
    let flood = Flood(Generator::new(&aim, Kind::Syn, 1)?);
    let opened = flood
        .during(|| fleet::run(ends, load, &|_, _| [None; 2]))?
        .opened;
    let syns = Syns::count(&tap.finish()?, 0, true);
    let stats = firewall.stats()?;
    let dropped = stats.dropped("policy") + stats.dropped("held");
    println!(
        "{dropped} spoofed SYNs dropped; held {}, run again {}, reported {}; {syns:?}",
        stats.dropped("held"),
        stats.happened("reinjected"),
        stats.happened("syn-reported"),
    );
    ensure!(dropped >= FLOOD, "the flood was of {dropped} packets only");
    ensure!(opened.len() == load.transfers, "{} transfers", opened.len());
    ensure!(
        syns.connections == load.transfers && syns.again == 0,
        "{syns:?}"
    );
    ensure!(
        stats.dropped("ring-full") == 0,
        "control payload was dropped"
    );
    // The flooded session goes on as well.
    let listener = dialogue.negotiate(&lab)?;
    let connection = lab.ns(Node::Client).connect(listener.local_addr()?, SOON)?;
    connection.context("the flooded session's data connection")?;
    Ok(())
}

/// Packets that go on until it is told to stop.
struct Flood<'a>(Generator<'a>);

impl Flood<'_> {
    /// In bursts that leave room in the queue of the wire, which others share: what
    /// is lost there, no firewall has seen. It has begun when `act` does, and is at
    /// least of [`FLOOD`] packets.
    fn during<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        const BURST: u64 = 64;
        const APART: Duration = Duration::from_micros(500);
        let over = AtomicBool::new(false);
        let sent = AtomicU64::new(0);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) || sent.load(Ordering::Relaxed) < 2 * FLOOD {
                    self.0.send(BURST)?;
                    sent.fetch_add(BURST, Ordering::Relaxed);
                    thread::sleep(APART);
                }
                anyhow::Ok(())
            });
            let began = process::await_some("the flood begins", SOON, || {
                (sender.is_finished() || sent.load(Ordering::Relaxed) > 0).then_some(())
            });
            let done = began.and_then(|()| act());
            over.store(true, Ordering::Relaxed);
            sender.join().map_err(|_| anyhow!("the flood panicked"))??;
            done
        })
    }
}

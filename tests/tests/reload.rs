//! A policy of thousands of rules is replaced under traffic: no packet of an established flow is
//! lost, nothing that both policies refuse gets through meanwhile, and what the new one says
//! holds afterwards.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use firewall_tests::lab::{
    Family, Lab, Netns, Node,
    datagram::Pair,
    pinhole::{Attach, Firewall},
    process,
};

const RULES: usize = 10_000;
/// Of the established flow: its rule is in the first policy alone.
const FLOW: u16 = 7000;
/// Open under the first policy, and under the second.
const OPEN: [u16; 2] = [7001, 7002];
/// Open under neither.
const REFUSED: u16 = 7003;
/// How long it is waited for what must arrive, and for what must not.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(1);

/// Thousands of rules that match none of this traffic, then one for these ports.
fn policy(open: &[u16], fillers: u8) -> String {
    let mut text = "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
                    [zones.outside]\ninterfaces = [\"out0\"]\n"
        .to_owned();
    let mut rule = |matches: std::fmt::Arguments<'_>| {
        let _ = write!(
            text,
            "[[rule]]\nproto = \"udp\"\n{matches}\naction = \"accept\"\n"
        );
    };
    for at in 1..RULES {
        let (high, low) = (at / 256, at % 256);
        rule(format_args!("dst = \"10.{fillers}.{high}.{low}\""));
    }
    rule(format_args!("dport = {open:?}"));
    text
}

#[test]
fn ten_thousand_rules_are_replaced_under_traffic() -> Result<()> {
    let lab = Lab::line()?;
    let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let at = |port| SocketAddr::new(lab.server_ip(Family::V4), port);
    let listen = |port| Listener::bind(server, at(port));
    let [first, second] = [listen(OPEN[0])?, listen(OPEN[1])?];
    let refused = listen(REFUSED)?;
    let policies = [policy(&[FLOW, OPEN[0]], 1), policy(&[OPEN[1]], 2)];
    let attach = Attach::default();
    let mut firewall = Firewall::start(&lab, Node::FwB, Some(&policies[0]), attach)?;
    ensure!(first.hears(client)?, "the first policy opens its port");
    ensure!(second.is_deaf(client)?, "the first policy opens another");

    let near = SocketAddr::new(lab.client_ip(Family::V4), 0);
    let flow = Pair::bind((client, near), (server, at(FLOW)))?;
    let passed = Traffic::default();
    let probed = Traffic::default();
    thread::scope(|scope| {
        let flowing = scope.spawn(|| passed.go(|count| flow.there_and_back(&count.to_be_bytes())));
        let probing = scope.spawn(|| probed.go(|_| refused.probe(client)));
        let replaced = replace(&mut firewall, &policies[1], &[&passed, &probed]);
        passed.end();
        probed.end();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().map_err(|_| anyhow!("it panicked"))?
        };
        join(flowing).context("the established flow")?;
        join(probing).context("the probes")?;
        replaced
    })?;
    ensure!(
        !refused.heard(SILENCE)?,
        "a port that both refuse was open for a moment"
    );
    flow.there_and_back(b"still established")?;
    ensure!(second.hears(client)?, "the second policy opens its port");
    ensure!(first.is_deaf(client)?, "the first policy is still in force");
    ensure!(refused.is_deaf(client)?, "the second policy opens another");

    // The control: where nothing is enforced, such a probe arrives.
    firewall.unload()?;
    ensure!(refused.hears(client)?, "a probe never arrives");
    Ok(())
}

/// Ends the agent, and has another take over with the second policy. All of the traffic goes on
/// all the time.
fn replace(firewall: &mut Firewall, policy: &str, traffic: &[&Traffic]) -> Result<()> {
    for part in traffic {
        part.goes_on()?;
    }
    firewall.stop_agent();
    for part in traffic {
        part.goes_on()?;
    }
    let before: Vec<usize> = traffic.iter().map(|part| part.count()).collect();
    firewall.start_agent_with(policy, &[])?;
    for (part, before) in traffic.iter().zip(before) {
        ensure!(part.count() > before, "nothing was sent meanwhile");
        part.goes_on()?;
    }
    Ok(())
}

/// Something that is done again and again.
#[derive(Default)]
struct Traffic {
    times: AtomicUsize,
    over: AtomicBool,
}

impl Traffic {
    /// Does it until [`Traffic::end`].
    fn go(&self, mut one: impl FnMut(usize) -> Result<()>) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let count = self.count();
            one(count).inspect_err(|_| self.end())?;
            self.times.store(count + 1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn count(&self) -> usize {
        self.times.load(Ordering::Relaxed)
    }

    /// Waits for one more.
    fn goes_on(&self) -> Result<()> {
        let before = self.count();
        process::await_some("the traffic goes on", process::SHORT, || {
            let over = self.over.load(Ordering::Relaxed);
            (over || self.count() > before).then_some(())
        })?;
        ensure!(!self.over.load(Ordering::Relaxed), "the traffic ended");
        Ok(())
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A UDP socket that notes whether anything came.
struct Listener {
    socket: UdpSocket,
    at: SocketAddr,
}

impl Listener {
    fn bind(ns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = ns.within(|| UdpSocket::bind(at))??;
        Ok(Self { socket, at })
    }

    /// Sends it the first packet of a new flow.
    fn probe(&self, from: &Netns) -> Result<()> {
        let socket = from.within(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        socket.send_to(b"probe", self.at)?;
        Ok(())
    }

    /// Does a probe arrive?
    fn hears(&self, from: &Netns) -> Result<bool> {
        self.probe(from)?;
        self.heard(PATIENCE)
    }

    /// Does none?
    fn is_deaf(&self, from: &Netns) -> Result<bool> {
        self.probe(from)?;
        Ok(!self.heard(SILENCE)?)
    }

    /// Has anything arrived, or does it within this time?
    fn heard(&self, patience: Duration) -> Result<bool> {
        self.socket.set_read_timeout(Some(patience))?;
        match self.socket.recv(&mut [0; 64]) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

//! A07: ten thousand sessions at once that negotiate and never connect.

use std::{fs, io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Node,
    pinhole::Firewall,
    process::{self, Daemon},
};
use nix::sys::signal::Signal;

use crate::{
    case::{Case, Data, Listener::Server},
    world::World,
};

const CLIENTS: u8 = 40;
const EACH: usize = 250;
const ALL: usize = CLIENTS as usize * EACH;
/// Host number of the first client; each has its own.
const FIRST: u8 = 200;
/// USER, PASS, PASV and NOOP.
const COMMANDS: usize = 4 * ALL;
/// On a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(240);

/// Two programs with the ends of all sessions: a process may have 20,000 files.
#[derive(Debug)]
struct Crowd {
    clients: Daemon,
    _server: Daemon,
}

impl Crowd {
    /// Returns once all have negotiated.
    fn joins(world: &World) -> Result<Self> {
        let server = world.lab.server_ip(Family::V4).to_string();
        let start = |node: Node, args: &[String]| {
            let mut command = world.lab.ns(node).command("python3");
            command.args(["-c", include_str!("crowd.py")]).args(args);
            let log = world.lab.dir().join(format!("crowd-{}.log", node.name()));
            Daemon::spawn(command, log)
        };
        let serving = start(Node::Server, &["serve".into(), server.clone()])?;
        says(&serving, "serving")?;
        let mut args = vec!["join".into(), server, EACH.to_string()];
        args.extend((FIRST..FIRST + CLIENTS).map(|host| format!("192.0.2.{host}")));
        let clients = start(Node::Client, &args)?;
        says(&clients, &format!("negotiated {ALL}"))?;
        Ok(Self {
            clients,
            _server: serving,
        })
    }

    /// Everybody's control connection carries a command and its reply.
    fn is_alive(&self) -> Result<()> {
        self.clients.signal(Signal::SIGUSR1);
        says(&self.clients, &format!("alive {ALL}"))
    }
}

fn says(daemon: &Daemon, wanted: &str) -> Result<()> {
    process::await_some(wanted, PATIENCE, || {
        daemon.log().lines().any(|l| l == wanted).then_some(())
    })
    .with_context(|| daemon.log())
}

/// Resident memory in kB and processor time in ticks of 10 ms of the agent.
fn cost(firewall: &Firewall) -> Result<(u64, u64)> {
    let status = firewall.json(&["status"])?;
    let pid = status["agent"]["pid"].as_u64().context("no agent")?;
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|l| l.split_whitespace().next());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, fields 14 and 15 (proc(5)) are at 11 and 12.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let field = |at: usize| {
        fields
            .get(at)
            .context("cut short")?
            .parse::<u64>()
            .context("a count")
    };
    Ok((rss.context("no VmRSS")?.parse()?, field(11)? + field(12)?))
}

/// A data connection that was there before has lost nothing, nor has any session.
fn nothing_was_lost(crowd: &Crowd, live: &mut Case, data: &Data) -> Result<()> {
    crowd.is_alive()?;
    data.carries()?;
    live.c("NOOP\r\n")?;
    live.s("200 ok\r\n")
}

/// More than the helper follows (4096, 512 of a client): the others are carried
/// all the same, no table holds more than it may, and there is room again later.
#[test]
fn a07_ten_thousand_sessions_beyond_the_caps() -> Result<()> {
    const CAP: usize = 4096;
    let world = World::alone("")?;
    let (mut live, data) = transfer(&world)?;
    let crowd = Crowd::joins(&world)?;
    let firewall = &world.firewalls()[0];
    let (sessions, open) = (firewall.sessions()?, firewall.expectations()?);
    ensure!(sessions.len() == CAP, "{} sessions", sessions.len());
    ensure!(open.len() <= CAP, "{} pinholes", open.len());
    nothing_was_lost(&crowd, &mut live, &data)?;
    drop(crowd);
    process::await_some("there is room again", PATIENCE, || {
        (firewall.sessions().ok()?.len() < CAP).then_some(())
    })?;
    Case::ready_over(world, Family::V4)?.still_works(50075)
}

/// With tables that are large enough, each of them is followed and has its pinhole.
#[test]
fn a07_ten_thousand_sessions_with_room_for_all() -> Result<()> {
    let world = World::alone(
        "[tables]\nsessions = 16384\nexpectations = 16384\n[ftp]\nexpectation-timeout = 600\n",
    )?;
    let (mut live, data) = transfer(&world)?;
    let firewall = &world.firewalls()[0];
    let before = cost(firewall)?;
    let crowd = Crowd::joins(&world)?;
    let count = || -> Result<(usize, usize)> {
        Ok((firewall.sessions()?.len(), firewall.expectations()?.len()))
    };
    let mut seen = (0, 0);
    process::await_some("all are followed", PATIENCE, || {
        // The one that was used is listed, too.
        seen = count().ok()?;
        (seen == (ALL + 1, ALL + 1)).then_some(())
    })
    .with_context(|| format!("{seen:?} sessions and pinholes"))?;
    nothing_was_lost(&crowd, &mut live, &data)?;
    let after = cost(firewall)?;
    // Past the test harness's capture: these are for whoever wants to know. The
    // difference is not what a session takes: the allocator first gives out again
    // what was freed when the programs were loaded, and is resident still.
    let _ = writeln!(
        std::io::stderr(),
        "{ALL} sessions, each with a pinhole: {} kB of the agent's memory resident, {} before; \
         {} µs of processor time a command (with its reply, in this build)",
        after.0,
        before.0,
        (after.1 - before.1) * 10_000 / COMMANDS as u64
    );
    Ok(())
}

fn transfer(world: &Arc<World>) -> Result<(Case, Data)> {
    let mut live = Case::ready_over(Arc::clone(world), Family::V4)?;
    live.c("PASV\r\n")?;
    live.s(live.pasv_reply(50075))?;
    let data = live.connects(Server, 50075)?;
    Ok((live, data))
}

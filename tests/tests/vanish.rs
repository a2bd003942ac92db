//! A guarded interface vanishes: that is said, the others stay guarded, nothing hangs, and it is
//! guarded again when it comes back.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use firewall_common::abi::Iface;
use firewall_tests::lab::{
    Family, Lab, Netns, Node,
    foreign::ForeignXdp,
    live::LiveConnection,
    pinhole::{Attach, Firewall, TcKind, config},
    process::{self, await_some},
    remains::Remains,
};
use firewall_user::{bpf::text, netlink::route};
use serde_json::Value;

/// The agent looks once a second.
const SOON: Duration = Duration::from_secs(15);
const TRY: Duration = Duration::from_secs(2);
/// A third interface of the gateway.
const EXTRA: &str = "ex0";

const FAR: &str = "addr add 192.0.2.130/30 dev far0\nlink set far0 up";

/// A gateway with a third interface, `ex0`, whose other end `far0` is in a namespace of its own.
struct World {
    firewall: Firewall,
    far: Netns,
    lab: Lab,
}

impl World {
    fn guarded(attach: Attach) -> Result<Self> {
        Self::guarded_by(&with_extra(), attach)
    }

    fn guarded_by(policy: &str, attach: Attach) -> Result<Self> {
        let lab = Lab::line()?;
        let far = Netns::new(lab.name("far"))?;
        lay(&lab, &far)?;
        let firewall = Firewall::start(&lab, Node::FwB, Some(policy), attach)?;
        Ok(Self { firewall, far, lab })
    }

    fn gateway(&self) -> &Netns {
        self.lab.ns(Node::FwB)
    }

    /// What `status` says of an interface: XDP and TC.
    fn hooks(&self, interface: &str) -> Result<Option<[Value; 2]>> {
        let status = self.firewall.json(&["status"])?;
        let interfaces = status["interfaces"].as_array().context("no interfaces")?;
        let found = interfaces.iter().find(|found| found["name"] == interface);
        Ok(found.map(|found| [found["xdp"].clone(), found["tc"].clone()]))
    }

    fn await_said(&self, text: &str, times: usize) -> Result<()> {
        let said = || self.firewall.said().matches(text).count() >= times;
        await_some(text, SOON, || said().then_some(())).with_context(|| self.firewall.said())
    }

    /// It is gone, and that is said; the others do what they did.
    fn is_gone(&self) -> Result<()> {
        self.await_said("interface ex0 is gone", 1)?;
        self.await_said("still guarded: in0, out0", 1)?;
        ensure!(self.hooks(EXTRA)?.is_none(), "{:?}", self.hooks(EXTRA)?);
        let left = Remains::find(self.gateway(), &self.firewall.pins())?;
        let of_it = |names: &[String]| names.iter().any(|name| name.contains(EXTRA));
        ensure!(!of_it(&left.pins) && !of_it(&left.attached), "{left:?}");
        self.others_are_guarded()
    }

    fn others_are_guarded(&self) -> Result<()> {
        for interface in ["in0", "out0"] {
            let hooks = self.hooks(interface)?.context(interface)?;
            ensure!(hooks.iter().all(|hook| !hook.is_null()), "{hooks:?}");
        }
        let at = SocketAddr::new(self.lab.server_ip(Family::V4), 22);
        let tried = self.lab.ns(Node::Client).connect(at, TRY)?;
        ensure!(tried.is_err(), "the policy is not enforced any more");
        Ok(())
    }

    /// It judges what comes in: port 80 is open, 81 is not.
    fn is_guarded(&self) -> Result<()> {
        let at = |port| SocketAddr::new([192, 0, 2, 129].into(), port);
        let _web = self.gateway().listen(at(80))?;
        let _other = self.gateway().listen(at(81))?;
        self.far.connect(at(80), TRY)?.context("port 80")?;
        ensure!(self.far.connect(at(81), TRY)?.is_err(), "81 is open");
        Ok(())
    }
}

fn with_extra() -> String {
    config::gateway(Node::FwB, true)
        + "[zones.extra]\ninterfaces = [\"ex0\"]\n\
           [[rule]]\nname = \"extra\"\nfrom = \"extra\"\nto = \"host\"\nproto = \"tcp\"\n\
           dport = [80]\naction = \"accept\"\n"
}

fn lay(lab: &Lab, far: &Netns) -> Result<()> {
    let gateway = lab.ns(Node::FwB);
    gateway.ip(&format!(
        "link add {EXTRA} type veth peer name far0 netns {}",
        far.name()
    ))?;
    address(gateway)?;
    far.ip(FAR)
}

fn address(gateway: &Netns) -> Result<()> {
    gateway.ip(&format!(
        "addr add 192.0.2.129/30 dev {EXTRA}\nlink set {EXTRA} up"
    ))
}

#[test]
fn one_that_is_deleted_and_made_again() -> Result<()> {
    deleted(Attach::default())
}

#[test]
fn one_that_is_deleted_and_made_again_with_clsact() -> Result<()> {
    deleted(Attach {
        tc: TcKind::Clsact,
        ..Attach::default()
    })
}

fn deleted(attach: Attach) -> Result<()> {
    let world = World::guarded(attach)?;
    world.is_guarded()?;
    let mut live = LiveConnection::to_server(&world.lab, Family::V4, 21)?;
    world.gateway().ip(&format!("link del {EXTRA}"))?;
    world.is_gone()?;
    lay(&world.lab, &world.far)?;
    world.await_said("interface ex0 is back, and guarded again", 1)?;
    world.is_guarded()?;
    world.others_are_guarded()?;
    ensure!(live.is_alive(), "a connection of the others was cut");
    // Not only once.
    world.gateway().ip(&format!("link del {EXTRA}"))?;
    world.await_said("interface ex0 is gone", 2)?;
    lay(&world.lab, &world.far)?;
    world.await_said("interface ex0 is back, and guarded again", 2)?;
    world.is_guarded()?;
    unloads(world)
}

/// Egress of the others takes what came in there for judged as soon as it has an entry.
#[test]
fn one_that_comes_back_is_judged_before_it_is_known() -> Result<()> {
    let world = World::guarded(Attach::default())?;
    judged_if_known(world.gateway(), &world.firewall.pins(), || {
        (1..=4).try_for_each(|times| {
            world.gateway().ip(&format!("link del {EXTRA}"))?;
            world.await_said("interface ex0 is gone", times)?;
            lay(&world.lab, &world.far)?;
            world.await_said("interface ex0 is back, and guarded again", times)
        })
    })?;
    world.is_guarded()
}

#[test]
fn one_that_a_takeover_adds_is_judged_before_it_is_known() -> Result<()> {
    let mut world = World::guarded_by(&config::gateway(Node::FwB, true), Attach::default())?;
    world.firewall.stop_agent();
    let gateway = world.lab.ns(Node::FwB);
    let pins = world.firewall.pins();
    judged_if_known(gateway, &pins, || {
        world.firewall.start_agent_with(&with_extra(), &[])
    })?;
    world.is_guarded()
}

/// Looks at `ex0` while something is done: with an entry it must have its XDP program.
fn judged_if_known(gateway: &Netns, pins: &Path, done: impl FnOnce() -> Result<()>) -> Result<()> {
    let over = AtomicBool::new(false);
    let look = || -> Result<usize> {
        let map = Map::HashMap(MapData::from_pin(pins.join("IFACES"))?);
        let map: HashMap<_, u32, Iface> = map.try_into()?;
        let mut seen = 0;
        loop {
            let last = over.load(Ordering::Relaxed);
            let entries: Vec<_> = map.iter().flatten().collect();
            let is_extra = |entry: &&(u32, Iface)| text(&entry.1.name) == EXTRA;
            if let Some((index, _)) = entries.iter().find(is_extra)
                && let Some(link) = route::links()?.iter().find(|link| link.index == *index)
            {
                ensure!(link.xdp.is_some(), "known without XDP, after {seen} looks");
                seen += 1;
            }
            if last {
                return Ok(seen);
            }
        }
    };
    let (done, seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| gateway.within(look));
        let done = done();
        over.store(true, Ordering::Relaxed);
        (done, watch.join())
    });
    done?;
    let seen = seen.map_err(|_| anyhow::anyhow!("who looks at it panicked"))?;
    ensure!(seen?? > 0, "it was not looked at");
    Ok(())
}

/// Nothing of it is left there, on the gateway or with the interface.
fn unloads(mut world: World) -> Result<()> {
    world.firewall.unload()?;
    let left = Remains::find(world.gateway(), &world.firewall.pins())?;
    ensure!(left == Remains::default(), "{left:?}");
    Ok(())
}

#[test]
fn one_that_is_moved_to_another_namespace_and_comes_back() -> Result<()> {
    let world = World::guarded(Attach::default())?;
    let elsewhere = Netns::new(world.lab.name("elsewhere"))?;
    let (home, away) = (world.gateway().name(), elsewhere.name());
    world
        .gateway()
        .ip(&format!("link set {EXTRA} netns {away}"))?;
    world.is_gone()?;
    let there = Remains::find(&elsewhere, &world.firewall.pins())?;
    ensure!(there.attached.is_empty(), "it kept {there:?}");
    elsewhere.ip(&format!("link set {EXTRA} netns {home}"))?;
    address(world.gateway())?;
    world.await_said("interface ex0 is back, and guarded again", 1)?;
    world.is_guarded()?;
    unloads(world)
}

/// What cannot be guarded when it comes back is said once, and tried until it can.
#[test]
fn one_that_comes_back_and_cannot_be_guarded() -> Result<()> {
    let world = World::guarded(Attach::default())?;
    world.gateway().ip(&format!("link del {EXTRA}"))?;
    world.is_gone()?;
    // Somebody else's program is there before the name is.
    let (gateway, far) = (world.gateway(), &world.far);
    gateway.ip(&format!(
        "link add other0 type veth peer name far0 netns {}",
        far.name()
    ))?;
    let _foreign = ForeignXdp::attach(gateway, "other0", world.lab.name("foreign"))?;
    gateway.ip(&format!("link set other0 name {EXTRA}"))?;
    world.await_said("interface ex0 is back, but NOT guarded", 1)?;
    thread::sleep(Duration::from_secs(3));
    let said = world.firewall.said();
    ensure!(said.matches("NOT guarded").count() == 1, "{said}");
    ensure!(said.contains("already runs the XDP program"), "{said}");
    world.others_are_guarded()?;
    // What the message says.
    gateway.ip(&format!("link set dev {EXTRA} xdp off"))?;
    address(gateway)?;
    far.ip(FAR)?;
    world.await_said("interface ex0 is back, and guarded again", 1)?;
    world.is_guarded()
}

/// Nobody looks after it then; `status` tells, and what runs next takes it over.
#[test]
fn one_that_vanishes_without_an_agent() -> Result<()> {
    let mut world = World::guarded(Attach::default())?;
    world.firewall.stop_agent();
    world.gateway().ip(&format!("link del {EXTRA}"))?;
    let hooks = world.hooks(EXTRA)?.context("no entry")?;
    ensure!(hooks.iter().all(Value::is_null), "{hooks:?}");
    let table = process::check(&mut world.firewall.command_line(&["status"])?)?;
    ensure!(table.contains("GONE"), "{table}");
    world.others_are_guarded()?;
    lay(&world.lab, &world.far)?;
    world.firewall.start_agent()?;
    world.is_guarded()?;
    unloads(world)
}

//! The life of an instance: one agent, one network namespace, interfaces that
//! come and go, failures half-way, and what becomes of expired flows.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use firewall_common::abi::maps;
use firewall_tests::lab::{
    Family, Lab, Netns, Node, id,
    live::LiveConnection,
    pinhole::{Attach, Firewall, TcKind, XdpMode, run_in},
    process::{self, Output},
    remains::Remains,
};
use nix::sys::signal::Signal;

/// A port of the server that no FTP server listens on.
const PORT: u16 = 2300;
/// A veth refuses native XDP when its peer could send longer frames than a page holds.
const JUMBO: &str = "9000";

fn config(interfaces: &[&str]) -> String {
    format!(
        "[zones.outside]\ninterfaces = {interfaces:?}\n\
         [[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n\
         [timeouts]\nudp = 1\nudp-stream = 1\n"
    )
}

#[test]
fn an_instance_has_one_agent_and_one_namespace() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Server, None, Attach::default())?;
    let again = ["--instance", firewall.instance(), "run", "--iface", "eth0"];
    let second = run_in(lab.ns(Node::Server), &again)?;
    refused(&second, 1, &["another agent (pid "])?;
    let elsewhere = run_in(lab.ns(Node::Client), &again)?;
    refused(&elsewhere, 1, &["another network namespace", "--instance"])?;
    let name = lab.name("other");
    let other = ["--instance", &name, "run", "--iface", "eth0"];
    let remedy = format!("`pinhole --instance {} unload`", firewall.instance());
    refused(
        &run_in(lab.ns(Node::Server), &other)?,
        1,
        &["is guarded by instance", &remedy],
    )
}

/// Anybody can take the name of an abstract socket.
#[test]
fn a_squatter_on_the_lock_neither_stops_nor_doubles_the_agent() -> Result<()> {
    const SQUAT: &str = r#"socket(S, AF_UNIX, SOCK_STREAM, 0);
        bind(S, pack("Sa*", AF_UNIX, "\0pinhole-$ARGV[0]")) or die "bind: $!";
        listen(S, 1); $| = 1; print "squats\n"; sleep 300"#;
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Server);
    let mut squat = ns.command("setpriv");
    squat.args(["--reuid", "65534", "--clear-groups", "perl", "-MSocket"]);
    squat.args(["-e", SQUAT, &lab.name(Node::Server.name())]);
    let squatter = process::Daemon::spawn(squat, lab.dir().join("squat.log"))?;
    process::await_some("the name is taken", Duration::from_secs(5), || {
        squatter.log().contains("squats").then_some(())
    })?;
    let mut firewall = Firewall::start(&lab, Node::Server, None, Attach::default())?;
    let again = ["--instance", firewall.instance(), "run", "--iface", "eth0"];
    refused(&run_in(ns, &again)?, 1, &["another agent (pid "])?;
    let status = firewall.json(&["status"])?;
    ensure!(status["agent"]["alive"] == true, "{status}");
    let unloaded = firewall.cli(&["unload"])?;
    ensure!(unloaded.stdout.contains("stopped"), "{unloaded:?}");
    ensure!(firewall.is_agent_gone() && !firewall.pins().exists());
    Ok(())
}

/// Pins are seen from all namespaces, the agent's lock is not.
#[test]
fn of_two_first_runs_in_two_namespaces_one_gives_way() -> Result<()> {
    let lab = Lab::line()?;
    let name = lab.name("twice");
    let args = ["--instance", &name, "run", "--iface", "eth0"];
    let start = |node: Node, log: &str| {
        process::Daemon::spawn(nested(lab.ns(node), &args)?, lab.dir().join(log))
    };
    let mut agents = [
        start(Node::Server, "twice-a.log")?,
        start(Node::Client, "twice-b.log")?,
    ];
    process::await_some(
        "one is ready, one has ended",
        Duration::from_secs(30),
        || {
            let ready = agents.iter().any(|a| a.log().contains("\nready"));
            (ready && agents.iter_mut().any(|a| a.ended().is_some())).then_some(())
        },
    )?;
    let logs = agents.each_ref().map(process::Daemon::log);
    let gave_way = |log: &String| log.contains("guards another network namespace");
    ensure!(logs.iter().filter(|l| gave_way(l)).count() == 1, "{logs:?}");
    let pins = Path::new(id::PINS).join(&name);
    ensure!(pins.join("link-xdp-eth0").exists(), "its pins were removed");
    for node in [Node::Server, Node::Client] {
        let _ = run_in(lab.ns(node), &["--instance", &name, "unload"])?;
    }
    ensure!(!pins.exists(), "it is not unloaded");
    Ok(())
}

/// Programs take seconds to load, minutes where a machine is emulated.
#[test]
fn no_instance_waits_while_another_one_loads() -> Result<()> {
    let lab = Lab::line()?;
    let name = lab.name("slow");
    let args = ["--instance", &name, "run", "--iface", "eth0"];
    let mut slow = process::Daemon::spawn(
        nested(lab.ns(Node::Client), &args)?,
        lab.dir().join("slow.log"),
    )?;
    let pins = Path::new(id::PINS).join(&name);
    process::await_some("it loads", Duration::from_secs(30), || {
        let begun = [maps::STATS, maps::ABI].map(|map| pins.join(map).exists());
        (begun == [true; 2]).then_some(())
    })?;
    slow.signal(Signal::SIGSTOP);
    let version = || -> Result<u32> {
        let abi = MapData::from_pin(pins.join(maps::ABI))?;
        let abi = Array::<MapData, u32>::try_from(Map::from_map_data(abi)?)?;
        Ok(abi.get(&0, 0)?)
    };
    ensure!(version()? == 0, "it is loaded already: {}", slow.log());
    let other = Firewall::start(&lab, Node::Server, None, Attach::default());
    let still = version();
    slow.signal(Signal::SIGCONT);
    other?;
    ensure!(still? == 0, "it went on meanwhile");
    process::await_some("the first is ready, too", Duration::from_secs(60), || {
        (slow.log().contains("\nready") || slow.ended().is_some()).then_some(())
    })?;
    ensure!(slow.log().contains("\nready"), "{}", slow.log());
    let unloaded = run_in(lab.ns(Node::Client), &["--instance", &name, "unload"])?;
    ensure!(unloaded.success() && !pins.exists(), "{unloaded:?}");
    Ok(())
}

#[test]
fn the_next_run_adopts_what_is_attached_and_does_not_loosen_it() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Server);
    let attach = Attach {
        xdp: XdpMode::Generic,
        tc: TcKind::Clsact,
    };
    let mut firewall = Firewall::start(&lab, Node::Server, None, attach)?;
    firewall.kill_agent();
    for (option, wish) in [("--mode", "native"), ("--tc", "tcx")] {
        let args = [
            "--instance",
            firewall.instance(),
            "run",
            "--iface",
            "eth0",
            option,
            wish,
        ];
        refused(&run_in(ns, &args)?, 1, &["without enforcement", "unload"])?;
    }
    let auto = ["--instance", firewall.instance(), "run", "--iface", "eth0"];
    let agent = process::Daemon::spawn(nested(ns, &auto)?, lab.dir().join("adopt.log"))?;
    process::await_some("the next agent is ready", Duration::from_secs(30), || {
        agent.log().contains("\nready").then_some(())
    })?;
    ensure!(
        agent.log().contains("XDP generic, TC clsact"),
        "{}",
        agent.log()
    );
    ensure!(Remains::find(ns, &firewall.pins())?.attached.len() == 2);
    Ok(())
}

#[test]
fn a_failure_half_way_takes_everything_off_again() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::FwB);
    jumbo(&lab)?;
    let before = vlan_offload(ns, "in0")?;
    ensure!(before, "the control: the offload is on");
    for tc in ["tcx", "clsact"] {
        let name = lab.name("half");
        let mut args = vec!["--instance", &name, "run", "--mode", "native", "--tc", tc];
        args.extend(["--iface", "in0", "--iface", "out0"]);
        refused(&run_in(ns, &args)?, 1, &["out0", "native"])?;
        let pins = Path::new(id::PINS).join(&name);
        let left = Remains::find(ns, &pins)?;
        ensure!(left == Remains::default() && !pins.exists(), "{left:?}");
        ensure!(vlan_offload(ns, "in0")?, "the offload is not restored");
    }
    Ok(())
}

#[test]
fn native_where_the_driver_can_and_it_says_so() -> Result<()> {
    let lab = Lab::line()?;
    jumbo(&lab)?;
    let text = config(&["in0", "out0"]);
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    let said = firewall.said();
    ensure!(
        said.contains("in0: zone outside, XDP native, TC "),
        "{said}"
    );
    ensure!(said.contains("out0: zone outside, XDP generic ("), "{said}");
    let status = firewall.json(&["status"])?;
    let modes = |name: &str| {
        let all = status["interfaces"].as_array().into_iter().flatten();
        let mut one = all.filter(|i| i["name"] == name);
        one.next().map(|i| i["xdp"].clone())
    };
    ensure!(modes("in0") == Some("native".into()), "{status}");
    ensure!(modes("out0") == Some("generic".into()), "{status}");
    Ok(())
}

#[test]
fn interfaces_come_and_go_between_runs() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::FwB);
    let both = config(&["in0", "out0"]);
    let one = config(&["out0"]);
    let mut firewall = Firewall::start(&lab, Node::FwB, Some(&one), Attach::default())?;
    // Towards the server, through the interface that is not guarded yet.
    let at = SocketAddr::new(lab.server_ip(Family::V4), PORT);
    let mut live = LiveConnection::between(ns, lab.ns(Node::Server), at)?;
    let file = lab.dir().join(format!("{}.toml", Node::FwB.name()));
    for (text, hooks) in [(&both, 4), (&one, 2)] {
        firewall.stop_agent();
        std::fs::write(&file, text)?;
        firewall.start_agent()?;
        let found = Remains::find(ns, &firewall.pins())?;
        ensure!(found.attached.len() == hooks, "{found:?}");
        ensure!(live.is_alive(), "cut off with {hooks} hooks");
    }
    ensure!(vlan_offload(ns, "in0")? && !vlan_offload(ns, "out0")?);
    firewall.unload()?;
    ensure!(vlan_offload(ns, "out0")?, "the offload is not restored");
    Ok(())
}

/// bpffs refuses dots, VLAN interfaces have them.
#[test]
fn an_interface_may_have_a_dot_in_its_name() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::FwB);
    ns.ip("link add v.1 type veth peer name w.1\nlink set v.1 up\nlink set w.1 up")?;
    let text = config(&["v.1"]);
    for tc in [TcKind::Tcx, TcKind::Clsact] {
        let attach = Attach {
            tc,
            ..Attach::default()
        };
        let mut firewall = Firewall::start(&lab, Node::FwB, Some(&text), attach)?;
        firewall.kill_agent();
        firewall.start_agent()?;
        let said = firewall.said();
        ensure!(said.contains("taken over"), "{said}");
        let status = firewall.json(&["status"])?;
        let one = &status["interfaces"][0];
        ensure!(one["name"] == "v.1", "{status}");
        ensure!(!one["xdp"].is_null() && !one["tc"].is_null(), "{status}");
        let pins = firewall.pins();
        ensure!(Remains::find(ns, &pins)?.attached.len() == 2);
        firewall.unload()?;
        let left = Remains::find(ns, &pins)?;
        ensure!(left == Remains::default() && !pins.exists(), "{left:?}");
    }
    Ok(())
}

/// The index of a VLAN that was removed may become another interface's.
#[test]
fn an_entry_without_its_vlan_is_removed_and_never_shown() -> Result<()> {
    // `Iface`: the flag of a VLAN, zone 1.
    const VLAN: &str = "80 00 00 00 01 00 00 00";
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Server, None, Attach::default())?;
    let pin = firewall.pins().join("IFACES");
    let names = "76 2e 31 00 00 00 00 00 00 00 00 00 00 00 00 00 ".repeat(2);
    let mut bpftool = std::process::Command::new("bpftool");
    bpftool.args(["map", "update", "pinned"]).arg(&pin);
    bpftool.args("key hex 99 09 00 00 value hex".split(' '));
    bpftool.args(VLAN.split(' ').chain(names.split_whitespace()));
    process::check(&mut bpftool)?;
    let status = firewall.json(&["status"])?;
    let shown = status["interfaces"].as_array().map(Vec::len);
    ensure!(shown == Some(1), "{status}");
    process::await_some("the entry is gone", Duration::from_secs(5), || {
        (elements(&pin).ok()? == 1).then_some(())
    })?;
    let unloaded = firewall.cli(&["unload"])?;
    ensure!(
        unloaded.success() && !unloaded.stdout.contains("v.1"),
        "{unloaded:?}"
    );
    Ok(())
}

#[test]
fn a_failed_run_leaves_the_earlier_time_to_confirm() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::FwB);
    jumbo(&lab)?;
    let attach = Attach {
        xdp: XdpMode::Native,
        ..Attach::default()
    };
    let text = config(&["in0"]);
    let confirm = ["--confirm", "10s"];
    let mut firewall = Firewall::start_with(&lab, Node::FwB, Some(&text), attach, &confirm)?;
    firewall.kill_agent();
    let mut again = vec!["--instance", firewall.instance(), "run", "--confirm", "5m"];
    again.extend(["--mode", "native", "--iface", "in0", "--iface", "out0"]);
    refused(&run_in(ns, &again)?, 1, &["out0", "native"])?;
    // The control: the failed run took nothing off.
    let pins = firewall.pins();
    ensure!(Remains::find(ns, &pins)?.attached.len() == 2);
    process::await_some("it detaches", Duration::from_secs(15), || {
        let left = Remains::find(ns, &pins).ok()?;
        (left == Remains::default()).then_some(())
    })
}

#[test]
fn ending_it_unconfirmed_detaches_at_once() -> Result<()> {
    let lab = Lab::line()?;
    let mut firewall = Firewall::start_with(
        &lab,
        Node::Server,
        None,
        Attach::default(),
        &["--confirm", "5m"],
    )?;
    let pins = firewall.pins();
    firewall.stop_agent();
    let left = Remains::find(lab.ns(Node::Server), &pins)?;
    ensure!(left == Remains::default() && !pins.exists(), "{left:?}");
    let confirmed = firewall.cli(&["confirm"])?;
    refused(&confirmed, 1, &["no pinhole instance"])
}

#[test]
fn there_must_be_something_to_confirm() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Server, None, Attach::default())?;
    let confirmed = firewall.cli(&["confirm"])?;
    refused(&confirmed, 1, &["waits for no confirmation"])
}

#[test]
fn expired_flows_are_collected() -> Result<()> {
    const FLOWS: u64 = 100;
    let lab = Lab::line()?;
    let text = config(&["eth0"]);
    let firewall = Firewall::start(&lab, Node::Client, Some(&text), Attach::default())?;
    let to = SocketAddr::new(lab.server_ip(Family::V4), PORT);
    lab.ns(Node::Client).within(|| -> Result<()> {
        for _ in 0..FLOWS {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.send_to(b"x", to)?;
        }
        Ok(())
    })??;
    // The control: they are there before they expire.
    let elements = || elements(&firewall.pins().join("HALF_OPEN4_IN"));
    ensure!(elements()? > 0, "no flow was made");
    process::await_some("the table is empty", Duration::from_secs(10), || {
        (elements().ok()? == 0).then_some(())
    })?;
    let stats = firewall.json(&["stats", "--all"])?;
    let events = stats["events"].as_array().into_iter().flatten();
    let mut expired = events.filter(|e| e["event"] == "flow-expired");
    let count = expired.next().and_then(|e| e["count"].as_u64());
    ensure!(count.is_some_and(|n| n > 0), "{stats}");
    Ok(())
}

/// Elements of a pinned map, expired ones among them.
fn elements(pin: &Path) -> Result<usize> {
    let mut bpftool = std::process::Command::new("bpftool");
    bpftool.args(["-j", "map", "dump", "pinned"]).arg(pin);
    let dump: serde_json::Value = serde_json::from_str(&process::check(&mut bpftool)?)?;
    Ok(dump.as_array().map_or(0, Vec::len))
}

/// Makes `out0` of fw-b an interface whose driver refuses native XDP.
fn jumbo(lab: &Lab) -> Result<()> {
    lab.ns(Node::Net)
        .ip(&format!("link set dev b0 mtu {JUMBO}"))?;
    lab.ns(Node::FwB)
        .ip(&format!("link set dev out0 mtu {JUMBO}"))
}

fn vlan_offload(ns: &Netns, interface: &str) -> Result<bool> {
    let features = process::check(ns.command("ethtool").args(["-k", interface]))?;
    let line = features
        .lines()
        .find(|line| line.trim_start().starts_with("rx-vlan-offload:"))
        .with_context(|| format!("{interface} has no such feature: {features}"))?;
    Ok(line.contains(": on"))
}

fn nested(ns: &Netns, args: &[&str]) -> Result<std::process::Command> {
    let binary = firewall_tests::lab::pinhole::binary()?;
    let mut command = ns.command(&binary.to_string_lossy());
    command.args(args);
    Ok(command)
}

fn refused(output: &Output, code: i32, said: &[&str]) -> Result<()> {
    ensure!(output.code == Some(code), "{output:?}");
    for text in said {
        ensure!(
            output.stderr.contains(text),
            "{text:?} is not said: {output:?}"
        );
    }
    Ok(())
}

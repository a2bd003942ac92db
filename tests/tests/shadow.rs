//! Shadow mode: everything passes, what would be dropped is told, and the end of
//! shadow mode is the end of what the policy refuses.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use firewall_common::abi::{Flow, FlowKey4, maps};
use firewall_tests::lab::{
    Family, Lab, Netns, Node,
    client::{self, FtpCommand, Request},
    live::LiveConnection,
    ping,
    pinhole::{Attach, Firewall, config},
    process,
    server::{self, FtpServer},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(2);
/// Beyond any MTU here: three fragments and more.
const LONG: usize = 4000;

/// Nothing is accepted, not even what a host needs to have a network.
const NOTHING: &str = "[zones.outside]\ninterfaces = [\"eth0\"]\n\
    [essentials]\narp = false\nneighbour-discovery = false\ndhcp-client = false\n\
    dhcpv6-client = false\nmulticast-listener = false\npath-mtu = false\nlink-control = false\n";

/// As [`NOTHING`] for connections, so that what is dropped is not just ARP.
const NO_CONNECTIONS: &str = "[zones.outside]\ninterfaces = [\"eth0\"]\n";

#[test]
fn everything_passes_and_nothing_does_once_it_is_enforced() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = start(&lab, NOTHING)?;
    ensure!(firewall.said().contains("SHADOW MODE: nothing is dropped"));
    for family in Family::BOTH {
        traffic(&lab, family)?;
    }
    let stats = firewall.stats()?;
    ensure!(stats.drop.iter().all(|c| c.packets == 0), "{stats:?}");
    ensure!(
        stats.would_drop("policy") > 0 && stats.would_drop("refused-flow") > 0,
        "{stats:?}"
    );
    // Within a bound, a later fragment passes without its first in any mode: no
    // receiver can do anything with it.
    let mut passed = stats.pass.iter().filter(|c| c.packets > 0);
    ensure!(
        passed.all(|c| c.reason == "fragment-ahead"),
        "nothing is accepted: {stats:?}"
    );
    let status = firewall.json(&["status"])?;
    ensure!(status["shadow"] == true, "{status}");

    // The control: the same policy, enforced.
    let _enforced = enforce(firewall, NOTHING)?;
    for family in Family::BOTH {
        let at = SocketAddr::new(lab.server_ip(family), 7000);
        let _listener = lab.ns(Node::Server).listen(at)?;
        let refused = lab
            .ns(Node::Client)
            .connect(at, SOON)?
            .err()
            .map(|e| e.kind());
        ensure!(
            refused == Some(ErrorKind::TimedOut),
            "{family:?}: {refused:?}"
        );
        let answered = ping::once(lab.ns(Node::Client), lab.server_ip(family), 56, SOON)?;
        ensure!(!answered, "{family:?}: a ping was answered");
    }
    Ok(())
}

#[test]
fn what_the_policy_refuses_ends_with_shadow_mode() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = start(&lab, NO_CONNECTIONS)?;
    let mut refused = LiveConnection::to_server(&lab, Family::V4, 7001)?;
    let mut accepted = LiveConnection::to_server(&lab, Family::V6, 7002)?;
    ensure!(
        refused.is_alive() && accepted.is_alive(),
        "shadow mode lets both in"
    );
    let flows = firewall.flows()?;
    let reasons: Vec<_> = flows
        .iter()
        .filter(|f| f.is_established())
        .map(|f| &f.would_drop)
        .collect();
    ensure!(reasons == [&Some("policy".to_owned()); 2], "{flows:?}");
    let listed = firewall.json(&["flows", "list", "--status", "would-drop"])?;
    ensure!(
        listed.as_array().is_some_and(|flows| flows.len() == 2),
        "{listed}"
    );

    let rule = "[[rule]]\nname = \"one\"\nfrom = \"outside\"\nproto = \"tcp\"\ndport = [7002]\n\
        action = \"accept\"\n";
    let enforced = enforce(firewall, &format!("{NO_CONNECTIONS}{rule}"))?;
    let said = enforced.said();
    ensure!(said.contains("shadow mode ends"), "{said}");
    ensure!(
        said.contains("1 connections of shadow mode are accepted"),
        "{said}"
    );
    ensure!(
        said.contains("1 connections of shadow mode are refused"),
        "{said}"
    );
    ensure!(accepted.is_alive(), "what the new policy accepts goes on");
    ensure!(!refused.is_alive(), "what it refuses lost its pass");
    let stats = enforced.stats()?;
    ensure!(stats.dropped("refused-flow") > 0, "{stats:?}");
    Ok(())
}

/// A gateway knows nothing of the connections that crossed it before.
#[test]
fn a_connection_that_lived_before_is_tracked_and_can_go_on() -> Result<()> {
    let lab = Lab::line()?;
    let mut live = LiveConnection::to_server(&lab, Family::V4, 7001)?;
    let firewall = Firewall::start_with(
        &lab,
        Node::FwB,
        Some(&gateway(7000)),
        Attach::default(),
        &["--shadow"],
    )?;
    ensure!(live.is_alive(), "shadow mode drops nothing");
    let flows = firewall.flows()?;
    let [flow] = &flows[..] else {
        bail!("one flow, not {flows:?}");
    };
    ensure!(flow.is_established(), "{flow:?}");
    ensure!(
        flow.would_drop.as_deref() == Some("tcp-no-flow"),
        "{flow:?}"
    );

    let enforced = enforce(firewall, &gateway(7001))?;
    let said = enforced.said();
    ensure!(
        said.contains("1 connections of shadow mode are accepted"),
        "{said}"
    );
    ensure!(live.is_alive(), "what the policy accepts goes on");
    // The control: without its flow, enforcing drops it.
    let deleted = enforced.cli(&["flows", "flush", "--yes"])?;
    ensure!(deleted.success(), "{deleted:?}");
    ensure!(!live.is_alive(), "a segment without a flow passed");
    ensure!(enforced.stats()?.dropped("tcp-no-flow") > 0);
    Ok(())
}

/// A router that lets connections to `port` through, from either side.
fn gateway(port: u16) -> String {
    format!(
        "[zones.inside]\ninterfaces = [\"in0\"]\n[zones.outside]\ninterfaces = [\"out0\"]\n\
         [[rule]]\nname = \"there\"\nfrom = \"outside\"\nproto = \"tcp\"\ndport = [{port}]\n\
         action = \"accept\"\n\
         [[rule]]\nname = \"back\"\nfrom = \"inside\"\nproto = \"tcp\"\nsport = [{port}]\n\
         action = \"accept\"\n"
    )
}

#[test]
fn ftp_works_and_nothing_is_held() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let text = config::server_host(true);
    let firewall = Firewall::start_with(
        &lab,
        Node::Server,
        Some(&text),
        Attach::default(),
        &["--shadow"],
    )?;
    for family in Family::BOTH {
        for command in [FtpCommand::Pasv, FtpCommand::Epsv]
            .into_iter()
            .filter(|c| c.exists_on(family))
        {
            for _ in 0..5 {
                let outcome = Request::new(&lab, client::Kind::Curl, command, family).run(&lab)?;
                ensure!(
                    outcome.is(server.payload()),
                    "{}: {outcome:?}",
                    command.name()
                );
            }
        }
    }
    let stats = firewall.json(&["stats", "--all"])?;
    ensure!(
        count(&stats, "events", "event", "reinjected", "count") == 0,
        "{stats}"
    );
    ensure!(
        count(&stats, "drop", "reason", "held", "packets") == 0,
        "{stats}"
    );
    // Data connections are expected, or admitted once their reply was read. One
    // whose SYN came before the agent knew of the session would be dropped, and
    // pass when it is sent again.
    let expected = count(&stats, "pass", "reason", "expected", "packets");
    let admitted = count(&stats, "events", "event", "flow-admitted", "count");
    ensure!(expected + admitted > 0, "{stats}");
    Ok(())
}

#[test]
fn the_kernel_agrees_and_where_it_does_not_the_report_says() -> Result<()> {
    let lab = Lab::line()?;
    track(lab.ns(Node::Server))?;
    let firewall = start(&lab, NO_CONNECTIONS)?;
    let mut live = Vec::new();
    for family in Family::BOTH {
        traffic(&lab, family)?;
        live.push(LiveConnection::to_server(&lab, family, 7001)?);
    }
    ensure!(live.iter_mut().all(LiveConnection::is_alive));
    let report = settled(&firewall)?;
    ensure!(report.success(), "{}", report.stdout);
    let shown: Value = serde_json::from_str(&report.stdout)?;
    ensure!(
        shown["disagreements"] == Value::Array(Vec::new()),
        "{shown}"
    );
    ensure!(shown["kernel"]["tracking"] == "active", "{shown}");
    // For each family: two TCP connections closed and one open, UDP, ping.
    ensure!(shown["kernel"]["agree"].as_u64() >= Some(8), "{shown}");
    let policy = &shown["would_drop"]
        .as_array()
        .context("no reasons")?
        .iter()
        .find(|r| r["reason"] == "policy");
    let talker = &policy.context("policy drops")?["talkers"][0]["src"];
    let from = [Family::V4, Family::V6].map(|family| lab.client_ip(family).to_string());
    ensure!(from.iter().any(|ip| talker == ip), "{shown}");

    // Without an agent, and on one side without one of the connections.
    let mut firewall = firewall;
    firewall.stop_agent();
    forget(&firewall, 7001)?;
    let report = settled(&firewall)?;
    ensure!(report.code == Some(1), "{}", report.stdout);
    let shown: Value = serde_json::from_str(&report.stdout)?;
    let found = shown["disagreements"]
        .as_array()
        .context("no disagreements")?;
    ensure!(found.len() == 1, "{shown}");
    ensure!(
        found[0]["kind"] == "missing-in-pinhole" && found[0]["kernel"] == "ESTABLISHED",
        "{shown}"
    );
    ensure!(
        found[0]["dport"] == 7001 && found[0]["pinhole"].is_null(),
        "{shown}"
    );
    let text = firewall.cli(&["shadow", "report", "--wait", "1s"])?;
    ensure!(
        text.stdout.contains("missing-in-pinhole"),
        "{}",
        text.stdout
    );
    Ok(())
}

#[test]
fn without_nf_conntrack_the_report_is_of_would_drops_only() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = start(&lab, NO_CONNECTIONS)?;
    let _live = LiveConnection::to_server(&lab, Family::V4, 7001)?;
    let report = firewall.cli(&["shadow", "report", "--wait", "1s"])?;
    ensure!(report.success(), "{}", report.stderr);
    for part in [
        "SHADOW MODE",
        "policy",
        &lab.client_ip(Family::V4).to_string(),
        "nothing is compared",
    ] {
        ensure!(report.stdout.contains(part), "{part} in {}", report.stdout);
    }
    Ok(())
}

/// pinhole on the server's node, in shadow mode.
fn start(lab: &Lab, policy: &str) -> Result<Firewall> {
    Firewall::start_with(
        lab,
        Node::Server,
        Some(policy),
        Attach::default(),
        &["--shadow"],
    )
}

/// The same instance, taken over by a run that enforces `policy`.
fn enforce(mut firewall: Firewall, policy: &str) -> Result<Firewall> {
    firewall.stop_agent();
    firewall.start_agent_with(policy, &[])?;
    Ok(firewall)
}

/// TCP, UDP and ping from the client to the server and back, whole and in fragments.
fn traffic(lab: &Lab, family: Family) -> Result<()> {
    let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
    let (here, there) = (lab.client_ip(family), lab.server_ip(family));
    for (from, to, at) in [(client, server, there), (server, client, here)] {
        let mut connection = LiveConnection::between(from, to, SocketAddr::new(at, 7000))?;
        ensure!(connection.is_alive(), "TCP to {at}");
        for size in [10, LONG] {
            udp(from, to, SocketAddr::new(at, 7000), size)
                .with_context(|| format!("{size} bytes of UDP to {at}"))?;
            let answered = ping::once(from, at, size, SOON)?;
            ensure!(answered, "ping of {size} bytes to {at}");
        }
    }
    Ok(())
}

/// A datagram there, and back.
fn udp(from: &Netns, to: &Netns, at: SocketAddr, size: usize) -> Result<()> {
    let bind = |at: SocketAddr| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(at)?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    };
    let far = to.within(|| bind(at))??;
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let near = from.within(|| bind(any.parse().map_err(io::Error::other)?))??;
    let (sent, mut got) = (vec![7; size], vec![0; LONG + 1]);
    near.send_to(&sent, at)?;
    let (len, back) = far.recv_from(&mut got)?;
    ensure!(got[..len] == sent, "{len} bytes came");
    far.send_to(&sent, back)?;
    ensure!(near.recv(&mut got)? == size, "the answer");
    Ok(())
}

/// Has the kernel track all that a node receives and sends.
fn track(ns: &Netns) -> Result<()> {
    let rules = "table inet track {\n\
        chain in { type filter hook input priority filter; policy accept; ct state established counter; }\n\
        chain out { type filter hook output priority filter; policy accept; ct state established counter; }\n\
        }\n";
    process::check_with_input(ns.command("nft").args(["-f", "-"]), rules)
}

/// The report of a moment at which nothing moves: acknowledgements of what was
/// sent last may still be under way at the first.
fn settled(firewall: &Firewall) -> Result<process::Output> {
    let mut report = firewall.cli(&["shadow", "report", "--wait", "2s", "-o", "json"])?;
    for _ in 0..3 {
        let shown: Value = serde_json::from_str(&report.stdout)
            .with_context(|| format!("{}{}", report.stdout, report.stderr))?;
        if shown["kernel"]["busy"] == 0 {
            break;
        }
        thread::sleep(Duration::from_secs(1));
        report = firewall.cli(&["shadow", "report", "--wait", "2s", "-o", "json"])?;
    }
    Ok(report)
}

/// Deletes the IPv4 flow to `port` behind pinhole's back.
fn forget(firewall: &Firewall, port: u16) -> Result<()> {
    let data = MapData::from_pin(firewall.pins().join(maps::FLOWS4))?;
    let mut flows: HashMap<_, FlowKey4, Flow> = HashMap::try_from(Map::from_map_data(data)?)?;
    let keys: Vec<FlowKey4> = flows.keys().collect::<Result<_, _>>()?;
    let key = keys
        .iter()
        .find(|key| key.lo_port() == port || key.hi_port() == port);
    Ok(flows.remove(key.context("no such flow")?)?)
}

/// A number in a list of objects that have names.
fn count(list: &Value, which: &str, key: &str, name: &str, number: &str) -> u64 {
    let found = list[which]
        .as_array()
        .and_then(|all| all.iter().find(|one| one[key] == name));
    found
        .and_then(|one| one[number].as_u64())
        .unwrap_or(u64::MAX)
}

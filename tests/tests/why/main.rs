//! `pinhole why` says what becomes of a packet, as the attached programs would
//! judge it, and changes nothing of theirs.

mod dump;
mod packets;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader,
    maps::{Array, Map, MapData},
    programs::{
        Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use firewall_common::abi::{maps, programs};
use firewall_tests::lab::{
    Family, Guard, Lab, Netns, Node, Place,
    live::LiveConnection,
    pinhole::{Attach, Firewall, binary},
    process::{self, Output},
    script::Session,
    server::{self, FtpServer},
    wire::{self, Capture, hex},
};
use firewall_user::bpf::detach::xdp_pin;
use serde_json::Value;

use dump::{Dump, expectations};
use packets::{Question, datagram, pcap, segment, without_first};

const WEB: u16 = 80;

/// A server's own firewall.
const POLICY: &str = "\
[zones.outside]
interfaces = [\"eth0\"]
[[rule]]
name = \"no-telnet\"
from = \"outside\"
proto = \"tcp\"
dport = [23]
action = \"drop\"
[[rule]]
name = \"web\"
from = \"outside\"
to = \"host\"
proto = \"tcp\"
dport = [80]
action = \"accept\"
[[rule]]
name = \"out\"
from = \"host\"
action = \"accept\"
";

#[test]
fn the_answer_is_what_happens_to_the_real_packet() -> Result<()> {
    let lab = Lab::line()?;
    let mut firewall = guarded_server(&lab)?;
    let live = web_connection(&lab)?;
    let tracked = Question::of(&live, &firewall)?;
    // What the collector and the heartbeat do would show in the dumps.
    firewall.stop_agent();
    let (web, telnet, ssh) = (WEB, 23, 22);
    let cases = [
        (segment(&lab, 5000, web, "S", 1, 0)?, "new"),
        (segment(&lab, 5001, telnet, "S", 1, 0)?, "rule"),
        (segment(&lab, 5002, ssh, "S", 1, 0)?, "policy"),
        (segment(&lab, 5003, web, "A", 1, 1)?, "tcp-no-flow"),
        (segment(&lab, 5004, web, "SF", 1, 1)?, "tcp-flags"),
        (datagram(&lab, 5005, 53)?, "policy"),
        (tracked.segment(&lab, "A")?, "established"),
        (tracked.segment(&lab, "SF")?, "tcp-flags"),
        (tracked.moved(&lab, "A", 1 << 30, 0)?, "tcp-seq-over"),
        (tracked.moved(&lab, "A", 0, 1 << 30)?, "tcp-ack-over"),
        (tracked.moved(&lab, "R", -100, 0)?, "tcp-rst"),
    ];
    // One question about all: loading the programs takes longer than any answer.
    let file = lab.dir().join("cases.pcap");
    fs::write(&file, pcap(cases.iter().map(|(frame, _)| frame)))?;
    let before = Dump::of(&firewall)?;
    let answers = firewall.json(&["why", file.to_str().context("a path")?, "--in"])?;
    let single = firewall.json(&["why", "--hex", &hex(&cases[0].0), "--in"])?;
    let after = Dump::of(&firewall)?;
    ensure!(before == after, "{before:#?} {after:#?}");
    ensure!(single["reason"] == cases[0].1, "{single:#}");
    let answers = answers.as_array().context("an array")?;
    ensure!(answers.len() == cases.len());
    for ((frame, reason), answer) in cases.into_iter().zip(answers) {
        ensure!(answer["reason"] == reason, "{reason}: {answer:#}");
        let counted = count(&firewall, reason)?;
        wire::send(lab.ns(Node::FwB), "in0", &[frame])?;
        process::await_some("the packet is counted", process::SHORT, || {
            (count(&firewall, reason).ok()? == counted + 1).then_some(())
        })
        .with_context(|| format!("{reason}: {answer:#}"))?;
    }
    // The control: real packets do change what was compared.
    ensure!(before != Dump::of(&firewall)?);
    Ok(())
}

#[test]
fn what_decided_is_named() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = guarded_server(&lab)?;
    let live = web_connection(&lab)?;
    let (client, server) = (lab.client_ip(Family::V4), lab.server_ip(Family::V4));
    let ask = |sport: u16, dport: u16, more: &[&str]| {
        why(&firewall, "tcp", (client, sport), (server, dport), more)
    };
    let new = ask(5000, WEB, &[])?;
    ensure!(
        new["verdict"] == "pass" && new["rule"]["name"] == "web",
        "{new:#}"
    );
    ensure!(new["zone"]["from"] == "outside" && new["zone"]["to"] == "host");
    ensure!(new["flow"].is_null() && new["flow_after"]["state"] == "SYN_SENT");
    let telnet = ask(5000, 23, &[])?;
    let rule = &telnet["rule"];
    ensure!(
        rule["name"] == "no-telnet" && rule["action"] == "drop" && telnet["verdict"] == "drop",
        "{telnet:#}"
    );
    // Of a tracked connection the next packet of either side is made up.
    let there = ask(live.port()?, WEB, &[])?;
    ensure!(there["headers"]["flags"] == "ACK", "{there:#}");
    ensure!(there["flow"]["state"] == "ESTABLISHED" && there["flow"]["rule"] == "web");
    let back = why(&firewall, "tcp", (server, WEB), (client, live.port()?), &[])?;
    ensure!(
        back["hook"] == "egress" && back["reason"] == "established",
        "{back:#}"
    );
    let text = firewall.cli(&[
        "why",
        "tcp",
        &SocketAddr::new(client, live.port()?).to_string(),
        &SocketAddr::new(server, WEB).to_string(),
    ])?;
    ensure!(
        text.stdout.contains("PASS established") && text.stdout.contains("admitted by rule web"),
        "{text:?}"
    );
    let asked = firewall.cli(&[
        "why",
        "udp",
        &SocketAddr::new(server, 5000).to_string(),
        &SocketAddr::new(client, 53).to_string(),
        "--expect",
        "drop",
    ])?;
    ensure!(
        asked.code == Some(1) && asked.stdout.contains("PASS new"),
        "{asked:?}"
    );
    Ok(())
}

#[test]
fn what_does_not_fit_is_said_in_numbers() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = guarded_server(&lab)?;
    let live = web_connection(&lab)?;
    let (client, server) = (lab.client_ip(Family::V4), lab.server_ip(Family::V4));
    let ask = |more: &[&str]| {
        why(
            &firewall,
            "tcp",
            (client, live.port()?),
            (server, WEB),
            more,
        )
    };
    let fits = ask(&[])?;
    ensure!(fits["condition"].is_null(), "{fits:#}");
    let number = |of: &Value| of.as_u64().context("no number").map(|n| n as u32);
    let limit = number(&fits["windows"]["original"]["maxend"])?;
    let sent = number(&fits["windows"]["reply"]["end"])?;
    ensure!(number(&fits["headers"]["ack"])? == sent);

    let beyond = limit.wrapping_add(1 << 30);
    let over = ask(&["--seq", &beyond.to_string()])?;
    let condition = &over["condition"];
    ensure!(over["reason"] == "tcp-seq-over", "{over:#}");
    ensure!(
        condition["what"] == "seq"
            && condition["relation"] == ">"
            && number(&condition["value"])? == beyond
            && number(&condition["bound"])? == limit
            && number(&condition["by"])? == 1 << 30,
        "{over:#}"
    );
    let unsent = sent.wrapping_add(7);
    let over = firewall.cli(&[
        "why",
        "tcp",
        &SocketAddr::new(client, live.port()?).to_string(),
        &SocketAddr::new(server, WEB).to_string(),
        "--ack",
        &unsent.to_string(),
    ])?;
    let wanted = format!("ack {unsent} > {sent}, the end of what the other side sent (by 7)");
    ensure!(
        over.stdout.contains("DROP tcp-ack-over") && over.stdout.contains(&wanted),
        "{over:?}"
    );
    Ok(())
}

#[test]
fn a_gateway_names_zones_and_a_pinhole_is_seen_but_not_used() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &guarded.pinholes[0];
    for family in Family::BOTH {
        let (client, server) = (lab.client_ip(family), lab.server_ip(family));
        let control = why(firewall, "tcp", (client, 5000), (server, 21), &[])?;
        ensure!(
            control["iface"] == "out0" && control["hook"] == "ingress",
            "the route to the client: {control:#}"
        );
        ensure!(control["rule"]["name"] == "ftp" && control["zone"]["to"] == "inside");

        let mut session = Session::login(&lab, family)?;
        let at = session.epsv()?;
        process::await_some("the pinhole opens", process::SHORT, || {
            let open = firewall.expectations().ok()?;
            open.iter().any(|e| e.dport == at.port()).then_some(())
        })?;
        let before = expectations(firewall)?;
        let data = why(firewall, "tcp", (client, 5001), (server, at.port()), &[])?;
        ensure!(data["reason"] == "expected", "{data:#}");
        let pinhole = &data["expectation"];
        ensure!(
            pinhole["via"] == "EPSV" && pinhole["state"] == "free",
            "{data:#}"
        );
        ensure!(before == expectations(firewall)?, "a question took it");
        let other = why(
            firewall,
            "tcp",
            (client, 5001),
            (server, at.port() ^ 1),
            &[],
        )?;
        ensure!(
            other["verdict"] == "drop" && other["expectation"].is_null(),
            "{other:#}"
        );
        // It is there for the connection that it is for.
        lab.ns(Node::Client).connect(at, Duration::from_secs(3))??;
    }
    Ok(())
}

#[test]
fn a_captured_conversation_is_replayed() -> Result<()> {
    let lab = Lab::line()?;
    let capture = Capture::start(lab.ns(Node::Server), "eth0", WEB, lab.dir())?;
    converse(&lab)?;
    let file = capture.finish()?;
    let file = file.to_str().context("a path")?;
    // It had ended before pinhole came: only the replay makes a flow of it.
    let firewall = guarded_server(&lab)?;
    let before = Dump::of(&firewall)?;
    let answers = firewall.json(&["why", file])?;
    let answers = answers.as_array().context("an array")?;
    ensure!(before.flows == Dump::of(&firewall)?.flows);
    ensure!(answers.len() > 8, "{answers:#?}");
    let reasons: Vec<_> = answers.iter().map(|a| &a["reason"]).collect();
    ensure!(reasons[0] == "new", "{reasons:?}");
    ensure!(
        reasons[1..].iter().all(|r| *r == "established"),
        "{reasons:?}"
    );
    let hooks = |name| answers.iter().filter(|a| a["hook"] == name).count();
    ensure!(
        hooks("ingress") > 3 && hooks("egress") > 3,
        "both directions"
    );
    let last = &answers[answers.len() - 1];
    ensure!(last["flow_after"]["state"] == "TIME_WAIT", "{last:#}");

    let table = firewall.cli(&["why", file])?;
    let summary = format!("{} packets: {} pass (", answers.len(), answers.len());
    ensure!(table.stdout.contains(&summary), "{}", table.stdout);
    // Without the packets that begin it, the rest is of no connection.
    let bytes = fs::read(file)?;
    let middle = lab.dir().join("middle.pcap");
    fs::write(&middle, without_first(&bytes, 3)?)?;
    let answers = firewall.json(&["why", middle.to_str().context("a path")?])?;
    let lost = answers.as_array().context("an array")?.iter();
    let reasons: Vec<_> = lost.map(|a| &a["reason"]).collect();
    ensure!(reasons.iter().all(|r| *r == "tcp-no-flow"), "{reasons:?}");

    let cut = lab.dir().join("cut.pcap");
    fs::write(&cut, &bytes[..bytes.len() - 1])?;
    let refused = firewall.cli(&["why", cut.to_str().context("a path")?])?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("cut short"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn other_programs_and_other_versions_are_refused() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = guarded_server(&lab)?;
    let ask = || firewall.cli(&["why", "tcp", "192.0.2.2:5000", "203.0.113.2:80"]);
    ensure!(ask()?.code == Some(0), "{:?}", ask()?);
    let elsewhere = pinhole_in(
        lab.ns(Node::Client),
        &[
            "--instance",
            firewall.instance(),
            "why",
            "udp",
            "192.0.2.2:1",
            "192.0.2.1:1",
        ],
    )?;
    ensure!(
        elsewhere.code == Some(1) && elsewhere.stderr.contains("another network namespace"),
        "{elsewhere:?}"
    );
    let unguarded = firewall.cli(&[
        "why",
        "tcp",
        "192.0.2.2:5000",
        "203.0.113.2:80",
        "--iface",
        "lo",
    ])?;
    ensure!(
        unguarded.code == Some(2) && unguarded.stderr.contains("eth0"),
        "{unguarded:?}"
    );

    exchange_program(&firewall.pins().join(xdp_pin("eth0")))?;
    let other = ask()?;
    ensure!(
        other.code == Some(1) && other.stderr.contains("tag") && other.stderr.contains("eth0"),
        "{other:?}"
    );
    let data = MapData::from_pin(firewall.pins().join(maps::ABI))?;
    let mut abi: Array<_, u32> = Array::try_from(Map::from_map_data(data)?)?;
    let version = abi.get(&0, 0)?;
    abi.set(0, version + 1, 0)?;
    let newer = ask();
    abi.set(0, version, 0)?;
    let newer = newer?;
    ensure!(
        newer.code == Some(1) && newer.stderr.contains("ABI version"),
        "{newer:?}"
    );
    Ok(())
}

#[test]
fn wrong_questions_show_the_right_form() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Client);
    let text = lab.dir().join("text");
    fs::write(&text, "192.0.2.1:21")?;
    let text = text.to_str().context("a path")?;
    let tuple = ["tcp", "192.0.2.1:1", "192.0.2.2:2"];
    for (question, says) in [
        (&["tcp", "192.0.2.1:1"][..], "pinhole why tcp"),
        (&["tpc", "192.0.2.1:1", "192.0.2.2:2"], "`tpc`"),
        (&["tcp", "192.0.2.1", "192.0.2.2:2"], "ADDRESS:PORT"),
        (&["--hex", "45zz"], "place 3"),
        (&["--hex", "4500"], "2 bytes"),
        (&["/no/such/file"], "/no/such/file"),
        (&[text], "not a capture"),
        (
            &[tuple[0], tuple[1], tuple[2], "--flags", "SYN,NAK"],
            "`NAK`",
        ),
        (&[tuple[0], tuple[1], tuple[2], "--in", "--out"], "--out"),
        (
            &["udp", "192.0.2.1:1", "192.0.2.2:2", "--seq", "1"],
            "--seq is for tcp",
        ),
        (&[], "Usage"),
    ] {
        let said = pinhole_in(ns, &[&["why"], question].concat())?;
        ensure!(
            said.code == Some(2) && said.stderr.contains(says),
            "{question:?}: {said:?}"
        );
    }
    let nobody = pinhole_in(
        ns,
        &[&["--instance", "nobody-has-this", "why"], &tuple[..]].concat(),
    )?;
    ensure!(
        nobody.code == Some(1) && nobody.stderr.contains("pinhole run"),
        "{nobody:?}"
    );
    Ok(())
}

fn guarded_server(lab: &Lab) -> Result<Firewall> {
    Firewall::start(lab, Node::Server, Some(POLICY), Attach::default())
}

fn web_connection(lab: &Lab) -> Result<LiveConnection> {
    let mut live = LiveConnection::to_server(lab, Family::V4, WEB)?;
    ensure!(live.is_alive());
    // Until the last acknowledgement was seen.
    thread::sleep(Duration::from_millis(100));
    Ok(live)
}

/// A connection with much data both ways, from its begin to its end.
fn converse(lab: &Lab) -> Result<()> {
    let at = SocketAddr::new(lab.server_ip(Family::V4), WEB);
    let listener = lab.ns(Node::Server).listen(at)?;
    let mut client = lab.ns(Node::Client).connect(at, Duration::from_secs(3))??;
    let (mut server, _) = listener.accept()?;
    let sent = vec![7; 100_000];
    let mut got = vec![0; sent.len()];
    thread::scope(|scope| {
        let writer = scope.spawn(|| client.write_all(&sent));
        server.read_exact(&mut got)?;
        writer.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        anyhow::Ok(())
    })?;
    server.write_all(b"thank you")?;
    client.read_exact(&mut got[..9])?;
    drop(client);
    ensure!(server.read(&mut [0])? == 0);
    Ok(())
}

/// Puts another program of the object into a pinned XDP link.
fn exchange_program(pin: &Path) -> Result<()> {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/pinhole.o");
    let mut ebpf = EbpfLoader::new().load(&fs::read(object)?)?;
    let program: &mut Xdp = ebpf
        .program_mut(programs::CTL)
        .context("no such program")?
        .try_into()?;
    program.load()?;
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    // The pin keeps it.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn pinhole_in(ns: &Netns, args: &[&str]) -> Result<Output> {
    let mut command = ns.command(&binary()?.to_string_lossy());
    process::run(command.args(args), process::SHORT)
}

fn why(
    firewall: &Firewall,
    protocol: &str,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    more: &[&str],
) -> Result<Value> {
    let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
    let question = ["why", protocol, &from.to_string(), &to.to_string()];
    firewall.json(&[&question[..], more].concat())
}

fn count(firewall: &Firewall, reason: &str) -> Result<u64> {
    let stats = firewall.stats()?;
    let found = stats
        .pass
        .iter()
        .chain(&stats.drop)
        .find(|c| c.reason == reason);
    Ok(found
        .with_context(|| format!("no counter {reason}"))?
        .packets)
}

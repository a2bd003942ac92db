//! Watching, finding, counting and deleting flows of a live firewall.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt as _,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    live::LiveConnection,
    pinhole::{Attach, Firewall, config},
    process::{self, Daemon},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// A client's firewall whose closed connections are soon forgotten.
fn forgetful() -> String {
    config::client_host(true) + "[timeouts]\ntcp-time-wait = 1\ntcp-close = 1\n"
}

/// A server's firewall with these ports open.
fn open(port: u16) -> String {
    format!(
        "[zones.outside]\ninterfaces = [\"eth0\"]\n\
         [[rule]]\nname = \"open\"\nfrom = \"outside\"\nto = \"host\"\n\
         proto = \"tcp\"\ndport = {port}\naction = \"accept\"\n\
         [timeouts]\ntcp-time-wait = 1\n"
    )
}

/// The events that a watcher with `-o json` has printed.
fn heard(watcher: &Daemon) -> Result<Vec<Value>> {
    let log = watcher.log();
    // The last line may be half written.
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let parse = |line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
    whole.lines().map(parse).collect()
}

/// Waits for an event of this kind.
fn await_event(watcher: &Daemon, event: &str) -> Result<Vec<Value>> {
    let found = process::await_some(event, LIMIT, || {
        let events = heard(watcher).ok()?;
        events.iter().any(|e| e["event"] == event).then_some(events)
    });
    found.with_context(|| format!("heard {}", watcher.log()))
}

#[test]
fn a_connection_is_heard_from_begin_to_end_and_counted_as_on_the_wire() -> Result<()> {
    const CHUNK: usize = 128 << 10;
    const CHUNKS: usize = 16;
    let lab = Lab::line()?;
    let client = Firewall::start(&lab, Node::Client, Some(&forgetful()), Attach::default())?;
    let server = Firewall::start(&lab, Node::Server, Some(&open(5000)), Attach::default())?;
    for family in Family::BOTH {
        let at = SocketAddr::new(lab.server_ip(family), 5000);
        let only = ["-o", "json", "-p", "tcp", "--dport", "5000"];
        let mut watchers = [client.watch(&only)?, server.watch(&only)?];
        let listener = lab.ns(Node::Server).listen(at)?;
        let mut near = lab
            .ns(Node::Client)
            .connect(at, LIMIT)?
            .context("connect")?;
        let (mut far, _) = listener.accept()?;
        // To and fro, so that neither queue on the way runs over.
        for _ in 0..CHUNKS {
            pass(&mut near, &mut far, CHUNK)?;
            pass(&mut far, &mut near, CHUNK)?;
        }
        drop(near);
        // The end of the stream has come: the FINs go their ways in order.
        ensure!(far.read(&mut [0])? == 0);
        drop(far);
        let [by_client, by_server] = [
            await_event(&watchers[0], "DESTROY")?,
            await_event(&watchers[1], "DESTROY")?,
        ];
        for events in [&by_client, &by_server] {
            let kinds: Vec<_> = events.iter().filter_map(|e| e["event"].as_str()).collect();
            ensure!(kinds.first() == Some(&"NEW"), "{kinds:?}");
            ensure!(kinds.last() == Some(&"DESTROY"), "{kinds:?}");
            let updates = &kinds[1..kinds.len() - 1];
            ensure!(updates.iter().all(|kind| *kind == "UPDATE"), "{kinds:?}");
            let states: Vec<_> = events.iter().filter_map(|e| e["state"].as_str()).collect();
            ensure!(
                states[..3] == ["SYN_SENT", "SYN_RECV", "ESTABLISHED"]
                    && states.ends_with(&["TIME_WAIT", "TIME_WAIT"]),
                "{states:?}"
            );
        }
        let (near, far) = (
            by_client.last().context("end")?,
            by_server.last().context("end")?,
        );
        ensure!(
            near["reason"] == "closed" && far["reason"] == "closed",
            "{near} {far}"
        );
        // What leaves one host uncut arrives at the other one in pieces.
        for side in ["original", "reply"] {
            for what in ["packets", "bytes"] {
                let counted = (&near[side][what], &far[side][what]);
                ensure!(
                    counted.0 == counted.1,
                    "{family:?} {side} {what}: {counted:?}"
                );
            }
            let bytes = near[side]["bytes"].as_u64().context("bytes")?;
            let packets = near[side]["packets"].as_u64().context("packets")?;
            let sent = (CHUNK * CHUNKS) as u64;
            ensure!(
                bytes > sent && bytes < sent + packets * 100,
                "{bytes} of {sent}"
            );
            ensure!(
                packets > sent / 1500,
                "{packets} packets of at most 1500 bytes"
            );
        }
        for watcher in &mut watchers {
            watcher.stop();
        }
    }
    uncut_segments_were_seen(&client)
}

/// The control: fewer segments passed the hook than packets were counted.
fn uncut_segments_were_seen(firewall: &Firewall) -> Result<()> {
    let stats = firewall.stats()?;
    let known = stats
        .pass
        .iter()
        .find(|count| count.reason == "established");
    let segments = known.context("established")?.packets;
    let flows = firewall.flows()?;
    ensure!(
        flows.iter().all(|flow| flow.original.dport != Some(5000)),
        "{flows:?}"
    );
    // Two families, two directions, 2 MiB each, in packets of 1500 bytes at most.
    ensure!(segments < 4 * (2 << 20) / 1500, "{segments} segments");
    Ok(())
}

/// Passes `len` bytes and waits for them.
fn pass(from: &mut TcpStream, to: &mut TcpStream, len: usize) -> Result<()> {
    to.set_read_timeout(Some(LIMIT))?;
    thread::scope(|scope| {
        let sent = scope.spawn(|| from.write_all(&vec![7; len]));
        to.read_exact(&mut vec![0; len])?;
        sent.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        Ok(())
    })
}

#[test]
fn deleting_cuts_the_flows_of_the_filter_and_no_other() -> Result<()> {
    let lab = Lab::line()?;
    let mut firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    let mut doomed = LiveConnection::to_server(&lab, Family::V4, 5000)?;
    let mut other = LiveConnection::to_server(&lab, Family::V4, 5001)?;
    let mut v6 = LiveConnection::to_server(&lab, Family::V6, 5000)?;
    // Without an agent, as with one.
    firewall.stop_agent();
    ensure!(
        doomed.is_alive() && other.is_alive() && v6.is_alive(),
        "the control"
    );
    let mut watcher = firewall.watch(&["-o", "json", "-e", "destroy"])?;
    let port = doomed.port()?.to_string();
    let server = lab.server_ip(Family::V4).to_string();
    let client = lab.client_ip(Family::V4).to_string();
    let tuple = [
        "-p", "tcp", "-s", &client, "--sport", &port, "-d", &server, "--dport", "5000",
    ];
    let found = firewall.json(&[&["flows", "get"], &tuple[..]].concat())?;
    ensure!(
        found["state"] == "ESTABLISHED" && found["original"]["dport"] == 5000,
        "{found}"
    );
    let no_flow = firewall.stats()?.dropped("tcp-no-flow");

    let done = firewall.json(&["flows", "delete", "-p", "tcp", "--dport", "5000", "-4"])?;
    ensure!(
        done == serde_json::json!({"matched": 1, "deleted": 1}),
        "{done}"
    );
    let event = await_event(&watcher, "DESTROY")?;
    ensure!(
        event.len() == 1 && event[0]["reason"] == "deleted",
        "{event:?}"
    );
    ensure!(
        event[0]["original"] == found["original"],
        "{event:?} {found}"
    );
    ensure!(!doomed.is_alive(), "it is cut");
    ensure!(
        firewall.stats()?.dropped("tcp-no-flow") > no_flow,
        "its packets are dropped"
    );
    ensure!(other.is_alive() && v6.is_alive(), "the others are not");
    let gone = firewall.cli(&[&["flows", "get"], &tuple[..]].concat())?;
    ensure!(
        gone.code == Some(1) && gone.stderr.contains("no such flow"),
        "{gone:?}"
    );
    let again = firewall.cli(&["flows", "delete", "-p", "tcp", "--dport", "5000", "-4"])?;
    ensure!(
        again.code == Some(1) && again.stderr.contains("no flow matches"),
        "{again:?}"
    );
    watcher.stop();
    Ok(())
}

#[test]
fn flushing_wants_to_be_meant() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    let mut live = LiveConnection::to_server(&lab, Family::V4, 5000)?;
    let refused = firewall.cli(&["flows", "flush"])?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("--yes"),
        "{refused:?}"
    );
    let bare = firewall.cli(&["flows", "delete"])?;
    ensure!(
        bare.code == Some(2) && bare.stderr.contains("say which"),
        "{bare:?}"
    );
    let filtered = firewall.cli(&["flows", "flush", "-p", "udp"])?;
    ensure!(filtered.success(), "{filtered:?}");
    ensure!(live.is_alive(), "not yet");
    let meant = firewall.cli(&["flows", "flush", "--yes"])?;
    ensure!(
        meant.success() && meant.stdout.starts_with("deleted"),
        "{meant:?}"
    );
    ensure!(!live.is_alive());
    Ok(())
}

#[test]
fn the_operators_own_connection_is_not_cut_unasked() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Server, Some(&open(22)), Attach::default())?;
    let mut ssh = LiveConnection::to_server(&lab, Family::V4, 22)?;
    let from = lab.client_ip(Family::V4);
    let connection = format!("{from} {} {} 22", ssh.port()?, lab.server_ip(Family::V4));
    let delete = ["flows", "delete", "--dport", "22"];
    let refused = firewall.cli_as(&[("SSH_CONNECTION", &connection)], &delete)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("your own SSH"),
        "{refused:?}"
    );
    ensure!(ssh.is_alive());
    // The control: it is the connection that was spared, not the flow.
    let done = firewall.cli_as(&[("SSH_CONNECTION", "192.0.2.99 1 192.0.2.98 22")], &delete)?;
    ensure!(done.success(), "{done:?}");
    ensure!(!ssh.is_alive());
    Ok(())
}

#[test]
fn counts_and_lists_agree_while_flows_come_and_go() -> Result<()> {
    const STEADY: usize = 8;
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Client, Some(&forgetful()), Attach::default())?;
    let steady: Vec<_> = (0..STEADY as u16)
        .map(|n| LiveConnection::to_server(&lab, Family::V4, 6000 + n))
        .collect::<Result<_>>()?;
    let at = SocketAddr::new(lab.server_ip(Family::V4), 7000);
    let listener = lab.ns(Node::Server).listen(at)?;
    listener.set_nonblocking(true)?;
    let stop = AtomicBool::new(false);
    let filter = [
        "-p",
        "tcp",
        "--dport",
        "6000-6999",
        "--state",
        "established",
    ];
    let (made, looks) = thread::scope(|scope| {
        let churn = scope.spawn(|| -> Result<usize> {
            let mut made = 0;
            while !stop.load(Ordering::Relaxed) {
                drop(lab.ns(Node::Client).connect(at, LIMIT)??);
                while listener.accept().is_ok() {}
                made += 1;
            }
            Ok(made)
        });
        let looks: Result<Vec<_>> = (0..12)
            .map(|_| {
                let count = firewall.json(&[&["flows", "count"], &filter[..]].concat())?;
                let list = firewall.json(&[&["flows", "list"], &filter[..]].concat())?;
                let list = list.as_array().context("a list")?.len();
                Ok((count["count"].as_u64().context("a count")? as usize, list))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        let made = churn.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        Ok::<_, anyhow::Error>((made?, looks?))
    })?;
    ensure!(made > 0, "nothing came and went");
    for look in &looks {
        ensure!(*look == (STEADY, STEADY), "{looks:?}");
    }
    drop(steady);
    Ok(())
}

#[test]
fn one_watches_at_a_time_and_ends_cleanly() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    let mut first = firewall.watch(&[])?;
    let second = firewall.cli(&["flows", "watch"])?;
    let pid = format!("pid {}", first.pid());
    ensure!(
        second.code == Some(1) && second.stderr.contains(&pid),
        "{second:?}"
    );
    first.signal(Signal::SIGINT);
    let code = process::await_some("the watcher ends", LIMIT, || first.ended())?;
    ensure!(code == Some(0), "{code:?}: {}", first.log());
    // One that was killed is in nobody's way, and what it left is not told.
    let mut killed = firewall.watch(&[])?;
    killed.kill();
    let before = LiveConnection::to_server(&lab, Family::V4, 5000)?;
    let mut third = firewall.watch(&["-o", "json"])?;
    let after = LiveConnection::to_server(&lab, Family::V4, 5001)?;
    let told = await_event(&third, "NEW")?;
    ensure!(
        told.iter().all(|e| e["original"]["dport"] == 5001),
        "{told:?}"
    );
    third.stop();
    drop((before, after));
    Ok(())
}

#[test]
fn a_watcher_ends_with_its_reader() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    let mut watcher = firewall
        .spawn(&["flows", "watch", "-e", "new"], Stdio::piped())
        .context("watch")?;
    let mut read = watcher.stdout.take().context("its output")?;
    let mut byte = [0];
    // Until it is heard: the first connections may be too early.
    let first = thread::scope(|scope| {
        let first = scope.spawn(|| read.read(&mut byte));
        for port in 5000..5050 {
            if first.is_finished() {
                break;
            }
            drop(LiveConnection::to_server(&lab, Family::V4, port));
            thread::sleep(Duration::from_millis(100));
        }
        first.join()
    });
    ensure!(matches!(first, Ok(Ok(1))), "{first:?}");
    drop(read);
    let status = process::await_some("the watcher ends", LIMIT, || {
        let _ = LiveConnection::to_server(&lab, Family::V4, 5100);
        watcher.try_wait().ok().flatten()
    })?;
    ensure!(
        status.code() == Some(0) && status.signal().is_none(),
        "{status:?}"
    );
    Ok(())
}

#[test]
fn what_a_table_displaces_is_told_by_number() -> Result<()> {
    const FLOWS: u16 = 20_000;
    let lab = Lab::line()?;
    let small = config::client_host(false) + "[tables]\nflows = 1024\nhalf-open = 1024\n";
    let firewall = Firewall::start(&lab, Node::Client, Some(&small), Attach::default())?;
    let mut watcher = firewall.watch(&["-o", "json", "-e", "destroy"])?;
    let from = SocketAddr::new(lab.client_ip(Family::V4), 0);
    let socket = lab
        .ns(Node::Client)
        .within(|| std::net::UdpSocket::bind(from))??;
    for port in 1..=FLOWS {
        // Refused ones come back as errors of the next call.
        let _ = socket.send_to(b"?", SocketAddr::new(lab.server_ip(Family::V4), port));
    }
    let events = await_event(&watcher, "EVICTED")?;
    let told = events
        .iter()
        .find(|e| e["event"] == "EVICTED")
        .context("told")?;
    ensure!(told["table"] == "HALF_OPEN4_IN", "{told}");
    ensure!(
        told["evicted"].as_u64() > Some(u64::from(FLOWS) / 10),
        "{told}"
    );
    watcher.stop();
    Ok(())
}

#[test]
fn wrong_filters_show_the_right_form() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    for (args, says) in [
        (&["list", "--proto", "tpc"][..], "use tcp, udp"),
        (&["list", "--zone", "nowhere"], "there are host, outside"),
        (&["list", "--iface", "eth9"], "guarded are eth0"),
        (&["count", "--src", "10.0.0.300"], "192.0.2.0/24"),
        (&["count", "-p", "icmp", "--dport", "1"], "--icmp-id"),
        (&["delete", "--state", "open"], "established"),
        (&["watch", "-e", "begin"], "destroy"),
        (
            &["get", "-p", "tcp", "-s", "10.0.0.1", "-d", "10.0.0.2"],
            "--dport 22",
        ),
        (&["flush", "--sport", "ssh"], "1024-65535"),
    ] {
        let output = firewall.cli(&[&["flows"], args].concat())?;
        ensure!(
            output.code == Some(2) && output.stderr.contains(says),
            "{args:?}: {output:?}"
        );
        ensure!(output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    // The controls: names that are there.
    for args in [
        &["list", "--zone", "outside"][..],
        &["count", "--iface", "eth0"],
    ] {
        let output = firewall.cli(&[&["flows"], args].concat())?;
        ensure!(output.success(), "{args:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn deleted_datagrams_begin_anew_and_their_replies_go_on() -> Result<()> {
    let lab = Lab::line()?;
    let firewall = Firewall::start(&lab, Node::Client, None, Attach::default())?;
    let at = SocketAddr::new(lab.server_ip(Family::V4), 5300);
    let bind = |node, at: SocketAddr| lab.ns(node).within(|| std::net::UdpSocket::bind(at));
    let server = bind(Node::Server, at)??;
    let client = bind(Node::Client, SocketAddr::new(lab.client_ip(Family::V4), 0))??;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    }
    let mut room = [0; 16];
    client.send_to(b"?", at)?;
    let (_, back) = server.recv_from(&mut room)?;
    server.send_to(b"!", back)?;
    client.recv_from(&mut room)?;
    ensure!(
        firewall
            .cli(&["flows", "delete", "-p", "udp", "--dport", "5300"])?
            .success()
    );
    // From outside it would be a flow of its own, which no rule accepts.
    server.send_to(b"!", back)?;
    let refused = client.recv_from(&mut room).map_err(|e| e.kind());
    let timed_out = matches!(refused, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut));
    ensure!(timed_out, "{refused:?}");
    // From inside it begins again.
    client.send_to(b"?", at)?;
    server.recv_from(&mut room)?;
    server.send_to(b"!", back)?;
    client.recv_from(&mut room)?;
    Ok(())
}

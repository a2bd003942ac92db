//! What becomes of a session is told as it happens, and can be read afterwards.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Place,
    client::{FtpCommand, Kind, Request},
    pinhole::{Attach, Firewall},
    process::{self, Daemon},
    server::{self, FtpServer},
};
use serde_json::Value;

const TOLD: Duration = Duration::from_secs(10);

fn events(watcher: &Daemon) -> Result<Vec<Value>> {
    let log = watcher.log();
    let lines = log.lines().map(|line| {
        serde_json::from_str(line).with_context(|| format!("`ftp watch` printed {line}"))
    });
    lines.collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().unwrap_or_default())
        .collect()
}

/// Waits until the watcher has told of this many ends of sessions.
fn ended(watcher: &Daemon, sessions: usize) -> Result<Vec<Value>> {
    process::await_some("the end of the session is told", TOLD, || {
        let events = events(watcher).ok()?;
        let ends = names(&events)
            .iter()
            .filter(|name| **name == "ended")
            .count();
        (ends >= sessions).then_some(events)
    })
}

fn watch(firewall: &Firewall, lab: &Lab, name: &str, args: &[&str]) -> Result<Daemon> {
    let mut command = firewall.command_line(&["ftp", "watch", "-o", "json"])?;
    command.args(args);
    Daemon::spawn(command, lab.dir().join(name))
}

#[test]
fn a_transfer_is_told_from_its_line_to_its_end_over_a_restart_of_the_agent() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let client = lab.client_ip(Family::V4).to_string();
    let watcher = watch(&guarded.pinholes[0], &lab, "watch", &["--history"])?;
    let elsewhere = watch(
        &guarded.pinholes[0],
        &lab,
        "elsewhere",
        &["--host", "192.0.2.99"],
    )?;
    for round in 1..=2 {
        for command in [FtpCommand::Epsv, FtpCommand::Port] {
            let outcome = Request::new(&lab, Kind::Curl, command, Family::V4).run(&lab)?;
            ensure!(outcome.is(server.payload()), "{outcome:?}");
        }
        let events = ended(&watcher, 2 * round)?;
        let told = names(&events);
        for wanted in ["began", "opened", "used", "connected", "closed", "ended"] {
            let count = told.iter().filter(|name| **name == wanted).count();
            // The server's own connection to the client passes by a rule.
            let sessions = if matches!(wanted, "began" | "ended") {
                2
            } else {
                1
            };
            ensure!(count >= sessions * round, "{wanted}: {told:?}");
        }
        ensure!(
            events
                .iter()
                .all(|e| e["session"]["client"] == client.as_str())
        );
        let sequence: Vec<_> = events.iter().filter_map(|e| e["seq"].as_u64()).collect();
        ensure!(
            sequence.windows(2).all(|w| w[1] == w[0] + 1),
            "{sequence:?}"
        );
        let opened = events.iter().find(|e| e["event"] == "opened");
        let line = opened.and_then(|e| e["line"].as_str()).unwrap_or_default();
        ensure!(line.starts_with("229 "), "{opened:?}");
        let used = events.iter().find(|e| e["event"] == "used");
        ensure!(
            used.is_some_and(|e| e["duration_s"].is_number()),
            "{used:?}"
        );
        guarded.pinholes[0].stop_agent();
        guarded.pinholes[0].start_agent()?;
    }
    ensure!(events(&elsewhere)?.is_empty(), "{}", elsewhere.log());
    // Afterwards, too.
    let later = watch(
        &guarded.pinholes[0],
        &lab,
        "later",
        &["--history", "--host", &client],
    )?;
    let again = ended(&later, 4)?;
    ensure!(names(&again) == names(&events(&watcher)?), "{again:?}");
    Ok(())
}

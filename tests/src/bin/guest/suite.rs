//! The core of the test suite: the programs packet by packet, and FTP from end to end.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    fake_server::Dialogue,
    pinhole::{Attach, Firewall, TcKind, config},
    process,
};
use serde_json::Value;

use crate::say;

/// The suite `programs`, where `cargo xtask vm` puts it.
const PROGRAMS: &str = "/usr/bin/programs";
/// Tests that do not run here, and why; all others do: headers of both families with VLANs,
/// extension headers and fragments, TCP's states and windows, UDP, ICMP and its errors, the
/// tables and their limits, the ring and what is held, the policy, shadow mode.
const LEFT_OUT: [(&str, &str); 1] = [(
    "two_cpus::",
    "two CPUs wait for each other, spinning, in each of some thousand rounds: minutes where they \
     are emulated, and the order of their steps is then the emulator's",
)];
/// A test that takes longer is told although it passes.
const SLOW: Duration = Duration::from_secs(10);
/// What is carried over a data connection.
static FILE: [u8; 20_000] = [0x5a; 20_000];
/// Emulated, and on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// For the verifier, emulated.
const VERIFIED: Duration = Duration::from_secs(300);
/// Long enough for a connection that is let through, to be told from one that is not.
const REFUSED: Duration = Duration::from_secs(6);

/// Runs the core of the suite on the kernel of this release.
pub(crate) fn core(release: &str) -> Result<()> {
    let automatic = if has_tcx(release) { "tcx" } else { "clsact" };
    let mut failed = Vec::new();
    let mut part = |name, result: Result<()>| {
        if let Err(error) = result {
            say(&format!("{name}: error: {error:#}"));
            failed.push(name);
        }
    };
    part("programs", programs());
    part("ftp", ftp(TcKind::Auto, automatic));
    if automatic != "clsact" {
        part("ftp by clsact", ftp(TcKind::Clsact, "clsact"));
    }
    ensure!(failed.is_empty(), "{} failed", failed.join(", "));
    Ok(())
}

/// TCX came with Linux 6.6.
fn has_tcx(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    matches!((next(), next()), (Some(major), Some(minor)) if (major, minor) >= (6, 6))
}

/// The tests of the suite `programs`; those that pass are only counted, unless they take long.
fn programs() -> Result<()> {
    let mut suite = Command::new(PROGRAMS)
        // One at a time: each that runs beside another needs programs of its own, and the
        // verifier takes longer over them than all tests do.
        .arg("--test-threads=1")
        .args(LEFT_OUT.iter().flat_map(|(tests, _)| ["--skip", tests]))
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {PROGRAMS}"))?;
    let output = suite.stdout.take().context("no output")?;
    let mut last = Instant::now();
    for line in BufReader::new(output).lines() {
        let line = line?;
        let took = last.elapsed();
        last = Instant::now();
        if took > SLOW {
            say(&format!(
                "programs: {line} after {:.0} s",
                took.as_secs_f64()
            ));
        } else if !line.is_empty() && !line.ends_with("... ok") {
            say(&format!("programs: {line}"));
        }
    }
    ensure!(suite.wait()?.success(), "tests of the programs fail");
    Ok(())
}

/// A passive transfer through a gateway at the server's end, with the agent and, which
/// shows that the data connection came about through it, without.
fn ftp(tc: TcKind, attached: &str) -> Result<()> {
    let lab = Lab::line()?;
    let text = config::gateway(Node::FwB, true);
    let attach = Attach {
        tc,
        ..Attach::default()
    };
    let mut firewall = Firewall::start(&lab, Node::FwB, Some(&text), attach)?;
    let status = firewall.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    for interface in interfaces {
        ensure!(interface["tc"] == attached, "attached as {interface}");
    }
    ensure!(transfer(&lab, LIMIT)?, "no data connection with the agent");
    firewall.stop_agent();
    if tc == TcKind::Auto {
        why(&firewall)?;
    }
    let without = transfer(&lab, REFUSED)?;
    ensure!(!without, "a data connection without the agent");
    say(&format!(
        "ftp: {} bytes over a passive data connection with the agent, no connection without; \
         TC as {attached}",
        FILE.len()
    ));
    Ok(())
}

/// `pinhole why` loads the programs once more, with notes on how they judge.
fn why(firewall: &Firewall) -> Result<()> {
    let question = [
        "why",
        "tcp",
        "198.51.100.66:40000",
        "203.0.113.2:22",
        "-o",
        "json",
    ];
    let asked = process::run(&mut firewall.command_line(&question)?, VERIFIED)?;
    let answer: Value =
        serde_json::from_str(&asked.stdout).with_context(|| format!("{asked:?}"))?;
    ensure!(
        answer["verdict"] == "drop" && answer["reason"] == "policy",
        "why: {answer}"
    );
    say("why: a connection that no rule accepts is dropped for it");
    Ok(())
}

/// True when the file arrived, false when the data connection did not come about.
fn transfer(lab: &Lab, limit: Duration) -> Result<bool> {
    let mut dialogue = Dialogue::begin(lab, Family::V4)?;
    dialogue.login()?;
    let listener = dialogue.negotiate(lab)?;
    let connected = lab
        .ns(Node::Client)
        .connect(listener.local_addr()?, limit)?;
    let mut client = match connected {
        Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(false),
        connected => connected?,
    };
    let (mut server, _) = listener.accept()?;
    client.set_read_timeout(Some(LIMIT))?;
    server.write_all(&FILE)?;
    drop(server);
    let mut got = Vec::new();
    client.read_to_end(&mut got)?;
    ensure!(got == FILE, "{} other bytes arrived", got.len());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::has_tcx;

    #[test]
    fn tcx_is_told_by_the_release() {
        assert!(has_tcx("6.12.117+deb12-cloud-amd64") && has_tcx("7.0"));
        assert!(!has_tcx("6.1.0-56-cloud-amd64") && !has_tcx("5.18.0"));
    }
}

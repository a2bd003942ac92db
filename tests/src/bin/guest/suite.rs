//! The core of the test suite: the programs packet by packet, and FTP from end to end.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    fake_server::Dialogue,
    pinhole::{Attach, Firewall, TcKind, config},
};

use crate::say;

/// The suite `programs`, where `cargo xtask vm` puts it.
const PROGRAMS: &str = "/usr/bin/programs";
/// What is carried over a data connection.
static FILE: [u8; 20_000] = [0x5a; 20_000];
/// Emulated, and on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Long enough for a connection that is let through, to be told from one that is not.
const REFUSED: Duration = Duration::from_secs(6);

/// Runs the core of the suite on the kernel of this release.
pub(crate) fn core(release: &str) -> Result<()> {
    programs()?;
    let automatic = if has_tcx(release) { "tcx" } else { "clsact" };
    ftp(TcKind::Auto, automatic)?;
    if automatic != "clsact" {
        ftp(TcKind::Clsact, "clsact")?;
    }
    Ok(())
}

/// TCX came with Linux 6.6.
fn has_tcx(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    matches!((next(), next()), (Some(major), Some(minor)) if (major, minor) >= (6, 6))
}

/// Every test of the suite `programs`; those that pass are only counted.
fn programs() -> Result<()> {
    let mut suite = Command::new(PROGRAMS)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {PROGRAMS}"))?;
    let output = suite.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if !line.is_empty() && !line.ends_with("... ok") {
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
    let without = transfer(&lab, REFUSED)?;
    ensure!(!without, "a data connection without the agent");
    say(&format!(
        "ftp: {} bytes over a passive data connection with the agent, no connection without; \
         TC as {attached}",
        FILE.len()
    ));
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

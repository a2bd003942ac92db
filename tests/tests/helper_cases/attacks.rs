//! A02, A04, A05, A08, A09, A10: attacks that need no forged packet.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use firewall_tests::lab::{Family, Node, process};

use crate::case::{
    Case,
    Listener::{Client, Server},
    commas,
};

const SOON: Duration = Duration::from_secs(10);

/// The server echoes a name, and what it echoes begins a segment: as when the
/// client has acknowledged just the code before it.
#[test]
fn a02_227_echoed_so_that_it_starts_a_segment() -> Result<()> {
    let mut case = Case::ready()?;
    let forged = case.pasv_reply(50075);
    case.c(format!("NLST {forged}"))?;
    case.s("550 ")?;
    case.s(&forged)?;
    // Also while a PASV waits for its answer.
    case.c("PASV\r\n")?;
    case.s("550-")?;
    case.s(&forged)?;
    case.s("550 ")?;
    case.s(&forged)?;
    case.stays_shut(Server, 50075)?;
    case.nothing_happened(0)?;
    case.still_works(50076)
}

#[test]
fn a02_227_in_a_banner() -> Result<()> {
    let mut case = Case::silent()?;
    let forged = case.pasv_reply(50075);
    case.c("PASV\r\n")?;
    case.s("220-")?;
    case.s(&forged)?;
    case.s(&forged)?;
    case.s("220 ")?;
    case.s(&forged)?;
    case.s("530 Log in first\r\n")?;
    case.refused("before-greeting")?;
    case.stays_shut(Server, 50075)?;
    case.login()?;
    case.still_works(50076)
}

/// The server is to connect to a third host, who would take it for the client's doing.
#[test]
fn a04_bounce_to_a_third_host() -> Result<()> {
    let mut case = Case::ready()?;
    let lab = &case.world.lab;
    let at = SocketAddr::new(lab.stranger_ip(Family::V4), 50_075);
    let _third = lab.ns(Node::Stranger).listen(at)?;
    let line = format!("PORT {},195,155\r\n", commas(at.ip()));
    case.c(line)?;
    case.s("200 ok\r\n")?;
    case.refused("foreign-address")?;
    let limit = Duration::from_millis(700);
    let bounced = case.world.lab.ns(Node::Server).connect(at, limit)?;
    ensure!(bounced.is_err(), "the bounce came through");
    case.c(format!("EPRT |1|{}|50075|\r\n", at.ip()))?;
    case.s("200 ok\r\n")?;
    case.refused("foreign-address")?;
    let bounced = case.world.lab.ns(Node::Server).connect(at, limit)?;
    ensure!(bounced.is_err(), "the bounce came through");
    // The control: without a firewall of the server's in between, the port answers.
    ensure!(case.world.lab.ns(Node::Net).connect(at, limit)?.is_ok());
    case.still_works(50076)
}

#[test]
fn a04_port_to_privileged_ports() -> Result<()> {
    let mut case = Case::ready()?;
    for port in [20, 22, 80, 443, 1023] {
        case.c(case.port(port))?;
        case.s("200 ok\r\n")?;
        case.refused("privileged-port")?;
        case.stays_shut(Client, port)?;
    }
    case.still_works(50075)
}

/// A web page makes a browser post a form to port 21, filled so that PORT stands
/// at the head of a segment.
#[test]
fn a05_http_post_slipstreaming() -> Result<()> {
    const SEGMENT: usize = 1448;
    let mut case = Case::silent()?;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}:21\r\nContent-Length: 4000\r\n\r\n",
        case.server
    );
    let padding = "x".repeat(SEGMENT - head.len() - 2) + "\r\n";
    case.s("220 ready\r\n")?;
    case.c(head + &padding)?;
    case.c(case.port(50075))?;
    case.s("500 What?\r\n500 What?\r\n200 ok\r\n")?;
    case.refused("http-verb")?;
    case.is_in_phase("poisoned")?;
    case.stays_shut(Client, 50075)?;
    case.again()?.still_works(50076)
}

/// The same towards something that is no FTP server and says nothing first.
#[test]
fn a05_http_post_slipstreaming_to_a_silent_server() -> Result<()> {
    let mut case = Case::silent()?;
    case.c("POST / HTTP/1.1\r\nContent-Type: text/plain\r\n\r\n")?;
    case.c(case.port(50075))?;
    case.s("220 ready\r\n230 in\r\n200 ok\r\n")?;
    case.refused("http-verb")?;
    case.stays_shut(Client, 50075)
}

/// A line of ten megabytes that would be a PORT to its last bytes.
fn long_line(case: &Case) -> Vec<u8> {
    let mut line = b"RETR ".to_vec();
    line.resize(10 << 20, b'x');
    line.extend_from_slice(case.port(50075).as_bytes());
    line
}

/// All of it arrives, or this fails; and the line after it is read.
#[test]
fn a08_a_line_of_ten_megabytes() -> Result<()> {
    /// No more is on its way at once, so whatever the ring refuses comes again in time.
    const AT_ONCE: usize = 16 << 10;
    let mut case = Case::ready()?;
    let line = long_line(&case);
    for part in line.chunks(AT_ONCE) {
        case.c(part)?;
    }
    case.s("500 Too long\r\n")?;
    case.refused("line-too-long")?;
    case.stays_shut(Client, 50075)?;
    case.c("STAT\r\n")?;
    case.s("211 ")?;
    for part in line.chunks(AT_ONCE) {
        case.s(part)?;
    }
    case.still_works(50076)
}

/// As fast as it goes: if more was on its way than the helper holds, it says that
/// it has missed something. What it never does is to read on as if it had not.
#[test]
fn a08_a_line_of_ten_megabytes_in_one_go() -> Result<()> {
    let mut case = Case::ready()?;
    let line = long_line(&case);
    case.c(&line)?;
    case.s("500 Too long\r\n")?;
    case.stays_shut(Client, 50075)?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50076))?;
    for firewall in case.world.firewalls() {
        process::await_some("it has read on, or says why not", SOON, || {
            let session = case.session(firewall).ok()?;
            let missed =
                session.phase == "blind" && session.last_refusal.as_deref() == Some("bytes-missed");
            (session.opened == 1 || missed).then_some(())
        })?;
    }
    case.again()?.still_works(50077)
}

#[test]
fn a09_negotiates_closes_and_tries_the_port() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50075))?;
    let ended = case.hang_up()?;
    ended.stays_shut(Server, 50075)?;
    let mut case = Case::ready()?;
    case.c(case.port(50076))?;
    case.s("200 ok\r\n")?;
    let ended = case.hang_up()?;
    ended.stays_shut(Client, 50076)
}

#[test]
fn a10_a_control_flow_that_is_not_ftp() -> Result<()> {
    let mut case = Case::silent()?;
    case.s("SSH-2.0-OpenSSH_9.2\r\n")?;
    case.c("SSH-2.0-OpenSSH_9.2\r\n")?;
    case.refused("not-ftp")?;
    case.is_in_phase("poisoned")?;
    // For good, whatever it says later, and every byte of it arrives.
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    case.c(&all)?;
    case.s(&all)?;
    case.s("220 ready\r\n")?;
    case.login()?;
    case.c(case.port(50075))?;
    case.s("200 ok\r\n")?;
    case.stays_shut(Client, 50075)?;
    case.again()?.still_works(50076)
}

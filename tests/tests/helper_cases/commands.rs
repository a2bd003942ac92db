//! H06, H07, H08: what must not open anything.

use anyhow::Result;
use firewall_tests::lab::Family;

use crate::case::{
    Case,
    Listener::{Client, Server},
    commas,
};

#[test]
fn h06_port_before_the_220() -> Result<()> {
    let mut case = Case::silent()?;
    case.c(case.port(50075))?;
    case.refused("before-greeting")?;
    case.stays_shut(Client, 50075)?;
    case.s("220 ready\r\n503 Log in first\r\n")?;
    case.login()?;
    case.still_works(50076)
}

#[test]
fn h06_pasv_before_the_220() -> Result<()> {
    let mut case = Case::silent()?;
    case.c("PASV\r\n")?;
    case.refused("before-greeting")?;
    case.s(case.pasv_reply(50075))?;
    case.refused("before-greeting")?;
    case.stays_shut(Server, 50075)
}

/// For good: no later line of the flow opens anything, but another flow's does.
#[test]
fn h06_port_after_an_http_verb() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("GET / HTTP/1.1\r\n")?;
    case.refused("http-verb")?;
    case.is_in_phase("poisoned")?;
    case.c(case.port(50075))?;
    case.s("500 What?\r\n200 ok\r\n")?;
    case.stays_shut(Client, 50075)?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50076))?;
    case.stays_shut(Server, 50076)?;
    case.again()?.still_works(50077)
}

#[test]
fn h06_non_ftp_bytes() -> Result<()> {
    let mut case = Case::ready()?;
    case.c(b"\x00\x01\x02\x03\r\n")?;
    case.refused("binary-bytes")?;
    case.is_in_phase("poisoned")?;
    case.c(case.port(50075))?;
    case.s("200 ok\r\n")?;
    case.stays_shut(Client, 50075)?;
    case.again()?.still_works(50076)
}

/// Any other verb goes through and does nothing, whatever follows it.
#[test]
fn h06_other_verbs_open_nothing() -> Result<()> {
    let mut case = Case::ready()?;
    for verb in ["XCRC", "SITE", "NLST", "STAT"] {
        case.c(format!("{verb} {}", case.port(50075)))?;
        case.s("500 What?\r\n")?;
    }
    case.stays_shut(Client, 50075)?;
    case.nothing_happened(0)?;
    case.is_in_phase("ready")?;
    case.still_works(50076)
}

#[test]
fn h07_port_with_a_foreign_address() -> Result<()> {
    let mut case = Case::ready()?;
    let stranger = case.world.lab.stranger_ip(Family::V4);
    case.c(format!("PORT {},195,155\r\n", commas(stranger)))?;
    case.s("200 ok\r\n")?;
    case.refused("foreign-address")?;
    case.stays_shut(Client, 50075)?;
    case.still_works(50076)
}

#[test]
fn h07_227_with_a_foreign_address() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PASV\r\n")?;
    case.s("227 Entering Passive Mode (10,1,2,3,195,155)\r\n")?;
    case.refused("foreign-address")?;
    case.stays_shut(Server, 50075)?;
    case.still_works(50076)
}

#[test]
fn h07_229_with_a_foreign_address() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("EPSV\r\n")?;
    case.s("229 Extended (|1|10.1.2.3|50075|)\r\n")?;
    case.refused("foreign-address")?;
    case.stays_shut(Server, 50075)?;
    case.still_works(50076)
}

#[test]
fn h07_privileged_ports() -> Result<()> {
    let mut case = Case::ready()?;
    for port in [22, 1023] {
        case.c(case.port(port))?;
        case.s("200 ok\r\n")?;
        case.refused("privileged-port")?;
        case.stays_shut(Client, port)?;
        case.c("PASV\r\n")?;
        case.s(case.pasv_reply(port))?;
        case.refused("privileged-port")?;
        case.stays_shut(Server, port)?;
        case.c("EPSV\r\n")?;
        case.s(format!("229 Extended (|||{port}|)\r\n"))?;
        case.refused("privileged-port")?;
    }
    // The control: the next port is none.
    case.still_works(1024)
}

#[test]
fn h08_number_that_wraps() -> Result<()> {
    let mut case = Case::ready()?;
    // 256 * 256 + 22, in eight and in sixteen bits.
    let (client, server) = (case.commas(Client), case.commas(Server));
    case.c(format!("PORT {client},256,22\r\n"))?;
    case.s("200 ok\r\n")?;
    case.refused("bad-number")?;
    case.stays_shut(Client, 22)?;
    case.c(format!("EPRT |1|{}|65558|\r\n", case.client))?;
    case.s("200 ok\r\n")?;
    case.refused("bad-number")?;
    case.stays_shut(Client, 22)?;
    case.c("PASV\r\n")?;
    case.s(format!("227 Passive ({server},256,22)\r\n"))?;
    case.refused("bad-number")?;
    case.c("EPSV\r\n")?;
    case.s("229 Extended (|||65558|)\r\n")?;
    case.refused("bad-number")?;
    case.stays_shut(Server, 22)?;
    case.still_works(50075)
}

#[test]
fn h08_number_with_a_sign() -> Result<()> {
    let mut case = Case::ready()?;
    let client = case.commas(Client);
    for numbers in ["+195,155", "-61,155", "195,-101"] {
        case.c(format!("PORT {client},{numbers}\r\n"))?;
        case.s("200 ok\r\n")?;
        case.refused("bad-number")?;
    }
    case.c(format!("EPRT |1|{}|+50075|\r\n", case.client))?;
    case.s("200 ok\r\n")?;
    case.refused("bad-number")?;
    case.stays_shut(Client, 50075)?;
    case.still_works(50076)
}

//! H02 (commands), H03, H04, H09: what a line is, however it comes.

use anyhow::Result;

use crate::case::{
    Case,
    Listener::{Client, Server},
};

#[test]
fn h02_port_that_ends_in_lf_alone() -> Result<()> {
    let mut case = Case::ready()?;
    case.c(case.port(50075).replace('\r', ""))?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50075)
}

#[test]
fn h02_port_with_a_double_space() -> Result<()> {
    let mut case = Case::ready()?;
    case.c(case.port(50075).replace(' ', "  "))?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50075)
}

#[test]
fn h02_eprt_of_the_wrong_family() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("EPRT |2|2001:db8:a::2|50075|\r\n")?;
    case.s("522 Network protocol not supported, use (1)\r\n")?;
    case.refused("wrong-family")?;
    case.stays_shut(Client, 50075)?;
    case.still_works(50076)
}

#[test]
fn h03_line_split_over_segments() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PA")?;
    case.c("SV")?;
    case.c("\r")?;
    case.c("\n")?;
    case.s("227 Entering ")?;
    let reply = case.pasv_reply(50075);
    case.s(reply.trim_start_matches("227 Entering "))?;
    case.opens(Server, 50075)
}

#[test]
fn h03_line_split_over_segments_mid_number() -> Result<()> {
    let mut case = Case::ready()?;
    let line = case.port(50075);
    let middle = line.len() - 4;
    case.c(&line[..middle])?;
    case.c(&line[middle..])?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50075)?;
    // Half of it names another port, which must not be open.
    case.stays_shut(Client, 49_921)
}

#[test]
fn h03_line_in_segments_of_a_byte() -> Result<()> {
    let mut case = Case::ready()?;
    for byte in b"PASV\r\n" {
        case.c([*byte])?;
    }
    for byte in case.pasv_reply(50075).bytes() {
        case.s([byte])?;
    }
    case.opens(Server, 50075)
}

#[test]
fn h04_second_line_of_a_segment() -> Result<()> {
    let mut case = Case::ready()?;
    case.c(format!("TYPE I\r\n{}", case.port(50075)))?;
    case.s("200 Type\r\n200 Port\r\n")?;
    case.opens(Client, 50075)
}

#[test]
fn h04_pipelined_commands() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PWD\r\nTYPE I\r\nPASV\r\nSIZE f\r\n")?;
    case.s("257 \"/\"\r\n200 Type\r\n")?;
    case.s(format!("{}550 No\r\n", case.pasv_reply(50075)))?;
    case.opens(Server, 50075)?;
    case.nothing_happened(1)
}

#[test]
fn h09_lprt() -> Result<()> {
    let mut case = Case::ready()?;
    let host = case.commas(Client);
    case.c(format!("LPRT 4,4,{host},2,195,155\r\n"))?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50075)
}

#[test]
fn h09_lpsv_and_228() -> Result<()> {
    let mut case = Case::ready()?;
    let host = case.commas(Server);
    case.c("LPSV\r\n")?;
    case.s(format!("228 Long Passive Mode (4,4,{host},2,195,155)\r\n"))?;
    case.opens(Server, 50075)
}

#[test]
fn h09_lprt_and_lpsv_over_ipv6() -> Result<()> {
    let mut case = Case::ready_v6()?;
    let list = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V6(ip) => ip.octets().map(|o| o.to_string()).join(","),
        std::net::IpAddr::V4(_) => unreachable!("the case is over IPv6"),
    };
    let [client, server] = [case.client, case.server].map(list);
    case.c(format!("LPRT 6,16,{client},2,195,155\r\n"))?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50075)?;
    case.c("LPSV\r\n")?;
    case.s(format!(
        "228 Long Passive Mode (6,16,{server},2,195,156)\r\n"
    ))?;
    case.opens(Server, 50076)
}

/// As a client sends it before ABOR, and before a negotiation.
#[test]
fn h09_telnet_iac_prefix() -> Result<()> {
    let mut case = Case::ready()?;
    case.c(b"\xff\xf4\xff\xf2ABOR\r\n")?;
    case.s("226 Aborted\r\n")?;
    case.c([b"\xff\xf4\xff\xf2".as_slice(), case.port(50075).as_bytes()].concat())?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50075)?;
    case.c(b"\xff\xf1PA\xff\xf1SV\r\n")?;
    case.s(case.pasv_reply(50076))?;
    case.opens(Server, 50076)
}

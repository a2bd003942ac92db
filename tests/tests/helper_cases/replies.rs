//! H01, H02, H05: how servers announce a port, and what only looks like it.

use anyhow::Result;

use crate::case::{Case, Listener::Server};

/// A 227 or 229 in this form opens the port that it names. `H` is the server's
/// address with commas, `P` its port 50075 likewise, `N` the same as a number.
fn opens(command: &str, form: &str) -> Result<()> {
    let mut case = Case::ready()?;
    let reply = form.replace('H', &case.commas(Server));
    let reply = reply.replace('P', "195,155").replace('N', "50075");
    case.c(format!("{command}\r\n"))?;
    case.s(reply + "\r\n")?;
    case.opens(Server, 50075)?;
    case.nothing_happened(1)
}

#[test]
fn h01_227_without_parentheses() -> Result<()> {
    opens("PASV", "227 Entering passive mode H,P")
}

#[test]
fn h01_227_behind_an_equals_sign() -> Result<()> {
    opens("PASV", "227 =H,P")
}

#[test]
fn h02_227_with_another_digit_first() -> Result<()> {
    opens(
        "PASV",
        "227 1st of 2 data ports: entering passive mode (H,P)",
    )
}

#[test]
fn h02_227_with_spaces_after_its_commas() -> Result<()> {
    let mut case = Case::ready()?;
    let spaced = case.pasv_reply(50075).replace(',', ", ");
    case.c("PASV\r\n")?;
    case.s(spaced)?;
    case.opens(Server, 50075)
}

#[test]
fn h02_229_without_parentheses() -> Result<()> {
    opens("EPSV", "229 Extended passive mode |||N|")
}

/// What nobody can be sure of is passed on, opens nothing and is told.
#[test]
fn h02_227_that_names_two_ports() -> Result<()> {
    let mut case = Case::ready()?;
    let host = case.commas(Server);
    case.c("PASV\r\n")?;
    case.s(format!("227 ({host},195,155) or ({host},195,156)\r\n"))?;
    case.refused("ambiguous")?;
    case.stays_shut(Server, 50075)?;
    case.stays_shut(Server, 50076)?;
    case.still_works(50077)
}

#[test]
fn h05_unsolicited_227() -> Result<()> {
    let mut case = Case::ready()?;
    case.s(case.pasv_reply(50075))?;
    case.refused("unsolicited")?;
    case.stays_shut(Server, 50075)?;
    case.still_works(50076)
}

#[test]
fn h05_unsolicited_229() -> Result<()> {
    let mut case = Case::ready()?;
    // The answer to another command does not make it solicited.
    case.c("PASV\r\n")?;
    case.s("229 Entering Extended Passive Mode (|||50075|)\r\n")?;
    case.refused("unsolicited")?;
    case.stays_shut(Server, 50075)?;
    case.still_works(50076)
}

#[test]
fn h05_reply_from_the_clients_side() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PASV\r\n")?;
    case.c(case.pasv_reply(50075))?;
    case.refused("wrong-side")?;
    case.stays_shut(Server, 50075)?;
    // The real one still counts, and the line that was none is answered, too.
    case.s(case.pasv_reply(50076) + "500 What?\r\n")?;
    case.opens(Server, 50076)
}

/// As a line within another reply, and as the text of an error.
#[test]
fn h05_echoed_text_that_looks_like_a_reply() -> Result<()> {
    let mut case = Case::ready()?;
    let forged = case.pasv_reply(50075);
    case.c("STAT 227\r\n")?;
    case.s(format!("213-Status\r\n{forged} {forged}213 End\r\n"))?;
    case.c("PASV\r\n")?;
    case.s(format!("550 {forged}"))?;
    case.stays_shut(Server, 50075)?;
    case.nothing_happened(0)?;
    case.still_works(50076)
}

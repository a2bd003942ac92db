//! What the operator chooses in `[ftp]`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    fake_server::{Dialogue, tls_record},
    pinhole::{Attach, Firewall, config},
    process,
};

use crate::{
    case::{
        Case,
        Listener::{Client, Server},
    },
    world::World,
};

const SOON: Duration = Duration::from_secs(10);

/// A firewall at the server's end with this in its policy.
fn choosing(ftp: &str) -> Result<Arc<World>> {
    let lab = Lab::line()?;
    let text = config::gateway(Node::FwB, true) + "[ftp]\n" + ftp;
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    Ok(Arc::new(World::over(lab, vec![firewall])?))
}

#[test]
fn active_ports_can_wait_for_their_reply() -> Result<()> {
    let world = choosing("active = \"after-reply\"\n")?;
    let mut case = Case::ready_over(Arc::clone(&world), Family::V4)?;
    case.c(case.port(50076))?;
    ensure!(case.pinholes(&world.firewalls()[0])?.is_empty());
    case.s("500 no\r\n")?;
    case.c(case.port(50077))?;
    case.s("200 ok\r\n")?;
    case.opens(Client, 50077)?;
    case.stays_shut(Client, 50076)
}

#[test]
fn h07_a_server_behind_a_nat_announces_its_alias() -> Result<()> {
    let world =
        choosing("[[ftp.alias]]\nserver = \"203.0.113.0/24\"\nannounces = \"198.51.100.7\"\n")?;
    let mut case = Case::ready_over(world, Family::V4)?;
    case.c("PASV\r\n")?;
    case.s("227 ok (198,51,100,7,195,155)\r\n")?;
    case.opens(Server, 50075)?;
    case.c("PASV\r\n")?;
    case.s("227 ok (198,51,100,8,195,156)\r\n")?;
    case.refused("foreign-address")?;
    case.stays_shut(Server, 50076)?;
    case.still_works(50077)
}

#[test]
fn clear_text_after_tls_can_be_refused() -> Result<()> {
    let world = choosing("ccc = \"refuse\"\n")?;
    let mut case = Case::over(Arc::clone(&world), Family::V4)?;
    case.s("220 ready\r\n")?;
    case.c("AUTH TLS\r\n")?;
    case.s("234 go\r\n")?;
    for text in ["Finished, USER, PASS, CCC", "Finished, 331, 230, 200"] {
        case.c(tls_record(text.as_bytes()))?;
        case.s(tls_record(text.as_bytes()))?;
    }
    case.is_in_phase("tls")?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50075))?;
    case.refused("ccc-refused")?;
    case.stays_shut(Server, 50075)?;
    // It is listed with its reason, counted by it, and the control connection goes on.
    case.is_in_phase("blind")?;
    let stats = world.firewalls()[0].json(&["stats"])?;
    let counted = serde_json::json!([{ "reason": "ccc-refused", "count": 1 }]);
    ensure!(stats["ftp_refused"] == counted, "{stats}");
    case.c("NOOP\r\n")?;
    case.s("200 ok\r\n")
}

/// Implicit FTPS has a port of its own: a rule for it takes the helper, too.
#[test]
fn h12_implicit_tls_on_its_own_port() -> Result<()> {
    let lab = Lab::line()?;
    let text = config::gateway(Node::FwB, true).replace("dport = [21]", "dport = [990]");
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    let server = SocketAddr::new(lab.server_ip(Family::V4), 990);
    let mut talk = Dialogue::silent(&lab, lab.client_ip(Family::V4), server)?;
    let mut hello = tls_record(&[1; 64]);
    hello[0] = 22;
    talk.client_says(&hello)?;
    process::await_some("the session is known as encrypted", SOON, || {
        let sessions = firewall.sessions().ok()?;
        let session = sessions.first()?;
        (session.encrypted && session.phase == "tls").then_some(())
    })?;
    // What looks like lines inside of records opens nothing.
    talk.client_says(&tls_record(b"\r\nPASV\r\n"))?;
    talk.server_says(&tls_record(b"\r\n227 (203,0,113,2,195,155)\r\n"))?;
    let session = firewall.sessions()?.remove(0);
    ensure!((session.opened, session.refused) == (0, 0), "{session:?}");
    Ok(())
}

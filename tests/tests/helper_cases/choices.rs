//! What the operator chooses in `[ftp]`.

use std::sync::Arc;

use anyhow::{Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    fake_server::tls_record,
    pinhole::{Attach, Firewall, config},
};

use crate::{
    case::{
        Case,
        Listener::{Client, Server},
    },
    world::World,
};

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

//! H11 and A06: how many pinholes there are, and for how long.

use std::{io::Write, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
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

#[test]
fn h11_the_newest_replaces_the_oldest() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50075))?;
    case.c(case.port(50076))?;
    case.s("200 ok\r\n")?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50077))?;
    case.stays_shut(Server, 50075)?;
    case.stays_shut(Client, 50076)?;
    case.opens(Server, 50077)
}

#[test]
fn a06_five_hundred_ports_in_one_session() -> Result<()> {
    const ROUNDS: u16 = 25;
    const EACH: u16 = 20;
    let mut case = Case::ready()?;
    for round in 0..ROUNDS {
        let first = 30_000 + round * EACH;
        let lines: String = (first..first + EACH).map(|port| case.port(port)).collect();
        case.c(lines)?;
        case.s("200 ok\r\n".repeat(EACH.into()))?;
        for firewall in case.world.firewalls() {
            let open = case.pinholes(firewall)?;
            ensure!(open.len() <= 1, "{open:?}");
        }
    }
    case.nothing_happened(u32::from(ROUNDS * EACH))?;
    case.stays_shut(Client, 30_000)?;
    case.stays_shut(Client, 30_000 + ROUNDS * EACH - 2)?;
    case.opens(Client, 30_000 + ROUNDS * EACH - 1)
}

/// A firewall of its own: few pinholes in all, and short ones.
fn meagre() -> Result<Arc<World>> {
    let lab = Lab::line()?;
    let text = config::gateway(Node::FwB, true)
        + "[tables]\nexpectations = 16\n[ftp]\nexpectation-timeout = 3\n";
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    Ok(Arc::new(World::over(lab, vec![firewall])?))
}

/// What finds no room is refused with that reason, and so never displaces what is
/// established; when its life is over, a pinhole is gone, and there is room again.
#[test]
fn h11_short_lives_and_caps_in_all() -> Result<()> {
    const ROOM: usize = 16;
    let world = meagre()?;
    let mut live = Case::ready_over(Arc::clone(&world), Family::V4)?;
    live.c("PASV\r\n")?;
    live.s(live.pasv_reply(50075))?;
    let lab = &world.lab;
    let at = std::net::SocketAddr::new(live.server, 50075);
    let listener = lab.ns(Node::Server).listen(at)?;
    let mut near =
        lab.ns(Node::Client)
            .connect_from(live.client, at, Duration::from_secs(10))??;
    let (mut far, _) = listener.accept()?;

    let mut cases = Vec::new();
    for _ in 0..ROOM + 4 {
        let mut case = Case::ready_over(Arc::clone(&world), Family::V4)?;
        case.c("PASV\r\n")?;
        case.s(case.pasv_reply(50076))?;
        cases.push(case);
    }
    let firewall = &world.firewalls()[0];
    let refused = |case: &Case| -> Result<bool> {
        let session = case.session(firewall)?;
        Ok(session.last_refusal.as_deref() == Some("table-full"))
    };
    process::await_some("some find no room", Duration::from_secs(10), || {
        let count = cases.iter().filter(|c| refused(c).unwrap_or(false)).count();
        (count >= 4).then_some(())
    })?;
    let open = firewall.expectations()?;
    ensure!(open.len() <= ROOM, "{open:?}");
    // The data connection that was there before has lost nothing.
    near.write_all(b"all is well")?;
    let mut got = [0; 11];
    std::io::Read::read_exact(&mut far, &mut got)?;
    ensure!(&got == b"all is well");

    thread::sleep(Duration::from_secs(4));
    let first = cases.first().context("there are some")?;
    first.stays_shut(Server, 50076)?;
    let left = firewall.expectations()?;
    ensure!(left.is_empty(), "{left:?}");
    cases
        .last_mut()
        .context("there are some")?
        .still_works(50077)
}

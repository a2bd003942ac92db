//! H10, H11 and A06: how many pinholes there are, and for how long.

use std::{net::Shutdown, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{fake_server::hears_the_end, process};
use socket2::SockRef;

use crate::case::{
    Case, Ended,
    Listener::{self, Client, Server},
};

const SOON: Duration = Duration::from_secs(10);

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

/// What finds no room is refused with that reason, and so never displaces what is
/// established; when its life is over, a pinhole is gone, and there is room again.
#[test]
fn h11_short_lives_and_a_cap_in_all() -> Result<()> {
    const ROOM: usize = 16;
    let mut live = Case::strict()?;
    live.c("PASV\r\n")?;
    live.s(live.pasv_reply(50075))?;
    let data = live.connects(Server, 50075)?;
    let mut cases = Vec::new();
    for _ in 0..ROOM + 4 {
        let mut case = Case::strict()?;
        case.c("PASV\r\n")?;
        case.s(case.pasv_reply(50076))?;
        cases.push(case);
    }
    let firewall = &live.world.firewalls()[0];
    let refused = |case: &Case| -> Result<bool> {
        let session = case.session(firewall)?;
        Ok(session.last_refusal.as_deref() == Some("table-full"))
    };
    process::await_some("one finds no room", SOON, || {
        cases
            .iter()
            .any(|c| refused(c).unwrap_or(false))
            .then_some(())
    })?;
    let open = firewall.expectations()?;
    ensure!(open.len() <= ROOM, "{open:?}");
    // The data connection that was there before has lost nothing.
    data.carries()?;
    thread::sleep(Duration::from_secs(5));
    for case in &cases {
        ensure!(case.pinholes(firewall)?.is_empty());
    }
    let first = cases.first().context("there are some")?;
    first.stays_shut(Server, 50076)?;
    cases.pop().context("there are some")?.still_works(50077)
}

#[test]
fn h11_a_cap_for_each_client() -> Result<()> {
    let first = Case::strict()?;
    let mut sessions = vec![first.beside()?, first.beside()?, first.beside()?];
    for (port, session) in (50075..).zip(&mut sessions) {
        session.c("PASV\r\n")?;
        session.s(session.pasv_reply(port))?;
    }
    sessions[2].refused("client-full")?;
    first.stays_shut(Server, 50077)?;
    first.connects(Server, 50076)?;
    first.connects(Server, 50075).map(drop)
}

/// How a control connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// One end closes, the other does not yet.
    Fin(Listener),
    /// One end resets.
    Rst(Listener),
    /// The server says 221, and neither closes yet.
    Bye,
}

/// What was negotiated just before the control connection ends is gone from both
/// firewalls, and a try fails at once.
fn ends_with(end: End) -> Result<()> {
    for listener in [Server, Client] {
        let mut case = Case::ready()?;
        match listener {
            Server => {
                case.c("PASV\r\n")?;
                case.s(case.pasv_reply(50075))?;
            }
            Client => {
                case.c(case.port(50075))?;
                case.s("200 ok\r\n")?;
            }
        }
        case.is_open(50075)?;
        if let End::Bye = end {
            case.c("QUIT\r\n")?;
            case.s("221 bye\r\n")?;
        }
        let (ended, [client, server]) = case.part();
        match end {
            End::Fin(Client) => {
                client.shutdown(Shutdown::Write)?;
                hears_the_end(&server)?;
            }
            End::Fin(Server) => {
                server.shutdown(Shutdown::Write)?;
                hears_the_end(&client)?;
            }
            // Only who reads it knows; a FIN or RST ends it in the programs.
            End::Bye => goes(&ended)?,
            End::Rst(who) => {
                let (goes, stays) = match who {
                    Client => (client, server),
                    Server => (server, client),
                };
                SockRef::from(&goes).set_linger(Some(Duration::ZERO))?;
                drop(goes);
                hears_the_end(&stays)?;
                is_shut(&ended, listener)?;
                continue;
            }
        }
        is_shut(&ended, listener)?;
        drop((client, server));
    }
    Ok(())
}

fn is_shut(ended: &Ended, listener: Listener) -> Result<()> {
    ended.stays_shut(listener, 50075)?;
    goes(ended)
}

/// Both firewalls let go of what was negotiated.
fn goes(ended: &Ended) -> Result<()> {
    for firewall in ended.world.firewalls() {
        process::await_some("the pinhole goes", SOON, || {
            ended.pinholes(firewall).ok()?.is_empty().then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn h10_closed_by_a_fin_of_the_client() -> Result<()> {
    ends_with(End::Fin(Client))
}

#[test]
fn h10_closed_by_a_fin_of_the_server() -> Result<()> {
    ends_with(End::Fin(Server))
}

#[test]
fn h10_closed_by_an_rst_of_the_client() -> Result<()> {
    ends_with(End::Rst(Client))
}

#[test]
fn h10_closed_by_an_rst_of_the_server() -> Result<()> {
    ends_with(End::Rst(Server))
}

#[test]
fn h10_closed_by_221() -> Result<()> {
    ends_with(End::Bye)
}

#[test]
fn h10_data_connections_are_kept_by_default() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50075))?;
    let data = case.connects(Server, 50075)?;
    case.hang_up()?.stays_shut(Server, 50075)?;
    // Longer than the grace of those that are cut.
    thread::sleep(Duration::from_secs(3));
    data.carries()
}

#[test]
fn h10_data_connections_are_cut_where_that_is_chosen() -> Result<()> {
    let mut case = Case::strict()?;
    case.c("PASV\r\n")?;
    case.s(case.pasv_reply(50075))?;
    let data = case.connects(Server, 50075)?;
    data.carries().context("while the session lives")?;
    ensure!(data.is_tracked()?);
    case.hang_up()?.stays_shut(Server, 50075)?;
    process::await_some("it is cut", SOON, || {
        (!data.is_tracked().ok()?).then_some(())
    })?;
    data.is_dead()
}

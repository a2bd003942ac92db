//! AUTH TLS makes the control channel unreadable: the session is marked, its
//! data connections are dropped, and `ftp list` says which, and why.

use std::{ops::Range, thread, time::Duration};

use anyhow::{Result, anyhow, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Place,
    client::{FtpCommand, Kind, Request},
    pinhole::{Attach, view},
    process,
    server::{self, FtpServer},
};

const HANGS: Duration = Duration::from_secs(5);

#[test]
fn h14_a_dropped_data_connection_is_told_of_its_session_with_pyftpdlib() -> Result<()> {
    told_of_its_session(server::Kind::Pyftpdlib, 50300..50400)
}

#[test]
fn h14_a_dropped_data_connection_is_told_of_its_session_with_proftpd() -> Result<()> {
    told_of_its_session(server::Kind::Proftpd, 50000..50100)
}

fn told_of_its_session(kind: server::Kind, passive_ports: Range<u16>) -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, kind)?;
    let request = |family, tls| {
        let mut request = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, family);
        request.tls = tls;
        request
    };
    // The control: this client and this server do it unguarded.
    for family in Family::BOTH {
        let outcome = request(family, true).run(&lab)?;
        ensure!(outcome.is(server.payload()), "unguarded: {outcome:?}");
    }

    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    for family in Family::BOTH {
        let outcome = request(family, false).run(&lab)?;
        ensure!(outcome.is(server.payload()), "in clear: {outcome:?}");

        let (outcome, session) = thread::scope(|scope| {
            let client = scope.spawn(|| request(family, true).patience(HANGS).run(&lab));
            let session = process::await_some("the drop is told", HANGS, || {
                told(guarded.pinholes[0].sessions().ok()?)
            });
            let outcome = client
                .join()
                .map_err(|_| anyhow!("the client panicked"))??;
            Ok::<_, anyhow::Error>((outcome, session?))
        })?;
        ensure!(outcome.hung_at_data(), "with TLS: {outcome:?}");
        ensure!(session.phase == "tls" && session.opened == 0, "{session:?}");
        ensure!(session.client == lab.client_ip(family), "{session:?}");
        ensure!(session.server == lab.server_ip(family), "{session:?}");
        let drop = &session.drops[0];
        ensure!(drop.from == "client" && drop.reason == "policy", "{drop:?}");
        ensure!(passive_ports.contains(&drop.dport), "{drop:?}");
    }
    Ok(())
}

fn told(sessions: Vec<view::Session>) -> Option<view::Session> {
    let mut told = sessions
        .into_iter()
        .filter(|s| s.encrypted && s.dropped > 0 && !s.drops.is_empty());
    told.next()
}

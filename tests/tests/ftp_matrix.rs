//! {PORT, EPRT, PASV, EPSV} × {client's end, server's end, both ends} × {IPv4,
//! IPv6 where the command exists}: 20 MB arrive whole with the helper on, and
//! nothing with it off; beside it the kernel's nf_conntrack_ftp.

use std::io::Write;

use anyhow::Result;
use firewall_tests::lab::{
    Guard, Place, client,
    matrix::{self, Column, Verdict},
    pinhole::{Attach, TcKind, XdpMode},
};

#[test]
fn client_end() -> Result<()> {
    side_by_side(Place::ClientEnd)
}

#[test]
fn server_end() -> Result<()> {
    side_by_side(Place::ServerEnd)
}

#[test]
fn both_ends() -> Result<()> {
    side_by_side(Place::BothEnds)
}

#[test]
fn both_ends_with_clsact() -> Result<()> {
    attached(
        "both ends, clsact",
        Attach {
            tc: TcKind::Clsact,
            ..Attach::default()
        },
    )
}

#[test]
fn both_ends_with_generic_xdp() -> Result<()> {
    attached(
        "both ends, generic",
        Attach {
            xdp: XdpMode::Generic,
            ..Attach::default()
        },
    )
}

/// pinhole and the kernel, with helper and without, with curl and vsftpd.
fn side_by_side(place: Place) -> Result<()> {
    let mut columns = Vec::new();
    for guard in [Guard::Pinhole(Attach::default()), Guard::Kernel] {
        for helper in [true, false] {
            let column = matrix::column(guard, place, helper, client::Kind::Curl)?;
            columns.push((column, helper));
        }
    }
    hold(place.name(), columns);
    Ok(())
}

/// pinhole attached in a given way, with ftplib and pyftpdlib.
fn attached(title: &str, attach: Attach) -> Result<()> {
    let mut columns = Vec::new();
    for helper in [true, false] {
        let guard = Guard::Pinhole(attach);
        let column = matrix::column(guard, Place::BothEnds, helper, client::Kind::Ftplib)?;
        columns.push((column, helper));
    }
    hold(title, columns);
    Ok(())
}

/// Holds each column against its helper, and shows them side by side.
fn hold(title: &str, columns: Vec<(Column, bool)>) {
    let mut wrong = Vec::new();
    for (column, helper) in &columns {
        let wanted = if *helper {
            Verdict::Works
        } else {
            Verdict::HangsAtData
        };
        wrong.extend(column.other_than(wanted));
    }
    let columns: Vec<Column> = columns.into_iter().map(|(column, _)| column).collect();
    // Past the test harness's capture: the table is wanted of a run that succeeds, too.
    let _ = write!(std::io::stderr(), "{}", matrix::table(title, &columns));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! {PORT, EPRT, PASV, EPSV} × {client's end, server's end, both ends} × {IPv4,
//! IPv6 where the command exists}: 20 MB arrive whole with the helper on, and
//! nothing with it off; beside it the kernel's nf_conntrack_ftp.

use std::io::Write;

use firewall_tests::lab::{
    Guard, Place, client,
    matrix::{self, Column, Verdict},
};

/// Holds each column against its helper, and shows them side by side.
fn hold(title: &str, columns: &[(Column, bool)]) {
    let mut wrong = Vec::new();
    for (column, helper) in columns {
        let wanted = if *helper {
            Verdict::Works
        } else {
            Verdict::HangsAtData
        };
        wrong.extend(column.other_than(wanted));
    }
    let columns: Vec<Column> = columns.iter().map(|(c, _)| c).cloned().collect();
    // Past the test harness's capture: the table is wanted of a run that succeeds, too.
    let _ = write!(std::io::stderr(), "{}", matrix::table(title, &columns));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn kernel(place: Place) {
    let columns = [true, false].map(|helper| {
        let column = matrix::column(Guard::Kernel, place, helper, client::Kind::Curl).unwrap();
        (column, helper)
    });
    hold(place.name(), &columns);
}

#[test]
fn kernel_client_end() {
    kernel(Place::ClientEnd);
}
#[test]
fn kernel_server_end() {
    kernel(Place::ServerEnd);
}
#[test]
fn kernel_both_ends() {
    kernel(Place::BothEnds);
}

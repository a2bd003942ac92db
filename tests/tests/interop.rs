//! A short form of the interoperability matrix (`docs/interop.md`): each server with
//! one client or two, each client with one server, through firewalls at both ends;
//! and the same in clear without the helper, which must fail.

use std::io::Write as _;

use anyhow::Result;
use firewall_tests::{
    interop::{
        Cell, Client, Column, Program, Security, Variant,
        expected::Table,
        run::{self, Plan},
    },
    lab::{Family, Mode, server::Kind},
};

use Family::{V4, V6};
use Mode::{Active, Passive};

/// One way to protect a session, in these columns.
type Extra = (Security, Program, Mode, Family, &'static [Column]);

#[test]
fn proftpd_with_curl_and_inetutils_ftp() -> Result<()> {
    hold(
        Kind::Proftpd,
        &[Program::Curl, Program::Ftp],
        &[
            (
                Security::Explicit,
                Program::Ftplib,
                Passive,
                V4,
                &[Column::Pinhole, Column::Fixed, Column::Session],
            ),
            (
                Security::Ccc,
                Program::Curl,
                Passive,
                V6,
                &[Column::Pinhole],
            ),
            (
                Security::Ccc,
                Program::Ftplib,
                Active,
                V4,
                &[Column::Pinhole],
            ),
        ],
    )
}

#[test]
fn pure_ftpd_with_lftp() -> Result<()> {
    let ccc = (
        Security::Ccc,
        Program::Ftplib,
        Passive,
        V4,
        &[Column::Pinhole][..],
    );
    hold(Kind::PureFtpd, &[Program::Lftp], &[ccc])
}

#[test]
fn vsftpd_with_wget() -> Result<()> {
    let implicit = (
        Security::Implicit,
        Program::Lftp,
        Active,
        V6,
        &[Column::Pinhole, Column::Fixed, Column::Session][..],
    );
    hold(Kind::Vsftpd, &[Program::Wget], &[implicit])
}

#[test]
fn pyftpdlib_with_tnftp() -> Result<()> {
    hold(Kind::Pyftpdlib, &[Program::Tnftp], &[])
}

#[test]
fn inetutils_ftpd_with_ftplib() -> Result<()> {
    hold(Kind::Inetutils, &[Program::Ftplib], &[])
}

/// The pairs that CCC works for, with TLS 1.3 (which all of them choose) and 1.2: the
/// helper reads on where it ends, and the data connection is let in at both ends.
#[test]
fn h13_ccc_with_tls_1_2_and_1_3() -> Result<()> {
    let mut plan = Plan::new();
    for (server, program, modes) in [
        (Kind::Proftpd, Program::Curl, &[Passive][..]),
        (Kind::Proftpd, Program::Ftplib, &[Passive, Active]),
        (Kind::PureFtpd, Program::Ftplib, &[Passive, Active]),
    ] {
        for (variant, &mode) in [Variant::Plain, Variant::Tls12]
            .into_iter()
            .flat_map(|variant| modes.iter().map(move |mode| (variant, mode)))
        {
            let cell = Cell {
                security: Security::Ccc,
                server,
                client: Client { program, variant },
                mode,
                family: V4,
            };
            plan.push((cell, Column::Pinhole));
        }
    }
    judge(&plan)
}

/// Runs the clients in clear, in both modes and over either family, with the helper
/// and without, and what else is asked for; and holds it against what is expected.
fn hold(server: Kind, programs: &[Program], extra: &[Extra]) -> Result<()> {
    let cell = |security, program, mode, family| Cell {
        security,
        server,
        client: Client {
            program,
            variant: Variant::Plain,
        },
        mode,
        family,
    };
    let mut plan = Plan::new();
    for &program in programs {
        for (mode, family) in [(Passive, V4), (Active, V6)] {
            let clear = cell(Security::Clear, program, mode, family);
            plan.extend([Column::Off, Column::Pinhole].map(|column| (clear, column)));
        }
    }
    for &(security, program, mode, family, columns) in extra {
        let cell = cell(security, program, mode, family);
        plan.extend(columns.iter().map(|&column| (cell, column)));
    }
    judge(&plan)
}

fn judge(plan: &[(Cell, Column)]) -> Result<()> {
    let expected = Table::committed()?;
    let results = run::run(
        plan,
        |cell, column| expected.patience(*cell, column),
        |_, _, _| {},
    )?;
    let mut wrong = Vec::new();
    for &(cell, column) in plan {
        let trace = &results[&(cell, column)];
        let line = format!("{cell}, {}: {}", column.name(), trace.verdict).replace('\t', " ");
        if !expected.expects(cell, column, trace.verdict) {
            wrong.push(format!("{line}\n{}", trace.transcript));
        }
        // Past the harness's capture: what was tried is wanted of a run that succeeds, too.
        let _ = writeln!(
            std::io::stderr(),
            "{line} in {:.1} s",
            trace.elapsed.as_secs_f64()
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

//! The table as documentation: `docs/interop.md`.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use super::{Cell, Client, Column, Security, Verdict, cell::SERVERS, expected::Table};
use crate::lab::{Family, Mode, server::Kind};

const INTRODUCTION: &str = "\
# Interoperability

Made by `cargo xtask interop --write` from what it saw; `cargo xtask interop` fails when
anything comes out otherwise, and `cargo xtask test` runs a short form.

Each client logs in, lists the directory and fetches a file, in one session, with a firewall
at its end and one at the server's. The firewalls let control connections through (ports 21 and
990) and replies, and nothing else but what the head of a column says:

| column | firewalls |
| --- | --- |
| none | no firewall: what a client and a server do with each other by themselves |
| pinhole, no helper | pinhole without `helper = \"ftp\"` |
| pinhole | pinhole, with the helper |
| fixed range | the same, and a `[[ftp.fixed-range]]` with `active = true`: from these clients to this server's data ports, and from this server to these clients' |
| session range | pinhole with its helper, and a `[[ftp.session-range]]` for these clients, this server and those ports |
| kernel | nftables with `nf_conntrack_ftp` attached |

The clients of all of pinhole's columns run at the same time, through the same two instances,
each on an address of its own: what a rule grants the one must be of no use to the others.

*works*: the listing came, and the very file. *no data*: the log-in succeeded, and neither came.
*fails*: anything else. *varies*: now this, now that, without a firewall, too. One word in a
table stands for both modes and both families where they agree.
";

const CLIENTS: &str = "
The servers are those of Debian 12 (pyftpdlib 1.5.7); the clients are curl, lftp, GNU wget,
tnftp, `ftp` of inetutils and Python's ftplib, each with its own choice of commands: curl and
tnftp use EPSV and EPRT over IPv4, too, the others PASV and PORT; lftp begins with HOST, FEAT or
both.

What is not in the tables:

- tnftp and inetutils' `ftp` know no TLS, nor does inetutils-ftpd.
- pure-ftpd and pyftpdlib have no implicit TLS, nor has ftplib.
- wget cannot send CCC. vsftpd and pyftpdlib refuse it, and the session stays encrypted.
";

/// Where it is.
#[must_use]
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/interop.md")
}

/// What `docs/interop.md` has to say of a table.
#[must_use]
pub fn text(table: &Table) -> String {
    let mut text = INTRODUCTION.to_owned() + CLIENTS;
    for security in Security::ALL {
        section(&mut text, table, security);
    }
    text
}

const fn title(security: Security) -> &'static str {
    match security {
        Security::Clear => "In clear",
        Security::Explicit => "Explicit TLS (AUTH TLS, PROT P)",
        Security::Implicit => "Implicit TLS (port 990)",
        Security::Ccc => "Explicit TLS with CCC: the control connection in clear after the log-in",
    }
}

const fn remark(security: Security) -> &'static str {
    match security {
        Security::Clear => "",
        Security::Explicit | Security::Implicit => {
            "Nobody in between can read the ports: without a remedy the data connections are \
             dropped, and `pinhole ftp list` says which, and of which session. curl 7.88 hangs in \
             active mode when data is protected; with `--ftp-ssl-control` it is not. \
             pyftpdlib resets curl's protected data connections.\n\n"
        }
        Security::Ccc => {
            "Data stays protected, except with `--ftp-ssl-control`. curl waits for the server to \
             end TLS, which pure-ftpd does not; with `--ftp-ssl-ccc-mode active` it ends it \
             itself. lftp ends it twice, and what a server makes of that depends on when each arrives.\n\n"
        }
    }
}

const fn heading(column: Column) -> &'static str {
    match column {
        Column::Open => "none",
        Column::Off => "pinhole, no helper",
        Column::Pinhole => "pinhole",
        Column::Fixed => "fixed range",
        Column::Session => "session range",
        Column::Kernel => "kernel",
    }
}

fn section(text: &mut String, table: &Table, security: Security) {
    let columns = security.columns();
    let _ = write!(
        text,
        "\n## {}\n\n{}| server | client |",
        title(security),
        remark(security)
    );
    for &column in columns {
        let _ = write!(text, " {} |", heading(column));
    }
    let _ = writeln!(text, "\n|{}", " --- |".repeat(columns.len() + 2));
    let cells: Vec<Cell> = Cell::all()
        .into_iter()
        .filter(|cell| cell.security == security)
        .collect();
    for server in SERVERS {
        let mut clients: Vec<Client> = Vec::new();
        for cell in cells.iter().filter(|cell| cell.server == server) {
            if !clients.contains(&cell.client) {
                clients.push(cell.client);
            }
        }
        for client in clients {
            line(text, table, security, server, client);
        }
    }
}

fn line(text: &mut String, table: &Table, security: Security, server: Kind, client: Client) {
    let _ = write!(text, "| {} | {client} |", server.name());
    for &column in security.columns() {
        let verdict = |mode, family| {
            let cell = Cell {
                security,
                server,
                client,
                mode,
                family,
            };
            table.verdict(cell, column)
        };
        let _ = write!(text, " {} |", summary(verdict));
    }
    text.push('\n');
}

/// One word where both modes and both families agree, else those that differ by name.
fn summary(verdict: impl Fn(Mode, Family) -> Option<Verdict>) -> String {
    let by_mode = Mode::BOTH.map(|mode| {
        let [v4, v6] = Family::BOTH.map(|family| word(verdict(mode, family)));
        if v4 == v6 {
            v4.to_owned()
        } else {
            format!("{v4} over IPv4, {v6} over IPv6")
        }
    });
    let [passive, active] = by_mode;
    if passive == active {
        passive
    } else {
        format!("passive {passive}; active {active}")
    }
}

const fn word(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Works) => "works",
        Some(Verdict::NoData) => "no data",
        Some(Verdict::Fails) => "fails",
        Some(Verdict::Varies) => "varies",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_of_the_committed_table() {
        let found = std::fs::read_to_string(path()).unwrap();
        let wanted = text(&Table::committed().unwrap());
        assert!(found == wanted, "run `cargo xtask interop --write`");
    }

    #[test]
    fn one_word_where_all_agree() {
        use Verdict::{NoData, Works};
        assert_eq!(summary(|_, _| Some(Works)), "works");
        let active_fails = |mode, _| Some(if mode == Mode::Active { NoData } else { Works });
        assert_eq!(summary(active_fails), "passive works; active no data");
        let v6_fails = |_, family| Some(if family == Family::V6 { NoData } else { Works });
        assert_eq!(summary(v6_fails), "works over IPv4, no data over IPv6");
    }
}

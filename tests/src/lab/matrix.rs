//! Every way in which FTP negotiates a data connection, through one set of firewalls.

use std::{fmt::Write, thread, time::Duration};

use anyhow::{Result, anyhow};

use super::{
    Family, Guard, Lab, Place,
    client::{self, FtpCommand, Outcome, Request},
    server::{self, FtpServer},
};

/// Long enough for a data connection that works on a busy machine.
const PATIENCE_WORKS: Duration = Duration::from_secs(20);
/// Short, because a connection that must fail is waited for in vain.
const PATIENCE_HANGS: Duration = Duration::from_secs(3);

/// A command over a family.
pub type Cell = (FtpCommand, Family);

/// PORT and PASV over IPv4, EPRT and EPSV over both.
pub fn cells() -> impl Iterator<Item = Cell> {
    FtpCommand::ALL.into_iter().flat_map(|command| {
        Family::BOTH
            .into_iter()
            .filter(move |&family| command.exists_on(family))
            .map(move |family| (command, family))
    })
}

/// What a set of firewalls made of every cell.
#[derive(Clone, Debug)]
pub struct Column {
    /// Whose firewalls, with or without helper.
    pub title: String,
    /// By cell.
    pub cells: Vec<(Cell, Outcome, Verdict)>,
}

/// An outcome, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The very file came.
    Works,
    /// Log-in intact, and not a byte of data.
    HangsAtData,
    /// Anything else.
    Fails,
}

impl Verdict {
    /// In a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::HangsAtData => "hangs",
            Self::Fails => "FAILS",
        }
    }
}

/// Runs all cells at once through firewalls of one kind.
///
/// # Errors
/// Something of the lab fails; a transfer that fails is a [`Verdict`].
pub fn column(guard: Guard, place: Place, helper: bool, client: client::Kind) -> Result<Column> {
    let lab = Lab::line()?;
    let kind = match client {
        client::Kind::Curl => server::Kind::Vsftpd,
        client::Kind::Ftplib => server::Kind::Pyftpdlib,
    };
    let server = FtpServer::start(&lab, kind)?;
    let _guarded = guard.put(&lab, place, helper)?;
    let patience = if helper {
        PATIENCE_WORKS
    } else {
        PATIENCE_HANGS
    };
    let outcomes = thread::scope(|scope| {
        let running: Vec<_> = cells()
            .map(|cell| {
                let request = Request::new(&lab, client, cell.0, cell.1).patience(patience);
                let lab = &lab;
                (cell, scope.spawn(move || request.run(lab)))
            })
            .collect();
        running
            .into_iter()
            .map(|(cell, thread)| {
                let outcome = thread.join().map_err(|_| anyhow!("a client panicked"))??;
                Ok((cell, outcome))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let judge = |outcome: &Outcome| {
        if outcome.is(server.payload()) {
            Verdict::Works
        } else if outcome.hung_at_data() {
            Verdict::HangsAtData
        } else {
            Verdict::Fails
        }
    };
    let whose = match guard {
        Guard::Open => "no firewall",
        Guard::Pinhole(_) => "pinhole",
        Guard::Kernel => "kernel",
    };
    Ok(Column {
        title: format!("{whose} {}", if helper { "+ helper" } else { "alone" }),
        cells: outcomes
            .into_iter()
            .map(|(cell, outcome)| {
                let verdict = judge(&outcome);
                (cell, outcome, verdict)
            })
            .collect(),
    })
}

impl Column {
    /// Cells that are not `wanted`, told with what the client said.
    #[must_use]
    pub fn other_than(&self, wanted: Verdict) -> Vec<String> {
        let odd = self
            .cells
            .iter()
            .filter(|(_, _, verdict)| *verdict != wanted);
        odd.map(|((command, family), outcome, _)| {
            format!(
                "{}: {} over {} was to be \"{}\": {outcome:?}",
                self.title,
                command.name(),
                family.name(),
                wanted.name(),
            )
        })
        .collect()
    }
}

/// The columns side by side.
#[must_use]
pub fn table(title: &str, columns: &[Column]) -> String {
    let mut text = format!("\n{title:<22}");
    for column in columns {
        let _ = write!(text, "{:<20}", column.title);
    }
    for (row, (command, family)) in cells().enumerate() {
        let _ = write!(
            text,
            "\n  {:<20}",
            format!("{} {}", command.name(), family.name())
        );
        for column in columns {
            let cell = column.cells.get(row).map(|(_, outcome, verdict)| {
                format!(
                    "{} ({:.1} s)",
                    verdict.name(),
                    outcome.elapsed.as_secs_f64()
                )
            });
            let _ = write!(text, "{:<20}", cell.unwrap_or_default());
        }
    }
    text.push('\n');
    text
}

//! Runs cells: a lab for each server, its columns one after another, several
//! clients at once, each on an address of its own.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{
    Cell, Column, Security,
    client::{Trace, Trial},
    guard::{self, CLIENT_PORTS, SERVER_PORTS},
};
use crate::lab::{
    Lab, Netns, Node, container,
    server::{FtpServer, Kind},
};

/// Clients that run at once in one lab.
const CLIENTS: u8 = 6;
/// Labs at once.
const LABS: usize = 2;
/// Size of the file: several segments, and soon there.
const BYTES: usize = 64 << 10;

/// What to run: cells and their columns.
pub type Plan = Vec<(Cell, Column)>;

/// What came of a plan.
pub type Results = HashMap<(Cell, Column), Trace>;

/// Runs a plan. `patience` says how long to wait for a cell; `done` hears of each.
///
/// # Errors
/// Something of a lab fails. A session that fails is a result.
pub fn run(
    plan: &[(Cell, Column)],
    patience: impl Fn(&Cell, Column) -> Duration + Sync,
    done: impl Fn(&Cell, Column, &Trace) + Sync,
) -> Result<Results> {
    let queue = Mutex::new(super::cell::SERVERS.to_vec());
    let results = Mutex::new(Results::new());
    thread::scope(|scope| {
        let labs: Vec<_> = (0..LABS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some(server) = pop(&queue) {
                        serve(server, plan, &patience, &|cell, column, trace| {
                            done(cell, column, &trace);
                            lock(&results).insert((*cell, column), trace);
                        })?;
                    }
                    Ok(())
                })
            })
            .collect();
        labs.into_iter()
            .try_for_each(|lab| lab.join().map_err(|_| anyhow!("a lab panicked"))?)
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs what a plan has for one server.
fn serve(
    server: Kind,
    plan: &[(Cell, Column)],
    patience: &(impl Fn(&Cell, Column) -> Duration + Sync),
    done: &(impl Fn(&Cell, Column, Trace) + Sync),
) -> Result<()> {
    let of = |column| {
        let mine = plan
            .iter()
            .filter(move |(cell, c)| cell.server == server && *c == column);
        mine.map(|(cell, _)| *cell).collect::<Vec<Cell>>()
    };
    if Column::ALL.into_iter().all(|column| of(column).is_empty()) {
        return Ok(());
    }
    let site = Site::new(server)?;
    for column in Column::ALL {
        let mut cells = of(column);
        if cells.is_empty() {
            continue;
        }
        // The slow ones first, so that none is waited for alone in the end.
        cells.sort_by_key(|cell| patience(cell, column));
        let _guarded = guard::put(&site.lab, column, CLIENTS)?;
        site.column(cells, |n, cell| {
            let trace = site.trial(n, cell, column, patience(&cell, column)).run()?;
            done(&cell, column, trace);
            Ok(())
        })?;
    }
    Ok(())
}

/// A server and as many clients as are run at once. (The order of the fields is
/// that in which they go.)
struct Site {
    clients: Vec<Netns>,
    explicit: FtpServer,
    implicit: Option<FtpServer>,
    lab: Lab,
}

impl Site {
    fn new(server: Kind) -> Result<Self> {
        let lab = Lab::line()?;
        let clients = container::several_behind_client(&lab, CLIENTS)?;
        let ports = "net/ipv4/ip_local_port_range";
        for client in &clients {
            client.sysctl(ports, &format!("{} {}", CLIENT_PORTS.0, CLIENT_PORTS.1))?;
        }
        let all = format!("{} {}", SERVER_PORTS.0, SERVER_PORTS.1);
        lab.ns(Node::Server).sysctl(ports, &all)?;
        let has_implicit = matches!(server, Kind::Vsftpd | Kind::Proftpd);
        Ok(Self {
            clients,
            explicit: FtpServer::start_at(&lab, Node::Server, server, BYTES)?,
            implicit: has_implicit
                .then(|| FtpServer::start_implicit(&lab, server, BYTES))
                .transpose()?,
            lab,
        })
    }

    /// Has the clients run the cells, each the next one that is left.
    fn column(&self, cells: Vec<Cell>, run: impl Fn(u8, Cell) -> Result<()> + Sync) -> Result<()> {
        let queue = Mutex::new(cells);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|n| {
                    let (queue, run) = (&queue, &run);
                    scope.spawn(move || -> Result<()> {
                        while let Some(cell) = pop(queue) {
                            run(n, cell)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
        })
    }

    fn trial(&self, n: u8, cell: Cell, column: Column, patience: Duration) -> Trial<'_> {
        let server = match (&self.implicit, cell.security) {
            (Some(implicit), Security::Implicit) => implicit,
            _ => &self.explicit,
        };
        let name: String = format!("{cell}-{}", column.name())
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        Trial {
            cell,
            ns: &self.clients[usize::from(n)],
            server: self.lab.server_ip(cell.family),
            payload: server.payload(),
            dir: self.lab.dir().join(name),
            patience,
        }
    }
}

fn pop<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    lock(queue).pop()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

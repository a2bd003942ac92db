//! Runs cells: a lab for each server, its stages one after another, several
//! clients at once, each on an address of its own.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{
    Cell, Column, Security,
    client::{Trace, Trial},
    guard::{CLIENTS, DATA_PORTS, Stage},
};
use crate::lab::{
    Lab, Netns, Node, container,
    server::{FtpServer, Kind},
};

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
    let of = |column: Column| {
        let mine = plan
            .iter()
            .filter(|(cell, c)| cell.server == server && *c == column);
        let mut cells: Vec<Cell> = mine.map(|(cell, _)| *cell).collect();
        // They are taken from the end: the slow ones first, so that none is waited for alone.
        cells.sort_by_key(|cell| Reverse(patience(cell, column)));
        cells
    };
    for stage in Stage::ALL {
        let queues: Vec<_> = stage
            .columns()
            .iter()
            .map(|(column, clients)| (*column, clients.clone(), Mutex::new(of(*column))))
            .collect();
        if queues.iter().all(|(_, _, cells)| lock(cells).is_empty()) {
            continue;
        }
        // Each with a fresh server: what the last firewalls cut off still occupies it.
        let site = Site::new(server)?;
        let _guarded = stage.guard(&site.lab)?;
        thread::scope(|scope| {
            let mut running = Vec::new();
            for (column, clients, cells) in &queues {
                for n in clients.clone() {
                    let site = &site;
                    running.push(scope.spawn(move || -> Result<()> {
                        while let Some(cell) = pop(cells) {
                            let patience = patience(&cell, *column);
                            done(
                                &cell,
                                *column,
                                site.trial(n, cell, *column, patience).run()?,
                            );
                        }
                        Ok(())
                    }));
                }
            }
            running
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
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
        let ports = format!("{} {}", DATA_PORTS.0, DATA_PORTS.1);
        for ns in clients.iter().chain([lab.ns(Node::Server)]) {
            ns.sysctl("net/ipv4/ip_local_port_range", &ports)?;
        }
        let has_implicit = matches!(server, Kind::Vsftpd | Kind::Proftpd);
        // Servers connect from port 20: a client's port is free again before its last
        // connection from there has left TIME_WAIT.
        lab.ns(Node::Server).sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        Ok(Self {
            clients,
            explicit: FtpServer::start_at(&lab, Node::Server, server, BYTES)?,
            implicit: has_implicit
                .then(|| FtpServer::start_implicit(&lab, server, BYTES))
                .transpose()?,
            lab,
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

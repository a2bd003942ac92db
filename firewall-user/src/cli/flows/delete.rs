//! `flows delete` and `flows flush`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::bail;
use firewall_common::{
    abi::{CTL_FLOWS, CtlFlow},
    tcp::State,
    wire::proto,
};
use serde::Serialize;

use super::own::Connection;
use crate::{
    bpf::{
        Instance,
        maps::{FlowRow, Pinned},
        requests::{self, Control},
    },
    cli::{args::Output, flow_args::DeleteArgs},
    error::Usage,
    render,
};

/// Flows handed over between two looks at the clock.
const BATCH: usize = 32 * CTL_FLOWS;
/// Passes over a batch: a flow that was just being moved is there in the next one.
const PASSES: usize = 3;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Deleted {
    /// Flows that the filter picked.
    matched: usize,
    /// Flows that were deleted. Others had ended by themselves meanwhile.
    deleted: usize,
}

/// `flows delete`.
///
/// # Errors
/// No filter, no flow, maps that cannot be read.
pub(super) fn delete(instance: &Instance, args: &DeleteArgs) -> anyhow::Result<()> {
    if args.filter.is_empty() {
        let all = instance.command("flows flush --yes");
        return Err(Usage::new(format!(
            "say which flows, as in `flows delete -p tcp --dport 22`; `{all}` deletes them all"
        ))
        .into());
    }
    let flows = find(instance, args)?;
    if flows.is_empty() {
        bail!(
            "no flow matches; `{}` shows what there is",
            instance.command("flows list")
        );
    }
    end(instance, args, &flows)
}

/// `flows flush`.
///
/// # Errors
/// As [`delete`], but that there are no flows is none.
pub(super) fn flush(instance: &Instance, args: &DeleteArgs) -> anyhow::Result<()> {
    let flows = find(instance, args)?;
    if args.filter.is_empty() && !args.yes {
        let is_connection = |row: &&FlowRow| {
            row.key.proto() == proto::TCP && row.state().state() == State::Established as u8
        };
        let connections = flows.iter().filter(is_connection).count();
        return Err(Usage::new(format!(
            "this would end all {} flows and cut {connections} TCP connections: say `{}`, \
             or pick some by a filter, as in `flows flush -p udp`",
            flows.len(),
            instance.command("flows flush --yes")
        ))
        .into());
    }
    end(instance, args, &flows)
}

fn find(instance: &Instance, args: &DeleteArgs) -> anyhow::Result<Vec<FlowRow>> {
    let pinned = Pinned::open(instance)?;
    let filter = args.filter.resolve(&pinned)?;
    let mut flows = Vec::new();
    pinned.each_flow(|row| {
        if filter.matches(row) {
            flows.push(*row);
        }
    })?;
    Ok(flows)
}

fn end(instance: &Instance, args: &DeleteArgs, flows: &[FlowRow]) -> anyhow::Result<()> {
    if !args.yes {
        spare(flows, Connection::find())?;
    }
    let control = Control::open(instance)?;
    let done = Deleted {
        matched: flows.len(),
        deleted: delete_all(flows, |some| control.delete(some))?,
    };
    match args.list.output {
        Output::Json => render::json(&done),
        Output::Table => render::print(&done.to_string()),
    }
}

/// Refuses to cut the connection through which the operator is logged in.
fn spare(flows: &[FlowRow], own: Option<Connection>) -> Result<(), Usage> {
    let Some(own) = own else {
        return Ok(());
    };
    if !flows.iter().any(|row| own.is_of(row)) {
        return Ok(());
    }
    Err(Usage::new(format!(
        "this would cut your own SSH connection, {} to {}: narrow the filter, or say --yes",
        own.client, own.server
    )))
}

fn delete_all(
    flows: &[FlowRow],
    mut delete: impl FnMut(&[CtlFlow]) -> Result<u32, requests::Error>,
) -> Result<usize, requests::Error> {
    let mut deleted = 0;
    let mut progress = Progress::new(flows.len());
    for some in flows.chunks(BATCH) {
        let seen: Vec<_> = some
            .iter()
            .map(|row| CtlFlow::new(row.key, row.state().incarnation()))
            .collect();
        let mut done = 0;
        for _ in 0..PASSES {
            done += delete(&seen)? as usize;
            if done == seen.len() {
                break;
            }
        }
        deleted += done;
        progress.show(deleted);
    }
    progress.end();
    Ok(deleted)
}

impl std::fmt::Display for Deleted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = if self.deleted == 1 { "" } else { "s" };
        write!(f, "deleted {} flow{s}", self.deleted)?;
        match self.matched - self.deleted {
            0 => writeln!(f),
            gone => writeln!(f, "; {gone} had ended meanwhile"),
        }
    }
}

/// A line that counts, on a terminal, for what takes long.
struct Progress {
    of: usize,
    next: Option<Instant>,
    shown: bool,
}

impl Progress {
    const EVERY: Duration = Duration::from_millis(500);

    fn new(of: usize) -> Self {
        let next = io::stderr()
            .is_terminal()
            .then(|| Instant::now() + Self::EVERY);
        Self {
            of,
            next,
            shown: false,
        }
    }

    fn show(&mut self, done: usize) {
        if self.next.is_some_and(|next| Instant::now() >= next) {
            self.next = Some(Instant::now() + Self::EVERY);
            self.shown = true;
            let _ = write!(io::stderr(), "\rdeleted {done} of {} flows", self.of);
        }
    }

    fn end(self) {
        if self.shown {
            // Back to the begin of the line, and empty it.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::row;

    fn flows(count: u16) -> Vec<FlowRow> {
        (0..count)
            .map(|port| row(6, "192.0.2.9", port, "10.0.0.1", 22))
            .collect()
    }

    #[test]
    fn what_was_in_the_way_is_asked_for_again() {
        let flows = flows(5);
        let mut asked = Vec::new();
        let deleted = delete_all(&flows, |some| {
            asked.push(some.len());
            Ok(if asked.len() == 1 { 3 } else { 2 })
        });
        assert_eq!((deleted.unwrap(), asked), (5, vec![5, 5]));
    }

    #[test]
    fn what_has_ended_is_not_asked_for_without_end() {
        let flows = flows(2000);
        let mut asked = 0;
        let deleted = delete_all(&flows, |some| {
            asked += 1;
            Ok(u32::from(some.len() == BATCH && asked == 1))
        });
        assert_eq!((deleted.unwrap(), asked), (1, 2 * PASSES));
        let done = Deleted {
            matched: 3,
            deleted: 1,
        };
        assert_eq!(done.to_string(), "deleted 1 flow; 2 had ended meanwhile\n");
    }

    #[test]
    fn the_operators_own_connection_is_spared() {
        let flows = flows(3);
        let own = |port| Connection {
            client: format!("192.0.2.9:{port}").parse().unwrap(),
            server: "10.0.0.1:22".parse().unwrap(),
        };
        assert!(spare(&flows, None).is_ok());
        assert!(spare(&flows, Some(own(7))).is_ok());
        let error = spare(&flows, Some(own(2))).unwrap_err().to_string();
        assert!(
            error.contains("192.0.2.9:2") && error.contains("--yes"),
            "{error}"
        );
    }
}

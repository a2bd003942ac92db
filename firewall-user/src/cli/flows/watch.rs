//! `flows watch`.

use std::time::Duration;

use anyhow::bail;
use firewall_common::abi::{Config, DataFlow, FlowEventKind, TableId, flow_flags};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    bpf::{
        Instance,
        flows::Parents,
        maps::{Names, Pinned},
        watch::{Told, Watcher},
    },
    cli::{args::Output, flow_args::WatchArgs},
    filter::Filter,
    render::{self, EvictedView, FlowEventView, Line, LostView, Now},
};

/// How often the programs hear that somebody watches.
const RENEW: Duration = Duration::from_secs(1);

/// Prints events until a signal comes, or until nobody reads them any more.
///
/// # Errors
/// Nothing attached, another watcher, wrong filters.
pub(super) fn run(instance: &Instance, args: &WatchArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(watch(instance, args))
}

async fn watch(instance: &Instance, args: &WatchArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut teller = Teller::new(instance, args)?;
    let mut watcher = Watcher::start(instance, &args.kinds())?;
    let mut every = interval(RENEW);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut batch = Vec::new();
        let mut late = false;
        let mut evicted = Vec::new();
        tokio::select! {
            biased;
            () = any(&mut interrupt, &mut terminate, &mut hang_up) => return Ok(()),
            _ = every.tick() => {
                if !instance.pin_dir().exists() {
                    bail!("instance {instance} was removed: there are no more flows to watch");
                }
                late = watcher.renew()?;
                evicted = watcher.evicted()?;
                teller.refresh()?;
            }
            taken = watcher.take(|record| {
                batch.push(Told::parse(record, &teller.config.timeouts));
            }) => taken?,
        }
        let told = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut lines = teller.lines(&told)?;
        lines += &teller.gaps(watcher.lost()?, late, &evicted)?;
        if !lines.is_empty() && !render::print_to_reader(&lines)? {
            return Ok(());
        }
    }
}

async fn any(interrupt: &mut Signal, terminate: &mut Signal, hang_up: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

/// Makes lines of events.
struct Teller {
    pinned: Pinned,
    filter: Filter,
    names: Names,
    config: Config,
    /// Of the data connections that live: when one ends, its tie has gone.
    parents: Parents,
    json: bool,
    timestamp: bool,
}

impl Teller {
    fn new(instance: &Instance, args: &WatchArgs) -> anyhow::Result<Self> {
        let pinned = Pinned::open(instance)?;
        Ok(Self {
            filter: args.filter.resolve(&pinned)?,
            names: pinned.names()?,
            config: pinned.config()?,
            parents: Parents::new(pinned.data_flows()?),
            json: args.list.output == Output::Json,
            timestamp: args.timestamp,
            pinned,
        })
    }

    /// Another policy can have come: its names and time-outs.
    fn refresh(&mut self) -> anyhow::Result<()> {
        let config = self.pinned.config()?;
        if config != self.config {
            self.names = self.pinned.names()?;
            self.config = config;
        }
        Ok(())
    }

    fn lines(&mut self, told: &[Told]) -> anyhow::Result<String> {
        let now = Now::read();
        let mut lines = String::new();
        for told in told {
            let parent = self.parent(told)?;
            if self.filter.matches(&told.row) {
                let view = FlowEventView::new(told, &self.names, now);
                lines += &self.line(&view.with_parent(parent.as_ref()))?;
            }
        }
        Ok(lines)
    }

    fn parent(&mut self, told: &Told) -> anyhow::Result<Option<DataFlow>> {
        let row = &told.row;
        if !row.state().has(flow_flags::RELATED) {
            return Ok(None);
        }
        if self.parents.of(row).is_none()
            && let Some(data) = self.pinned.data_flow(&row.key)?
        {
            self.parents.insert(row.key, data);
        }
        let parent = self.parents.of(row).copied();
        if told.kind == FlowEventKind::Destroy {
            self.parents.remove(row);
        }
        Ok(parent)
    }

    /// What happened to flows that no event tells of.
    fn gaps(&self, lost: u64, late: bool, evicted: &[(TableId, u64)]) -> anyhow::Result<String> {
        let now = Now::read();
        let mut lines = String::new();
        if lost > 0 {
            lines += &self.line(&LostView::new(Some(lost), now))?;
        }
        if late {
            lines += &self.line(&LostView::new(None, now))?;
        }
        for (table, count) in evicted {
            lines += &self.line(&EvictedView::new(*table, *count, now))?;
        }
        Ok(lines)
    }

    fn line(&self, line: &impl Line) -> anyhow::Result<String> {
        Ok(line.line(self.json, self.timestamp)?)
    }
}

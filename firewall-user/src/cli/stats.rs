//! `pinhole stats`.

use std::{collections::BTreeMap, process::ExitCode};

use firewall_common::abi::config_flags;
use serde::Serialize;

use super::args::{Output, StatsArgs};
use crate::{
    bpf::{Instance, maps::Pinned, text},
    render::{self, CollectorView, FastView, Ink, Now, RefusalView, StatsView, TableView},
};

/// What `stats` shows; its fields are the JSON.
#[derive(Serialize)]
struct View {
    #[serde(flatten)]
    counters: StatsView,
    /// Of a gateway: by interface.
    fast_path: Vec<FastView>,
    /// Refused lines of control connections.
    ftp_refused: Vec<RefusalView>,
    tables: Vec<TableView>,
    collector: CollectorView,
}

impl View {
    fn draw(&self, ink: Ink) -> String {
        let mut out = self.counters.render(ink);
        if self.fast_path.iter().any(|view| view.share.is_some()) {
            for table in render::fast(&self.fast_path) {
                out += "\n";
                out += &table.render(ink);
            }
        }
        if !self.ftp_refused.is_empty() {
            out += "\n";
            out += &render::refusals(&self.ftp_refused).render(ink);
        }
        if self.tables.iter().any(|table| table.created > 0) {
            out += "\n";
            out += &render::tables(&self.tables).render(ink);
        }
        out + "\n" + &self.collector.line()
    }
}

/// The flow tables as they are shown.
pub(super) fn tables(pinned: &Pinned, now: Now) -> anyhow::Result<Vec<TableView>> {
    let tables = pinned.tables()?.into_iter();
    Ok(tables
        .map(|(id, size, counter, census)| TableView::new(id, size, counter, &census, now))
        .collect())
}

/// The fast path as it is shown, by the interfaces' names.
pub(super) fn fast(pinned: &Pinned, all: bool) -> anyhow::Result<Vec<FastView>> {
    let names: BTreeMap<u32, String> = pinned
        .ifaces()?
        .into_iter()
        .map(|(index, iface)| (index, text(&iface.name)))
        .collect();
    let mut views: Vec<_> = pinned
        .fast()?
        .into_iter()
        .filter_map(|(index, entry, counter)| {
            let name = names.get(&index)?.clone();
            Some(FastView::new(name, &entry, &counter, all))
        })
        .collect();
    views.sort_by(|a, b| a.interface.cmp(&b.interface));
    Ok(views)
}

/// Prints the counters.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let pinned = Pinned::open(instance)?;
    let (stats, rules) = (pinned.stats()?, pinned.rules()?);
    let shadow = pinned.config()?.flags & config_flags::SHADOW != 0;
    let now = Now::read();
    let view = View {
        counters: StatsView::new(shadow, &stats, &rules, &pinned.names()?, args.all),
        fast_path: fast(&pinned, args.all)?,
        ftp_refused: RefusalView::list(&pinned.refusals()?, args.all),
        tables: tables(&pinned, now)?,
        collector: CollectorView::new(&pinned.collector()?, now),
    };
    match args.list.output {
        Output::Json => render::json(&view)?,
        Output::Table if view.counters.is_empty() => eprintln!("no packets seen yet"),
        Output::Table => render::print(&view.draw(Ink::of_stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

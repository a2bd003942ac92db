//! `pinhole stats`.

use std::process::ExitCode;

use firewall_common::abi::config_flags;
use serde::Serialize;

use super::args::{Output, StatsArgs};
use crate::{
    bpf::{Instance, maps::Pinned},
    render::{self, CollectorView, Ink, Now, RefusalView, StatsView, TableView},
};

/// What `stats` shows; its fields are the JSON.
#[derive(Serialize)]
struct View {
    #[serde(flatten)]
    counters: StatsView,
    /// Refused lines of control connections.
    ftp_refused: Vec<RefusalView>,
    tables: Vec<TableView>,
    collector: CollectorView,
}

impl View {
    fn draw(&self, ink: Ink) -> String {
        let mut out = self.counters.render(ink);
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

//! `pinhole stats`.

use std::process::ExitCode;

use super::args::{Output, StatsArgs};
use crate::{
    bpf::{Instance, maps::Pinned},
    render::{self, Ink, StatsView},
};

/// Prints the counters.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let pinned = Pinned::open(instance)?;
    let (stats, rules) = (pinned.stats()?, pinned.rules()?);
    let view = StatsView::new(&stats, &rules, &pinned.names()?, args.all);
    match args.list.output {
        Output::Json => render::json(&view)?,
        Output::Table if view.is_empty() => eprintln!("no packets seen yet"),
        Output::Table => render::print(&view.render(Ink::of_stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

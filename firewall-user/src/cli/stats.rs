//! `pinhole stats`.

use std::process::ExitCode;

use firewall_common::abi::config_flags;

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
    let shadow = pinned.config()?.flags & config_flags::SHADOW != 0;
    let view = StatsView::new(shadow, &stats, &rules, &pinned.names()?, args.all);
    match args.list.output {
        Output::Json => render::json(&view)?,
        Output::Table if view.is_empty() => eprintln!("no packets seen yet"),
        Output::Table => render::print(&view.render(Ink::of_stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

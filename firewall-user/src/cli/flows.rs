//! `pinhole flows`.

use std::process::ExitCode;

use super::args::FlowsCommand;
use crate::{
    bpf::{Instance, maps::Pinned},
    render::{self, FlowView, Now},
};

/// Does what the command says.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, command: &FlowsCommand) -> anyhow::Result<ExitCode> {
    let FlowsCommand::List(args) = command;
    let pinned = Pinned::open(instance)?;
    let (flows, names) = (pinned.flows()?, pinned.names()?);
    let now = Now::read();
    let view = |row| FlowView::new(row, &names, now);
    render::list(&flows.iter().map(view).collect::<Vec<_>>(), args.output)?;
    Ok(ExitCode::SUCCESS)
}

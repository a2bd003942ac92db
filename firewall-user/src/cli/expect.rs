//! `pinhole expect`.

use std::{collections::HashMap, process::ExitCode};

use super::args::ExpectCommand;
use crate::{
    bpf::{Instance, maps::Pinned},
    render::{self, ExpectView, Now},
};

/// Does what the command says.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, command: &ExpectCommand) -> anyhow::Result<ExitCode> {
    let ExpectCommand::List(args) = command;
    let pinned = Pinned::open(instance)?;
    let (expectations, names) = (pinned.expectations()?, pinned.names()?);
    let sessions: HashMap<_, _> = pinned.sessions()?.into_iter().collect();
    let now = Now::read();
    let views: Vec<_> = expectations
        .iter()
        .map(|(key, value)| ExpectView::new(key, value, &sessions, &names, now))
        .collect();
    render::list(&views, args.output)?;
    Ok(ExitCode::SUCCESS)
}

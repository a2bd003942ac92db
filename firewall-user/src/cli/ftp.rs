//! `pinhole ftp`.

use std::process::ExitCode;

use super::args::FtpCommand;
use crate::{
    bpf::{Instance, maps::Pinned},
    render::{self, Now, SessionView},
};

/// Does what the command says.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, command: &FtpCommand) -> anyhow::Result<ExitCode> {
    let FtpCommand::List(args) = command;
    let pinned = Pinned::open(instance)?;
    let (sessions, names) = (pinned.sessions()?, pinned.names()?);
    let expectations = pinned.expectations()?;
    let now = Now::read();
    let views: Vec<_> = sessions
        .iter()
        .map(|(key, session)| SessionView::new(key, session, &expectations, &names, now))
        .collect();
    render::list(&views, args.output)?;
    Ok(ExitCode::SUCCESS)
}

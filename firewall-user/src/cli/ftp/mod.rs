//! `pinhole ftp`.

mod explain;
mod watch;

use std::process::ExitCode;

use super::args::ListArgs;
use super::ftp_args::FtpCommand;
use crate::{
    bpf::{Instance, maps::Pinned},
    render::{self, Now, SessionView},
};

/// Does what the command says.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, command: &FtpCommand) -> anyhow::Result<ExitCode> {
    match command {
        FtpCommand::List(args) => list(instance, *args),
        FtpCommand::Explain(args) => explain::run(instance, args),
        FtpCommand::Watch(args) => watch::run(instance, args).map(|()| ExitCode::SUCCESS),
    }
}

fn list(instance: &Instance, args: ListArgs) -> anyhow::Result<ExitCode> {
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

//! The command line: one file a subcommand.

pub mod args;

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser as _;

use crate::error;
use args::{Cli, Command};

/// Parses the command line and does what it says. clap itself exits with 2.
#[must_use]
pub fn main() -> ExitCode {
    match dispatch(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => error::report(&error),
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Run(_)
        | Command::Confirm
        | Command::Status(_)
        | Command::Unload
        | Command::Flows(_)
        | Command::Expect(_)
        | Command::Ftp(_)
        | Command::Stats(_) => bail!("not part of this build yet"),
    }
}

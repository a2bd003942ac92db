//! The command line: one file a subcommand.

pub mod args;
mod expect;
mod flows;
mod ftp;
mod stats;

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
        Command::Flows(command) => flows::run(&cli.instance, command),
        Command::Expect(command) => expect::run(&cli.instance, command),
        Command::Ftp(command) => ftp::run(&cli.instance, command),
        Command::Stats(args) => stats::run(&cli.instance, args),
        Command::Run(_) | Command::Confirm | Command::Status(_) | Command::Unload => {
            bail!("not part of this build yet")
        }
    }
}

//! The command line: one file a subcommand.

pub mod args;
mod confirm;
mod expect;
pub mod flow_args;
mod flows;
mod ftp;
pub mod ftp_args;
mod presence;
mod program_log;
mod progress;
mod run;
mod serve;
mod shadow;
mod stats;
mod status;
mod unload;
mod why;
pub mod why_args;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{error, watchdog};
use args::{Cli, Command};

/// Parses the command line and does what it says. clap itself exits with 2.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log(matches!(&cli.command, Command::Run(args) if args.verbose));
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => error::report(&error),
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Flows(command) => flows::run(&cli.instance, command),
        Command::Expect(command) => expect::run(&cli.instance, command),
        Command::Ftp(command) => ftp::run(&cli.instance, command),
        Command::Shadow(command) => shadow::run(&cli.instance, command),
        Command::Stats(args) => stats::run(&cli.instance, args),
        Command::Run(args) => run::run(&cli.instance, args),
        Command::Confirm => confirm::run(&cli.instance),
        Command::Status(args) => status::run(&cli.instance, args),
        Command::Why(args) => why::run(&cli.instance, args),
        Command::Unload => unload::run(&cli.instance),
        Command::Watchdog { deadline_ns } => {
            watchdog::watch(&cli.instance, *deadline_ns)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Warnings for the operator on standard error; all that is worth knowing with
/// `run -v`, the programs' own lines among it. `RUST_LOG` overrides.
fn init_log(verbose: bool) {
    let level = if verbose {
        "debug,aya=info,aya_obj=info"
    } else {
        "warn"
    };
    let mut log =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level));
    log.format_target(verbose);
    if !verbose {
        log.format_timestamp(None);
    }
    log.init();
}

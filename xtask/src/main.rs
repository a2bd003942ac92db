//! Tasks of the pinhole repository: `cargo xtask --help` lists them.

mod account;
mod bench;
mod build;
mod cargo_json;
mod check;
mod ctx;
mod demo;
mod differential;
mod flood;
mod fuzz;
mod harness;
mod interop;
mod race;
mod setup;
mod test;
mod verify;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::ctx::Ctx;

/// Set-up, build and tests of pinhole. Each task sets up what it needs by itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what is missing to build and test, then build the eBPF object.
    Setup(setup::Args),
    /// Build the eBPF object and the binary that embeds it.
    Build(build::Args),
    /// Run the unit tests, then the end-to-end tests as root.
    Test(test::Args),
    /// Show FTP through firewalls: failing without the helper, working with it.
    Demo(demo::Args),
    /// Compare the programs with nf_conntrack, packet by packet.
    Differential(differential::Args),
    /// Try FTP servers and clients with each other, through firewalls at both ends.
    Interop(interop::Args),
    /// Fuzz the header parser and the tracking of TCP.
    Fuzz(fuzz::Args),
    /// Flood the flow tables while a thousand flows live, and the collector with a million.
    Flood(flood::Args),
    /// Measure the race between data connections and the FTP helper.
    Race(race::Args),
    /// Measure pinhole against the kernel's own firewall.
    Bench(bench::Args),
    /// Hold what the programs cost the verifiers of three kernels against the record.
    Verify(verify::Args),
    /// Boot Debian's kernels in virtual machines and load the programs there.
    Vm(vm::Args),
    /// Check format, lints and documentation.
    Check,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let ctx = Ctx::new()?;
    match cli.task {
        Task::Setup(args) => setup::run(&ctx, &args)?,
        Task::Build(args) => build::run(&ctx, &args)?,
        Task::Test(args) => test::run(&ctx, &args)?,
        Task::Demo(args) => match demo::run(&ctx, &args)? {},
        Task::Differential(args) => match differential::run(&ctx, &args)? {},
        Task::Interop(args) => match interop::run(&ctx, &args)? {},
        Task::Fuzz(args) => fuzz::run(&ctx, &args)?,
        Task::Flood(args) => flood::run(&ctx, &args)?,
        Task::Race(args) => match race::run(&ctx, &args)? {},
        Task::Bench(args) => match bench::run(&ctx, &args)? {},
        Task::Verify(args) => verify::run(&ctx, &args)?,
        Task::Vm(args) => vm::run(&ctx, &args)?,
        Task::Check => check::run(&ctx)?,
    }
    Ok(ExitCode::SUCCESS)
}

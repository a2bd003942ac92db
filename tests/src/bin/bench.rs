//! Measures pinhole against the kernel's own firewall; see `docs/benchmark.md`.
//! `cargo xtask bench` builds and starts it.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use firewall_tests::bench::{self, Bench, metric};

/// Runs of each measurement, and with `--quick`.
const RUNS: [usize; 2] = [10, 3];

#[derive(Parser)]
struct Args {
    /// Three runs of each measurement instead of ten.
    #[arg(long)]
    quick: bool,
    /// Only these ids.
    #[arg(long, num_args = 1..)]
    only: Vec<String>,
    /// Name all ids and end.
    #[arg(long)]
    list: bool,
    /// Where the results go.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.list {
        bench::ids().iter().for_each(|id| println!("{id}"));
        return Ok(());
    }
    let metrics = Bench::new(RUNS[usize::from(args.quick)], &args.only)?.run()?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&metrics)?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    print!("{}", metric::table(&metrics));
    Ok(())
}

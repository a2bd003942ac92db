//! Measures pinhole against the kernel's own firewall; see `docs/benchmark.md`.
//! `cargo xtask bench` builds and starts it.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use firewall_tests::{
    bench::{self, Bench, alone::Alone, metric, report::Report},
    lab::id,
};

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
    /// Write `bench/results` and `docs/benchmark.md`, too.
    #[arg(long)]
    write: bool,
    /// Make `docs/benchmark.md` from these results, and measure nothing.
    #[arg(long)]
    draw: Option<PathBuf>,
    /// What is measured.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A goal that is missed is a figure; what cannot be measured is a failure.
fn run(args: Args) -> Result<ExitCode> {
    if args.list {
        bench::ids().iter().for_each(|id| println!("{id}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &args.draw {
        let name = path.file_name().context("--draw names no file")?;
        Report::read(path)?.draw(&name.to_string_lossy())?;
        return Ok(ExitCode::SUCCESS);
    }
    let runs = RUNS[usize::from(args.quick)];
    let bench = Bench::new(runs, &args.only)?;
    let _alone = Alone::claim()?;
    let results = bench.run();
    // What failed half-way may have left something.
    id::remove_own();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results.metrics)?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    print!("{}", metric::table(&results.metrics));
    if args.write {
        let path = Report::new(args.commit, runs, results.metrics)?.write()?;
        println!("results are in {path}, tables and plots in docs/benchmark.md");
    }
    Ok(if results.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

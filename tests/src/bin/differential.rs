//! Compares pinhole's programs with nf_conntrack, packet by packet; see
//! `docs/differential.md`. `cargo xtask differential` builds and starts it.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    path::PathBuf,
    process::ExitCode,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;
use firewall_tests::differential::run::{self, Outcome, Plan};

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Args {
    /// The eBPF object to judge.
    #[arg(long)]
    object: PathBuf,
    /// Compare at least so many packets.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// Seed of the generated conversations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; by default one for each CPU.
    #[arg(long)]
    threads: Option<usize>,
    /// Tell this conversation of the seed, packet by packet, instead.
    #[arg(long, value_name = "NUMBER")]
    conversation: Option<u64>,
}

fn main() -> ExitCode {
    match compare(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when nothing but what is meant was found.
fn compare(args: &Args) -> Result<bool> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        object: args.object.clone(),
        packets: args.packets,
        seed: args.seed,
        threads: args.threads.unwrap_or(cpus),
        examples: true,
    };
    if let Some(number) = args.conversation {
        print!("{}", run::one(&plan, number)?);
        return Ok(true);
    }
    let shown = Mutex::new(None);
    let outcome = run::run(&plan, |packets| show(&shown, packets, plan.packets))?;
    if stderr().is_terminal() {
        eprintln!();
    }
    print(&plan, &outcome);
    Ok(outcome.report.passed())
}

fn show(shown: &Mutex<Option<Instant>>, packets: u64, of: u64) {
    let Ok(mut last) = shown.try_lock() else {
        return;
    };
    // The first portion does not count: loading takes longer than a short run.
    if last.get_or_insert_with(Instant::now).elapsed() < PROGRESS {
        return;
    }
    *last = Some(Instant::now());
    if stderr().is_terminal() {
        eprint!("\r{packets} of {of} packets");
        let _ = stderr().flush();
    } else {
        eprintln!("{packets} of {of} packets");
    }
}

fn print(plan: &Plan, outcome: &Outcome) {
    let report = &outcome.report;
    let verdicts = report.verdicts();
    let seconds = outcome.elapsed.as_secs_f64();
    println!("{report}");
    println!(
        "seed {}: {} packets in {seconds:.1} s, {:.0} packets/s through both on {} threads",
        plan.seed,
        verdicts.total(),
        verdicts.total() as f64 / seconds.max(0.001),
        plan.threads
    );
    if report.passed() {
        println!("passed: no disagreement but those that are meant");
    } else {
        println!(
            "FAILED: {} kinds of disagreement that are not meant, pinhole passed {} packets that \
             the kernel drops; `cargo xtask differential --seed {} --conversation NUMBER` tells one",
            report.unknown.len(),
            verdicts.weaker,
            plan.seed
        );
    }
}

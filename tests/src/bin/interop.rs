//! Runs the interoperability matrix; see `docs/interop.md`. `cargo xtask interop`
//! builds and starts it.

use std::{
    fs,
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use firewall_tests::interop::{
    Cell, Column, Verdict,
    client::Trace,
    document,
    expected::Table,
    run::{self, Plan, Results},
};

/// Lines of a client's transcript that are shown of a cell that deviates.
const TAIL: usize = 25;

#[derive(Parser)]
struct Args {
    /// Only cells whose line (protection, server, client, mode, family, column) has all of these words.
    words: Vec<String>,
    /// Write what was seen to the table of what is expected and to the documentation.
    #[arg(long)]
    write: bool,
    /// Show what the clients said in every cell.
    #[arg(long)]
    transcripts: bool,
}

fn main() -> ExitCode {
    match matrix(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when all came out as expected.
fn matrix(args: &Args) -> Result<bool> {
    let plan = plan(args);
    ensure!(!plan.is_empty(), "no cell has all of these words");
    let expected = match Table::committed() {
        Ok(table) => table,
        Err(_) if args.write => Table::default(),
        Err(error) => return Err(error),
    };
    let begun = Instant::now();
    let shown = Progress::new(plan.len());
    let results = run::run(
        &plan,
        |cell, column| expected.patience(*cell, column),
        |cell, column, trace| {
            let told = !expected.expects(*cell, column, trace.verdict);
            let wanted = expected.verdict(*cell, column);
            shown.done(cell, column, trace, wanted, told || args.transcripts);
        },
    )?;
    let seen = expected.clone().with(&results);
    if args.write {
        write(&seen)?;
    }
    Ok(report(&expected, &seen, &results, begun))
}

fn plan(args: &Args) -> Plan {
    let wanted = |cell: &Cell, column: Column| {
        let line = format!("{cell}\t{}", column.name());
        args.words.iter().all(|word| line.contains(word.as_str()))
    };
    Cell::all()
        .into_iter()
        .flat_map(|cell| cell.security.columns().iter().map(move |&c| (cell, c)))
        .filter(|(cell, column)| wanted(cell, *column))
        .collect()
}

fn write(seen: &Table) -> Result<()> {
    for (path, text) in [
        (Table::path(), seen.text()),
        (document::path(), document::text(seen)),
    ] {
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn report(expected: &Table, seen: &Table, results: &Results, begun: Instant) -> bool {
    let deviations = results
        .iter()
        .filter(|((cell, column), trace)| !expected.expects(*cell, *column, trace.verdict))
        .count();
    for defect in seen.defects() {
        println!("defect: {}", defect.replace('\t', " "));
    }
    for verdict in Verdict::ALL {
        let count = results.values().filter(|t| t.verdict == verdict).count();
        println!("{count:>5} {verdict}");
    }
    let longest = results.values().map(|trace| trace.elapsed).max();
    println!(
        "{} cells in {:.0} s, the longest {:.1} s: {deviations} not as expected",
        results.len(),
        begun.elapsed().as_secs_f64(),
        longest.unwrap_or_default().as_secs_f64(),
    );
    deviations == 0 && seen.defects().is_empty()
}

struct Progress {
    done: AtomicUsize,
    of: usize,
    line: Mutex<()>,
}

impl Progress {
    const fn new(of: usize) -> Self {
        Self {
            done: AtomicUsize::new(0),
            of,
            line: Mutex::new(()),
        }
    }

    fn done(
        &self,
        cell: &Cell,
        column: Column,
        trace: &Trace,
        wanted: Option<Verdict>,
        transcript: bool,
    ) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let _one_at_a_time = self.line.lock();
        let cell = cell.to_string().replace('\t', " ");
        let line = format!(
            "{cell}, {}: {} in {:.1} s",
            column.name(),
            trace.verdict,
            trace.elapsed.as_secs_f64()
        );
        if transcript {
            let wanted = wanted.map_or("nothing", Verdict::name);
            println!("{line}, expected {wanted}");
            let said: Vec<&str> = trace.transcript.lines().collect();
            for said in &said[said.len().saturating_sub(TAIL)..] {
                println!("    {said}");
            }
        }
        if stderr().is_terminal() {
            eprint!("\r{done} of {} cells", self.of);
            let _ = stderr().flush();
        } else if done.is_multiple_of(100) {
            eprintln!("{done} of {} cells", self.of);
        }
    }
}

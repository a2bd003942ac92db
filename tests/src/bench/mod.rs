//! The benchmark: pinhole against the kernel's own firewall, on one machine.
//!
//! Every figure has an id. What is compared is measured in turns, and of the runs the
//! median and the outermost are told. Rates are packets a second of CPU: the time that
//! the sending threads took, the kernel's work in their system calls included, so that
//! what else the machine does counts as little as can be.

pub mod alone;
pub mod field;
pub mod flowtable;
pub mod forward;
pub mod ftp;
pub mod memory;
pub mod metric;
#[path = "../../../firewall-ebpf/generator/plan.rs"]
mod plan;
mod plot;
pub mod programs;
pub mod report;
pub mod rest;
pub mod room;
pub mod rules;
pub mod streams;
pub mod tables;
pub mod talk;
pub mod traffic;
pub mod wire;

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use self::metric::Metric;
use crate::lab::id;

/// One measurement of a rate.
const TIME: Duration = Duration::from_millis(200);

type Part = (fn() -> Vec<String>, fn(&mut Bench) -> Result<()>);

/// All parts, in the order in which they run: their ids, and what measures those.
const PARTS: [Part; 9] = [
    (memory::ids, memory::run),
    (programs::ids, programs::run),
    (rest::ids, rest::run),
    (forward::ids, forward::run),
    (flowtable::ids, flowtable::run),
    (rules::ids, rules::run),
    (streams::ids, streams::run),
    (ftp::ids, ftp::run),
    (tables::ids, tables::run),
];

/// A run of the benchmark.
#[derive(Debug)]
pub struct Bench {
    /// Runs of each measurement.
    pub runs: usize,
    only: Vec<String>,
    metrics: Vec<Metric>,
    failed: usize,
    begun: Instant,
}

impl Bench {
    /// Of these ids, or of all if there are none.
    ///
    /// # Errors
    /// There is no such id.
    pub fn new(runs: usize, only: &[String]) -> Result<Self> {
        let known = ids();
        for id in only {
            ensure!(
                known.contains(id),
                "there is no id {id}; `cargo xtask bench --list` names all"
            );
        }
        Ok(Self {
            runs,
            only: only.to_vec(),
            metrics: Vec::new(),
            failed: 0,
            begun: Instant::now(),
        })
    }

    /// Is this id asked for?
    #[must_use]
    pub fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == id)
    }

    /// Tells what is being done.
    pub fn say(&self, what: &str) {
        let seconds = self.begun.elapsed().as_secs();
        if stderr().is_terminal() {
            eprint!("\r\x1b[K{seconds:>4} s  {what}");
            let _ = stderr().flush();
        } else {
            eprintln!("{seconds:>4} s  {what}");
        }
    }

    /// Takes a result.
    pub fn add(&mut self, metric: Metric) {
        self.metrics.push(metric);
    }

    /// What could not be measured is told, and the rest is.
    fn or_missing(&mut self, ids: &[String], done: Result<()>) {
        let Err(error) = done else { return };
        // Then everything fails.
        id::halt_if_interrupted();
        self.failed += 1;
        let why = format!("{error:#}");
        let why = why.lines().next().unwrap_or_default().to_owned();
        self.say(&format!("failed: {}", brief(&format!("{error:#}"))));
        for id in ids {
            if self.wants(id) && !self.metrics.iter().any(|metric| metric.id == *id) {
                self.metrics.push(Metric::missing(id, "", &why));
            }
        }
    }

    /// Measures all that is asked for. What fails is among the results without a value.
    #[must_use]
    pub fn run(mut self) -> Results {
        for (ids, run) in PARTS {
            let done = run(&mut self);
            id::halt_if_interrupted();
            self.or_missing(&ids(), done);
        }
        if stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        Results {
            metrics: self.metrics,
            failed: self.failed,
        }
    }
}

/// A message without its middle: the log of a verifier has ten thousand lines.
fn brief(message: &str) -> String {
    let lines: Vec<&str> = message.lines().collect();
    match lines.as_slice() {
        [first, .., last, end] if lines.len() > BRIEF => format!("{first}\n…\n{last}\n{end}"),
        _ => message.to_owned(),
    }
}

/// Lines of a message that is shown whole.
const BRIEF: usize = 20;

/// What came of a run.
#[derive(Debug)]
pub struct Results {
    /// Every id that was asked for.
    pub metrics: Vec<Metric>,
    /// Parts that could not be run to their end.
    pub failed: usize,
}

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    PARTS.iter().flat_map(|(ids, _)| ids()).collect()
}

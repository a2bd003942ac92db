//! The benchmark: pinhole against the kernel's own firewall, on one machine.
//!
//! Every figure has an id. What is compared is measured in turns, and of the runs the
//! median and the outermost are told. Rates are packets a second of CPU: the time that
//! the sending threads took, the kernel's work in their system calls included, so that
//! what else the machine does counts as little as can be.

pub mod alone;
mod bounds;
pub mod field;
pub mod flowtable;
pub mod forward;
pub mod ftp;
pub mod memory;
pub mod metric;
mod page;
#[path = "../../../firewall-ebpf/generator/plan.rs"]
mod plan;
mod plot;
pub mod programs;
pub mod report;
pub mod rest;
pub mod room;
pub mod rules;
mod stand;
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

use self::{
    field::{Field, Rate},
    metric::Metric,
};
use crate::lab::id;

/// One measurement of a rate.
const TIME: Duration = Duration::from_millis(200);
/// In so many turns, so that what the machine does meanwhile hits all that is compared.
const TURNS: u32 = 4;

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

    /// What `measure` finds in each round. The first round warms up, and is not counted.
    ///
    /// # Errors
    /// Of the first round that fails.
    pub fn rounds<T>(&self, what: &str, mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        let mut found = Vec::new();
        for round in 0..=self.runs {
            self.say(&format!("{what}: round {round} of {}", self.runs));
            let value = measure()?;
            if round > 0 {
                found.push(value);
            }
        }
        Ok(found)
    }

    /// Takes how much faster packets come out of one than of another, by turns.
    fn ratio(
        &mut self,
        id: &str,
        [own, other]: [&mut Field; 2],
        mut measure: impl FnMut(&mut Field) -> Result<Rate>,
    ) -> Result<()> {
        let ratios = self.rounds(id, || {
            let mut sums = [Rate::default(); 2];
            for turn in 0..TURNS {
                // Every other time the other way round.
                for at in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
                    let field = if at == 0 { &mut *own } else { &mut *other };
                    sums[at] = sums[at].and(measure(field)?);
                }
            }
            Ok(sums[0].mpps() / sums[1].mpps())
        })?;
        self.add(Metric::of(id, "x", &ratios));
        Ok(())
    }

    /// Takes a result.
    pub fn add(&mut self, metric: Metric) {
        self.metrics.push(metric);
    }

    /// Counts and tells a failure of what is measured; in one line why, for the results.
    fn failed(&mut self, what: &str, error: &anyhow::Error) -> String {
        // Then everything fails.
        id::halt_if_interrupted();
        self.failed += 1;
        let why = format!("{error:#}");
        self.say(&format!("failed: {what}: {}", brief(&why)));
        format!("{what}: {}", why.lines().next().unwrap_or_default())
    }

    /// A figure that could not be measured.
    fn missing(&mut self, id: &str, unit: &str, error: &anyhow::Error) {
        let why = self.failed(id, error);
        self.add(Metric::missing(id, unit, why));
    }

    /// What could not be measured is told, and the rest is.
    fn or_missing(&mut self, ids: &[String], done: Result<()>) {
        let Err(error) = done else { return };
        let missing =
            |id: &&String| self.wants(id) && !self.metrics.iter().any(|metric| metric.id == **id);
        let missing: Vec<String> = ids.iter().filter(missing).cloned().collect();
        let why = self.failed(missing.first().map_or("the rest", |id| id), &error);
        for id in missing {
            self.metrics.push(Metric::missing(id, "", &why));
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

/// Of a program that ended: what the line of its output says that says why, if one does.
fn why(error: &anyhow::Error) -> Option<String> {
    let said = format!("{error:#}");
    let mut lines = said.lines();
    let (_, why) = lines.find_map(|line| line.split_once("rror:"))?;
    Some(why.trim().to_owned())
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

//! The benchmark: pinhole against the kernel's own firewall, on one machine.
//!
//! Every figure has an id. What is compared is measured in turns, and of the runs the
//! median and the outermost are told. Rates are packets a second of CPU: the time that
//! the sending threads took, the kernel's work in their system calls included, so that
//! what else the machine does counts as little as can be.

pub mod field;
pub mod forward;
pub mod metric;
pub mod room;
pub mod talk;
pub mod traffic;
pub mod wire;

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    time::Instant,
};

use anyhow::{Result, ensure};

use self::metric::Metric;

/// A run of the benchmark.
#[derive(Debug)]
pub struct Bench {
    /// Runs of each measurement.
    pub runs: usize,
    only: Vec<String>,
    metrics: Vec<Metric>,
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

    /// Measures all that is asked for.
    ///
    /// # Errors
    /// Something of the lab fails.
    pub fn run(mut self) -> Result<Vec<Metric>> {
        forward::run(&mut self)?;
        if stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        Ok(self.metrics)
    }
}

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    forward::ids()
}

//! Results on file, with the machine that they are of.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{metric::Metric, page::Chart};
use crate::lab::process;

/// Results with what one must know to compare them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// How many of them.
    pub cpus: u32,
    /// What was measured.
    pub commit: String,
    /// Day, UTC.
    pub date: String,
    /// Runs of each measurement.
    pub runs: usize,
    /// The results.
    pub metrics: Vec<Metric>,
}

/// Where results are on file, from the root; and how the names begin of those that
/// `cargo xtask vm bench` puts there.
pub(super) const RESULTS: &str = "bench/results";
const MACHINE: &str = "vm-";

impl Report {
    /// Of these results, on this machine, now.
    ///
    /// # Errors
    /// The machine does not say what it is.
    pub fn new(commit: String, runs: usize, metrics: Vec<Metric>) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let model = model.and_then(|rest| rest.split_once(": "));
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: super::traffic::cpus(),
            commit,
            date: process::check(Command::new("date").args(["-u", "+%F"]))?
                .trim()
                .to_owned(),
            runs,
            metrics,
        })
    }

    /// Of results on file.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    /// Writes the results and the page with its plots; where the results are, from the root.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self) -> Result<String> {
        let name = format!("{}-{}.json", self.date, self.commit);
        let text = serde_json::to_string_pretty(self)? + "\n";
        put(&root().join(RESULTS).join(&name), &text)?;
        self.draw(&name)?;
        Ok(format!("{RESULTS}/{name}"))
    }

    /// Writes the page with its plots, of results whose file has this name.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn draw(&self, name: &str) -> Result<()> {
        for (file, svg) in Chart::drawn(self) {
            put(&root().join("docs").join(file), &svg)?;
        }
        let page = self.page(name, &machines()?);
        put(&root().join("docs/benchmark.md"), &page)
    }

    /// A value that needs no note to be read.
    pub(super) fn clean(&self, id: &str) -> Option<f64> {
        let metric = self.metrics.iter().find(|metric| metric.id == id)?;
        metric.value.filter(|_| metric.note.is_none())
    }

    pub(super) fn value(&self, id: &str) -> Option<f64> {
        self.metrics.iter().find(|metric| metric.id == id)?.value
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `cargo xtask vm bench --write` recorded, by the names of the files.
fn machines() -> Result<Vec<(String, Report)>> {
    let directory = root().join(RESULTS);
    let names = fs::read_dir(&directory).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names
        .filter(|name| name.starts_with(MACHINE) && name.ends_with(".json"))
        .collect();
    names.sort();
    let read = |name: String| Ok((name.clone(), Report::read(&directory.join(name))?));
    names.into_iter().map(read).collect()
}

fn put(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

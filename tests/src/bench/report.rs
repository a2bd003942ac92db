//! Results on file, and the page that is made from them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    field::Mode,
    metric::{Metric, show},
    plot,
};
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

/// Sizes and traffic of the tables and plots.
const SIZES: [&str; 5] = ["1", "1k", "32k", "256k", "1m"];
const TRAFFIC: [(&str, &str); 4] = [
    ("", "UDP over IPv4"),
    ("_tcp", "TCP over IPv4"),
    ("_v6", "UDP over IPv6"),
    ("_tcp_v6", "TCP over IPv6"),
];
const ROUTED: [Mode; 5] = [
    Mode::Ceiling,
    Mode::Forward,
    Mode::Nft,
    Mode::Pass,
    Mode::Fast,
];
/// Where results are on file, from the root; and how the names begin of those that
/// `cargo xtask vm bench` puts there.
const RESULTS: &str = "bench/results";
const MACHINE: &str = "vm-";
/// Whose tables are apart.
const IN_TABLES: &str = "mpps_";

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

    /// Writes the results and the page with its plots.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self) -> Result<()> {
        let name = format!("{}-{}.json", self.date, self.commit);
        let results = root().join(RESULTS).join(&name);
        put(&results, &(serde_json::to_string_pretty(self)? + "\n"))?;
        for (suffix, title) in TRAFFIC {
            let rows = self.rows(suffix);
            if !rows.is_empty() {
                let svg = plot::bars(title, "million packets a second of one core", &SIZES, &rows);
                put(&root().join("docs").join(plot_name(suffix)), &svg)?;
            }
        }
        let page = self.page(&name, &machines()?);
        put(&root().join("docs/benchmark.md"), &page)
    }

    fn value(&self, id: &str) -> Option<f64> {
        self.metrics.iter().find(|metric| metric.id == id)?.value
    }

    /// Rates by size, of the modes that have any.
    fn rows(&self, suffix: &str) -> Vec<(&'static str, Vec<Option<f64>>)> {
        let rate = |mode: Mode, size: &str| {
            self.value(&format!("{IN_TABLES}{}_est_{size}{suffix}", mode.name()))
        };
        let rows = ROUTED.map(|mode| {
            let rates = SIZES.iter().map(|size| rate(mode, size));
            (mode.title(), rates.collect::<Vec<_>>())
        });
        let is_measured = |row: &(&str, Vec<Option<f64>>)| row.1.iter().any(Option::is_some);
        rows.into_iter().filter(is_measured).collect()
    }

    /// Where it is on file, and how it came about.
    fn source(&self, file: &str) -> String {
        format!(
            "[{RESULTS}/{file}](../{RESULTS}/{file}): {} of {}, Linux {}, {} CPUs ({}), {} runs",
            self.commit, self.date, self.kernel, self.cpus, self.cpu, self.runs
        )
    }

    /// `docs/benchmark.md`, with what was measured in virtual machines.
    #[must_use]
    pub fn page(&self, results: &str, machines: &[(String, Self)]) -> String {
        let source = self.source(results);
        let mut text = format!("{HEAD}\nMade by `cargo xtask bench --write` from {source}.\n");
        text += "\n## Goals\n\n";
        text += &figures(self.metrics.iter().filter(|metric| metric.goal.is_some()));
        for (suffix, title) in TRAFFIC {
            let rows = self.rows(suffix);
            if !rows.is_empty() {
                text += &format!(
                    "\n## Established flows: {title}\n\n![]({})\n\n",
                    plot_name(suffix)
                );
                text += &rates(&rows);
            }
        }
        text += "\n## All other figures\n\n";
        let in_tables = |metric: &Metric| {
            metric.id.starts_with(IN_TABLES) && metric.id.contains("_est_") && metric.note.is_none()
        };
        let rest = |metric: &&Metric| metric.goal.is_none() && !in_tables(metric);
        text += &figures(self.metrics.iter().filter(rest));
        if !machines.is_empty() {
            text += IN_MACHINES;
        }
        for (file, report) in machines {
            text += &format!("\n{}:\n\n", report.source(file));
            text += &figures(report.metrics.iter());
        }
        text
    }
}

const HEAD: &str = "# Benchmark

`cargo xtask bench` measures pinhole against the kernel's own firewall on one machine, in
turns. Every figure is the median of its runs; the outermost of them are beside it.

- Three network namespaces on two veth wires, for each firewall its own. A generator in XDP
  writes 60-byte packets (80 over IPv6) of numbered flows and sends them from every core;
  at the other end a program counts what arrives, and drops it.
- A rate is packets a second *of CPU*: the time of the sending threads, with all that the
  kernel did for their packets, and of the kernel's threads that took work over. What else
  the machine does counts as little as can be. Generator and sink are included in all.
- The peer is nftables with the usual `ct state` rules. It is not made slower: its hash table
  is as long as the flows want, it need not verify checksums (a NIC would have), and no
  GRO is spent on packets that cannot be merged.
- *redirect, no tracking* is the ceiling: an XDP program that changes the Ethernet addresses.
- A program's cost is that of BPF_PROG_RUN over and over on one packet, less that of an
  empty program.
";

const IN_MACHINES: &str = "
## In virtual machines

The kernel of the figures above may have no flow tables; those of `cargo xtask vm bench` have.
Where the CPU is an emulated one (its name says so), a packet costs what its instructions cost
the emulator: the ratio is not one of speeds on hardware.
";

fn plot_name(suffix: &str) -> String {
    format!("benchmark-established{}.svg", suffix.replace('_', "-"))
}

/// A table of whole metrics.
fn figures<'a>(metrics: impl Iterator<Item = &'a Metric>) -> String {
    let mut text = "| id | value | min | max | unit | goal | met | |\n".to_owned();
    text += &("| --- ".repeat(8) + "|\n");
    for metric in metrics {
        let met = match metric.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        text += &format!(
            "| `{}` | {} | {} | {} | {} | {} | {met} | {} |\n",
            metric.id,
            show(metric.value),
            show(metric.min),
            show(metric.max),
            metric.unit,
            metric.goal.as_deref().unwrap_or(""),
            metric.note.as_deref().unwrap_or("").replace('|', "\\|"),
        );
    }
    text
}

/// Rates by size, and CPU time of a packet.
fn rates(rows: &[(&str, Vec<Option<f64>>)]) -> String {
    let mut text = format!("| Mpps/core (ns/packet) | {} |\n", SIZES.join(" | "));
    text += &("| --- ".repeat(SIZES.len() + 1) + "|\n");
    for (name, rates) in rows {
        let cells = rates.iter().map(|rate| {
            rate.map_or_else(
                || "-".to_owned(),
                |mpps| format!("{} ({:.0})", show(Some(mpps)), 1000.0 / mpps),
            )
        });
        text += &format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `cargo xtask vm bench --write` recorded, by the names of the files.
fn machines() -> Result<Vec<(String, Report)>> {
    let directory = root().join(RESULTS);
    let names = fs::read_dir(&directory)?.flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names
        .filter(|name| name.starts_with(MACHINE) && name.ends_with(".json"))
        .collect();
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(directory.join(&name))?;
        let report = serde_json::from_str(&text).with_context(|| format!("{RESULTS}/{name}"))?;
        Ok((name, report))
    };
    names.into_iter().map(read).collect()
}

fn put(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_goals_tables_and_notes() {
        let report = Report {
            kernel: "6.18".to_owned(),
            cpu: "model".to_owned(),
            cpus: 2,
            commit: "abc".to_owned(),
            date: "2026-01-02".to_owned(),
            runs: 3,
            metrics: vec![
                Metric::of("fwd_est_1k_vs_nft", "x", &[5.5, 5.0, 6.0]),
                Metric::of("mpps_nft_est_1k", "Mpps/core", &[0.5]),
                Metric::missing("rules_10k_vs_10", "x", "a | b"),
            ],
        };
        let page = report.page("x.json", &[]);
        assert!(!page.contains("virtual"));
        assert!(page.contains("| `fwd_est_1k_vs_nft` | 5.50 | 5.00 | 6.00 | x | >= 5 | yes |  |"));
        assert!(page.contains("| - | 0.500 (2000) | - | - | - |"));
        assert!(page.contains("| `rules_10k_vs_10` | - | - | - | x | <= 1.5 | **no** | a \\| b |"));
        assert!(!page.contains("UDP over IPv6"));
        let machine = Report {
            cpu: "emulated".to_owned(),
            metrics: vec![Metric::of("fwd_est_1k_vs_flowtable", "x", &[2.0])],
            ..report.clone()
        };
        let page = report.page("x.json", &[("vm-6.12.json".to_owned(), machine)]);
        let (_, beside) = page.split_once("## In virtual machines").unwrap();
        assert!(beside.contains("(../bench/results/vm-6.12.json): abc of"));
        assert!(beside.contains("(emulated)") && beside.contains("| `fwd_est_1k_vs_flowtable` |"));
    }
}

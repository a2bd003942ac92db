//! pinhole against the kernel's flow table, which the kernel that the benchmark runs on may not
//! have.

use anyhow::{Context, Result, ensure};
use firewall_tests::bench::{Bench, flowtable, metric::table, report::Report};

use crate::say;

/// Of the measurement. They take a second each, and to set up takes minutes.
const RUNS: usize = 20;
/// In what an emulated CPU calls itself.
const EMULATED: &str = "TCG";

/// Measures, and says `report JSON`.
pub(crate) fn flow_table() -> Result<()> {
    let mut results = Bench::new(RUNS, &[flowtable::ID.to_owned()])?.run();
    let metric = results.metrics.first().context("no figure")?;
    let why = metric.note.as_deref().unwrap_or_default();
    ensure!(
        metric.value.is_some() && results.failed == 0,
        "{} was not measured: {why}",
        metric.id
    );
    let report = Report::new(String::new(), RUNS, Vec::new())?;
    if report.cpu.contains(EMULATED) {
        for metric in &mut results.metrics {
            metric.note = Some("of an emulated CPU".to_owned());
        }
        say("the CPU is emulated: on hardware the ratio may be another");
    }
    say(&table(&results.metrics));
    let report = Report {
        metrics: results.metrics,
        ..report
    };
    say(&format!("report {}", serde_json::to_string(&report)?));
    Ok(())
}

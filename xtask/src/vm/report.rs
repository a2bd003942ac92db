//! What was measured in a virtual machine, on file.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{bench, ctx::Ctx, setup::Series};

/// What the line of process 1 with all results begins with.
pub(super) const REPORT: &str = "report ";
/// Where `cargo xtask bench --write` looks for them.
const RESULTS: &str = "bench/results";

/// Prints the results as JSON, or writes them to `file`; and records them, with machine and
/// commit, if told so.
pub(super) fn keep(
    ctx: &Ctx,
    series: Series,
    said: &[String],
    file: Option<&Path>,
    record: bool,
) -> Result<()> {
    let report = parse(said, &bench::commit(ctx))?;
    let results = serde_json::to_string_pretty(&report["metrics"])? + "\n";
    match file {
        Some(file) => ctx.write(file, results)?,
        None => print!("{results}"),
    }
    if record {
        let directory = ctx.root().join(RESULTS);
        ctx.create_dir(&directory)?;
        let name = format!("vm-{}.json", series.name());
        let text = serde_json::to_string_pretty(&report)? + "\n";
        ctx.write(&directory.join(&name), text)?;
        ctx.status("Recorded", format!("{RESULTS}/{name}"));
    }
    Ok(())
}

/// The report of process 1, which does not know what was checked out.
fn parse(said: &[String], commit: &str) -> Result<Value> {
    let report = said.iter().find_map(|line| line.strip_prefix(REPORT));
    let report = report.context("the guest program reported no results")?;
    let mut report: Value = serde_json::from_str(report).context("not a report")?;
    report["commit"] = commit.into();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gets_its_commit() -> Result<()> {
        let said = [
            "kernel 6.12".to_owned(),
            "report {\"commit\":\"\",\"metrics\":[1]}".to_owned(),
            "passed".to_owned(),
        ];
        let report = parse(&said, "abc+")?;
        assert_eq!(
            (&report["commit"], &report["metrics"][0]),
            (&"abc+".into(), &1.into())
        );
        assert!(parse(&said[..1], "abc").is_err());
        assert!(parse(&["report {".to_owned()], "abc").is_err());
        Ok(())
    }
}

//! The benchmark, on its smallest figures: that they are there and say what they must.
//! What they come to is for `cargo xtask bench`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::{
    bench::{self, Bench},
    lab::process,
};
use serde_json::Value;

#[test]
fn a_ratio_is_measured_in_turns_and_everything_is_removed() -> Result<()> {
    let wanted = ["fwd_est_1_vs_ceiling", "mpps_fwd_est_1"].map(str::to_owned);
    let results = Bench::new(2, &wanted)?.run();
    ensure!(results.failed == 0, "{:?}", results.metrics);
    let [rate, ratio] = results.metrics.as_slice() else {
        anyhow::bail!("{:?}", results.metrics);
    };
    ensure!(
        [&rate.id, &ratio.id] == [&wanted[1], &wanted[0]],
        "{rate:?} {ratio:?}"
    );
    for metric in [rate, ratio] {
        let (min, value, max) = (metric.min, metric.value, metric.max);
        ensure!(metric.runs == 2, "{metric:?}");
        ensure!(
            min > Some(0.0) && min <= value && value <= max,
            "{metric:?}"
        );
        ensure!(metric.goal.is_none() && metric.met.is_none(), "{metric:?}");
    }
    let mine = format!("ph-{}-", std::process::id());
    let left = process::check(Command::new("ip").args(["netns", "list"]))?;
    ensure!(!left.contains(&mine), "{left}");
    Ok(())
}

#[test]
fn a_goal_stands_beside_its_figure() -> Result<()> {
    let wanted = ["bytes_per_flow", "bytes_per_flow_v6"].map(str::to_owned);
    let results = Bench::new(1, &wanted)?.run();
    let text = serde_json::to_value(&results.metrics)?;
    for (id, goal) in [
        ("bytes_per_flow", "<= 160"),
        ("bytes_per_flow_v6", "<= 192"),
    ] {
        let all = text.as_array().context("a list")?;
        let metric = all.iter().find(|metric| metric["id"] == id);
        let metric = metric.with_context(|| format!("no {id} in {text}"))?;
        ensure!(metric["goal"] == goal && metric["met"] == true, "{metric}");
        let names: Vec<&String> = metric.as_object().context("an object")?.keys().collect();
        ensure!(
            names == ["goal", "id", "max", "met", "min", "runs", "unit", "value"],
            "{names:?}"
        );
    }
    Ok(())
}

#[test]
fn ids_are_there_once_and_an_unknown_one_is_refused() -> Result<()> {
    let ids = bench::ids();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    ensure!(sorted.len() == ids.len(), "an id is there twice");
    for id in [
        "fwd_est_1k_vs_nft",
        "fwd_est_32k_vs_nft",
        "fwd_est_1m_vs_nft",
        "fwd_est_1k_vs_ceiling",
        "new_flows_vs_nft",
        "pass_est_1k_vs_nft",
        "prog_tcp_est_ns",
        "rules_10k_vs_10",
        "ftp_rate_vs_kernel",
        "ftp_setup_p99_vs_kernel",
        "list_1m_vs_conntrack",
        "collector_1m_core_share",
        "collector_1m_pause_ms",
        "agent_rest_cpu",
        "agent_rest_rss_mib",
    ] {
        ensure!(ids.iter().any(|known| known == id), "no {id}");
    }
    let refused = Bench::new(1, &["fwd_est_2k_vs_nft".to_owned()]);
    ensure!(refused.is_err_and(|error| error.to_string().contains("--list")));
    Ok(())
}

#[test]
fn committed_results_can_be_read() -> Result<()> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bench/results");
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        let report: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        for key in ["kernel", "cpu", "commit", "date"] {
            ensure!(report[key].is_string(), "{}: {key}", path.display());
        }
    }
    Ok(())
}

//! The help of a command names everything in the JSON that the command prints.

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    live::LiveConnection,
    pinhole::{Attach, Firewall},
};
use serde_json::Value;

#[test]
fn the_help_names_every_key_of_the_json() -> Result<()> {
    let lab = Lab::line()?;
    let policy = "[zones.outside]\ninterfaces = [\"eth0\"]\n\
        [[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n";
    let shadow = ["--shadow"];
    let attach = Attach::default();
    let firewall = Firewall::start_with(&lab, Node::Server, Some(policy), attach, &shadow)?;
    let _live = LiveConnection::to_server(&lab, Family::V4, 7001)?;
    let endpoints = ["192.0.2.1:1", "192.0.2.2:2", "--in"];
    let commands: [(&[&str], &[&str]); 5] = [
        (&["status"], &[]),
        (&["stats"], &[]),
        (&["flows", "list"], &[]),
        (&["shadow", "report"], &["--wait", "1s"]),
        (&["why"], &[&["tcp"], &endpoints[..]].concat()),
    ];
    for (command, more) in commands {
        let help = firewall.cli(&[command, &["--help"]].concat())?.stdout;
        let (_, documented) = help.split_once("JSON").context("no JSON in the help")?;
        let mut known: Vec<&str> = documented
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .collect();
        // What the help refers to.
        known.extend(match command {
            ["status"] => STATS,
            ["why"] => FLOW,
            _ => &[],
        });
        let printed = firewall.json(&[command, more].concat())?;
        let mut keys = Vec::new();
        collect(&printed, &mut keys);
        ensure!(
            keys.len() > 5,
            "{command:?} prints next to nothing: {printed}"
        );
        keys.retain(|key| !known.contains(key));
        ensure!(keys.is_empty(), "{command:?}: {keys:?} are not in the help");
    }
    Ok(())
}

/// "`tables` and `collector` as of `stats`".
const STATS: &[&str] = &[
    "map",
    "tier",
    "size",
    "present",
    "created",
    "removed",
    "evicted",
    "evicted_stay_s",
    "evicted_seen",
    "evicted_ages_s",
    "census_age_s",
    "passes",
    "read",
    "deleted",
    "cpu_s",
    "pace_per_s",
    "pass_s",
    "pass_read",
    "pass_cpu_s",
    "corrected",
    "age_s",
];
/// "`flow` and `flow_after` are as in the lists".
const FLOW: &[&str] = &[
    "family",
    "state",
    "tier",
    "packets",
    "bytes",
    "would_drop",
    "parent",
    "flags",
    "started",
    "last_seen",
    "age_s",
    "idle_s",
    "expires_s",
];

fn collect<'a>(value: &'a Value, keys: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                keys.push(key);
                collect(value, keys);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|one| collect(one, keys)),
        _ => {}
    }
}

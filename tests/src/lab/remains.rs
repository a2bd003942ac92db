//! What a firewall has on a node: for showing that nothing of it is left.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::Value;

use super::{Netns, process};

/// Everything of BPF that a node and an instance have. Equal to the default when nothing is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// XDP programs and TC filters on the node's interfaces, as `interface kind name`.
    pub attached: Vec<String>,
    /// Queueing disciplines that are not the kernel's default, as `interface kind`.
    pub qdiscs: Vec<String>,
    /// Pins of the instance.
    pub pins: Vec<String>,
}

impl Remains {
    /// Looks.
    ///
    /// # Errors
    /// `bpftool` or `tc` cannot be run.
    pub fn find(ns: &Netns, pins: &Path) -> Result<Self> {
        let entries = fs::read_dir(pins).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        Ok(Self {
            attached: sorted(attached(ns)?),
            qdiscs: sorted(qdiscs(ns)?),
            pins: sorted(names.collect()),
        })
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

/// Ids of all programs of the machine: programs belong to no namespace.
///
/// # Errors
/// `bpftool` cannot be run.
pub fn program_ids() -> Result<Vec<u64>> {
    let programs = json(Command::new("bpftool").args(["-j", "prog", "show"]))?;
    Ok(ids(programs.as_array().into_iter().flatten()))
}

/// Ids of the programs that are attached on a node.
///
/// # Errors
/// `bpftool` cannot be run.
pub fn program_ids_at(ns: &Netns) -> Result<Vec<u64>> {
    let mut found = ids(hooks(ns)?.iter());
    found.extend(tcx(ns)?.iter().map(|(_, id)| id));
    Ok(found)
}

fn ids<'a>(entries: impl Iterator<Item = &'a Value>) -> Vec<u64> {
    let id = |entry: &Value| entry["id"].as_u64().or(entry["prog_id"].as_u64());
    entries.filter_map(id).collect()
}

fn attached(ns: &Netns) -> Result<Vec<String>> {
    let name = |entry: &Value| {
        format!(
            "{} {} {}",
            text(&entry["devname"]),
            text(&entry["kind"]),
            text(&entry["name"])
        )
    };
    let mut found: Vec<String> = hooks(ns)?.iter().map(name).collect();
    found.extend(
        tcx(ns)?
            .into_iter()
            .map(|(interface, _)| format!("{interface} tcx")),
    );
    Ok(found)
}

/// Interfaces and ids of TCX programs, which an older bpftool does not tell.
fn tcx(ns: &Netns) -> Result<Vec<(String, u64)>> {
    let links = json(ns.command("ip").args(["-j", "link", "show"]))?;
    let mut found = Vec::new();
    for link in links.as_array().into_iter().flatten() {
        let interface = text(&link["ifname"]);
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            // A kernel before 6.6 has no TCX to ask about.
            let asked = ns.within(|| SchedClassifier::query_tcx(interface, hook))?;
            let programs = asked.map(|(_, programs)| programs).unwrap_or_default();
            found.extend(
                programs
                    .iter()
                    .map(|program| (interface.to_owned(), program.id().into())),
            );
        }
    }
    Ok(found)
}

/// XDP programs and clsact filters on a node's interfaces.
fn hooks(ns: &Netns) -> Result<Vec<Value>> {
    let net = json(ns.command("bpftool").args(["-j", "net", "show"]))?;
    let mut found = Vec::new();
    for lists in net.as_array().into_iter().flatten() {
        for hook in ["xdp", "tc"] {
            found.extend(lists[hook].as_array().into_iter().flatten().cloned());
        }
    }
    Ok(found)
}

fn qdiscs(ns: &Netns) -> Result<Vec<String>> {
    let all = json(ns.command("tc").args(["-j", "qdisc", "show"]))?;
    let odd = all
        .as_array()
        .into_iter()
        .flatten()
        .filter(|q| q["kind"] != "noqueue");
    Ok(odd
        .map(|q| format!("{} {}", text(&q["dev"]), text(&q["kind"])))
        .collect())
}

fn json(command: &mut Command) -> Result<Value> {
    Ok(serde_json::from_str(&process::check(command)?)?)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

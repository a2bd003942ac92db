//! The programs' own log lines, for `run -v`.

use std::borrow::Cow;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use firewall_common::verdict::{DropReason, PassReason, Verdict};
use log::{Log, Metadata, Record};

use crate::bpf::loader::Loaded;

/// What stands before an outcome's number in a program's line.
const MARK: &str = "outcome#";

/// A reader of the programs' lines.
pub(super) type ProgramLog = EbpfLogger<Named>;

/// Starts reading.
pub(super) fn open(loaded: &mut Loaded) -> anyhow::Result<ProgramLog> {
    EbpfLogger::init_with_logger(&mut loaded.ebpf, Named).context("the programs' log")
}

/// Puts the names of outcomes in place of their numbers, and hands on the line.
pub(super) struct Named;

impl Log for Named {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        log::logger().log(
            &Record::builder()
                .args(format_args!("{}", named(&line)))
                .metadata(record.metadata().clone())
                .build(),
        );
    }

    fn flush(&self) {
        log::logger().flush();
    }
}

/// What a program's line says became of a packet.
enum Outcome {
    /// As judged.
    Judged(Verdict),
    /// Passed in shadow mode instead of being dropped.
    WouldDrop(DropReason),
}

fn named(line: &str) -> Cow<'_, str> {
    let Some(rest) = line.strip_prefix(MARK) else {
        return line.into();
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match number.parse().ok().and_then(outcome) {
        Some(Outcome::Judged(Verdict::Pass(reason))) => {
            format!("pass {} {rest}", reason.name()).into()
        }
        Some(Outcome::Judged(Verdict::Drop(reason))) => {
            format!("drop {} {rest}", reason.name()).into()
        }
        Some(Outcome::WouldDrop(reason)) => format!("would drop {} {rest}", reason.name()).into(),
        None => line.into(),
    }
}

fn outcome(index: u32) -> Option<Outcome> {
    let mut drops = DropReason::ALL.iter();
    if let Some(reason) = drops.find(|reason| Verdict::in_shadow(reason.index()) == index) {
        return Some(Outcome::WouldDrop(*reason));
    }
    let pass = PassReason::ALL.iter().map(|reason| Verdict::Pass(*reason));
    let drop = DropReason::ALL.iter().map(|reason| Verdict::Drop(*reason));
    let judged = pass.chain(drop).find(|verdict| verdict.index() == index);
    judged.map(Outcome::Judged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names() {
        let index = DropReason::Policy.index();
        let line = format!("{MARK}{index} on 3 proto 6");
        assert_eq!(named(&line), "drop policy on 3 proto 6");
        let line = format!("{MARK}{} on 3", Verdict::in_shadow(index));
        assert_eq!(named(&line), "would drop policy on 3");
        let index = PassReason::NewByRule.index();
        assert_eq!(named(&format!("{MARK}{index} on 3")), "pass new on 3");
    }

    #[test]
    fn other_lines_stay() {
        for line in ["hello", "outcome#", "outcome#255 on 1"] {
            assert_eq!(named(line), line);
        }
    }
}

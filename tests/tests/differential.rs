//! pinhole's programs against nf_conntrack: a short run of `cargo xtask differential`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure is the test's failure"
)]

use std::path::PathBuf;

use firewall_common::tcp::State;
use firewall_tests::differential::{
    report::Report,
    run::{self, Plan},
};

fn plan(object: &str) -> Plan {
    let objects = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    Plan {
        object: objects.join(object),
        packets: 150_000,
        seed: 20,
        threads: 2,
        examples: true,
    }
}

fn report(plan: &Plan) -> Report {
    run::run(plan, |_| {}).unwrap().report
}

#[test]
fn verdicts_and_states_are_those_of_the_kernel() {
    let report = report(&plan("pinhole.o"));
    assert!(report.passed(), "{report}");
    assert!(report.verdicts().passed > 50_000, "{report}");
    assert!(report.verdicts().dropped > 5_000, "{report}");
    for state in 0..=9 {
        let state = State::try_from(state).unwrap();
        let packets = report.in_state(state).total();
        assert!(packets > 200, "{packets} in {}: {report}", state.name());
    }
}

/// The comparison is worth something if it notices a firewall that lets more
/// through, whichever check is missing. `cargo xtask test` builds the objects.
fn is_noticed(check: &str) {
    let report = report(&Plan {
        packets: 30_000,
        threads: 1,
        examples: false,
        ..plan(&format!("sabotage-{check}.o"))
    });
    assert!(!report.passed(), "{report}");
}

#[test]
fn sabotage_window_is_noticed() {
    is_noticed("window");
}

#[test]
fn sabotage_rst_is_noticed() {
    is_noticed("rst");
}

#[test]
fn sabotage_scale_is_noticed() {
    is_noticed("scale");
}

#[test]
fn sabotage_tuple_reuse_is_noticed() {
    is_noticed("tuple-reuse");
}

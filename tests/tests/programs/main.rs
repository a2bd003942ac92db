//! The real programs, packet by packet, under BPF_PROG_RUN.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: a failure is the test's failure"
)]

mod attacks;
mod control;
mod data;
mod events;
mod fragments;
mod icmp;
mod link;
mod malformed;
mod many_rules;
mod outsider;
mod packets;
mod rig;
mod shadow;
mod stateless;
mod table;
mod tracking;
mod two_cpus;

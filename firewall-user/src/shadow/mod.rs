//! Shadow mode, looked at: what would be dropped, and where pinhole and
//! nf_conntrack disagree about the connections that both track.
//!
//! Everything here reads pinned maps and netlink, so no agent is needed.

mod compare;
mod kernel;
mod readmit;
mod refused;

pub use compare::{Comparison, Disagreement, Kind, Scope, compare};
pub use kernel::{Surroundings, Tracking, look};
pub use readmit::{Readmitted, readmit};
pub use refused::{Refused, Talker, by_reason};

#[cfg(test)]
pub(crate) use refused::tests as refused_tests;

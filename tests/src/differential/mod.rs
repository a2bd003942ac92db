//! pinhole against the kernel's own connection tracking, packet by packet.
//!
//! [`conversation`] makes TCP conversations from a seed; each segment goes
//! through pinhole's real programs ([`programs`]) and through nf_conntrack
//! ([`kernel`]). [`compare`] holds verdict against verdict and state against
//! state after every packet; [`classes`] knows the disagreements that are meant,
//! and `docs/differential.md` says why. [`run`] spreads that over the CPUs.

pub mod classes;
pub mod compare;
pub mod conversation;
pub mod ctnetlink;
mod forge;
pub mod kernel;
mod path;
pub mod peer;
pub mod programs;
pub mod report;
pub mod rng;
pub mod run;
pub mod segment;
mod shrink;

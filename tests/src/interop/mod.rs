//! Which servers and clients of FTP work together through firewalls at both ends.
//!
//! A [`Cell`] is one client that logs in to one server, lists the directory and
//! fetches a file, in one way to protect it, in one mode, over one family. It is
//! run in several [`Column`]s: without a firewall, with pinhole, with the kernel's
//! helper. [`expected`] holds what must come of each; [`document`] is
//! `docs/interop.md`.

pub mod cell;
pub mod client;
pub mod document;
pub mod expected;
pub mod guard;
pub mod judge;
pub mod run;

pub use cell::{Cell, Client, Column, Program, Security, Variant};
pub use judge::Verdict;

//! pinhole, user side.
//!
//! - [`cli`] is the command line, one file a subcommand
//! - [`config`] turns TOML into a validated policy, and that into compiled rules
//! - [`classes`] makes those searchable; pure
//! - [`bpf`] opens pinned maps and reads them as typed entries
//! - [`filter`] picks flows; pure
//! - [`render`] writes entries as tables or JSON
//! - [`protocol`] knows the names of IP protocols
//! - [`reasons`] is the reference of all outcomes
//! - [`ftp`] reads FTP control connections; pure
//! - [`helper`] is the FTP agent: from ring records to expectations
//! - [`explain`] is the story of a session, and what would help it; pure
//! - [`journal`] is what became of FTP sessions, in words; pure
//! - [`preflight`] checks what must hold before anything is attached
//! - [`gc`] has expired flows deleted
//! - [`seed`] finds the flows that were there before
//! - [`lock`] keeps agents of one instance apart
//! - [`watchdog`] undoes what nobody confirms
//! - [`unload`] removes an instance
//! - [`why`] explains what becomes of a packet
//! - [`netlink`] asks the kernel about links, routes, sockets, connections and NAT

pub mod bpf;
pub mod classes;
pub mod cli;
pub mod config;
pub mod error;
pub mod explain;
pub mod fast;
pub mod filter;
pub mod ftp;
pub mod gc;
pub mod helper;
pub mod journal;
pub mod lock;
pub mod netlink;
pub mod preflight;
pub mod protocol;
pub mod reasons;
pub mod render;
pub mod seed;
pub mod shadow;
pub mod unload;
pub mod watchdog;
pub mod why;

//! The FTP helper's agent: ring → reassembly → lines → session machine → expectations.
//!
//! - [`ring`] reads the programs' records
//! - [`reassembly`] puts a stream in order; pure
//! - [`agent`] follows the sessions and keeps the tables
//! - [`tables`] is what it does to them, [`maps`] how, over the pinned maps
//! - [`thread`] is where all this happens
//! - [`frame`] makes a held frame fit to be run again; pure
//!
//! # Memory
//! A session holds at most 136 kB of payload that came out of order, and an
//! unfinished line of [`MAX_LINE`](crate::ftp::line::MAX_LINE) bytes for each
//! direction. All sessions together hold at most [`reassembly::BUDGET`] of the
//! former, so the default 4096 sessions stay below 16 + 32 MiB.

pub mod agent;
mod book;
mod crowd;
pub mod frame;
mod live;
pub mod maps;
mod memory;
pub mod reassembly;
pub mod ring;
mod seldom;
pub mod tables;
pub mod thread;
mod trail;
mod urgency;

pub use agent::{Agent, Settings, run};
pub use maps::MapTables;
pub use ring::Events;
pub use tables::{TableError, Tables};
pub use thread::Helper;
pub use urgency::Urgency;

//! The FTP helper's agent: ring → reassembly → lines → session machine → expectations.
//!
//! - [`ring`] reads the programs' records
//! - [`reassembly`] puts a stream in order; pure
//! - [`agent`] follows the sessions and keeps the tables
//! - [`tables`] is what it does to them, [`maps`] how, over the pinned maps
//! - [`frame`] makes a held frame fit to be run again; pure

pub mod agent;
mod book;
pub mod frame;
mod live;
pub mod maps;
pub mod reassembly;
pub mod ring;
pub mod tables;

pub use agent::{Agent, Settings, run};
pub use maps::MapTables;
pub use tables::{TableError, Tables};

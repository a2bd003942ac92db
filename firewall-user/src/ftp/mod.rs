//! FTP, as far as a firewall must understand it. Pure: no I/O, no clock.
//!
//! - [`line`] turns a byte stream into lines
//! - [`command`] and [`reply`] read a line
//! - [`tls`] follows records, without looking into them
//! - [`refusal`] names every reason not to

pub mod command;
pub mod line;
pub mod refusal;
pub mod reply;
pub mod tls;

pub use refusal::Refusal;

//! FTP, as far as a firewall must understand it. Pure: no I/O, no clock.
//!
//! - [`line`] turns a byte stream into lines
//! - [`tls`] follows records, without looking into them

pub mod line;
pub mod tls;

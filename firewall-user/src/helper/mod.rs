//! The FTP helper's agent: ring → reassembly → lines → session machine → expectations.
//!
//! - [`ring`] reads the programs' records
//! - [`reassembly`] puts a stream in order; pure
//! - [`frame`] makes a held frame fit to be run again; pure

pub mod frame;
pub mod reassembly;
pub mod ring;

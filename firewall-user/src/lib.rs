//! pinhole, user side.
//!
//! - [`cli`] is the command line, one file a subcommand
//! - [`bpf`] opens pinned maps and reads them as typed entries

pub mod bpf;
pub mod cli;
pub mod error;

//! The lab: network namespaces on one machine, with real FTP servers and
//! clients between which pinhole, or the kernel's own helper, is put.
//!
//! Used by the end-to-end tests (`tests/tests`) and by the demo. Nothing
//! leaves the machine: every packet travels between namespaces that the lab
//! made, and they are removed with it.

pub mod bench;
pub mod differential;
pub mod interop;
pub mod lab;
pub mod narrator;

//! Namespaces, guards, servers and clients.
//!
//! ```text
//! client ── fw-a ── net ── fw-b ── server
//!                    │
//!                 stranger
//! ```
//!
//! [`Lab::line`] lays the wires; a guard is put on a node as
//! [`pinhole::Firewall`] or [`kernel::NftFirewall`]; [`server`] starts an FTP
//! server on a node and [`client`] fetches a file from it.

pub mod client;
pub mod container;
pub mod datagram;
pub mod ether;
pub mod fake_server;
pub mod fast;
pub mod foreign;
pub mod generator;
pub mod id;
pub mod kernel;
pub mod live;
pub mod matrix;
mod mode;
pub mod netns;
pub mod paced;
pub mod passage;
pub mod payload;
pub mod ping;
pub mod pinhole;
pub mod place;
pub mod process;
pub mod race;
pub mod remains;
pub mod script;
pub mod server;
mod topology;
pub mod tun;
pub mod tun_wire;
pub mod vlan;
pub mod wire;

pub use mode::Mode;
pub use netns::Netns;
pub use place::{Guard, Place};
pub use topology::{Family, Lab, Node};

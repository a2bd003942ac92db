//! What the fast path needs of a wire, and what it says of itself.

use anyhow::{Context, Result};
use firewall_user::bpf::sys;
use serde::Deserialize;

use super::{Lab, Netns, Node, pinhole::Firewall};

/// Features to which a sender leaves checksums.
const CHECKSUMS: [&str; 2] = ["tx-checksum-ip-generic", "tx-checksum-sctp"];
/// What lets the end of a veth take packets from XDP.
const GRO: &str = "rx-gro";

/// Lets the senders on both sides of fw-b write checksums themselves.
///
/// # Errors
/// The kernel refuses it.
pub fn complete_checksums(lab: &Lab) -> Result<()> {
    for (node, interface) in [(Node::Server, "eth0"), (Node::Net, "b0")] {
        set(lab.ns(node), interface, &CHECKSUMS, false)?;
    }
    Ok(())
}

/// Lets the wires on both sides of fw-b take what is redirected to them.
///
/// # Errors
/// The kernel refuses it.
pub fn take_redirects(lab: &Lab) -> Result<()> {
    for (node, interface) in [(Node::Server, "eth0"), (Node::Net, "b0")] {
        set(lab.ns(node), interface, &[GRO], true)?;
    }
    Ok(())
}

/// Both, for one more wire to fw-b: its other end.
///
/// # Errors
/// The kernel refuses it.
pub fn prepare_end(ns: &Netns, interface: &str) -> Result<()> {
    set(ns, interface, &CHECKSUMS, false)?;
    set(ns, interface, &[GRO], true)
}

fn set(ns: &Netns, interface: &str, features: &[&str], on: bool) -> Result<()> {
    ns.within(|| sys::set_features(interface, features, on))?
        .with_context(|| format!("{features:?} of {interface}"))
}

/// What `stats` says of the fast path at an interface.
#[derive(Clone, Debug, Deserialize)]
pub struct Fast {
    /// The interface.
    pub interface: String,
    /// May what arrives there take it?
    pub from: bool,
    /// May what takes it leave there?
    pub to: bool,
    /// What stands in the way.
    pub obstacles: Vec<String>,
    /// Packets that took it.
    pub packets: u64,
    /// Packets that did not.
    pub kernel_packets: u64,
    kernel: Vec<Kept>,
    /// The part that took it.
    pub share: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Kept {
    reason: String,
    packets: u64,
}

impl Fast {
    /// Packets that were left to the kernel for a reason.
    #[must_use]
    pub fn kept(&self, reason: &str) -> u64 {
        let found = self.kernel.iter().find(|kept| kept.reason == reason);
        found.map_or(0, |kept| kept.packets)
    }
}

impl Firewall {
    /// The fast path at an interface.
    ///
    /// # Errors
    /// The command fails, or knows nothing of it.
    pub fn fast(&self, interface: &str) -> Result<Fast> {
        let mut stats = self.json(&["stats", "--all"])?;
        let all: Vec<Fast> = serde_json::from_value(stats["fast_path"].take())?;
        all.into_iter()
            .find(|fast| fast.interface == interface)
            .with_context(|| format!("no fast path at {interface}"))
    }
}

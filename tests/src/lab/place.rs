//! Where the firewalls stand, and which.

use anyhow::Result;

use super::{
    Lab, Node,
    kernel::NftFirewall,
    pinhole::{Attach, Firewall, config},
};

/// At which end, or ends, a gateway guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// fw-a.
    ClientEnd,
    /// fw-b.
    ServerEnd,
    /// Both.
    BothEnds,
}

impl Place {
    /// All three.
    pub const ALL: [Self; 3] = [Self::ClientEnd, Self::ServerEnd, Self::BothEnds];

    /// As in a table's head.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientEnd => "client's end",
            Self::ServerEnd => "server's end",
            Self::BothEnds => "both ends",
        }
    }

    /// The routers that guard.
    #[must_use]
    pub const fn nodes(self) -> &'static [Node] {
        match self {
            Self::ClientEnd => &[Node::FwA],
            Self::ServerEnd => &[Node::FwB],
            Self::BothEnds => &[Node::FwA, Node::FwB],
        }
    }
}

/// What guards the routers. All let FTP's control connection through, from the
/// client to the server, and otherwise replies only.
#[derive(Clone, Copy, Debug)]
pub enum Guard {
    /// Nothing.
    Open,
    /// pinhole.
    Pinhole(Attach),
    /// nftables with nf_conntrack_ftp.
    Kernel,
}

/// Firewalls in their places. They go with the handle.
#[derive(Debug, Default)]
pub struct Guarded {
    /// pinhole's, in the order of [`Place::nodes`].
    pub pinholes: Vec<Firewall>,
    /// The kernel's.
    pub kernels: Vec<NftFirewall>,
}

impl Guard {
    /// Puts the firewalls up, with the FTP helper on or off.
    ///
    /// # Errors
    /// One of them cannot be put up.
    pub fn put(self, lab: &Lab, place: Place, helper: bool) -> Result<Guarded> {
        let mut guarded = Guarded::default();
        for &node in place.nodes() {
            match self {
                Self::Open => {}
                Self::Pinhole(attach) => {
                    let text = config::gateway(node, helper);
                    let firewall = Firewall::start(lab, node, Some(&text), attach)?;
                    guarded.pinholes.push(firewall);
                }
                Self::Kernel => guarded
                    .kernels
                    .push(NftFirewall::start(lab.ns(node), helper)?),
            }
        }
        Ok(guarded)
    }
}

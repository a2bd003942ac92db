//! The lab that the cases share: wires, two firewalls, and addresses for each case.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context, Result, anyhow};
use firewall_tests::lab::{
    Family, Guard, Lab, Node, Place,
    pinhole::{Attach, Firewall, config},
};

/// Host numbers that the cases use; those below are the lab's.
const FIRST: u8 = 10;
const LAST: u8 = 250;

/// What [`World::strict`] allows.
const STRICT: &str = "\
[tables]
expectations = 16
[ftp]
expectation-timeout = 4
max-expectations-per-client = 2
data-after-control = \"cut\"
cut-after = 1
";

/// A line of nodes with a pinhole at each end.
#[derive(Debug)]
pub(crate) struct World {
    // Unloads while its node is there.
    firewalls: Vec<Firewall>,
    pub(crate) lab: Lab,
    next: AtomicU8,
}

impl World {
    /// The one that runs, or a new one: it lives for as long as a case needs it.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
        shared(&SHARED, || {
            let lab = Lab::line()?;
            let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::BothEnds, true)?;
            Self::over(lab, guarded.pinholes)
        })
    }

    /// As [`World::shared`], with one firewall at the server's end that allows little.
    pub(crate) fn strict() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
        shared(&SHARED, || Self::server_end(STRICT))
    }

    /// As [`World::strict`], for one case alone and with these settings.
    pub(crate) fn alone(settings: &str) -> Result<Arc<Self>> {
        Self::server_end(settings).map(Arc::new)
    }

    fn server_end(settings: &str) -> Result<Self> {
        let lab = Lab::line()?;
        let text = config::gateway(Node::FwB, true) + settings;
        let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
        Self::over(lab, vec![firewall])
    }

    pub(crate) fn over(lab: Lab, firewalls: Vec<Firewall>) -> Result<Self> {
        for node in [Node::Client, Node::Server] {
            let addresses: String = (FIRST..=LAST)
                .flat_map(|host| Family::BOTH.map(|family| address(node, family, host)))
                .map(|ip| match ip {
                    IpAddr::V4(ip) => format!("addr add {ip}/24 dev eth0\n"),
                    IpAddr::V6(ip) => format!("addr add {ip}/64 dev eth0 nodad\n"),
                })
                .collect();
            lab.ns(node).ip(&addresses)?;
        }
        Ok(Self {
            firewalls,
            lab,
            next: AtomicU8::new(FIRST),
        })
    }

    pub(crate) fn firewalls(&self) -> &[Firewall] {
        &self.firewalls
    }

    /// At the client's end.
    pub(crate) fn fw_a(&self) -> &Firewall {
        &self.firewalls[0]
    }

    /// A client's and a server's address that no other case has.
    pub(crate) fn pair(&self, family: Family) -> Result<(IpAddr, IpAddr)> {
        let host = self.next.fetch_add(1, Ordering::Relaxed);
        (host <= LAST)
            .then(|| [Node::Client, Node::Server].map(|node| address(node, family, host)))
            .map(|[client, server]| (client, server))
            .context("more cases than addresses")
    }
}

/// The world that is there, or a new one.
fn shared(slot: &Mutex<Weak<World>>, new: impl FnOnce() -> Result<World>) -> Result<Arc<World>> {
    let mut slot = slot.lock().map_err(|_| anyhow!("a case panicked"))?;
    if let Some(world) = slot.upgrade() {
        return Ok(world);
    }
    let world = Arc::new(new()?);
    *slot = Arc::downgrade(&world);
    Ok(world)
}

/// Address number `host` of the client's or the server's node.
fn address(node: Node, family: Family, host: u8) -> IpAddr {
    let client = node == Node::Client;
    match family {
        Family::V4 if client => Ipv4Addr::new(192, 0, 2, host).into(),
        Family::V4 => Ipv4Addr::new(203, 0, 113, host).into(),
        Family::V6 => {
            let net = if client { 0xa } else { 0xb };
            Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host.into()).into()
        }
    }
}

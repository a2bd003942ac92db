//! A wire between two tun devices: no Ethernet anywhere on it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Family, Netns, tun::Tun};

/// Name of the device at both ends.
pub const DEVICE: &str = "tun0";

/// Carries packets between a tun device here and one there, until it is dropped;
/// the devices go with it.
#[derive(Debug)]
pub struct TunWire {
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl TunWire {
    /// Lays it between two namespaces; see [`near`] and [`far`] for the addresses.
    ///
    /// # Errors
    /// The kernel lacks tun.
    pub fn lay(from: &Netns, to: &Netns) -> Result<Self> {
        let end = |ns: &Netns, own: fn(Family) -> IpAddr| -> Result<Tun> {
            let tun = ns.within(|| Tun::create(DEVICE))??;
            ns.ip(&format!(
                "addr add {}/30 dev {DEVICE}\naddr add {}/64 dev {DEVICE} nodad\n\
                 link set {DEVICE} up\n",
                own(Family::V4),
                own(Family::V6)
            ))?;
            Ok(tun)
        };
        let ends = [end(from, near)?, end(to, far)?];
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let carrier = thread::spawn(move || carry(&ends, &seen));
        Ok(Self {
            stop,
            carrier: Some(carrier),
        })
    }
}

impl Drop for TunWire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Address of the end at the first namespace.
#[must_use]
pub fn near(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Address of the end at the second.
#[must_use]
pub fn far(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, 2).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2).into(),
    }
}

fn carry(ends: &[Tun; 2], stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut wait = ends
            .each_ref()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        if poll(&mut wait, PollTimeout::from(100_u8)).is_err() {
            continue;
        }
        for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            while let Ok(Some(packet)) = from.receive(&mut buffer) {
                // A device that goes down loses packets, as a wire does.
                let _ = to.send(packet);
            }
        }
    }
}

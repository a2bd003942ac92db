//! VLAN offload: with it on, a tag stands beside the frame instead of in it, where
//! XDP cannot see it. A tagged frame would pass for an untagged one, and one tag
//! more than is followed would get through.

use std::io;

use firewall_common::abi::iface_flags;

use super::sys;
use crate::netlink::route::Link;

/// An offload cannot be turned off.
#[derive(Debug, thiserror::Error)]
#[error(
    "VLAN offload of {interface} cannot be turned off ({reason}): tagged frames would pass for \
     untagged ones; try `ethtool -K {interface} {feature} off`, or guard another interface"
)]
pub struct Error {
    interface: String,
    feature: &'static str,
    reason: String,
}

/// An offload: the kernel's name for it, and the bit of [`iface_flags`] that says
/// to restore it.
type Offload = (&'static str, u32);

/// Of the guarded interface: taking tags out of frames that arrive.
const RECEIVE: [Offload; 2] = [
    ("rx-vlan-hw-parse", iface_flags::RESTORE_RXVLAN),
    ("rx-vlan-stag-hw-parse", iface_flags::RESTORE_RXVLAN_STAG),
];
/// Of the other end of a veth: leaving it to the "device" to put tags in.
const TRANSMIT: [Offload; 2] = [
    ("tx-vlan-hw-insert", iface_flags::RESTORE_TXVLAN),
    ("tx-vlan-stag-hw-insert", iface_flags::RESTORE_TXVLAN_STAG),
];

/// Who reads and changes the features of interfaces: the kernel, but in tests.
trait Features {
    /// Names of those that are in use.
    fn active(&self, interface: &str) -> io::Result<Vec<String>>;
    /// Turns some on or off, or takes the wish and does not.
    fn set(&self, interface: &str, names: &[&str], on: bool) -> io::Result<()>;
}

struct Kernel;

impl Features for Kernel {
    fn active(&self, interface: &str) -> io::Result<Vec<String>> {
        sys::features(interface)
    }

    fn set(&self, interface: &str, names: &[&str], on: bool) -> io::Result<()> {
        sys::set_features(interface, names, on)
    }
}

/// Turns off receive offload of `link`, and transmit offload of the other end
/// of a veth. Returns the [`iface_flags`] that say what to restore.
///
/// # Errors
///
/// [`Error`] if a feature is on and stays on. What was turned off is on again then.
pub fn turn_off(link: &Link, links: &[Link]) -> Result<u32, Error> {
    turn_off_by(&Kernel, link, links)
}

fn turn_off_by(kernel: &impl Features, link: &Link, links: &[Link]) -> Result<u32, Error> {
    let mut off = 0;
    for (interface, offloads) in ends(link, links) {
        match turn(kernel, interface, offloads) {
            Ok(flags) => off |= flags,
            Err(error) => {
                restore_by(kernel, link, links, off);
                return Err(error);
            }
        }
    }
    if link.kind.as_deref() == Some("veth") && peer(link, links).is_none() {
        log::warn!(
            "{}: its other end is in another network namespace: a tag that it offloads is not \
             seen here, and its frames are judged as untagged ones; turn that off there \
             (`ethtool -K PEER {} off {} off`)",
            link.name,
            TRANSMIT[0].0,
            TRANSMIT[1].0
        );
    }
    Ok(off)
}

/// Turns on again what `flags` say, on an interface that may have lost it or gone.
pub fn restore(link: &Link, links: &[Link], flags: u32) {
    restore_by(&Kernel, link, links, flags);
}

fn restore_by(kernel: &impl Features, link: &Link, links: &[Link], flags: u32) {
    for (interface, offloads) in ends(link, links) {
        let wanted = offloads.iter().filter(|(_, flag)| flags & flag != 0);
        let names: Vec<_> = wanted.map(|(name, _)| *name).collect();
        if names.is_empty() {
            continue;
        }
        if let Err(error) = kernel.set(interface, &names, true) {
            log::warn!("{interface}: VLAN offload is not restored: {error}");
        }
    }
}

/// The interfaces that frames on `link` come through, with what hides tags there.
fn ends<'a>(
    link: &'a Link,
    links: &'a [Link],
) -> impl Iterator<Item = (&'a str, &'static [Offload])> {
    let peer = peer(link, links).map(|peer| (peer.name.as_str(), &TRANSMIT[..]));
    [(link.name.as_str(), &RECEIVE[..])].into_iter().chain(peer)
}

fn peer<'a>(link: &Link, links: &'a [Link]) -> Option<&'a Link> {
    links.iter().find(|other| Some(other.index) == link.peer)
}

/// Turns `offloads` off; the flags of those that were on.
fn turn(
    kernel: &impl Features,
    interface: &str,
    offloads: &'static [Offload],
) -> Result<u32, Error> {
    let failed = |feature, reason| Error {
        interface: interface.to_owned(),
        feature,
        reason,
    };
    let on = || -> io::Result<Vec<&Offload>> {
        let active = kernel.active(interface)?;
        let is_on = |offload: &&Offload| active.iter().any(|name| name == offload.0);
        Ok(offloads.iter().filter(is_on).collect())
    };
    let before = match on() {
        Ok(before) => before,
        // A device without features hides nothing.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(0),
        Err(e) => return Err(failed(offloads[0].0, e.to_string())),
    };
    let Some((first, _)) = before.first() else {
        return Ok(0);
    };
    let names: Vec<_> = before.iter().map(|(name, _)| *name).collect();
    // A driver may take the wish and keep the feature.
    let left_on = kernel.set(interface, &names, false).and_then(|()| on());
    let error = match left_on.map(|kept| kept.first().map(|(name, _)| *name)) {
        Ok(None) => return Ok(before.iter().fold(0, |flags, (_, flag)| flags | flag)),
        Ok(Some(kept)) => failed(kept, "the driver keeps it on".to_owned()),
        Err(e) => failed(first, e.to_string()),
    };
    if let Err(again) = kernel.set(interface, &names, true) {
        log::debug!("{interface}: VLAN offload is not restored: {again}");
    }
    Err(error)
}

#[cfg(test)]
mod tests;

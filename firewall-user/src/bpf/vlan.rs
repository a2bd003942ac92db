//! VLAN offload: with it on, XDP sees the inner type of a tagged frame, as if
//! it came untagged, which would be a way around zones.

use std::io;

use firewall_common::abi::iface_flags;

use super::sys::{self, eth_flags};
use crate::netlink::route::Link;

/// The offload cannot be turned off.
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

/// Turns off receive offload of `link`, and transmit offload of the other end
/// of a veth. Returns the [`iface_flags`] that say what to restore.
///
/// # Errors
///
/// [`Error`] if a feature is on and stays on.
pub fn turn_off(link: &Link, links: &[Link]) -> Result<u32, Error> {
    let mut restore = 0;
    if turn(&link.name, eth_flags::RXVLAN, "rxvlan")? {
        restore |= iface_flags::RESTORE_RXVLAN;
    }
    match peer(link, links) {
        Some(peer) if turn(&peer.name, eth_flags::TXVLAN, "txvlan")? => {
            restore |= iface_flags::RESTORE_TXVLAN;
        }
        None if link.kind.as_deref() == Some("veth") => log::warn!(
            "{}: its other end is in another network namespace; turn its VLAN offload off \
             there (`ethtool -K PEER txvlan off`), or tagged frames from it pass for untagged",
            link.name
        ),
        _ => {}
    }
    Ok(restore)
}

/// Turns on again what `flags` say, on an interface that may have lost it or gone.
pub fn restore(link: &Link, links: &[Link], flags: u32) {
    let mut ends = Vec::new();
    if flags & iface_flags::RESTORE_RXVLAN != 0 {
        ends.push((link.name.as_str(), eth_flags::RXVLAN));
    }
    if flags & iface_flags::RESTORE_TXVLAN != 0 {
        ends.extend(peer(link, links).map(|peer| (peer.name.as_str(), eth_flags::TXVLAN)));
    }
    for (name, feature) in ends {
        let restored = sys::eth_flags(name).and_then(|on| sys::set_eth_flags(name, on | feature));
        if let Err(error) = restored {
            log::warn!("{name}: VLAN offload is not restored: {error}");
        }
    }
}

fn peer<'a>(link: &Link, links: &'a [Link]) -> Option<&'a Link> {
    links.iter().find(|other| Some(other.index) == link.peer)
}

/// Turns one feature off; `true` if it was on.
fn turn(interface: &str, feature: u32, name: &'static str) -> Result<bool, Error> {
    let failed = |reason: String| Error {
        interface: interface.to_owned(),
        feature: name,
        reason,
    };
    let Some(on) = read(interface).map_err(|e| failed(e.to_string()))? else {
        return Ok(false);
    };
    if on & feature == 0 {
        return Ok(false);
    }
    sys::set_eth_flags(interface, on & !feature).map_err(|e| failed(e.to_string()))?;
    // A driver may take the wish and keep the feature.
    let now = sys::eth_flags(interface).map_err(|e| failed(e.to_string()))?;
    if now & feature != 0 {
        return Err(failed("the driver keeps it on".into()));
    }
    Ok(true)
}

/// `None` for a device without such features.
fn read(interface: &str) -> io::Result<Option<u32>> {
    match sys::eth_flags(interface) {
        Ok(flags) => Ok(Some(flags)),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

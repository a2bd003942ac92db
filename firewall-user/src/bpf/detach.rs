//! Taking programs off interfaces, by what is pinned and recorded.

use std::{fs, io, path::Path};

use aya::programs::{
    TcAttachType,
    links::{FdLink, Link as _, PinnedLink},
    tc::{SchedClassifierLink, TcHandle},
};
use firewall_common::abi::{Iface, iface_flags};

use super::{Instance, sys, text, vlan};
use crate::netlink::route::{self, Link};

/// Priority of our clsact filter: first, so that no filter ends the
/// classification before it.
pub const PRIORITY: u16 = 1;
/// Handle of our clsact filter.
pub const HANDLE: TcHandle = TcHandle::new(0x7068, 1);

/// Name of the pin of an interface's XDP link.
#[must_use]
pub fn xdp_pin(interface: &str) -> String {
    format!("link-xdp-{}", pin_name(interface))
}

/// Name of the pin of an interface's TCX link.
#[must_use]
pub fn tcx_pin(interface: &str) -> String {
    format!("link-tcx-{}", pin_name(interface))
}

/// bpffs reserves dots, which VLAN interfaces have in their names by custom.
/// Percent signs are coded too, so that no two names meet.
fn pin_name(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

/// The program behind a pinned link; `None` without such a pin.
///
/// # Errors
///
/// What the kernel says.
pub fn pinned_program(path: &Path) -> io::Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    let link = PinnedLink::from_pin(path).map_err(io::Error::other)?;
    let info = FdLink::from(link).info().map_err(io::Error::other)?;
    Ok(Some(info.program_id()))
}

/// Detaches a pinned link at once, and removes the pin. No pin is no error.
///
/// # Errors
///
/// What the kernel says; an interface that is gone is no error.
pub fn pinned_link(path: &Path) -> io::Result<()> {
    let link = match sys::object_get(path) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match sys::link_detach(std::os::fd::AsFd::as_fd(&link)) {
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => {}
        Err(e) => return Err(e),
    }
    fs::remove_file(path)
}

/// Removes our clsact filter from an interface. No filter is no error.
///
/// # Errors
///
/// What the kernel says.
pub fn clsact_filter(link: &Link) -> io::Result<()> {
    if !has_filter(link.index)? {
        return Ok(());
    }
    SchedClassifierLink::attached(&link.name, TcAttachType::Egress, PRIORITY, HANDLE, None)?
        .detach()
        .map_err(io::Error::other)
}

/// Is a filter with our priority and handle there?
///
/// # Errors
///
/// What the kernel says.
pub fn has_filter(ifindex: u32) -> io::Result<bool> {
    Ok(filter_program(ifindex)?.is_some())
}

/// The program of the filter with our priority and handle.
///
/// # Errors
///
/// What the kernel says.
pub fn filter_program(ifindex: u32) -> io::Result<Option<u32>> {
    let filters = route::egress_filters(ifindex)?;
    let ours = |f: &&route::Filter| f.priority == PRIORITY && f.handle == u32::from(HANDLE);
    Ok(filters.iter().find(ours).map(|filter| filter.program))
}

/// Takes everything off one interface: XDP, then TC, then restores its VLAN
/// offload. Goes on after a failure.
///
/// `links` are those of this network namespace; an interface that is not among
/// them has lost its programs already, or is in another namespace.
///
/// # Errors
///
/// The first failure.
pub fn interface(instance: &Instance, index: u32, iface: &Iface, links: &[Link]) -> io::Result<()> {
    let name = text(&iface.name);
    let mut result = pinned_link(&instance.pin(&xdp_pin(&name)));
    result = result.and(pinned_link(&instance.pin(&tcx_pin(&name))));
    let Some(link) = links.iter().find(|link| link.index == index) else {
        return result;
    };
    if iface.flags & iface_flags::CLSACT != 0 {
        result = result.and(clsact_filter(link));
    }
    if iface.flags & iface_flags::CLSACT_ADDED != 0 {
        result = result.and(route::remove_empty_clsact(index).map(|_| ()));
    }
    vlan::restore(link, links, iface.flags);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_hold_no_dot_and_stay_apart() {
        assert_eq!(xdp_pin("eth0"), "link-xdp-eth0");
        assert_eq!(xdp_pin("eth0.100"), "link-xdp-eth0%2e100");
        assert_eq!(tcx_pin("a.b%2e"), "link-tcx-a%2eb%252e");
        assert_ne!(tcx_pin("a.b"), tcx_pin("a%2eb"));
    }
}

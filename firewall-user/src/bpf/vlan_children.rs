//! VLANs on top of guarded interfaces.
//!
//! Their frames are judged below, tag and all, in the zone of the guarded
//! interface. But the stack names the VLAN where it routes to it, and as where
//! a packet came in; without an entry of its own it would count as the host's.
//! So each has one, with the zone of what it is on, and no program.

use std::{collections::BTreeMap, io};

use aya::maps::{HashMap, MapData};
use firewall_common::abi::{Iface, iface_flags, maps};

use super::{
    Instance, fixed,
    loader::{Error, pinned},
    text,
};
use crate::netlink::route::Link;

/// The entries of VLANs in the `IFACES` map.
#[derive(Debug)]
pub struct VlanChildren {
    map: HashMap<MapData, u32, Iface>,
    /// VLANs that found no room, so that it is said once.
    refused: Vec<u32>,
}

/// Opens the map of `instance`.
///
/// # Errors
///
/// [`Error::Map`].
pub fn open(instance: &Instance) -> Result<VlanChildren, Error> {
    Ok(VlanChildren {
        map: pinned(instance, maps::IFACES)?,
        refused: Vec::new(),
    })
}

impl VlanChildren {
    /// Writes what is missing or has changed, removes what is gone. `links` are
    /// all of this network namespace. Guarded interfaces are left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Map`]. A full map is none: it is warned of.
    pub fn refresh(&mut self, links: &[Link]) -> Result<(), Error> {
        let found: BTreeMap<u32, Iface> = self
            .map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(Error::map(maps::IFACES))?;
        let wanted = entries(links, &found);
        for (index, iface) in &found {
            if !is_guarded(iface) && !wanted.contains_key(index) {
                self.map.remove(index).map_err(Error::map(maps::IFACES))?;
            }
        }
        let mut refused = Vec::new();
        for (index, iface) in wanted {
            if found.get(&index) == Some(&iface) {
                continue;
            }
            if let Err(error) = self.map.insert(index, iface, 0) {
                refused.push(index);
                if !self.refused.contains(&index) {
                    log::warn!(
                        "{}: no room for this VLAN ({error}): its traffic counts as the host's; \
                         remove VLANs that are not used, or guard fewer interfaces",
                        text(&iface.name)
                    );
                }
            }
        }
        self.refused = refused;
        Ok(())
    }
}

/// Is it the entry of an interface with programs of ours?
#[must_use]
pub const fn is_guarded(iface: &Iface) -> bool {
    iface.flags & iface_flags::VLAN_CHILD == 0
}

/// The entries of the `IFACES` map of interfaces with programs of ours, by index.
///
/// # Errors
///
/// Those of bpf(2).
pub fn guarded(ifaces: &HashMap<MapData, u32, Iface>) -> io::Result<Vec<(u32, Iface)>> {
    let mut entries = super::maps::all(ifaces)?;
    entries.retain(|(_, iface)| is_guarded(iface));
    Ok(entries)
}

/// The VLANs on guarded interfaces that are not guarded themselves, each with
/// the index of the nearest guarded one below it. VLANs nest.
pub fn find(links: &[Link], is_guarded: impl Fn(u32) -> bool) -> Vec<(&Link, u32)> {
    let below = below(links);
    links
        .iter()
        .filter(|link| !is_guarded(link.index))
        .filter_map(|link| Some((link, nearest(&below, link, &is_guarded)?)))
        .collect()
}

/// Which interface each VLAN is on.
fn below(links: &[Link]) -> BTreeMap<u32, u32> {
    let vlans = links.iter();
    vlans
        .filter_map(|link| Some((link.index, link.vlan_of?)))
        .collect()
}

/// The nearest guarded interface that a VLAN is on.
fn nearest(
    below: &BTreeMap<u32, u32>,
    vlan: &Link,
    is_guarded: impl Fn(u32) -> bool,
) -> Option<u32> {
    let mut at = vlan.vlan_of?;
    // Bounded, should a list that was read while it changed hold a circle.
    for _ in 0..=below.len() {
        if is_guarded(at) {
            return Some(at);
        }
        at = *below.get(&at)?;
    }
    None
}

/// A guarded VLAN, and the guarded interface that it is on, in another zone. `zones`
/// are those of the guarded interfaces, by index.
pub fn crossing<'a>(links: &'a [Link], zones: &BTreeMap<u32, u8>) -> Option<(&'a Link, &'a Link)> {
    let below = below(links);
    links.iter().find_map(|vlan| {
        let zone = zones.get(&vlan.index)?;
        let on = nearest(&below, vlan, |index| zones.contains_key(&index))?;
        let on = links.iter().find(|link| link.index == on)?;
        (zones.get(&on.index) != Some(zone)).then_some((vlan, on))
    })
}

/// The entries that VLANs are to have, next to the `found` ones of guarded interfaces.
fn entries(links: &[Link], found: &BTreeMap<u32, Iface>) -> BTreeMap<u32, Iface> {
    let guarded = |index: u32| found.get(&index).filter(|iface| is_guarded(iface));
    find(links, |index| guarded(index).is_some())
        .into_iter()
        .filter_map(|(child, parent)| {
            let entry = Iface {
                flags: iface_flags::VLAN_CHILD,
                name: fixed(&child.name),
                ..*guarded(parent)?
            };
            Some((child.index, entry))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;
    use crate::netlink::route::ARPHRD_ETHER;

    fn link(index: u32, name: &str, vlan_of: Option<u32>) -> Link {
        Link {
            index,
            name: name.into(),
            hardware: ARPHRD_ETHER,
            kind: vlan_of.map(|_| "vlan".into()),
            peer: None,
            vlan_of,
            xdp: None,
        }
    }

    fn guarded(name: &str, zone: u8) -> Iface {
        Iface {
            flags: iface_flags::XDP_NATIVE | iface_flags::TCX | iface_flags::RESTORE_RXVLAN,
            zone,
            trusted: 1,
            name: fixed(name),
            zone_name: fixed("lan"),
            ..Iface::zeroed()
        }
    }

    #[test]
    fn vlans_have_the_zone_of_what_they_are_on_and_no_program() {
        let links = [
            link(2, "eth0", None),
            link(3, "eth1", None),
            // Before the one that it is on.
            link(4, "eth0.1.2", Some(5)),
            link(5, "eth0.1", Some(2)),
            link(6, "eth1.1", Some(3)),
        ];
        let found = BTreeMap::from([(2, guarded("eth0", 7))]);
        let wanted = entries(&links, &found);
        assert_eq!(wanted.keys().copied().collect::<Vec<_>>(), [4, 5]);
        for (index, name) in [(5, "eth0.1"), (4, "eth0.1.2")] {
            let iface = wanted[&index];
            assert_eq!(iface.flags, iface_flags::VLAN_CHILD);
            assert_eq!((iface.zone, iface.trusted), (7, 1));
            assert_eq!(text(&iface.name), name);
            assert_eq!(text(&iface.zone_name), "lan");
            assert!(!is_guarded(&iface));
        }
    }

    #[test]
    fn a_guarded_vlan_keeps_its_own_zone_and_gives_it_on() {
        let links = [
            link(2, "eth0", None),
            link(5, "eth0.1", Some(2)),
            link(6, "eth0.1.2", Some(5)),
        ];
        let found = BTreeMap::from([(2, guarded("eth0", 1)), (5, guarded("eth0.1", 2))]);
        let wanted = entries(&links, &found);
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[&6].zone, 2);
    }

    #[test]
    fn a_guarded_vlan_in_another_zone_than_what_it_is_on_is_found() {
        let links = [
            link(2, "eth0", None),
            link(5, "eth0.1", Some(2)),
            link(6, "eth0.1.2", Some(5)),
        ];
        let found = |zones: &[(u32, u8)]| {
            crossing(&links, &zones.iter().copied().collect())
                .map(|(vlan, on)| (vlan.index, on.index))
        };
        assert_eq!(found(&[(2, 1), (5, 1), (6, 1)]), None);
        assert_eq!(found(&[(5, 1)]), None);
        assert_eq!(found(&[(2, 1), (5, 2)]), Some((5, 2)));
        // Not the one below it, which is not guarded.
        assert_eq!(found(&[(2, 1), (6, 2)]), Some((6, 2)));
    }

    #[test]
    fn an_entry_of_a_vlan_carries_nothing_on() {
        // eth0 is guarded no more, and 5 has become another interface.
        let child = Iface {
            flags: iface_flags::VLAN_CHILD,
            ..guarded("eth0.1", 1)
        };
        let found = BTreeMap::from([(5, child)]);
        let links = [link(5, "tap0", None), link(6, "tap0.1", Some(5))];
        assert!(entries(&links, &found).is_empty());
    }

    #[test]
    fn a_circle_ends() {
        let links = [link(2, "a", Some(3)), link(3, "b", Some(2))];
        assert!(find(&links, |_| false).is_empty());
    }
}

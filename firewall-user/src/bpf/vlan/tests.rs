//! Devices that obey, refuse, or say yes and do not.

use std::{cell::RefCell, collections::BTreeSet};

use super::*;
use crate::netlink::route::ARPHRD_ETHER;

/// Interfaces with the features that are on, and those that cannot be changed.
#[derive(Default)]
struct Devices {
    on: RefCell<BTreeSet<(String, String)>>,
    kept: BTreeSet<&'static str>,
    refused: BTreeSet<&'static str>,
    /// Has no features at all.
    without: Option<&'static str>,
}

impl Devices {
    /// A veth as the kernel makes it: all on, at both ends.
    fn veth() -> Self {
        let this = Self::default();
        for interface in ["v0", "v1"] {
            for (name, _) in RECEIVE.iter().chain(&TRANSMIT) {
                this.on
                    .borrow_mut()
                    .insert((interface.into(), (*name).into()));
            }
        }
        this
    }

    fn is_on(&self, interface: &str, name: &str) -> bool {
        self.on.borrow().contains(&(interface.into(), name.into()))
    }
}

impl Features for Devices {
    fn active(&self, interface: &str) -> io::Result<Vec<String>> {
        if self.without == Some(interface) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let on = self.on.borrow();
        let here = on.iter().filter(|(of, _)| of == interface);
        Ok(here.map(|(_, name)| name.clone()).collect())
    }

    fn set(&self, interface: &str, names: &[&str], on: bool) -> io::Result<()> {
        for name in names {
            if self.refused.contains(name) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let key = (interface.to_owned(), (*name).to_owned());
            match on {
                true => self.on.borrow_mut().insert(key),
                false if self.kept.contains(name) => false,
                false => self.on.borrow_mut().remove(&key),
            };
        }
        Ok(())
    }
}

fn link(index: u32, name: &str, peer: Option<u32>) -> Link {
    Link {
        index,
        name: name.into(),
        hardware: ARPHRD_ETHER,
        kind: Some("veth".into()),
        peer,
        vlan_of: None,
        xdp: None,
    }
}

fn pair() -> [Link; 2] {
    [link(2, "v0", Some(3)), link(3, "v1", Some(2))]
}

#[test]
fn both_kinds_of_tag_are_turned_off_where_they_hide_and_restored() {
    let (devices, links) = (Devices::veth(), pair());
    let before = devices.on.borrow().clone();
    let off = turn_off_by(&devices, &links[0], &links).unwrap();
    assert_eq!(off, iface_flags::RESTORE);
    for (name, _) in RECEIVE {
        assert!(!devices.is_on("v0", name) && devices.is_on("v1", name));
    }
    for (name, _) in TRANSMIT {
        assert!(devices.is_on("v0", name) && !devices.is_on("v1", name));
    }
    restore_by(&devices, &links[0], &links, off);
    assert_eq!(*devices.on.borrow(), before);
}

#[test]
fn what_was_off_stays_off() {
    let (devices, links) = (Devices::veth(), pair());
    let was_off = ("v0".to_owned(), RECEIVE[0].0.to_owned());
    devices.on.borrow_mut().remove(&was_off);
    let off = turn_off_by(&devices, &links[0], &links).unwrap();
    assert_eq!(off, iface_flags::RESTORE & !iface_flags::RESTORE_RXVLAN);
    restore_by(&devices, &links[0], &links, off);
    assert!(!devices.on.borrow().contains(&was_off));
}

/// Each of the four, kept on in silence or refused aloud: attaching is refused,
/// and what had been turned off by then is on again.
#[test]
fn an_offload_that_stays_on_is_refused_by_name() {
    for (name, _) in RECEIVE.into_iter().chain(TRANSMIT) {
        for silent in [true, false] {
            let (mut devices, links) = (Devices::veth(), pair());
            let before = devices.on.borrow().clone();
            if silent {
                devices.kept.insert(name);
            } else {
                devices.refused.insert(name);
            }
            let error = turn_off_by(&devices, &links[0], &links)
                .unwrap_err()
                .to_string();
            assert!(error.contains("cannot be turned off"), "{error}");
            if silent {
                assert!(
                    error.contains("keeps it on") && error.contains(name),
                    "{error}"
                );
            }
            assert_eq!(*devices.on.borrow(), before);
        }
    }
}

#[test]
fn a_device_without_features_hides_nothing() {
    let devices = Devices {
        without: Some("v0"),
        ..Devices::veth()
    };
    let alone = [link(2, "v0", None)];
    assert_eq!(turn_off_by(&devices, &alone[0], &alone).unwrap(), 0);
}

#[test]
fn a_peer_elsewhere_is_left_alone() {
    let (devices, alone) = (Devices::veth(), [link(2, "v0", None)]);
    let off = turn_off_by(&devices, &alone[0], &alone).unwrap();
    let receive = iface_flags::RESTORE_RXVLAN | iface_flags::RESTORE_RXVLAN_STAG;
    assert_eq!(off, receive);
}

//! Where a packet would be seen: interface and hook.

use std::{collections::HashMap, fs, io, net::IpAddr};

use firewall_common::{abi::Iface, wire::Headers};

use super::frame::Packet;
use crate::{
    bpf::{address, private::Hook, text},
    error::Usage,
    netlink::route::{Route, Routes},
};

/// What the operator says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The interface.
    pub iface: Option<String>,
    /// The hook.
    pub hook: Option<Hook>,
}

/// Where a packet would be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Does it come in or go out?
    pub hook: Hook,
    /// At egress, the interface through which the host got it; 0 if it made it.
    pub came_in_by: u32,
}

/// Finds the place of packets.
pub struct Places {
    guarded: Vec<Guarded>,
    /// Index into `guarded`.
    wished: Option<usize>,
    hook: Option<Hook>,
    routes: Box<dyn FnMut(IpAddr) -> io::Result<Route>>,
    known: HashMap<IpAddr, Route>,
}

struct Guarded {
    index: u32,
    name: String,
    mac: Option<[u8; 6]>,
}

/// Which way a packet goes, and what says so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
    /// Out, by the card's address in it: if it was forwarded, no other packet
    /// of this capture shows it coming in.
    OutOnly,
}

impl Places {
    /// Among the guarded interfaces of this network namespace.
    ///
    /// # Errors
    ///
    /// [`Usage`] for an interface that is not guarded; what the kernel says.
    pub fn new(ifaces: &[(u32, Iface)], wish: &Wish) -> anyhow::Result<Self> {
        let mut routes = Routes::open()?;
        let guarded = ifaces.iter().map(|(index, iface)| {
            let name = text(&iface.name);
            let mac = mac(&name);
            Guarded {
                index: *index,
                name,
                mac,
            }
        });
        Self::with(guarded.collect(), wish, Box::new(move |to| routes.to(to)))
    }

    fn with(
        guarded: Vec<Guarded>,
        wish: &Wish,
        routes: Box<dyn FnMut(IpAddr) -> io::Result<Route>>,
    ) -> anyhow::Result<Self> {
        let mut places = Self {
            guarded,
            wished: None,
            hook: wish.hook,
            routes,
            known: HashMap::new(),
        };
        if let Some(name) = &wish.iface {
            let at = places.guarded.iter().position(|one| one.name == *name);
            let missing = || {
                Usage::new(format!(
                    "--iface {name}: not guarded by this instance: {} is",
                    places.names()
                ))
            };
            places.wished = Some(at.ok_or_else(missing)?);
        } else if places.guarded.len() == 1 {
            places.wished = Some(0);
        }
        Ok(places)
    }

    /// The place of a packet with these headers, if it has any.
    ///
    /// # Errors
    ///
    /// [`Usage`] where it cannot be told; what the kernel says to a route look-up.
    pub fn of(&mut self, packet: &Packet, headers: Option<&Headers>) -> anyhow::Result<Place> {
        let (src, dst) = (
            headers.map(|h| address(h.src)),
            headers.map(|h| address(h.dst)),
        );
        let (way, seen_on) = self.way(packet, src)?;
        let towards = if way == Way::In { src } else { dst };
        let at = match self.wished.or(seen_on) {
            Some(at) => at,
            None => self.guarded_towards(towards)?.ok_or_else(|| {
                Usage::new(format!(
                    "through which interface? Name it with --iface: {} are guarded",
                    self.names()
                ))
            })?,
        };
        if way == Way::In {
            return Ok(self.place(at, Hook::Ingress, 0));
        }
        // Forwarded ones came in somewhere.
        let from = match src.map(|src| self.route(src)).transpose()? {
            Some(Route::Out(index)) if index != self.index(at) => index,
            _ => 0,
        };
        let judged_at = self.guarded.iter().position(|one| one.index == from);
        Ok(match judged_at {
            Some(before) if way == Way::OutOnly => self.place(before, Hook::Ingress, 0),
            _ => self.place(at, Hook::Egress, from),
        })
    }

    /// The way, and the interface if the packet itself tells.
    fn way(&mut self, packet: &Packet, src: Option<IpAddr>) -> io::Result<(Way, Option<usize>)> {
        let of = |hook| match hook {
            Hook::Ingress => Way::In,
            Hook::Egress => Way::Out,
        };
        let mac_at = |at: usize| {
            let mac = packet.frame.get(at..at + 6).filter(|_| packet.addressed)?;
            self.guarded
                .iter()
                .position(|one| one.mac.is_some_and(|own| own == mac))
        };
        let (to, from) = (mac_at(0), mac_at(6));
        if let Some(hook) = self.hook {
            let seen = match hook {
                Hook::Ingress => to,
                Hook::Egress => from,
            };
            return Ok((of(hook), seen));
        }
        if let Some(outgoing) = packet.outgoing {
            return Ok((if outgoing { Way::Out } else { Way::In }, None));
        }
        if from.is_some() {
            return Ok((Way::OutOnly, from));
        }
        if to.is_some() {
            return Ok((Way::In, to));
        }
        let local = match src {
            // Who has no address yet asks for one.
            Some(src) if src.is_unspecified() => !packet.addressed,
            Some(src) => self.route(src)? == Route::Local,
            None => false,
        };
        Ok((if local { Way::Out } else { Way::In }, None))
    }

    fn guarded_towards(&mut self, address: Option<IpAddr>) -> io::Result<Option<usize>> {
        let Some(address) = address else {
            return Ok(None);
        };
        let Route::Out(index) = self.route(address)? else {
            return Ok(None);
        };
        Ok(self.guarded.iter().position(|one| one.index == index))
    }

    fn route(&mut self, address: IpAddr) -> io::Result<Route> {
        if let Some(route) = self.known.get(&address) {
            return Ok(*route);
        }
        let route = (self.routes)(address)?;
        self.known.insert(address, route);
        Ok(route)
    }

    fn index(&self, at: usize) -> u32 {
        self.guarded.get(at).map_or(0, |one| one.index)
    }

    fn place(&self, at: usize, hook: Hook, came_in_by: u32) -> Place {
        Place {
            index: self.index(at),
            name: self
                .guarded
                .get(at)
                .map_or_else(String::new, |one| one.name.clone()),
            hook,
            came_in_by,
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.guarded.iter().map(|one| one.name.as_str()).collect();
        names.join(", ")
    }
}

/// The Ethernet address of an interface.
fn mac(name: &str) -> Option<[u8; 6]> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/address")).ok()?;
    let mut bytes = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next()?.ok()?;
    }
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::why::{
        Link,
        tuple::{Detail, Tuple},
    };

    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// `in0` (index 2) to 10.0.1.0/24, `out0` (3) to all others, an unguarded
    /// bridge (9) to 10.0.9.0/24; the host is 10.0.0.1.
    fn places(count: usize, iface: Option<&str>, hook: Option<Hook>) -> anyhow::Result<Places> {
        let guarded = [(2, "in0", MACS[0]), (3, "out0", MACS[1])];
        let guarded = guarded
            .into_iter()
            .take(count)
            .map(|(index, name, mac)| Guarded {
                index,
                name: name.into(),
                mac: Some(mac),
            });
        let routes = |to: IpAddr| {
            let IpAddr::V4(v4) = to else {
                return Ok(Route::None);
            };
            Ok(match v4.octets() {
                [10, 0, 0, 1] => Route::Local,
                [10, 0, 1, _] => Route::Out(2),
                [10, 0, 9, _] => Route::Out(9),
                _ => Route::Out(3),
            })
        };
        let wish = Wish {
            iface: iface.map(str::to_owned),
            hook,
        };
        Places::with(guarded.collect(), &wish, Box::new(routes))
    }

    fn packet(src: &str, dst: &str, macs: Option<[[u8; 6]; 2]>) -> Packet {
        let detail = Detail {
            flags: 2,
            ..Detail::default()
        };
        let tuple = Tuple::parse("tcp", &format!("{src}:1"), &format!("{dst}:2")).unwrap();
        let mut packet = Packet::ip(&tuple.packet(&detail));
        if let Some([to, from]) = macs {
            packet.frame[..6].copy_from_slice(&to);
            packet.frame[6..12].copy_from_slice(&from);
            packet = Packet::of(&packet.frame, Link::Ethernet);
        }
        packet
    }

    fn place(places: &mut Places, packet: &Packet) -> (u32, Hook, u32) {
        let headers = packet.headers().unwrap();
        let place = places.of(packet, headers.as_ref()).unwrap();
        (place.index, place.hook, place.came_in_by)
    }

    use Hook::{Egress, Ingress};

    #[test]
    fn a_hosts_own_packets_go_out_and_others_come_in() {
        let mut host = places(1, None, None).unwrap();
        let out = packet("10.0.0.1", "192.0.2.1", None);
        let back = packet("192.0.2.1", "10.0.0.1", None);
        assert_eq!(place(&mut host, &out), (2, Egress, 0));
        assert_eq!(place(&mut host, &back), (2, Ingress, 0));
        // What somebody else sends in the host's name comes in all the same.
        let mut spoofed = places(1, None, Some(Ingress)).unwrap();
        assert_eq!(place(&mut spoofed, &out), (2, Ingress, 0));
    }

    #[test]
    fn a_gateway_sees_both_ways_come_in() {
        let mut gateway = places(2, None, None).unwrap();
        let out = packet("10.0.1.5", "192.0.2.1", None);
        let back = packet("192.0.2.1", "10.0.1.5", None);
        assert_eq!(place(&mut gateway, &out), (2, Ingress, 0));
        assert_eq!(place(&mut gateway, &back), (3, Ingress, 0));
        // A container behind an interface that is not guarded.
        let inside = packet("10.0.9.5", "192.0.2.1", None);
        let headers = inside.headers().unwrap();
        let error = gateway
            .of(&inside, headers.as_ref())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--iface") && error.contains("in0, out0"),
            "{error}"
        );
        let mut told = places(2, Some("out0"), Some(Egress)).unwrap();
        assert_eq!(place(&mut told, &inside), (3, Egress, 9));
    }

    #[test]
    fn the_cards_address_tells() {
        let mut gateway = places(2, None, None).unwrap();
        let arrives = packet("192.0.2.1", "10.0.1.5", Some([MACS[1], OTHER]));
        assert_eq!(place(&mut gateway, &arrives), (3, Ingress, 0));
        // Captured where it leaves: it was judged where it came in.
        let leaves = packet("192.0.2.1", "10.0.1.5", Some([OTHER, MACS[0]]));
        assert_eq!(place(&mut gateway, &leaves), (3, Ingress, 0));
        let own = packet("10.0.0.1", "192.0.2.1", Some([OTHER, MACS[1]]));
        assert_eq!(place(&mut gateway, &own), (3, Egress, 0));
        let container = packet("10.0.9.5", "192.0.2.1", Some([OTHER, MACS[1]]));
        assert_eq!(place(&mut gateway, &container), (3, Egress, 9));
    }

    #[test]
    fn a_cooked_capture_tells_and_shows_both_ends_of_forwarding() {
        let mut gateway = places(2, None, None).unwrap();
        let mut leaves = packet("10.0.1.5", "192.0.2.1", None);
        leaves.outgoing = Some(true);
        assert_eq!(place(&mut gateway, &leaves), (3, Egress, 2));
        leaves.outgoing = Some(false);
        assert_eq!(place(&mut gateway, &leaves), (2, Ingress, 0));
    }

    #[test]
    fn only_guarded_interfaces_can_be_asked_about() {
        let error = places(2, Some("eth9"), None).err().unwrap();
        assert!(
            error.is::<Usage>() && error.to_string().contains("in0, out0"),
            "{error}"
        );
    }
}

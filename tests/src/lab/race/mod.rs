//! The race between the first packet of a data connection and the helper that
//! has to expect it: transfers, one right after the other, and what the wire saw.

mod filter;
pub mod fleet;
pub mod tap;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use firewall_common::abi::{Config, ExpectKey, Expectation, config_flags, maps};
use firewall_user::bpf::words;

use self::{
    fleet::{Ends, Load, Opened, Ran},
    tap::{Seen, Syns, Tap, What},
};
use super::{
    Family, Guard, Lab, Mode, Netns, Node, Place,
    pinhole::{Attach, Firewall, config},
    place::Guarded,
    tun_wire::{self, TunWire},
};

/// Port of control connections.
const CONTROL: u16 = 21;

/// Where the firewalls stand.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// On the routers of both ends.
    Routers(Guard),
    /// On the NICs of both hosts. The client's lets everything out; the server's
    /// nothing but what the helper expects, so that the SYN of an active transfer
    /// races there, too, on its way out.
    Hosts(Attach),
    /// As `Hosts`, on the ends of a wire without Ethernet.
    Tun,
}

/// A lab with its firewalls.
#[derive(Debug)]
pub struct Field {
    lab: Lab,
    guarded: Guarded,
    _wire: Option<TunWire>,
    interface: &'static str,
    ends: [IpAddr; 2],
    expectations: Vec<HashMap<MapData, ExpectKey, Expectation>>,
}

/// A load that ran, and what was seen of it.
#[derive(Debug)]
pub struct Raced {
    /// What ran.
    pub load: Load,
    /// All data connections.
    pub opened: Vec<Opened>,
    /// What passed both ends' links.
    pub seen: Vec<Seen>,
    /// From everybody logged in to the end of the last transfer.
    pub took: Duration,
}

impl Field {
    /// Sets it up.
    ///
    /// # Errors
    /// Something of the lab fails.
    pub fn new(way: Way, family: Family) -> Result<Self> {
        let lab = Lab::line()?;
        let mut guarded = Guarded::default();
        let mut wire = None;
        let mut interface = "eth0";
        let mut ends = [lab.client_ip(family), lab.server_ip(family)];
        match way {
            Way::Routers(guard) => guarded = guard.put(&lab, Place::BothEnds, true)?,
            Way::Hosts(attach) => guarded.pinholes = hosts(&lab, interface, attach)?,
            Way::Tun => {
                wire = Some(TunWire::lay(lab.ns(Node::Client), lab.ns(Node::Server))?);
                interface = tun_wire::DEVICE;
                ends = [tun_wire::near(family), tun_wire::far(family)];
                guarded.pinholes = hosts(&lab, interface, Attach::default())?;
            }
        }
        let expectations = guarded.pinholes.iter();
        let expectations = expectations.map(|firewall| {
            let data = MapData::from_pin(firewall.pins().join(maps::EXPECTATIONS))?;
            Ok(Map::from_map_data(data)?.try_into()?)
        });
        let expectations = expectations.collect::<Result<_>>()?;
        Ok(Self {
            lab,
            guarded,
            _wire: wire,
            interface,
            ends,
            expectations,
        })
    }

    /// pinhole at the client's end and at the server's, if it is pinhole.
    #[must_use]
    pub fn firewalls(&self) -> &[Firewall] {
        &self.guarded.pinholes
    }

    /// The namespaces of both ends, the client's first.
    #[must_use]
    pub fn namespaces(&self) -> [&Netns; 2] {
        [Node::Client, Node::Server].map(|node| self.lab.ns(node))
    }

    /// Runs a load.
    ///
    /// # Errors
    /// A transfer fails, or the tap missed something.
    pub fn race(&self, load: Load) -> Result<Raced> {
        let [client, server] = self.namespaces();
        let tap = Tap::start(&[(client, self.interface), (server, self.interface)])?;
        let ran = fleet::run(self.ends(), load, &|from, to| self.written(from, to));
        let seen = tap.finish()?;
        let Ran { opened, took } = ran?;
        Ok(Raced {
            load,
            opened,
            seen,
            took,
        })
    }

    /// Runs a load, and looks at nothing but the load: all firewalls have the same to do.
    ///
    /// # Errors
    /// A transfer fails.
    pub fn run(&self, load: Load) -> Result<Ran> {
        fleet::run(self.ends(), load, &|_, _| [None; 2])
    }

    fn ends(&self) -> Ends<'_> {
        let [client, server] = self.namespaces();
        Ends {
            client: (client, self.ends[0]),
            server: (server, self.ends[1]),
        }
    }

    /// When the pinholes for a connection were written.
    fn written(&self, from: IpAddr, to: SocketAddr) -> [Option<u64>; 2] {
        let key = ExpectKey::tcp(words(from), words(to.ip()), to.port());
        let mut written = [None; 2];
        for (slot, map) in written.iter_mut().zip(&self.expectations) {
            *slot = map.get(&key, 0).ok().map(|entry| entry.created_ns);
        }
        written
    }
}

/// Has no SYN held any more by the instance with these pins: what the race is
/// without a remedy.
///
/// # Errors
/// The map cannot be written.
pub fn hold_nothing(pins: &Path) -> Result<()> {
    let data = MapData::from_pin(pins.join(maps::CONFIG))?;
    let mut map: Array<_, Config> = Map::from_map_data(data)?.try_into()?;
    let mut config = map.get(&0, 0)?;
    ensure!(config.flags & config_flags::HOLD != 0, "nothing is held");
    config.flags &= !config_flags::HOLD;
    Ok(map.set(0, config, 0)?)
}

fn hosts(lab: &Lab, interface: &str, attach: Attach) -> Result<Vec<Firewall>> {
    let put = |node, policy: String| {
        let policy = policy.replace("eth0", interface);
        Firewall::start(lab, node, Some(&policy), attach)
    };
    Ok(vec![
        put(Node::Client, config::client_host(true))?,
        put(Node::Server, config::server_host(true))?,
    ])
}

impl Raced {
    /// On which link, in the order of the tap, connections are opened, and where
    /// they are accepted.
    const fn links(&self) -> [usize; 2] {
        match self.load.mode {
            Mode::Passive => [0, 1],
            Mode::Active => [1, 0],
        }
    }

    /// Data SYNs that left their host.
    #[must_use]
    pub fn sent(&self) -> Syns {
        Syns::count(&self.seen, self.links()[0], true)
    }

    /// Data SYNs that arrived at the other host.
    #[must_use]
    pub fn arrived(&self) -> Syns {
        Syns::count(&self.seen, self.links()[1], false)
    }

    /// Data connections in all, and those that took longer than the time after
    /// which a SYN is sent again: a SYN that was dropped before it was on any link
    /// shows here only.
    #[must_use]
    pub fn slow(&self) -> usize {
        const RETRANSMISSION_NS: u64 = 900_000_000;
        let slow = |opened: &&Opened| opened.took_ns >= RETRANSMISSION_NS;
        self.opened.iter().filter(slow).count()
    }

    /// From the line on the wire to the pinhole written, at all firewalls, ns,
    /// ascending.
    #[must_use]
    pub fn usable_after(&self) -> Vec<u64> {
        let mut lines: std::collections::HashMap<u16, Vec<u64>> = Default::default();
        for packet in &self.seen {
            if let What::Line(port) = packet.what
                && packet.outgoing
            {
                lines.entry(port).or_default().push(packet.at_ns);
            }
        }
        let mut after: Vec<u64> = self
            .opened
            .iter()
            .filter_map(|opened| {
                let written = opened.written_ns.into_iter().flatten().max()?;
                // A port can be negotiated more than once in a long run.
                let said = lines.get(&opened.port)?.iter();
                let said = said.filter(|said| **said < opened.at_ns).max()?;
                Some(written.saturating_sub(*said))
            })
            .collect();
        after.sort_unstable();
        after
    }

    /// Times of setting a data connection up, ns, ascending.
    #[must_use]
    pub fn set_up(&self) -> Vec<u64> {
        let mut times: Vec<u64> = self.opened.iter().map(|opened| opened.took_ns).collect();
        times.sort_unstable();
        times
    }

    /// Of the data connections, how many had their SYN and the line before it on
    /// different CPUs.
    #[must_use]
    pub fn on_two_cpus(&self) -> usize {
        let mut lines: std::collections::HashMap<u16, Option<u32>> = Default::default();
        let mut count = 0;
        for packet in self.seen.iter().filter(|packet| packet.outgoing) {
            match packet.what {
                What::Line(port) => {
                    lines.insert(port, packet.cpu);
                }
                What::Syn(_) => {
                    let said = lines.remove(&packet.to.port());
                    count += usize::from(said.is_some_and(|cpu| cpu != packet.cpu));
                }
            }
        }
        count
    }
}

/// The value below which `share` (of 1) of the ascending `values` are.
#[must_use]
pub fn percentile(values: &[u64], share: f64) -> Option<u64> {
    let last = values.len().checked_sub(1)?;
    values.get((last as f64 * share).round() as usize).copied()
}

/// The port that a line negotiates.
fn port_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    if line.starts_with("229") || line.starts_with("EPRT") {
        return line.split('|').rev().nth(1)?.parse().ok();
    }
    let numbers = line.split(|c: char| !c.is_ascii_digit());
    let mut numbers = numbers.filter(|number| !number.is_empty()).rev();
    let low: u16 = numbers.next()?.parse().ok()?;
    let high: u16 = numbers.next()?.parse().ok()?;
    high.checked_mul(256)?.checked_add(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_lines() {
        for (line, port) in [
            (
                "227 Entering Passive Mode (203,0,113,2,195,155).\r\n",
                50_075,
            ),
            ("PORT 192,0,2,2,4,1\r\n", 1025),
            ("229 Entering Extended Passive Mode (|||50053|)\r\n", 50_053),
            ("EPRT |2|2001:db8::1|6446|\r\n", 6446),
        ] {
            assert_eq!(port_of(line.as_bytes()), Some(port), "{line}");
        }
        assert_eq!(port_of(b""), None);
    }

    #[test]
    fn percentiles() {
        let values: Vec<u64> = (0..=100).collect();
        assert_eq!(percentile(&values, 0.5), Some(50));
        assert_eq!(percentile(&values, 0.99), Some(99));
        assert_eq!(percentile(&values, 1.0), Some(100));
        assert_eq!(percentile(&[], 0.5), None);
    }
}

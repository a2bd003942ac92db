//! The fast path, as far as user space decides on it: which interfaces take part.
//!
//! A packet that the ingress program sends on never meets what the kernel does with
//! forwarded packets. So the agent looks for what that would be (`survey.rs`), leaves
//! out the interfaces that it concerns, says so, and looks again now and then.

mod peer;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use bytemuck::Zeroable as _;
use firewall_common::abi::{
    Config, FAST_LEN, FAST_PLACES, FastCounter, FastIface, Iface, Obstacle, config_flags,
    fast_flags, fast_places, maps,
};

use crate::bpf::{
    Instance,
    loader::{Error, pinned},
    vlan_children,
};
pub use survey::Finding;
use survey::{Surveyed, Surveyor};

/// Why there is no fast path at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Off {
    /// Nothing is forwarded between zones.
    Host,
    /// The policy says so.
    Policy,
    /// Shadow mode leaves everything to the kernel.
    Shadow,
}

/// Why a configuration has no fast path; `None` if it has one.
#[must_use]
pub const fn off(config: &Config) -> Option<Off> {
    if config.flags & config_flags::GATEWAY == 0 {
        return Some(Off::Host);
    }
    if config.flags & config_flags::FAST_PATH == 0 {
        return Some(Off::Policy);
    }
    if config.flags & config_flags::SHADOW != 0 {
        return Some(Off::Shadow);
    }
    None
}

/// Keeps `FAST_IFACES` true.
pub struct FastPath {
    instance: Instance,
    off: Option<Off>,
    guarded: HashMap<MapData, u32, Iface>,
    map: Array<MapData, FastIface>,
    /// What is in the map: each interface's place, and its element.
    written: BTreeMap<u32, (u32, FastIface)>,
    surveyor: Surveyor,
    said: Vec<String>,
}

impl FastPath {
    /// Opens the maps of `instance`. From here to the first [`FastPath::refresh`] the
    /// kernel forwards everything: what an earlier run found may be true no more.
    /// Senders on the other side of the interfaces `complete` write checksums
    /// themselves, the operator says.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn open(instance: &Instance, off: Option<Off>, complete: &[String]) -> Result<Self, Error> {
        let mut this = Self {
            instance: instance.clone(),
            off,
            guarded: pinned(instance, maps::IFACES)?,
            map: pinned(instance, maps::FAST_IFACES)?,
            written: BTreeMap::new(),
            surveyor: Surveyor::new(instance, complete),
            said: Vec::new(),
        };
        for place in 0..FAST_PLACES as u32 {
            let entry = this.map.get(&place, 0);
            let entry = entry.map_err(Error::map(maps::FAST_IFACES))?;
            if entry.ifindex != 0 {
                this.write(place, FastIface { flags: 0, ..entry })?;
            }
        }
        Ok(this)
    }

    /// Surveys, and writes what has changed. What is to be said of it, if that is not
    /// what was said before.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn refresh(&mut self) -> Result<Vec<String>, Error> {
        let says = match self.off {
            Some(Off::Host) => return Ok(Vec::new()),
            Some(Off::Policy) => vec!["fast path: off, as the policy says".to_owned()],
            Some(Off::Shadow) => vec!["fast path: off in shadow mode".to_owned()],
            None => self.survey()?,
        };
        if says == self.said {
            return Ok(Vec::new());
        }
        self.said.clone_from(&says);
        Ok(says)
    }

    fn survey(&mut self) -> Result<Vec<String>, Error> {
        let all: BTreeMap<u32, Iface> = self
            .guarded
            .iter()
            .collect::<Result<_, _>>()
            .map_err(Error::map(maps::IFACES))?;
        let survey = self.surveyor.survey(&all);
        let mut guarded = all;
        guarded.retain(|_, iface| vlan_children::is_guarded(iface));
        let known = self.written.keys().copied();
        let gone: Vec<u32> = known.filter(|at| !guarded.contains_key(at)).collect();
        for index in gone {
            self.remove(index)?;
        }
        let mut interfaces = survey.interfaces;
        for found in &mut interfaces {
            // Without a counter of its own it has no entry, and so no fast path.
            let Some((place, number)) = self.room(found.index)? else {
                found.findings.push(Finding::too_many());
                continue;
            };
            let entry = FastIface {
                ifindex: found.index,
                flags: Obstacle::leave(found.obstacles()) | found.routing,
                obstacles: found.obstacles(),
                mac: found.mac,
                number,
                zone: found.zone,
            };
            if self.written.get(&found.index) != Some(&(place, entry)) {
                self.write(place, entry)?;
            }
        }
        Ok(says(&survey.everywhere, &interfaces))
    }

    /// Place and number of an interface; `None` if none is left.
    fn room(&self, index: u32) -> Result<Option<(u32, u8)>, Error> {
        if let Some((place, entry)) = self.written.get(&index) {
            return Ok(Some((*place, entry.number)));
        }
        let taken: BTreeSet<u32> = self.written.values().map(|(place, _)| *place).collect();
        let numbers: BTreeSet<u8> = self.written.values().map(|(_, e)| e.number).collect();
        let place = fast_places(index).into_iter().find(|p| !taken.contains(p));
        let number = (0..=(FAST_LEN - 1) as u8).find(|n| !numbers.contains(n));
        let Some(room) = place.zip(number) else {
            return Ok(None);
        };
        self.zero(room.1)?;
        Ok(Some(room))
    }

    fn remove(&mut self, index: u32) -> Result<(), Error> {
        if let Some((place, _)) = self.written.remove(&index) {
            self.set(place, FastIface::zeroed())?;
        }
        Ok(())
    }

    fn write(&mut self, place: u32, entry: FastIface) -> Result<(), Error> {
        self.set(place, entry)?;
        self.written.insert(entry.ifindex, (place, entry));
        Ok(())
    }

    fn set(&mut self, place: u32, entry: FastIface) -> Result<(), Error> {
        self.map
            .set(place, entry, 0)
            .map_err(Error::map(maps::FAST_IFACES))
    }

    /// A counter of another interface before begins anew.
    fn zero(&self, number: u8) -> Result<(), Error> {
        let mut counters: PerCpuArray<MapData, FastCounter> =
            pinned(&self.instance, maps::FAST_COUNTERS)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| Error::map(maps::FAST_COUNTERS)(e))?;
        let zero = PerCpuValues::try_from(vec![FastCounter::default(); cpus])
            .map_err(Error::map(maps::FAST_COUNTERS))?;
        counters
            .set(u32::from(number), zero, 0)
            .map_err(Error::map(maps::FAST_COUNTERS))
    }
}

/// What becomes of the fast path, in lines.
fn says(everywhere: &[Finding], interfaces: &[Surveyed]) -> Vec<String> {
    if !everywhere.is_empty() {
        let one = |finding: &Finding| {
            format!(
                "fast path: off, the kernel forwards: {}; {}",
                finding.what, finding.remedy
            )
        };
        return everywhere.iter().map(one).collect();
    }
    let names = |flag: u32| -> Vec<&str> {
        interfaces
            .iter()
            .filter(|found| Obstacle::leave(found.obstacles()) & flag != 0)
            .map(|found| found.name.as_str())
            .collect()
    };
    let (from, to) = (names(fast_flags::FROM), names(fast_flags::TO));
    let possible = from.iter().any(|name| to.iter().any(|other| other != name));
    let mut out = vec![if possible {
        format!("fast path: from {} to {}", from.join(", "), to.join(", "))
    } else {
        "fast path: off, the kernel forwards".to_owned()
    }];
    for found in interfaces {
        for finding in &found.findings {
            let bit = finding.obstacle.bit();
            let which = match (bit & Obstacle::FROM != 0, bit & Obstacle::TO != 0) {
                (true, true) => "what comes and goes there",
                (true, false) => "what arrives there",
                _ => "what leaves there",
            };
            out.push(format!(
                "fast path: {}: the kernel forwards {which}: {}; {}",
                found.name, finding.what, finding.remedy
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(obstacle: Obstacle) -> Finding {
        Finding {
            obstacle,
            what: "this is so".into(),
            remedy: "do that".into(),
        }
    }

    fn surveyed(name: &str, findings: Vec<Finding>) -> Surveyed {
        Surveyed {
            index: 1,
            name: name.into(),
            mac: [0; 6],
            zone: 1,
            routing: 0,
            findings,
        }
    }

    #[test]
    fn what_is_said_names_interface_reason_and_remedy() {
        let free = [surveyed("a", vec![]), surveyed("b", vec![])];
        assert_eq!(says(&[], &free), ["fast path: from a, b to a, b"]);
        let one = [
            surveyed("a", vec![finding(Obstacle::PartialChecksums)]),
            surveyed("b", vec![]),
        ];
        assert_eq!(
            says(&[], &one),
            [
                "fast path: from b to a, b",
                "fast path: a: the kernel forwards what arrives there: this is so; do that"
            ]
        );
        let none = [
            surveyed("a", vec![finding(Obstacle::NoRedirect)]),
            surveyed("b", vec![finding(Obstacle::Generic)]),
        ];
        assert_eq!(says(&[], &none)[0], "fast path: off, the kernel forwards");
        assert_eq!(
            says(&[finding(Obstacle::KernelRules)], &free),
            ["fast path: off, the kernel forwards: this is so; do that"]
        );
    }

    #[test]
    fn shadow_mode_and_hosts_have_none() {
        let of = |flags| {
            off(&Config {
                flags,
                ..Config::zeroed()
            })
        };
        let gateway = config_flags::GATEWAY;
        let fast = config_flags::FAST_PATH;
        assert_eq!(of(fast), Some(Off::Host));
        assert_eq!(of(gateway), Some(Off::Policy));
        assert_eq!(of(gateway | fast), None);
        let shadow = gateway | fast | config_flags::SHADOW;
        assert_eq!(of(shadow), Some(Off::Shadow));
    }
}

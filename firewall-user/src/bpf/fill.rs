//! A compiled policy into the maps, so that the programs never see half of it.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData};
use firewall_common::abi::{
    Config, Control, Iface, MAX_ZONES, Tier, ZONE_ANY, ZONE_HOST, heartbeat, maps,
};

use super::{
    Instance,
    loader::{Error, Loaded, map_mut, pinned},
    policy, sys, text,
};
use crate::{classes::Classes, config::Compiled};

/// Gives every zone the number that it has in the pinned maps: the flows that
/// are taken over name zones by number.
pub fn renumber(compiled: &mut Compiled, pinned: &[Iface]) {
    let mut numbers: BTreeMap<String, u8> = pinned
        .iter()
        .map(|iface| (text(&iface.zone_name), iface.zone))
        .collect();
    let mut changes = BTreeMap::new();
    for (old, name) in (1_u8..).zip(&compiled.zones) {
        let number = numbers.get(name).copied();
        let number = number.or_else(|| free(&numbers)).unwrap_or(old);
        numbers.insert(name.clone(), number);
        changes.insert(old, number);
    }
    let new = |zone: u8| match zone {
        ZONE_HOST | ZONE_ANY => zone,
        named => changes.get(&named).copied().unwrap_or(named),
    };
    for rule in &mut compiled.rules {
        rule.from_zone = new(rule.from_zone);
        rule.to_zone = new(rule.to_zone);
    }
    for iface in &mut compiled.ifaces {
        iface.zone = new(iface.zone);
    }
}

fn free(numbers: &BTreeMap<String, u8>) -> Option<u8> {
    (1..=MAX_ZONES).find(|number| !numbers.values().any(|taken| taken == number))
}

/// Writes the rules of `compiled`, which `classes` are of, into the generation that is
/// not live. Returns the configuration that makes them live.
///
/// # Errors
///
/// [`Error::Map`].
pub fn stage(
    loaded: &mut Loaded,
    compiled: &Compiled,
    classes: &Classes<'_>,
) -> Result<Config, Error> {
    let live = config(loaded)?;
    let generation = (live.generation ^ 1) & 1;
    policy::install(&mut loaded.ebpf, generation, classes)?;
    policy::name(&mut loaded.ebpf, generation, &compiled.rule_names)?;
    let mut config = compiled.config;
    config.generation = generation;
    // What runs under the other generation until then still has its own.
    config.rule_count = live.rule_count;
    config.rule_count[generation as usize] = classes.rules().len() as u32;
    config.tier_limits = fitting(compiled, loaded);
    Ok(config)
}

/// Makes `config` and the rules of its generation live, at once.
///
/// # Errors
///
/// [`Error::Map`].
pub fn commit(loaded: &mut Loaded, config: &Config) -> Result<(), Error> {
    let mut map: Array<_, Config> = map_mut(&mut loaded.ebpf, maps::CONFIG)?;
    map.set(0, config, 0).map_err(Error::map(maps::CONFIG))
}

/// The live configuration; all zero before the first.
///
/// # Errors
///
/// [`Error::Map`].
pub fn config(loaded: &mut Loaded) -> Result<Config, Error> {
    let map: Array<_, Config> = map_mut(&mut loaded.ebpf, maps::CONFIG)?;
    map.get(&0, 0).map_err(Error::map(maps::CONFIG))
}

/// Sets when everything passes unless `confirm` comes first: `CLOCK_MONOTONIC`
/// ns, 0 for never.
///
/// # Errors
///
/// [`Error::Map`].
pub fn set_deadline(instance: &Instance, confirm_deadline_ns: u64) -> Result<(), Error> {
    let mut map: Array<MapData, Control> = pinned(instance, maps::CONTROL)?;
    let control = Control {
        confirm_deadline_ns,
    };
    map.set(0, control, 0).map_err(Error::map(maps::CONTROL))
}

/// Gives the agent's first sign of life: the programs queue control payload
/// from now on.
///
/// # Errors
///
/// [`Error::Map`].
pub fn first_beat(loaded: &mut Loaded) -> Result<(), Error> {
    let mut map: Array<_, u64> = map_mut(&mut loaded.ebpf, maps::HEARTBEAT)?;
    map.set(heartbeat::PID, u64::from(std::process::id()), 0)
        .and_then(|()| map.set(heartbeat::AT_NS, sys::monotonic_ns(), 0))
        .map_err(Error::map(maps::HEARTBEAT))
}

/// The guarded interfaces by index, to read and write.
///
/// # Errors
///
/// [`Error::Map`].
pub fn ifaces(instance: &Instance) -> Result<HashMap<MapData, u32, Iface>, Error> {
    pinned(instance, maps::IFACES)
}

/// The limits of admission for tables that kept a size other than the wanted:
/// a limit beyond the table would let a promotion evict.
fn fitting(compiled: &Compiled, loaded: &Loaded) -> [u32; 4] {
    let mut limits = compiled.config.tier_limits;
    for (name, _, kept) in &loaded.kept_sizes {
        let tiers = match *name {
            maps::FLOWS4 => [Tier::Tcp4, Tier::Other4],
            maps::FLOWS6 => [Tier::Tcp6, Tier::Other6],
            _ => continue,
        };
        for (tier, limit) in tiers.into_iter().zip(compiled.tables.limits(*kept)) {
            limits[tier as usize] = limit;
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;
    use crate::{bpf::fixed, config::Policy};

    fn compiled(zones: &[(&str, &str)]) -> Compiled {
        let mut toml = String::new();
        for (zone, iface) in zones {
            toml += &format!("[zones.{zone}]\ninterfaces = [\"{iface}\"]\n");
        }
        for (zone, _) in zones {
            toml += &format!(
                "[[rule]]\nname = \"{zone}\"\nfrom = \"{zone}\"\nto = \"host\"\naction = \"accept\"\n"
            );
        }
        Policy::parse("test", &toml, 2).unwrap().compile().unwrap()
    }

    fn pinned(zone: u8, name: &str) -> Iface {
        Iface {
            zone,
            zone_name: fixed(name),
            ..Iface::zeroed()
        }
    }

    fn zone_of(compiled: &Compiled, iface: &str) -> u8 {
        compiled
            .ifaces
            .iter()
            .find(|i| i.name == iface)
            .unwrap()
            .zone
    }

    #[test]
    fn zones_keep_the_numbers_that_flows_carry() {
        let mut compiled = compiled(&[("alpha", "a0"), ("outside", "o0")]);
        renumber(&mut compiled, &[pinned(1, "outside")]);
        assert_eq!(zone_of(&compiled, "o0"), 1);
        assert_eq!(zone_of(&compiled, "a0"), 2);
        let rule = compiled.rules.iter().find(|r| r.from_zone == 1).unwrap();
        assert_eq!(compiled.rule_names[usize::from(rule.id)], "outside");
        assert!(compiled.rules.iter().all(|r| r.to_zone == ZONE_HOST));
    }

    #[test]
    fn without_pinned_zones_nothing_changes() {
        let before = compiled(&[("alpha", "a0"), ("outside", "o0")]);
        let mut after = before.clone();
        renumber(&mut after, &[]);
        assert_eq!(after.ifaces, before.ifaces);
        assert_eq!(after.rules, before.rules);
    }
}

//! Kernel memory of the tables: what they will take, and what they have taken.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{ArrayOfMaps, Map, MapData, MapError, MapInfo};
use firewall_common::abi::{
    Counter, DataFlow, EVENTS_BYTES, ExpectKey, Expectation, Flow, FlowKey4, FlowKey6, Pair,
    PairKey, Session, Target, hash_bytes, hits_of_cpu, maps,
};

use super::{Instance, loader, policy};
use crate::{classes::Classes, config::Tables};

/// The maps whose sizes the policy decides, and the ring: all others but the
/// rules' together take less than two megabytes on most machines.
const MAPS: [&str; 12] = [
    maps::FLOWS4,
    maps::FLOWS6,
    maps::HALF_OPEN4_IN,
    maps::HALF_OPEN4_OUT,
    maps::HALF_OPEN6_IN,
    maps::HALF_OPEN6_OUT,
    maps::EXPECTATIONS,
    maps::TARGETS,
    maps::DATA_FLOWS,
    maps::SESSIONS,
    maps::PAIRS,
    maps::EVENTS,
];

/// Bytes of kernel memory that tables of these sizes take, with the ring.
#[must_use]
pub fn planned(tables: &Tables) -> u64 {
    let flow = size_of::<Flow>();
    let both = |elements| {
        hash_bytes(elements, size_of::<FlowKey4>(), flow)
            + hash_bytes(elements, size_of::<FlowKey6>(), flow)
    };
    let expectations = hash_bytes(
        tables.expectations,
        size_of::<ExpectKey>(),
        size_of::<Expectation>(),
    );
    let targets = hash_bytes(tables.expectations, size_of::<Target>(), size_of::<u64>());
    let data_flows = hash_bytes(
        loader::data_flows(tables),
        size_of::<FlowKey6>(),
        size_of::<DataFlow>(),
    );
    let sessions = hash_bytes(tables.sessions, size_of::<FlowKey6>(), size_of::<Session>());
    let pairs = hash_bytes(tables.sessions, size_of::<PairKey>(), size_of::<Pair>());
    // Half-open tables are two a family: for flows from inside and from outside.
    both(tables.flows)
        + 2 * both(tables.half_open)
        + expectations
        + targets
        + data_flows
        + sessions
        + pairs
        + EVENTS_BYTES as u64
}

/// Bytes of kernel memory that the rules of a policy take, with their counters.
#[must_use]
pub fn of_policy(classes: &Classes<'_>) -> u64 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let rules = classes.rules();
    let hits = size_of::<Counter>() * hits_of_cpu(rules.len() as u32) as usize * cpus;
    (size_of_val(rules) + hits + classes.bytes()) as u64
}

/// What the kernel says that the same maps of a running instance take, and the rules.
///
/// # Errors
/// A map is not pinned, or /proc cannot be read.
pub fn taken(instance: &Instance) -> io::Result<u64> {
    let tables = MAPS.into_iter().map(|name| {
        let info = MapInfo::from_pin(instance.pin(name)).map_err(io::Error::other)?;
        of_map(&info)
    });
    let rules = policy::MAPS
        .into_iter()
        .map(|name| of_policies(instance, name));
    tables.chain(rules).sum()
}

/// Those of the policy in force, and of the one before.
fn of_policies(instance: &Instance, name: &'static str) -> io::Result<u64> {
    let outer = MapData::from_pin(instance.pin(name)).map_err(io::Error::other)?;
    let outer = Map::from_map_data(outer).map_err(io::Error::other)?;
    let outer: ArrayOfMaps<_, MapData> = outer.try_into().map_err(io::Error::other)?;
    (0..outer.len())
        .map(|generation| match outer.get(&generation, 0) {
            Ok(map) => of_map(&map.info().map_err(io::Error::other)?),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(io::Error::other(error)),
        })
        .sum()
}

/// Bytes of kernel memory of a map (`memlock` in its fdinfo).
///
/// # Errors
/// The map has gone, or /proc cannot be read.
pub fn of_map(info: &MapInfo) -> io::Result<u64> {
    let fd = info.fd().map_err(io::Error::other)?;
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = fs::read_to_string(path)?;
    memlock(&text).ok_or_else(|| io::Error::other("no `memlock` in the fdinfo of a map"))
}

fn memlock(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|l| l.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

/// `36.4 MiB`.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Policy;

    #[test]
    fn the_default_tables_take_what_the_documents_say() {
        let text = "[zones.outside]\ninterfaces = [\"eth0\"]\n";
        let tables = Policy::parse("test", text, 2).unwrap().tables;
        let flows = (65_536 + 2 * 16_384) * (160 + 184);
        let rest = planned(&tables) - flows - EVENTS_BYTES as u64;
        assert!(rest < 4 << 20, "{rest}");
        assert_eq!(mebibytes(flows), "32.2 MiB");
    }

    #[test]
    fn the_kernels_figure_is_read() {
        let text = "pos:\t0\nmap_type:\t9\nmemlock:\t10485760\nmap_id:\t7\n";
        assert_eq!(memlock(text), Some(10_485_760));
        assert_eq!(memlock("pos:\t0\n"), None);
    }
}

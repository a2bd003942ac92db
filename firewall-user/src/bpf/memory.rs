//! Kernel memory of the tables: what they will take, and what they have taken.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::MapInfo;
use firewall_common::abi::{
    DataFlow, EVENTS_BYTES, ExpectKey, Expectation, Flow, FlowKey4, FlowKey6, Pair, PairKey,
    Session, Target, hash_bytes, maps,
};

use super::{Instance, loader};
use crate::config::Tables;

/// The maps whose sizes the policy decides, and the ring: all others together
/// take less than a megabyte on most machines.
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

/// What the kernel says that the same maps of a running instance take.
///
/// # Errors
/// A map is not pinned, or /proc cannot be read.
pub fn taken(instance: &Instance) -> io::Result<u64> {
    MAPS.into_iter()
        .map(|name| {
            let info = MapInfo::from_pin(instance.pin(name)).map_err(io::Error::other)?;
            of_map(&info)
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

//! What an instance holds, to see that asking changes nothing of it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use aya::maps::{HashMap, Map, MapData};
use firewall_common::abi::{
    ExpectKey, Expectation, Flow, FlowKey4, FlowKey6, Pair, PairKey, Session as FtpSession, maps,
};
use firewall_tests::lab::pinhole::Firewall;
use firewall_user::bpf::{Instance, maps::Pinned};

/// Everything that the programs write, byte by byte.
#[derive(Debug, PartialEq)]
pub(super) struct Dump {
    pub(super) flows: BTreeMap<&'static str, Vec<Vec<u8>>>,
    tables: BTreeMap<&'static str, Vec<Vec<u8>>>,
    counters: BTreeMap<&'static str, Vec<u64>>,
}

impl Dump {
    pub(super) fn of(firewall: &Firewall) -> Result<Self> {
        let mut flows = BTreeMap::new();
        for name in [maps::FLOWS4, maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT] {
            flows.insert(name, bytes::<FlowKey4, Flow>(firewall, name)?);
        }
        for name in [maps::FLOWS6, maps::HALF_OPEN6_IN, maps::HALF_OPEN6_OUT] {
            flows.insert(name, bytes::<FlowKey6, Flow>(firewall, name)?);
        }
        let tables = BTreeMap::from([
            (maps::EXPECTATIONS, expectations(firewall)?),
            (
                maps::SESSIONS,
                bytes::<FlowKey6, FtpSession>(firewall, maps::SESSIONS)?,
            ),
            (maps::PAIRS, bytes::<PairKey, Pair>(firewall, maps::PAIRS)?),
        ]);
        let instance: Instance = firewall.instance().parse().map_err(anyhow::Error::msg)?;
        let pinned = Pinned::open(&instance)?;
        let rules = pinned.rules()?;
        let mut stats: Vec<u64> = pinned.stats()?.iter().map(|c| c.packets).collect();
        // Neighbours are looked for at any time.
        for reason in ["neighbour-discovery", "arp", "multicast-listener"] {
            let known = firewall_common::verdict::PassReason::ALL.iter();
            let Some(noise) = known.into_iter().find(|r| r.name() == reason) else {
                bail!("no reason {reason}");
            };
            stats[noise.index() as usize] = 0;
        }
        let counters = BTreeMap::from([
            (maps::STATS, stats),
            (
                maps::RULE_HITS,
                rules.iter().map(|(_, c)| c.packets).collect(),
            ),
            (maps::TIER_COUNTS, pinned.tier_counts()?),
        ]);
        Ok(Self {
            flows,
            tables,
            counters,
        })
    }
}

pub(super) fn expectations(firewall: &Firewall) -> Result<Vec<Vec<u8>>> {
    bytes::<ExpectKey, Expectation>(firewall, maps::EXPECTATIONS)
}

/// The elements of a pinned hash map, sorted.
pub(super) fn bytes<K, V>(firewall: &Firewall, name: &str) -> Result<Vec<Vec<u8>>>
where
    K: aya::Pod + bytemuck::Pod,
    V: aya::Pod + bytemuck::Pod,
{
    let data = MapData::from_pin(firewall.pins().join(name))?;
    let map: HashMap<MapData, K, V> = Map::from_map_data(data)?.try_into()?;
    let mut elements = Vec::new();
    for (key, value) in firewall_user::bpf::maps::all(&map)? {
        elements.push([bytemuck::bytes_of(&key), bytemuck::bytes_of(&value)].concat());
    }
    elements.sort_unstable();
    Ok(elements)
}

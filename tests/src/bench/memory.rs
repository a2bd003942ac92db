//! What a flow takes of the kernel's memory, by the kernel's own account.

use anyhow::{Result, bail};
use aya::{EbpfLoader, maps::Map};
use firewall_common::abi::maps;
use firewall_user::bpf::{loader::OBJECT, memory};

use super::{Bench, metric::Metric};

/// Two sizes of a table: what does not grow with it is in both.
const SIZES: [u32; 2] = [1 << 12, 1 << 16];
const TABLES: [(&str, &str); 2] = [
    ("bytes_per_flow", maps::FLOWS4),
    ("bytes_per_flow_v6", maps::FLOWS6),
];

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    TABLES.map(|(id, _)| id.to_owned()).into()
}

/// Measures what is wanted.
///
/// # Errors
/// The kernel refuses the maps.
pub fn run(bench: &mut Bench) -> Result<()> {
    for (id, table) in TABLES {
        if !bench.wants(id) {
            continue;
        }
        bench.say(id);
        let mut each = Vec::new();
        for _ in 0..bench.runs {
            let [small, large] = [bytes(table, SIZES[0])?, bytes(table, SIZES[1])?];
            each.push((large - small) as f64 / f64::from(SIZES[1] - SIZES[0]));
        }
        bench.add(Metric::of(id, "bytes", &each));
    }
    Ok(())
}

/// Kernel memory of a table, among the object's maps.
fn bytes(table: &str, size: u32) -> Result<u64> {
    let mut loader = EbpfLoader::new();
    let ebpf = loader.map_max_entries(table, size).load(OBJECT)?;
    let Some(Map::LruHashMap(map)) = ebpf.map(table) else {
        bail!("{table} is no LRU hash");
    };
    Ok(memory::of_map(&map.info()?)?)
}

//! What a flow takes of the kernel's memory, by the kernel's own account.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::{EbpfLoader, maps::Map};
use firewall_common::abi::{FLOW_BYTES4, FLOW_BYTES6, Flow, FlowKey4, FlowKey6, hash_bytes, maps};
use firewall_tests::lab::{
    Lab, Node,
    pinhole::{Attach, Firewall, config},
};
use firewall_user::bpf::memory;

/// Two sizes of a table: what does not grow with it is in both.
const SIZES: [u32; 2] = [1 << 12, 1 << 16];

/// Kernel memory of one table among the object's maps.
fn bytes(table: &str, size: u32) -> Result<u64> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/pinhole.o");
    let object = std::fs::read(&path)
        .with_context(|| format!("{}; `cargo xtask build` makes it", path.display()))?;
    let ebpf = EbpfLoader::new()
        .map_max_entries(table, size)
        .load(&object)?;
    let Some(Map::LruHashMap(map)) = ebpf.map(table) else {
        anyhow::bail!("{table} is no LRU hash");
    };
    Ok(memory::of_map(&map.info()?)?)
}

#[test]
fn a_flow_takes_no_more_than_is_promised() -> Result<()> {
    for (table, promised, computed) in [
        (
            maps::FLOWS4,
            FLOW_BYTES4,
            hash_bytes(1, size_of::<FlowKey4>(), size_of::<Flow>()),
        ),
        (
            maps::FLOWS6,
            FLOW_BYTES6,
            hash_bytes(1, size_of::<FlowKey6>(), size_of::<Flow>()),
        ),
        (
            maps::HALF_OPEN4_OUT,
            FLOW_BYTES4,
            hash_bytes(1, size_of::<FlowKey4>(), size_of::<Flow>()),
        ),
        (
            maps::HALF_OPEN6_OUT,
            FLOW_BYTES6,
            hash_bytes(1, size_of::<FlowKey6>(), size_of::<Flow>()),
        ),
    ] {
        let [small, large] = [bytes(table, SIZES[0])?, bytes(table, SIZES[1])?];
        let each = (large - small) as f64 / f64::from(SIZES[1] - SIZES[0]);
        println!("{table}: {each} bytes a flow by the kernel's account, {computed} computed");
        ensure!(
            each <= promised as f64,
            "{table}: {each}, and {promised} are promised"
        );
        ensure!(
            (each - computed as f64).abs() < 1.0,
            "{table}: {each}, and {computed} computed"
        );
    }
    Ok(())
}

#[test]
fn the_memory_that_run_announces_is_what_the_kernel_takes() -> Result<()> {
    let lab = Lab::line()?;
    let text = config::client_host(false) + "[tables]\nflows = 32768\nhalf-open = 8192\n";
    let attach = Attach::default();
    let firewall = Firewall::start(&lab, Node::Client, Some(&text), attach)?;
    let said = firewall.said();
    let line = said.lines().next().context("no output")?;
    let announced = line
        .strip_prefix("tables: 65536 proved and 32768 half-open flows, ")
        .and_then(|rest| rest.split(": ").nth(1)?.split(' ').next())
        .with_context(|| line.to_owned())?;
    let announced: f64 = announced.parse::<f64>()? * f64::from(1 << 20);
    let status = firewall.json(&["status"])?;
    let taken = status["memory"]["kernel_bytes"]
        .as_f64()
        .unwrap_or_default();
    let off = (taken - announced).abs() / announced;
    ensure!(off < 0.02, "{announced} announced, {taken} taken");
    Ok(())
}

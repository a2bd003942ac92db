//! The collector among many flows, half of which have expired, under traffic.
//!
//! The default is small; `cargo xtask flood` takes a million.

use std::{
    collections::HashSet,
    env,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use firewall_common::{
    abi::{
        Flow, FlowKey4, FlowKey6, FlowState, Last, TableCounter, TableId, TcpSide, flow_flags,
        incarnation, maps,
    },
    key::FlowKey,
    tcp::generic,
    time::{Tick, ticks_from_secs},
    wire::proto,
};
use firewall_tests::lab::{
    Family, Lab, Node,
    live::LiveConnection,
    pinhole::{Attach, Firewall, config},
};
use firewall_user::bpf::{maps::all, sys::monotonic_ns};
use serde_json::Value;

/// What `cargo xtask flood` sets.
const FLOWS: &str = "PINHOLE_COLLECTOR_FLOWS";
const DEFAULT_FLOWS: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(180);
const CONNECTIONS: u16 = 8;

fn flows() -> Result<u32> {
    env::var(FLOWS).map_or(Ok(DEFAULT_FLOWS), |text| {
        text.parse().with_context(|| format!("{FLOWS}={text}"))
    })
}

/// The proved flow of a UDP conversation that had its last packet at `seen`.
fn flow(key: &impl FlowKey, seen: Tick) -> Flow {
    let flags = flow_flags::ASSURED | flow_flags::SEEN_REPLY;
    let silent = TcpSide {
        end: 0,
        maxend: 0,
        maxack: 0,
        maxwin: 0,
    };
    Flow {
        state: FlowState::new(generic::REPLIED, flags, incarnation(key.digest(), 1)).0,
        last: Last::new(0, 1, 0).0,
        seen: seen.0,
        created: seen.0,
        bytes: [100; 2],
        packets: [1; 2],
        tcp: [silent; 2],
    }
}

fn key4(n: u32) -> FlowKey4 {
    let host = u32::from_ne_bytes([10, 200, 0, 1]);
    let ports = (n as u16, (n >> 16) as u16 + 1);
    FlowKey4::from_parts(host, host.swap_bytes(), ports.0, ports.1, proto::UDP, 0)
}

fn key6(n: u32) -> FlowKey6 {
    let (low, high) = (
        [0xfd00_0000_u32.to_be(), 0, 0, 1],
        [0xfd01_0000_u32.to_be(), 0, 0, n],
    );
    FlowKey6::from_parts(low, high, 1, 2, proto::UDP, 0)
}

fn open<K: aya::Pod>(pins: &Path, name: &str) -> Result<HashMap<MapData, K, Flow>> {
    let data = MapData::from_pin(pins.join(name))?;
    Ok(Map::from_map_data(data)?.try_into()?)
}

/// Puts `count` flows into a table, every other one expired an hour ago.
fn fill<K: aya::Pod + FlowKey>(
    pins: &Path,
    table: TableId,
    count: u32,
    key: impl Fn(u32) -> K,
) -> Result<()> {
    let now = Tick::from_ns(monotonic_ns());
    let long_ago = Tick(now.0.wrapping_sub(ticks_from_secs(3 * 3600)));
    let mut map = open::<K>(pins, table.map())?;
    for n in 0..count {
        let seen = if n % 2 == 0 { now } else { long_ago };
        let key = key(n);
        map.insert(key, flow(&key, seen), 0)?;
    }
    // As the programs would have counted them; the tiers' counts are left for the
    // collector to find out.
    let data = MapData::from_pin(pins.join(maps::TABLE_COUNTERS))?;
    let mut counters: PerCpuArray<_, TableCounter> = Map::from_map_data(data)?.try_into()?;
    let mut of_cpus: Vec<TableCounter> =
        counters.get(&(table as u32), 0)?.iter().copied().collect();
    of_cpus[0].created += u64::from(count);
    counters.set(table as u32, PerCpuValues::try_from(of_cpus)?, 0)?;
    Ok(())
}

/// Waits until the collector has had `expired` flows of each family deleted.
fn await_collected(firewall: &Firewall, expired: u64) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats = firewall.json(&["stats"])?;
        let deleted = stats["collector"]["deleted"].as_u64().unwrap_or_default();
        if deleted >= 2 * expired {
            return Ok(stats);
        }
        ensure!(
            Instant::now() < deadline,
            "deleted {deleted} of {}: {stats}",
            2 * expired
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until the flows on record are those that are there.
fn await_counts(firewall: &Firewall, pins: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = firewall.json(&["status"])?;
        let on_record: u64 = status["flows"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|tier| tier["count"].as_u64())
            .sum();
        let v4 = all(&open::<FlowKey4>(pins, maps::FLOWS4)?)?.len();
        let v6 = all(&open::<FlowKey6>(pins, maps::FLOWS6)?)?.len();
        let evicted: u64 = status["tables"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|table| table["evicted"].as_u64())
            .sum();
        ensure!(evicted == 0, "nothing was displaced: {status}");
        if on_record == (v4 + v6) as u64 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{on_record} on record, {} there",
            v4 + v6
        );
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn the_collector_deletes_half_of_many_flows_and_nothing_alive() -> Result<()> {
    let each = flows()? / 2;
    let lab = Lab::line()?;
    let policy = config::client_host(false)
        + "[[rule]]\nname = \"in\"\nfrom = \"outside\"\nto = \"host\"\nproto = \"tcp\"\n\
           dport = \"7000-7100\"\naction = \"accept\"\n"
        + &format!(
            "[timeouts]\nudp-stream = 7200\n[tables]\nflows = {}\n",
            (2 * each).next_power_of_two().max(1024)
        );
    let attach = Attach::default();
    let firewall = Firewall::start(&lab, Node::Server, Some(&policy), attach)?;
    let mut live = (0..CONNECTIONS)
        .map(|n| LiveConnection::to_server(&lab, Family::V4, 7000 + n))
        .collect::<Result<Vec<_>>>()?;
    let pins = firewall.pins();
    let over = AtomicBool::new(false);
    let stats = thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut lines = 0_u64;
            while !over.load(Ordering::Relaxed) {
                for connection in &mut live {
                    ensure!(
                        connection.is_alive(),
                        "a connection broke after {lines} lines"
                    );
                    lines += 1;
                }
            }
            Ok(lines)
        });
        let filled = fill(&pins, TableId::Proved4, each, key4)
            .and_then(|()| fill(&pins, TableId::Proved6, each, key6));
        let done = filled.and_then(|()| await_collected(&firewall, u64::from(each / 2)));
        over.store(true, Ordering::Relaxed);
        let lines = traffic.join().map_err(|_| anyhow!("traffic panicked"))??;
        ensure!(lines > 0, "no traffic meanwhile");
        done
    })?;
    println!(
        "{} flows, half of them expired: {:#}",
        2 * each,
        stats["collector"]
    );

    let left4: HashSet<_> = all(&open::<FlowKey4>(&pins, maps::FLOWS4)?)?
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let left6: HashSet<_> = all(&open::<FlowKey6>(&pins, maps::FLOWS6)?)?
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    for n in 0..each {
        let alive = n % 2 == 0;
        ensure!(left4.contains(&key4(n)) == alive, "IPv4 flow {n} of {each}");
        ensure!(left6.contains(&key6(n)) == alive, "IPv6 flow {n} of {each}");
    }
    ensure!(live.iter_mut().all(LiveConnection::is_alive));
    await_counts(&firewall, &pins)
}

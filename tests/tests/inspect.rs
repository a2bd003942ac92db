//! The lists read pinned maps alone, without programs or an agent: here the
//! maps are made and filled by hand.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, MapData};
use bytemuck::Zeroable;
use firewall_common::{
    abi::{
        ABI_VERSION, Config, DataFlow, ExpectKey, ExpectVia, Expectation, Flow, FlowKey4, FlowKey6,
        FlowState, Iface, Phase, RULE_NAMES_LEN, RuleName, Session, SessionPhase, flow_flags, maps,
        timeout,
    },
    key::map_v4,
    time::{Tick, ticks_from_secs},
};
use firewall_tests::lab::{
    id::{LabId, PINS},
    pinhole, process,
};
use firewall_user::bpf::{
    Instance, fixed,
    maps::{FlowTier, Pinned, all},
    sys,
};
use serde_json::Value;

const TABLE: u32 = 65_536;
/// All time-outs of flows, in ticks.
const TIMEOUT: u32 = ticks_from_secs(600);

/// An instance whose maps are pinned by hand; unpinned when dropped.
struct Pins {
    instance: Instance,
}

impl Pins {
    fn new() -> Result<Self> {
        let name = LabId::new()?.name("inspect");
        let instance: Instance = name.parse().map_err(anyhow::Error::msg)?;
        fs::create_dir_all(instance.pin_dir())?;
        let pins = Self { instance };
        pins.array(maps::ABI, 1, 0, ABI_VERSION)?;
        Ok(pins)
    }

    fn set_abi(&self, version: u32) -> Result<()> {
        fs::remove_file(self.instance.pin(maps::ABI))?;
        self.array(maps::ABI, 1, 0, version)
    }

    /// Everything that the lists look at, tables empty.
    fn with_tables() -> Result<Self> {
        let pins = Self::new()?;
        let config = Config {
            rule_count: [1, 0],
            timeouts: [TIMEOUT; timeout::LEN],
            ..Config::zeroed()
        };
        pins.array(maps::CONFIG, 1, 0, config)?;
        pins.array::<RuleName>(maps::RULE_NAMES, RULE_NAMES_LEN as u32, 0, fixed("web"))?;
        pins.hash::<u32, Iface>(maps::IFACES, 64)?;
        for name in [maps::FLOWS4, maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT] {
            pins.hash::<FlowKey4, Flow>(name, TABLE)?;
        }
        for name in [maps::FLOWS6, maps::HALF_OPEN6_IN, maps::HALF_OPEN6_OUT] {
            pins.hash::<FlowKey6, Flow>(name, TABLE)?;
        }
        pins.hash::<ExpectKey, Expectation>(maps::EXPECTATIONS, 64)?;
        pins.hash::<FlowKey6, DataFlow>(maps::DATA_FLOWS, 64)?;
        pins.hash::<FlowKey6, Session>(maps::SESSIONS, 64)?;
        Ok(pins)
    }

    fn array<V: aya::Pod>(&self, name: &str, len: u32, index: u32, value: V) -> Result<()> {
        let mut map = Array::<MapData, V>::create(len, 0)?;
        map.set(index, value, 0)?;
        map.pin(self.instance.pin(name)).context("pinning")
    }

    fn hash<K: aya::Pod, V: aya::Pod>(&self, name: &str, len: u32) -> Result<()> {
        let map = HashMap::<MapData, K, V>::create(len, 0)?;
        map.pin(self.instance.pin(name)).context("pinning")
    }

    fn open<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        let map = aya::maps::Map::from_map_data(MapData::from_pin(self.instance.pin(name))?)?;
        Ok(map.try_into()?)
    }

    fn pinhole(&self, args: &[&str]) -> Result<process::Output> {
        let mut command = Command::new(pinhole::binary()?);
        command
            .args(["--instance", self.instance.name()])
            .args(args);
        process::run(&mut command, Duration::from_secs(20))
    }

    fn list(&self, what: &str) -> Result<Vec<Value>> {
        let output = self.pinhole(&[what, "list", "-o", "json"])?;
        ensure!(output.code == Some(0), "{output:?}");
        Ok(serde_json::from_str(&output.stdout)?)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let dir = self.instance.pin_dir();
        for pin in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let _ = fs::remove_file(pin.path());
        }
        let _ = fs::remove_dir(dir);
        // Only when no other instance is left.
        let _ = fs::remove_dir(PINS);
    }
}

fn key4(n: u32) -> FlowKey4 {
    let server = u32::from_ne_bytes([192, 0, 2, 1]);
    FlowKey4::from_parts(
        u32::from_ne_bytes([10, 0, 0, 1]),
        server,
        (n % 60_000) as u16 + 1,
        1 + (n / 60_000) as u16,
        6,
        0,
    )
}

/// The point that is `s` seconds from now.
fn tick_in(s: i64) -> Tick {
    Tick::from_ns(sys::monotonic_ns().saturating_add_signed(s * 1_000_000_000))
}

fn flow(phase: Phase, expires_in_s: i64) -> Flow {
    let now = sys::monotonic_ns();
    let seen = tick_in(expires_in_s).0.wrapping_sub(TIMEOUT);
    Flow {
        state: FlowState::new(3, flow_flags::ASSURED, 1)
            .with_phase(phase)
            .0,
        seen,
        created: Tick::from_ns(now).0,
        ..Flow::zeroed()
    }
}

#[test]
fn flows_of_all_six_tables_are_listed() -> Result<()> {
    let pins = Pins::with_tables()?;
    let live = flow(Phase::Live, 60);
    let v6 = |n| FlowKey6::from_parts([n; 4], [0xff; 4], 1, 2, 6, 0);
    for (n, name) in (1..).zip([maps::FLOWS4, maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT]) {
        pins.open::<FlowKey4, Flow>(name)?
            .insert(key4(n), live, 0)?;
    }
    for (n, name) in (1..).zip([maps::FLOWS6, maps::HALF_OPEN6_IN, maps::HALF_OPEN6_OUT]) {
        pins.open::<FlowKey6, Flow>(name)?.insert(v6(n), live, 0)?;
    }
    let listed = pins.list("flows")?;
    ensure!(listed.len() == 6, "{listed:?}");
    let proved = listed.iter().filter(|f| f["tier"] == "proved").count();
    ensure!(proved == 2, "{listed:?}");
    ensure!(listed.iter().all(|f| f["rule"] == "web"), "{listed:?}");
    let rows = Pinned::open(&pins.instance)?.flows()?;
    let v4 = map_v4(u32::from_ne_bytes([10, 0, 0, 1]));
    let first = rows
        .iter()
        .find(|r| r.key.lo() == v4 && r.tier == FlowTier::Proved);
    ensure!(first.is_some_and(|r| r.key.lo_port() == 2), "{rows:?}");
    Ok(())
}

#[test]
fn what_the_programs_miss_is_not_listed() -> Result<()> {
    let pins = Pins::with_tables()?;
    let output = pins.pinhole(&["flows", "list"])?;
    ensure!(
        output.stdout.is_empty() && output.stderr.contains("no flows"),
        "{output:?}"
    );
    ensure!(pins.list("flows")?.is_empty());
    let mut table = pins.open::<FlowKey4, Flow>(maps::FLOWS4)?;
    table.insert(key4(1), flow(Phase::Live, -2), 0)?;
    table.insert(key4(2), flow(Phase::Doomed, 60), 0)?;
    table.insert(key4(3), flow(Phase::Promoting, 60), 0)?;
    ensure!(pins.list("flows")?.is_empty(), "{:?}", pins.list("flows")?);
    // The control: it is what was wrong with those, and not the reading.
    table.insert(key4(4), flow(Phase::Live, 60), 0)?;
    let listed = pins.list("flows")?;
    ensure!(
        listed.len() == 1 && listed[0]["original"]["sport"] == 5,
        "{listed:?}"
    );
    Ok(())
}

#[test]
fn sessions_and_their_pinholes_are_listed() -> Result<()> {
    let pins = Pins::with_tables()?;
    let addr = |last| map_v4(u32::from_ne_bytes([10, 0, 0, last]));
    let parent = FlowKey6::from_parts(addr(1), addr(2), 21, 40_000, 6, 0);
    let session = Session {
        started_ns: sys::monotonic_ns(),
        incarnation: 7,
        phase: SessionPhase::Ready as u8,
        client_is_hi: 1,
        ..Session::zeroed()
    };
    let mut sessions = pins.open::<FlowKey6, Session>(maps::SESSIONS)?;
    sessions.insert(parent, session, 0)?;
    let mut pinholes = pins.open::<ExpectKey, Expectation>(maps::EXPECTATIONS)?;
    for (dport, expires_in_s) in [(50_001, 60), (50_002, -2)] {
        let key = ExpectKey::tcp(addr(2), addr(1), dport);
        let expectation = Expectation {
            parent,
            parent_incarnation: 7,
            expires: tick_in(expires_in_s).0,
            via: ExpectVia::Epsv as u8,
            ..Expectation::zeroed()
        };
        pinholes.insert(key, expectation, 0)?;
    }
    let listed = pins.list("expect")?;
    ensure!(listed.len() == 1, "the expired one is none: {listed:?}");
    ensure!(
        listed[0]["dport"] == 50_001 && listed[0]["via"] == "EPSV",
        "{listed:?}"
    );
    ensure!(listed[0]["parent"]["cport"] == 40_000, "{listed:?}");
    let listed = pins.list("ftp")?;
    ensure!(
        listed.len() == 1 && listed[0]["expectations"] == 1,
        "{listed:?}"
    );
    ensure!(
        listed[0]["client"] == "10.0.0.2" && listed[0]["phase"] == "ready",
        "{listed:?}"
    );
    Ok(())
}

#[test]
fn a_large_table_is_read_whole_and_once() -> Result<()> {
    let pins = Pins::with_tables()?;
    let mut table = pins.open::<FlowKey4, Flow>(maps::FLOWS4)?;
    let live = flow(Phase::Live, 60);
    for n in 0..20_000 {
        table.insert(key4(n), live, 0)?;
    }
    let mut keys: Vec<_> = all(&table)?
        .into_iter()
        .map(|(key, _)| key.lo_port())
        .collect();
    keys.sort_unstable();
    ensure!(keys == (1..=20_000).collect::<Vec<u16>>());
    Ok(())
}

#[test]
fn a_table_under_churn_is_read_to_its_end() -> Result<()> {
    let pins = Pins::with_tables()?;
    let mut table = pins.open::<FlowKey4, Flow>(maps::FLOWS4)?;
    let live = flow(Phase::Live, 60);
    for n in 0..10_000 {
        table.insert(key4(n), live, 0)?;
    }
    let reader = pins.open::<FlowKey4, Flow>(maps::FLOWS4)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Elements 0 to 4,999 stay; the others come and go all the while.
        let churn = scope.spawn(|| -> Result<()> {
            for n in (5000..u32::MAX).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let _ = table.remove(&key4(n));
                table.insert(key4(n + 5000), live, 0)?;
            }
            Ok(())
        });
        let start = Instant::now();
        let read: Result<Vec<usize>> = (0..20)
            .map(|_| {
                let rows = all(&reader)?;
                let stays = |key: &FlowKey4| key.hi_port() == 1 && key.lo_port() <= 5000;
                Ok(rows.iter().filter(|(key, _)| stays(key)).count())
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        let churned = churn.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        churned.context("churning")?;
        ensure!(read?.into_iter().all(|count| count == 5000));
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        Ok(())
    })
}

#[test]
fn what_cannot_be_read_is_named() -> Result<()> {
    let pins = Pins::new()?;
    let name = pins.instance.name();
    let other = Command::new(pinhole::binary()?)
        .args(["--instance", "nobody-has-this", "stats"])
        .output()?;
    let said = String::from_utf8_lossy(&other.stderr);
    ensure!(other.status.code() == Some(1), "{other:?}");
    ensure!(
        said.contains("nobody-has-this") && said.contains(name),
        "{said}"
    );

    let lost = pins.pinhole(&["flows", "list"])?;
    ensure!(
        lost.code == Some(1) && lost.stderr.contains("map CONFIG"),
        "{lost:?}"
    );

    pins.set_abi(0)?;
    let unfinished = pins.pinhole(&["stats"])?;
    ensure!(
        unfinished.code == Some(1) && unfinished.stderr.contains("not ready"),
        "{unfinished:?}"
    );

    pins.set_abi(ABI_VERSION + 98)?;
    for list in [
        &["flows", "list"][..],
        &["expect", "list"],
        &["ftp", "list"],
        &["stats"],
    ] {
        let output = pins.pinhole(list)?;
        let said = output
            .stderr
            .contains(&format!("ABI version {}", ABI_VERSION + 98));
        ensure!(output.code == Some(1) && said, "{output:?}");
    }
    Ok(())
}

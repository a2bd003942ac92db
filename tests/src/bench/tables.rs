//! A million flows: how long it takes to list them, and what the collector takes.

use std::{
    fs::File,
    pin::pin,
    process::{Command, Stdio},
    sync::Arc,
    task::{Context as Polling, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use firewall_common::abi::{CollectorState, maps};
use firewall_user::{
    bpf::{
        Instance,
        loader::{Loaded, ProgramLog},
        requests::Requests,
        sys::thread_cpu_ns,
    },
    config::Policy,
    gc::Collector,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::resource::{UsageWho, getrusage},
};

use super::{
    Bench,
    field::{Field, Mode, policy},
    metric::Metric,
    rest::share,
    traffic::{Proto, cpus},
};
use crate::lab::{Family, netns, pinhole::Firewall};

const FLOWS: u32 = 1 << 20;
const TCP4: (Family, Proto) = (Family::V4, Proto::Tcp);
const LIST: &str = "list_1m_vs_conntrack";
const LIST_OWN: &str = "list_1m_s";
const LIST_PEER: &str = "list_1m_conntrack_s";
const SHARE: &str = "collector_1m_core_share";
const PAUSE: &str = "collector_1m_pause_ms";
/// One measurement of the running collector.
const TIME: Duration = Duration::from_secs(3);
/// The collector finds out how many flows there are.
const SETTLE: Duration = Duration::from_secs(5);
/// Steps of the collector whose pauses are measured, in one run.
const STEPS: usize = 8;

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    [LIST, LIST_OWN, LIST_PEER, SHARE, PAUSE]
        .map(str::to_owned)
        .into()
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    let any = |ids: &[&str], bench: &Bench| ids.iter().any(|id| bench.wants(id));
    if !any(&[LIST, LIST_OWN, LIST_PEER, SHARE, PAUSE], bench) {
        return Ok(());
    }
    bench.say("setting up: a million flows in pinhole");
    let mut own = Field::new(Mode::Pass, FLOWS)?;
    own.establish(TCP4, FLOWS)?;
    if any(&[LIST, LIST_OWN, LIST_PEER], bench) {
        list(bench, &own)?;
    }
    if bench.wants(SHARE) {
        core_share(bench, own.firewall().context("no pinhole")?)?;
    }
    if bench.wants(PAUSE) {
        // Its collector is the only one while it runs.
        own.stop_agent();
        pauses(bench, &own)?;
    }
    Ok(())
}

fn list(bench: &mut Bench, own: &Field) -> Result<()> {
    bench.say("setting up: a million flows in nf_conntrack");
    let mut peer = Field::new(Mode::Nft, FLOWS)?;
    peer.establish(TCP4, FLOWS)?;
    let firewall = own.firewall().context("no pinhole")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..bench.runs {
        bench.say(&format!(
            "listing a million flows: round {round} of {}",
            bench.runs
        ));
        ours.push(cpu_seconds(
            &mut firewall.command_line(&["flows", "list"])?,
        )?);
        let mut conntrack = peer.middle().command("conntrack");
        theirs.push(cpu_seconds(conntrack.arg("-L"))?);
    }
    let ratios: Vec<f64> = ours
        .iter()
        .zip(&theirs)
        .map(|(own, peer)| own / peer)
        .collect();
    for (id, unit, values) in [
        (LIST, "x", &ratios),
        (LIST_OWN, "s", &ours),
        (LIST_PEER, "s", &theirs),
    ] {
        if bench.wants(id) {
            bench.add(Metric::of(id, unit, values).noted("CPU time of the command"));
        }
    }
    Ok(())
}

/// CPU time of a command and the kernel's for it, s; its output is dropped.
fn cpu_seconds(command: &mut Command) -> Result<f64> {
    let spent = || -> Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let seconds =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
    };
    let before = spent()?;
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(spent()? - before)
}

/// Of the running agent, which does nothing else: whole, so that nothing of the collector
/// goes uncounted.
fn core_share(bench: &mut Bench, firewall: &Firewall) -> Result<()> {
    let data = MapData::from_pin(firewall.pins().join(maps::COLLECTOR))?;
    let map: Array<_, CollectorState> = Map::from_map_data(data)?.try_into()?;
    let agent = firewall.agent_pid().context("no agent")?;
    thread::sleep(SETTLE);
    let mut shares = Vec::new();
    for round in 0..bench.runs {
        bench.say(&format!("collector: round {round} of {}", bench.runs));
        shares.push(share(agent, TIME)?);
    }
    let state = map.get(&0, 0)?;
    let note = format!(
        "of the whole agent; {} entries a second are read, {:.0} ns of CPU each",
        state.pace,
        state.cpu_ns as f64 / state.read.max(1) as f64
    );
    bench.add(Metric::of(SHARE, "core", &shares).noted(note));
    Ok(())
}

/// The longest time for which a collector does not let its thread do anything else. Of each
/// run, the CPU time counts: what else the machine does is no pause of the collector's.
fn pauses(bench: &mut Bench, field: &Field) -> Result<()> {
    bench.say("setting up: a collector of our own");
    let instance = field.firewall().context("no pinhole")?.instance();
    let instance: Instance = instance.parse().map_err(anyhow::Error::msg)?;
    let text = policy(field.mode(), FLOWS, 0, true);
    let policy = Policy::parse("bench", &text, cpus() as usize)?;
    // An instance is for one network namespace: that of the process, which is that of
    // its first thread.
    let own = File::open("/proc/thread-self/ns/net")?;
    let theirs = File::open(format!("{}/{}", netns::DIR, field.middle().name()))?;
    setns(theirs, CloneFlags::CLONE_NEWNET)?;
    let loaded = Loaded::load(&instance, &policy.tables, ProgramLog::Off);
    setns(own, CloneFlags::CLONE_NEWNET)?;
    let mut collector = Collector::open(&instance, Requests::new(Arc::new(loaded?)))?;
    let (mut longest, mut wall) = (Vec::new(), Duration::ZERO);
    for round in 0..bench.runs {
        bench.say(&format!(
            "collector's pauses: round {round} of {}",
            bench.runs
        ));
        let mut most = 0;
        for _ in 0..STEPS {
            let mut step = pin!(collector.step());
            let mut polling = Polling::from_waker(Waker::noop());
            loop {
                let (began, cpu) = (Instant::now(), thread_cpu_ns());
                let polled = step.as_mut().poll(&mut polling);
                most = most.max(thread_cpu_ns() - cpu);
                wall = wall.max(began.elapsed());
                if let Poll::Ready(done) = polled {
                    done?;
                    break;
                }
            }
        }
        longest.push(most as f64 / 1e6);
    }
    let note = format!(
        "CPU time; by the clock of this machine, {:.1} ms",
        wall.as_secs_f64() * 1000.0
    );
    bench.add(Metric::of(PAUSE, "ms", &longest).noted(note));
    Ok(())
}

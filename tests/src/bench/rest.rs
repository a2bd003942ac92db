//! The agent when nothing happens.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use firewall_user::bpf::sys::monotonic_ns;

use super::{
    Bench,
    field::{Field, Mode},
    metric::Metric,
};

const CPU: &str = "agent_rest_cpu";
const RSS: &str = "agent_rest_rss_mib";
/// One measurement: some of what it does, it does every few seconds.
const TIME: Duration = Duration::from_secs(10);
/// Measurements; more than that would say no more, and take long.
const RUNS: usize = 5;
/// What follows the start is not rest.
const SETTLE: Duration = Duration::from_secs(3);

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    [CPU, RSS].map(str::to_owned).into()
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    if ids().iter().all(|id| !bench.wants(id)) {
        return Ok(());
    }
    bench.say("the agent at rest");
    let field = Field::new(Mode::HostPinhole, 1)?;
    let agent = field.firewall().and_then(|firewall| firewall.agent_pid());
    let agent = agent.context("no agent")?;
    thread::sleep(SETTLE);
    let (mut shares, mut sizes) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs.min(RUNS) {
        shares.push(100.0 * share(agent, TIME)?);
        sizes.push(resident(agent)? as f64 / 1024.0);
    }
    if bench.wants(CPU) {
        let metric = Metric::of(CPU, "%", &shares);
        bench.add(metric.noted("of one core; top shows it as 0.0 up to the goal"));
    }
    if bench.wants(RSS) {
        bench.add(Metric::of(RSS, "MiB", &sizes).noted("without mapped BPF maps"));
    }
    Ok(())
}

/// Share of one core that a process takes for a while.
///
/// # Errors
/// It is gone.
pub(super) fn share(pid: u32, time: Duration) -> Result<f64> {
    let (began, before) = (monotonic_ns(), cpu_ns(pid)?);
    thread::sleep(time);
    let took = cpu_ns(pid)? - before;
    Ok(took as f64 / (monotonic_ns() - began) as f64)
}

/// CPU time of all threads of a process, ns.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let ns = text.split_whitespace().next().context("schedstat")?;
        sum += ns.parse::<u64>()?;
    }
    Ok(sum)
}

/// Resident memory besides maps of BPF, KiB.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut sum, mut is_map) = (0, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !first.ends_with(':') {
            is_map = line.contains("bpf-map") || line.contains("bpf_map");
        } else if first == "Rss:" && !is_map {
            sum += words.next().context("Rss")?.parse::<u64>()?;
        }
    }
    Ok(sum)
}

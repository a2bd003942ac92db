//! FTP through firewalls at both ends: pinhole's helper and the kernel's.

use anyhow::{Context as _, Result};

use super::{Bench, metric::Metric};
use crate::lab::{
    Family, Guard, Mode,
    pinhole::Attach,
    race::{Field, Way, fleet::Load, percentile},
};

const RATE: &str = "ftp_rate_vs_kernel";
const SETUP: &str = "ftp_setup_p99_vs_kernel";
/// Rates and set-up times of both, pinhole's first.
const RATES: [&str; 2] = ["ftp_rate_pinhole", "ftp_rate_kernel"];
const SETUPS: [&str; 2] = ["ftp_setup_p99_us_pinhole", "ftp_setup_p99_us_kernel"];
/// Transfers of one measurement.
const TRANSFERS: usize = 500;
/// Sessions at once, where the rate is measured.
const AT_ONCE: usize = 8;

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    let all = [RATE, SETUP].into_iter().chain(RATES).chain(SETUPS);
    all.map(str::to_owned).collect()
}

/// Measures what is wanted.
///
/// # Errors
/// A transfer fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    if !ids().iter().any(|id| bench.wants(id)) {
        return Ok(());
    }
    bench.say("setting up: FTP");
    let guards = [Guard::Pinhole(Attach::default()), Guard::Kernel];
    let fields = guards.map(|guard| Field::new(Way::Routers(guard), Family::V4));
    let [own, peer] = fields;
    let fields = [own?, peer?];
    let (mut rates, mut setups) = ([vec![], vec![]], [vec![], vec![]]);
    for round in 0..=bench.runs {
        for (at, field) in fields.iter().enumerate() {
            bench.say(&format!("FTP: round {round} of {}", bench.runs));
            let (rate, setup) = (rate(field)?, setup(field)?);
            if round > 0 {
                rates[at].push(rate);
                setups[at].push(setup);
            }
        }
    }
    for (ids, ratio, unit, values) in [(RATES, RATE, "1/s", &rates), (SETUPS, SETUP, "µs", &setups)]
    {
        let pairs = values[0].iter().zip(&values[1]);
        let ratios: Vec<f64> = pairs.map(|(own, peer)| own / peer).collect();
        add(bench, Metric::of(ratio, "x", &ratios));
        for (id, values) in ids.into_iter().zip(values) {
            add(bench, Metric::of(id, unit, values));
        }
    }
    Ok(())
}

fn add(bench: &mut Bench, metric: Metric) {
    if bench.wants(&metric.id) {
        bench.add(metric);
    }
}

/// Passive transfers a second, some sessions at once.
fn rate(field: &Field) -> Result<f64> {
    let ran = field.run(load(AT_ONCE))?;
    Ok(ran.opened.len() as f64 / ran.took.as_secs_f64())
}

/// What 99 of 100 data connections need at most, one after another, µs.
fn setup(field: &Field) -> Result<f64> {
    let opened = field.run(load(1))?.opened.into_iter();
    let mut times: Vec<u64> = opened.map(|opened| opened.took_ns).collect();
    times.sort_unstable();
    let p99 = percentile(&times, 0.99).context("no transfers")?;
    Ok(p99 as f64 / 1000.0)
}

const fn load(at_once: usize) -> Load {
    Load {
        mode: Mode::Passive,
        transfers: TRANSFERS,
        at_once,
    }
}

//! Beside the fast path: the kernel's own, where it has one.

use anyhow::Result;

use super::{
    Bench, TIME,
    field::{Field, Mode, data},
    metric::Metric,
    traffic::{Amount, Flows, Proto, cpus},
};
use crate::lab::Family;

const ID: &str = "fwd_est_1k_vs_flowtable";
const UDP4: (Family, Proto) = (Family::V4, Proto::Udp);
const FLOWS: u32 = 1 << 10;

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    vec![ID.to_owned()]
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails. That the kernel has no flow tables is a result.
pub fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants(ID) {
        return Ok(());
    }
    bench.say("setting up: the kernel's flow table");
    let mut peer = match Field::new(Mode::Flowtable, FLOWS) {
        Ok(field) => field,
        Err(error) => {
            let said = format!("{error:#}");
            let said = said.lines().find(|line| line.contains("rror:"));
            let why = said.map_or("", str::trim);
            let why = format!("this kernel has no flow tables: {why}");
            bench.add(Metric::missing(ID, "x", why.trim_end_matches(": ")));
            return Ok(());
        }
    };
    let mut own = Field::new(Mode::Fast, FLOWS)?;
    let mut ratios = Vec::new();
    for field in [&mut own, &mut peer] {
        field.establish(UDP4, FLOWS)?;
    }
    for round in 0..=bench.runs {
        bench.say(&format!("{ID}: round {round} of {}", bench.runs));
        let ratio = rate(&mut own)? / rate(&mut peer)?;
        if round > 0 {
            ratios.push(ratio);
        }
    }
    bench.add(Metric::of(ID, "x", &ratios));
    Ok(())
}

fn rate(field: &mut Field) -> Result<f64> {
    let amount = Amount::For(TIME, cpus());
    let rate = field.rate(UDP4, &data(), Flows::Of(FLOWS), amount)?;
    Ok(rate.mpps)
}

//! What rules cost new flows.

use anyhow::Result;

use super::{
    Bench,
    field::{Field, Mode, opening},
    metric::Metric,
    traffic::{Amount, Flows, Proto, cpus},
};
use crate::lab::Family;

const UDP4: (Family, Proto) = (Family::V4, Proto::Udp);
const FRESH: u32 = 1 << 18;
/// What the others are held against.
const FEW: u32 = 10;
const MANY: [(&str, u32); 2] = [("rules_1k_vs_10", 1000), ("rules_10k_vs_10", 10_000)];

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    MANY.map(|(id, _)| id.to_owned()).into()
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    let wanted: Vec<_> = MANY.into_iter().filter(|(id, _)| bench.wants(id)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    bench.say("setting up: rules");
    let mut few = Field::with_rules(Mode::Fast, FRESH, FEW - 1)?;
    for (id, rules) in wanted {
        bench.say(&format!("setting up: {rules} rules"));
        // pinhole says itself how many it takes.
        let mut many = match Field::with_rules(Mode::Fast, FRESH, rules - 1) {
            Ok(field) => field,
            Err(error) => {
                let said = format!("{error:#}");
                let said = said.lines().find(|line| line.contains("error:"));
                let why = said.unwrap_or("it does not start").trim().to_owned();
                bench.add(Metric::missing(id, "x", format!("{rules} rules: {why}")));
                continue;
            }
        };
        let mut ratios = Vec::new();
        for round in 0..=bench.runs {
            bench.say(&format!("{id}: round {round} of {}", bench.runs));
            let ratio = rate(&mut few)? / rate(&mut many)?;
            if round > 0 {
                ratios.push(ratio);
            }
        }
        bench.add(Metric::of(id, "x", &ratios));
    }
    Ok(())
}

fn rate(field: &mut Field) -> Result<f64> {
    let fresh = Flows::From(field.take_fresh(1 << 22));
    let amount = Amount::For(super::TIME, cpus());
    Ok(field
        .rate(UDP4, &opening(Proto::Udp)[0], fresh, amount)?
        .mpps)
}

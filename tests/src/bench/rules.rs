//! What rules cost new flows.

use anyhow::Result;

use super::{
    Bench, TIME, TURNS,
    field::{Field, Mode, Rate, opening},
    metric::Metric,
    traffic::{Amount, Flows, Proto, cpus},
    why,
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
                let why = why(&error).unwrap_or_else(|| "it does not start".to_owned());
                bench.add(Metric::missing(id, "x", format!("{rules} rules: {why}")));
                continue;
            }
        };
        bench.ratio(id, [&mut few, &mut many], opened)?;
    }
    Ok(())
}

fn opened(field: &mut Field) -> Result<Rate> {
    let fresh = Flows::From(field.take_fresh(1 << 20));
    let amount = Amount::For(TIME / TURNS, cpus());
    field.rate(UDP4, &opening(Proto::Udp)[0], fresh, amount)
}

//! What is compared, side by side, and what was found of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{
    Bench, TURNS,
    field::{Field, Mode, Rate},
    forward::Load,
};

/// Below this share, what came out is no measure of what was sent.
const ENOUGH: f64 = 0.9;

/// A load on what stands in the middle.
type Pair = (Load, Mode);

/// Fields side by side, and their samples.
#[derive(Debug, Default)]
pub(super) struct Stand {
    fields: BTreeMap<Mode, Field>,
    samples: BTreeMap<Pair, Vec<Rate>>,
    failures: BTreeMap<Pair, String>,
}

impl Stand {
    /// Measures `pairs`, in turns those with the same load. One that fails leaves the
    /// others alone.
    pub(super) fn measured(bench: &mut Bench, pairs: &BTreeSet<Pair>) -> Result<Self> {
        let mut stand = Self::default();
        stand.set_up(bench, pairs);
        let loads: BTreeSet<Load> = pairs.iter().map(|&(load, _)| load).collect();
        for load in loads {
            let modes = pairs.iter().filter(|(of, _)| *of == load);
            let modes: Vec<Mode> = modes.map(|&(_, mode)| mode).collect();
            stand.measure(bench, load, &modes)?;
        }
        stand.fields.clear();
        Ok(stand)
    }

    fn set_up(&mut self, bench: &mut Bench, pairs: &BTreeSet<Pair>) {
        let room = |mode| {
            pairs
                .iter()
                .map(|(load, _)| load.room(mode))
                .max()
                .unwrap_or(1)
        };
        let modes: BTreeSet<Mode> = pairs.iter().map(|&(_, mode)| mode).collect();
        for mode in modes {
            bench.say(&format!("setting up: {}", mode.title()));
            match Field::new(mode, room(mode)) {
                Ok(field) => {
                    self.fields.insert(mode, field);
                }
                Err(error) => {
                    let why = bench.failed(mode.title(), &error);
                    let of_mode = pairs.iter().filter(|(_, of)| *of == mode);
                    self.failures
                        .extend(of_mode.map(|&pair| (pair, why.clone())));
                }
            }
        }
    }

    fn measure(&mut self, bench: &mut Bench, load: Load, modes: &[Mode]) -> Result<()> {
        for &mode in modes {
            if let Some(field) = self.fields.get_mut(&mode) {
                bench.say(&format!("{}: {}", load.name(), mode.title()));
                if let Err(error) = load.prepare(field) {
                    let why = bench.failed(mode.title(), &error);
                    self.failures.insert((load, mode), why);
                }
            }
        }
        let mut errors = Vec::new();
        let rounds = bench.rounds(&load.name(), || Ok(self.round(load, modes, &mut errors)))?;
        for rates in rounds {
            for (mode, rate) in rates {
                self.samples.entry((load, mode)).or_default().push(rate);
            }
        }
        for (mode, error) in errors {
            let why = bench.failed(mode.title(), &error);
            self.failures.insert((load, mode), why);
        }
        Ok(())
    }

    /// Every other turn runs the other way round, so that what changes steadily makes
    /// nobody look better.
    fn round(
        &mut self,
        load: Load,
        modes: &[Mode],
        errors: &mut Vec<(Mode, anyhow::Error)>,
    ) -> BTreeMap<Mode, Rate> {
        let mut rates = BTreeMap::<Mode, Rate>::new();
        let mut order = modes.to_vec();
        for _ in 0..TURNS {
            for &mode in &order {
                let has_failed = self.failures.contains_key(&(load, mode))
                    || errors.iter().any(|(of, _)| *of == mode);
                let Some(field) = self.fields.get_mut(&mode).filter(|_| !has_failed) else {
                    continue;
                };
                match load.sample(field) {
                    Ok(rate) => {
                        let sum = rates.entry(mode).or_default();
                        *sum = sum.and(rate);
                    }
                    Err(error) => errors.push((mode, error)),
                }
            }
            order.reverse();
        }
        rates
    }

    /// Why there is nothing.
    pub(super) fn failure(&self, pair: Pair) -> Option<&str> {
        self.failures.get(&pair).map(String::as_str)
    }

    /// Millions of packets a second of CPU, of each round.
    pub(super) fn mpps(&self, pair: Pair) -> Vec<f64> {
        let rates = self.samples.get(&pair).into_iter().flatten();
        rates.map(Rate::mpps).collect()
    }

    /// That too little came out, if so.
    pub(super) fn loss(&self, pair: Pair) -> Option<String> {
        let rates = self.samples.get(&pair)?.iter();
        let share = rates.map(Rate::share).reduce(f64::min)?;
        (share < ENOUGH)
            .then(|| format!("{}: only {:.1} % came out", pair.1.title(), share * 100.0))
    }
}

#[cfg(test)]
impl Stand {
    /// Found, and not found.
    pub(super) fn with(samples: &[(Pair, Rate)], failures: &[(Pair, &str)]) -> Self {
        Self {
            fields: BTreeMap::new(),
            samples: samples
                .iter()
                .map(|&(pair, rate)| (pair, vec![rate]))
                .collect(),
            failures: failures
                .iter()
                .map(|&(pair, why)| (pair, why.to_owned()))
                .collect(),
        }
    }
}

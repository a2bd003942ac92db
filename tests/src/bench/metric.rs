//! What is measured, by id, and what is wanted of it.

use serde::{Deserialize, Serialize};

/// A figure with its spread. `value` is the median of the runs, `min` and `max` are the
/// outermost of them; null where it could not be measured, and `note` says why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metric {
    /// Stable name.
    pub id: String,
    /// Median.
    pub value: Option<f64>,
    /// Of all three figures.
    pub unit: String,
    /// Smallest.
    pub min: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
    /// How many.
    pub runs: usize,
    /// What is wanted: `>= 5` or `<= 100`; null where nothing is.
    pub goal: Option<String>,
    /// Is it so?
    pub met: Option<bool>,
    /// What one must know to read the figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

use Goal::{AtLeast, AtMost};

pub(super) const GOALS: [(&str, Goal); 17] = [
    ("fwd_est_1k_vs_nft", AtLeast(5.0)),
    ("fwd_est_32k_vs_nft", AtLeast(4.0)),
    ("fwd_est_1m_vs_nft", AtLeast(3.0)),
    ("fwd_est_1k_vs_ceiling", AtLeast(0.85)),
    ("new_flows_vs_nft", AtLeast(3.0)),
    ("pass_est_1k_vs_nft", AtLeast(1.3)),
    ("prog_tcp_est_ns", AtMost(100.0)),
    ("rules_10k_vs_10", AtMost(1.5)),
    ("bytes_per_flow", AtMost(160.0)),
    ("bytes_per_flow_v6", AtMost(192.0)),
    ("ftp_rate_vs_kernel", AtLeast(1.0)),
    ("ftp_setup_p99_vs_kernel", AtMost(1.2)),
    ("list_1m_vs_conntrack", AtMost(0.5)),
    ("collector_1m_core_share", AtMost(0.01)),
    ("collector_1m_pause_ms", AtMost(10.0)),
    // What rounds to the 0.0 % of top.
    ("agent_rest_cpu", AtMost(0.05)),
    ("agent_rest_rss_mib", AtMost(20.0)),
];

impl Metric {
    /// Of the runs' figures.
    #[must_use]
    pub fn of(id: impl Into<String>, unit: &str, values: &[f64]) -> Self {
        let id = id.into();
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let value = median(&sorted);
        let goal = GOALS.iter().find(|(of, _)| *of == id).map(|(_, goal)| goal);
        Self {
            value,
            unit: unit.to_owned(),
            min: sorted.first().copied(),
            max: sorted.last().copied(),
            runs: values.len(),
            goal: goal.map(|goal| match goal {
                AtLeast(least) => format!(">= {least}"),
                AtMost(most) => format!("<= {most}"),
            }),
            met: goal.map(|goal| {
                value.is_some_and(|value| match goal {
                    AtLeast(least) => value >= *least,
                    AtMost(most) => value <= *most,
                })
            }),
            note: None,
            id,
        }
    }

    /// Could not be measured.
    #[must_use]
    pub fn missing(id: impl Into<String>, unit: &str, why: impl Into<String>) -> Self {
        Self::of(id, unit, &[]).noted(why)
    }

    /// With a note.
    #[must_use]
    pub fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// All of them that have a goal, in the order of the goals.
#[must_use]
pub fn with_goals(metrics: &[Metric]) -> Vec<&Metric> {
    let named = |(id, _): &(&str, Goal)| metrics.iter().find(|metric| metric.id == *id);
    GOALS.iter().filter_map(named).collect()
}

/// The middle one of ascending values, or between the middle two.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(middle - 1)?, upper))
}

/// The outermost figures.
#[must_use]
pub fn range(metric: &Metric) -> String {
    match (metric.min, metric.max) {
        (Some(_), Some(_)) => format!("{}–{}", show(metric.min), show(metric.max)),
        _ => String::new(),
    }
}

/// A figure with three significant digits.
#[must_use]
pub fn show(value: Option<f64>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// All as a table, those with a goal first.
#[must_use]
pub fn table(metrics: &[Metric]) -> String {
    let mut ordered = with_goals(metrics);
    ordered.extend(metrics.iter().filter(|metric| metric.goal.is_none()));
    let width = ordered
        .iter()
        .map(|metric| metric.id.len())
        .max()
        .unwrap_or(2);
    let mut text = format!(
        "{:<width$} {:>9} {:>9} {:>9} {:<10} {:>4} {:>8} MET\n",
        "ID", "VALUE", "MIN", "MAX", "UNIT", "RUNS", "GOAL"
    );
    for metric in ordered {
        let met = match metric.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        let line = format!(
            "{:<width$} {:>9} {:>9} {:>9} {:<10} {:>4} {:>8} {met:<3} {}",
            metric.id,
            show(metric.value),
            show(metric.min),
            show(metric.max),
            metric.unit,
            metric.runs,
            metric.goal.as_deref().unwrap_or(""),
            metric.note.as_deref().unwrap_or(""),
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_held_against_the_median() {
        let metric = Metric::of("fwd_est_1k_vs_nft", "x", &[9.0, 4.0, 5.5, 4.9]);
        assert_eq!(metric.value, Some(5.2));
        assert_eq!((metric.min, metric.max), (Some(4.0), Some(9.0)));
        assert_eq!(metric.goal.as_deref(), Some(">= 5"));
        assert_eq!(metric.met, Some(true));
        let slow = Metric::of("prog_tcp_est_ns", "ns", &[100.1]);
        assert_eq!(slow.met, Some(false));
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let metric = Metric::missing("rules_10k_vs_10", "x", "too many");
        assert_eq!((metric.value, metric.met), (None, Some(false)));
        let free = Metric::of("mpps", "Mpps", &[1.0]);
        assert_eq!((free.goal, free.met), (None, None));
    }
}

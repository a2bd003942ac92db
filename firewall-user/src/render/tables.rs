//! The flow tables and the collector, in `status` and `stats`.

use firewall_common::{
    abi::{CENSUS_STATES, Census, CollectorState, TableCounter, TableId},
    tcp::State,
    time::{NS_PER_SEC, ns_from_ticks},
};
use serde::Serialize;

use super::{Now, Paint, Table, short_time};

/// A flow table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableView {
    /// Name of the map.
    pub map: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// `proved`, `half-open-inside` or `half-open-outside`.
    pub tier: &'static str,
    /// Elements that it has room for.
    pub size: u32,
    /// Entries in it at the collector's last pass.
    pub present: u64,
    /// Entries put in since it exists.
    pub created: u64,
    /// Entries taken out: expired, replaced, promoted, or on request.
    pub removed: u64,
    /// Entries that it displaced to take others, at least.
    pub evicted: u64,
    /// For how long such an entry had been in the table, on average, when
    /// entries were last displaced; `null` if none were.
    pub evicted_stay_s: Option<f64>,
    /// States of a sample of them, as last seen by the collector; entries that
    /// came and went between two of its passes are not among them.
    pub evicted_seen: Vec<WitnessView>,
    /// Least and greatest age of that sample; `null` if it is empty.
    pub evicted_ages_s: Option<[f64; 2]>,
    /// Since the collector's last pass; `null` before the first.
    pub census_age_s: Option<f64>,
}

/// Displaced entries in one state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WitnessView {
    /// As in `flows list`.
    pub state: &'static str,
    /// How many of the sample.
    pub count: u32,
}

/// What the collector does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CollectorView {
    /// Whole passes over all tables.
    pub passes: u64,
    /// Entries read.
    pub read: u64,
    /// Expired flows that it had deleted.
    pub deleted: u64,
    /// CPU time that it took.
    pub cpu_s: f64,
    /// Its pace at present, entries a second.
    pub pace_per_s: u64,
    /// How long the last pass took.
    pub pass_s: f64,
    /// Entries read in it.
    pub pass_read: u64,
    /// CPU time of it.
    pub pass_cpu_s: f64,
    /// Proved flows by which the tiers' counts were corrected, in all.
    pub corrected: u64,
    /// Since its last sign of life; `null` if it never ran.
    pub age_s: Option<f64>,
}

impl TableView {
    /// From the maps.
    #[must_use]
    pub fn new(
        table: TableId,
        size: u32,
        counter: TableCounter,
        census: &Census,
        now: Now,
    ) -> Self {
        Self {
            map: table.map(),
            family: if table.is_v4() { "ipv4" } else { "ipv6" },
            tier: match table {
                TableId::Proved4 | TableId::Proved6 => "proved",
                TableId::Inside4 | TableId::Inside6 => "half-open-inside",
                TableId::Outside4 | TableId::Outside6 => "half-open-outside",
            },
            size,
            present: census.present,
            created: counter.created,
            removed: counter.removed,
            evicted: census.evicted,
            evicted_stay_s: (census.evicted > 0).then(|| census.stay_ms as f64 / 1e3),
            evicted_seen: witnesses(census),
            evicted_ages_s: ages(census),
            census_age_s: (census.at_ns != 0).then(|| now.since(census.at_ns)),
        }
    }

    fn seen(&self) -> String {
        let states = self.evicted_seen.iter();
        let mut parts: Vec<String> = states.map(|w| format!("{} {}", w.count, w.state)).collect();
        parts.extend(
            self.evicted_ages_s
                .map(|[least, most]| format!("age {} to {}", short_time(least), short_time(most))),
        );
        parts.join(", ")
    }
}

/// The tables that hold or held anything, for people.
#[must_use]
pub fn tables(views: &[TableView]) -> Table {
    let mut table = Table::new(&[
        "FLOW TABLE",
        ">SIZE",
        ">FLOWS",
        ">CREATED",
        ">REMOVED",
        ">DISPLACED",
        ">AFTER",
        "SEEN",
    ]);
    for view in views.iter().filter(|view| view.created > 0) {
        let displaced = if view.evicted > 0 {
            Paint::Notice
        } else {
            Paint::None
        };
        table.row([
            (format!("{} {}", view.family, view.tier), Paint::None),
            (view.size.to_string(), Paint::None),
            (view.present.to_string(), Paint::None),
            (view.created.to_string(), Paint::None),
            (view.removed.to_string(), Paint::None),
            (view.evicted.to_string(), displaced),
            (
                view.evicted_stay_s.map(short_time).unwrap_or_default(),
                Paint::None,
            ),
            (view.seen(), Paint::Dim),
        ]);
    }
    table
}

impl CollectorView {
    /// From the map.
    #[must_use]
    pub fn new(state: &CollectorState, now: Now) -> Self {
        let seconds = |ns: u64| ns as f64 / NS_PER_SEC as f64;
        Self {
            passes: state.passes,
            read: state.read,
            deleted: state.deleted,
            cpu_s: seconds(state.cpu_ns),
            pace_per_s: state.pace,
            pass_s: seconds(state.pass_ns),
            pass_read: state.pass_read,
            pass_cpu_s: seconds(state.pass_cpu_ns),
            corrected: state.corrected,
            age_s: (state.at_ns != 0).then(|| now.since(state.at_ns)),
        }
    }

    /// A line for people.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "collector: {} passes, {} entries read, {} expired flows deleted, {:.3} s of CPU time; \
             now {} entries/s, last pass {} entries in {:.1} ms of CPU time\n",
            self.passes,
            self.read,
            self.deleted,
            self.cpu_s,
            self.pace_per_s,
            self.pass_read,
            self.pass_cpu_s * 1e3,
        )
    }
}

fn witnesses(census: &Census) -> Vec<WitnessView> {
    let states = (0_u8..).zip(census.witnessed);
    let seen = states.filter(|(_, count)| *count > 0);
    seen.map(|(index, count)| WitnessView {
        state: state_name(index),
        count,
    })
    .collect()
}

/// Of an index into [`Census::witnessed`].
fn state_name(index: u8) -> &'static str {
    const UNREPLIED: u8 = CENSUS_STATES as u8 - 2;
    match index {
        UNREPLIED => "UNREPLIED",
        tcp if tcp < UNREPLIED => State::try_from(tcp).map_or("UNKNOWN", State::name),
        _ => "REPLIED",
    }
}

fn ages(census: &Census) -> Option<[f64; 2]> {
    let any = census.witnessed.iter().any(|count| *count > 0);
    let seconds = |ticks| ns_from_ticks(ticks) as f64 / NS_PER_SEC as f64;
    any.then(|| census.ages.map(seconds))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use serde_json::json;

    use super::*;
    use crate::render::Ink;

    fn at(monotonic_ns: u64) -> Now {
        Now {
            monotonic_ns,
            ..Now::read()
        }
    }

    fn view() -> TableView {
        let mut census = Census {
            at_ns: 1_000_000_000,
            present: 16_384,
            evicted: 83_616,
            stay_ms: 1600,
            ages: [60, 180],
            ..Census::zeroed()
        };
        census.witnessed[State::SynSent as usize] = 90;
        census.witnessed[11] = 1;
        let counter = TableCounter {
            created: 100_000,
            removed: 0,
        };
        TableView::new(
            TableId::Outside4,
            16_384,
            counter,
            &census,
            at(3_000_000_000),
        )
    }

    #[test]
    fn the_json() {
        assert_eq!(
            serde_json::to_value(view()).unwrap(),
            json!({
                "map": "HALF_OPEN4_OUT", "family": "ipv4", "tier": "half-open-outside",
                "size": 16_384, "present": 16_384, "created": 100_000, "removed": 0,
                "evicted": 83_616, "evicted_stay_s": 1.6,
                "evicted_seen": [
                    { "state": "SYN_SENT", "count": 90 }, { "state": "REPLIED", "count": 1 },
                ],
                "evicted_ages_s": [1.006_632_96, 3.019_898_88],
                "census_age_s": 2.0,
            })
        );
    }

    #[test]
    fn the_table_leaves_out_what_was_never_used() {
        let unused = TableView {
            created: 0,
            ..view()
        };
        let drawn = tables(&[unused, view()]).render(Ink::Plain);
        assert_eq!(drawn.lines().count(), 2, "{drawn}");
        assert!(
            drawn.contains(
                "ipv4 half-open-outside  16384  16384   100000        0      83616   1.6s"
            ),
            "{drawn}"
        );
        assert!(
            drawn.contains("90 SYN_SENT, 1 REPLIED, age 1.0s to 3.0s"),
            "{drawn}"
        );
    }

    #[test]
    fn before_anything_happened_nothing_is_claimed() {
        let now = at(1);
        let view = TableView::new(
            TableId::Proved6,
            8,
            TableCounter::default(),
            &Census::zeroed(),
            now,
        );
        assert_eq!(view.evicted_stay_s, None);
        assert_eq!(view.evicted_ages_s, None);
        assert_eq!(view.census_age_s, None);
        assert_eq!(
            CollectorView::new(&CollectorState::default(), now).age_s,
            None
        );
    }
}

//! How fast the collector reads, by the load.

use std::time::Duration;

/// A pass over all tables takes no less: what is expired counts as absent
/// anyway, so nobody waits for the collector but those who count or list.
pub(super) const PASS: Duration = Duration::from_secs(1);
/// The same while there is nothing in the tables: what comes cannot be expired sooner.
const EMPTY_PASS: Duration = Duration::from_secs(5);
/// No rest between two passes is longer.
const LONGEST: Duration = Duration::from_secs(10);
/// Share of one CPU that the collector takes at most while the tables have room. A million
/// flows are then read once in a minute or so. That is soon enough: the programs take
/// an expired flow for none, and so do lists and counts; it costs an element of a table
/// that is half empty. As the tables fill or much of them expires, the pace rises.
const IDLE_SHARE: f64 = 0.008;
/// The same when new flows need the room that expired ones take.
const BUSY_SHARE: f64 = 0.25;
/// Fill of a proved tier above which the pace rises.
const ROOMY: f64 = 0.5;
/// Share of expired entries at which the collector takes all that it may.
const STALE: f64 = 0.5;

/// What the pace follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Entries in all tables.
    pub(super) present: u64,
    /// Flows on record in the fullest proved tier, by its limit.
    pub(super) fill: f64,
    /// Share of the entries read in the present pass that had expired.
    pub(super) expired: f64,
    /// CPU time that an entry takes, ns, deletion included.
    pub(super) cost_ns: f64,
}

/// Entries a second: all of them in [`PASS`], or as many as the CPU share allows.
pub(super) fn entries_per_second(load: &Load) -> u64 {
    let wanted = load.present as f64 / PASS.as_secs_f64();
    let affordable = share(load) * 1e9 / load.cost_ns.max(1.0);
    wanted.min(affordable).max(1.0) as u64
}

/// Share of one CPU.
fn share(load: &Load) -> f64 {
    let full = (load.fill - ROOMY) / (1.0 - ROOMY);
    let stale = load.expired / STALE;
    let pressure = full.max(stale).clamp(0.0, 1.0);
    IDLE_SHARE + (BUSY_SHARE - IDLE_SHARE) * pressure
}

/// How long to rest at least after a pass over all tables that took so much CPU time: a
/// large table with few entries is slow to walk through, and they do not pay for it.
pub(super) fn between_passes(load: &Load, cpu_ns: u64) -> Duration {
    let shortest = if load.present == 0 { EMPTY_PASS } else { PASS };
    let affordable = cpu_ns as f64 / share(load);
    shortest
        .max(Duration::from_nanos(affordable as u64))
        .min(LONGEST)
}

/// How long to rest after `read` entries at `pace` a second.
pub(super) fn rest(read: usize, pace: u64) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(5);
    Duration::from_secs_f64(read as f64 / pace.max(1) as f64).clamp(SHORTEST, PASS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Load = Load {
        present: 1000,
        fill: 0.0,
        expired: 0.0,
        cost_ns: 1000.0,
    };

    #[test]
    fn a_few_flows_are_read_every_second() {
        assert_eq!(entries_per_second(&CALM), 1000);
    }

    #[test]
    fn a_large_table_is_read_as_the_cpu_share_allows() {
        let large = Load {
            present: 1 << 22,
            ..CALM
        };
        // 0.8 % of a CPU at 1 µs an entry.
        assert_eq!(entries_per_second(&large), 8_000);
        let dear = Load {
            cost_ns: 4000.0,
            ..large
        };
        assert_eq!(entries_per_second(&dear), 2_000);
    }

    #[test]
    fn pressure_raises_the_pace_up_to_a_bound() {
        let large = Load {
            present: 1 << 22,
            ..CALM
        };
        let with = |fill, expired| {
            entries_per_second(&Load {
                fill,
                expired,
                ..large
            })
        };
        assert_eq!(with(0.5, 0.0), 8_000, "half full is no pressure");
        assert!(with(0.75, 0.0) > 100_000);
        assert_eq!(with(1.0, 0.0), 250_000);
        assert_eq!(with(0.0, 0.5), 250_000);
        assert_eq!(with(7.0, 1.0), 250_000);
    }

    #[test]
    fn passes_are_apart_by_what_they_cost() {
        let empty = Load { present: 0, ..CALM };
        assert_eq!(between_passes(&empty, 100_000), EMPTY_PASS);
        assert_eq!(between_passes(&CALM, 100_000), PASS);
        // 0.8 % of a CPU.
        let dear = between_passes(&CALM, 16_000_000);
        assert!(dear.abs_diff(Duration::from_secs(2)) < Duration::from_millis(1));
        assert_eq!(between_passes(&CALM, u64::MAX), LONGEST);
    }

    #[test]
    fn a_rest_is_neither_nothing_nor_for_ever() {
        assert_eq!(rest(4096, 40_960), Duration::from_millis(100));
        assert_eq!(rest(0, 0), Duration::from_millis(5));
        assert_eq!(rest(4096, 1), PASS);
    }
}

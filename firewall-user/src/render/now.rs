//! The moment at which a list is taken.

use std::sync::LazyLock;

use firewall_common::time::{NS_PER_SEC, Tick, ns_from_ticks};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::text::Put as _;
use crate::bpf::sys;

/// Times of day are without a date for as long.
const RECENT: SignedDuration = SignedDuration::from_hours(20);

/// The moment at which a list is taken.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, ns: what the programs go by.
    pub monotonic_ns: u64,
    /// The time of day.
    pub wall: Timestamp,
}

impl Now {
    /// The present.
    #[must_use]
    pub fn read() -> Self {
        Self {
            monotonic_ns: sys::monotonic_ns(),
            wall: Timestamp::now(),
        }
    }

    /// Seconds since `ns`; 0 if it is later.
    #[must_use]
    pub fn since(self, ns: u64) -> f64 {
        seconds(self.monotonic_ns.saturating_sub(ns))
    }

    /// Seconds until `ns`; 0 if it is earlier.
    #[must_use]
    pub fn until(self, ns: u64) -> f64 {
        seconds(ns.saturating_sub(self.monotonic_ns))
    }

    /// Seconds since `tick`; 0 if it is later.
    #[must_use]
    pub fn since_tick(self, tick: u32) -> f64 {
        seconds(self.ns_since_tick(tick))
    }

    /// Seconds until `tick`; 0 if it is earlier.
    #[must_use]
    pub fn until_tick(self, tick: u32) -> f64 {
        seconds(ns_from_ticks(
            Tick(tick).since(Tick::from_ns(self.monotonic_ns)),
        ))
    }

    /// The time of day at `tick`, as far as no clock was set since; never later
    /// than now.
    #[must_use]
    pub fn wall_of_tick(self, tick: u32) -> Timestamp {
        let ago = SignedDuration::from_nanos(self.ns_since_tick(tick).cast_signed());
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }

    fn ns_since_tick(self, tick: u32) -> u64 {
        ns_from_ticks(Tick::from_ns(self.monotonic_ns).since(Tick(tick)))
    }

    /// A time of day as people read it, in the system's time zone: without the
    /// date if it is within the last 20 hours.
    pub(super) fn put_clock(self, out: &mut String, at: Timestamp) {
        static ZONE: LazyLock<TimeZone> = LazyLock::new(TimeZone::system);
        let local = ZONE.to_datetime(at);
        if self.wall.duration_since(at) < RECENT {
            out.put_clock(local);
            return;
        }
        out.put_date(local);
        out.push(' ');
        out.put_padded(local.hour().unsigned_abs().into(), 2);
        out.push(':');
        out.put_padded(local.minute().unsigned_abs().into(), 2);
    }
}

/// To the millisecond.
pub(super) fn seconds(ns: u64) -> f64 {
    (ns / 1_000_000) as f64 * 1e6 / NS_PER_SEC as f64
}

#[cfg(test)]
mod tests {
    use super::{super::text::rfc3339, *};

    #[test]
    fn time_does_not_run_backwards() {
        let now = Now {
            monotonic_ns: 5_500_000_000,
            wall: Timestamp::from_second(1_000_000_000).unwrap(),
        };
        assert_eq!(now.since(3_000_000_000), 2.5);
        assert_eq!(now.since(6_000_000_000), 0.0);
        let tick = Tick::from_ns(now.monotonic_ns).0;
        assert_eq!(now.since_tick(tick + 1), 0.0);
        assert_eq!(now.until_tick(tick + 60), 1.006);
        assert_eq!(
            rfc3339(now.wall_of_tick(tick + 1)),
            "2001-09-09T01:46:40.000Z"
        );
        assert_eq!(
            rfc3339(now.wall_of_tick(tick - 60)),
            "2001-09-09T01:46:38.993Z"
        );
    }

    #[test]
    fn what_is_long_ago_has_a_date() {
        let now = Now {
            monotonic_ns: 400_000_000_000_000,
            wall: Timestamp::from_second(1_000_000_000).unwrap(),
        };
        let clock = |hours| {
            let at = now.wall - SignedDuration::from_hours(hours);
            let mut out = String::new();
            now.put_clock(&mut out, at);
            let zoned = at.to_zoned(TimeZone::system());
            (out, zoned)
        };
        let (text, zoned) = clock(19);
        assert_eq!(text, zoned.strftime("%H:%M:%S").to_string());
        let (text, zoned) = clock(21);
        assert_eq!(text, zoned.strftime("%Y-%m-%d %H:%M").to_string());
    }
}

//! Entries as tables for people and as JSON for programs.
//!
//! Each list has a view type here ([`FlowView`], [`ExpectView`], [`SessionView`],
//! [`StatsView`]): its fields are the JSON, stable, and the table is drawn from
//! the same view. Lists are arrays of objects. Addresses are text, numbers are
//! numbers, durations are seconds with a fraction under a name that ends in
//! `_s`, and what does not apply is `null`.

mod event;
mod expect;
mod explain;
mod fast;
mod flow;
mod journal;
mod refusals;
mod session;
mod shadow;
mod stats;
mod table;
mod tables;
mod why;

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::{IpAddr, SocketAddr},
};

use firewall_common::time::{NS_PER_SEC, Tick, ns_from_ticks};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::Serialize;

pub use event::{EvictedView, FlowEventView, Line, LostView};
pub use expect::{ExpectView, ParentView};
pub use explain::{DataFateView, ExplainView, HappenedView, RemedyView};
pub use fast::{FastView, KeptView, fast};
pub(crate) use flow::state_name;
pub use flow::{FlowView, OriginalView, ReplyView, ZonesView};
pub use journal::{DataView, JournalView};
pub use refusals::{RefusalView, refusals};
pub use session::{DropView, SessionView, SessionZonesView};
pub use shadow::{
    ConnectionView, DisagreementView, EndsView, KernelView, RefusedView, ShadowView, TalkerView,
};
pub use stats::{EventView, ReasonView, RuleView, StatsView};
pub use table::{Ink, Paint, Table};
pub use tables::{CollectorView, TableView, WitnessView, tables};
pub use why::{DecidedView, HeadersView, WhyView, summary};

use crate::{bpf::sys, cli::args::Output};

/// A row of a list.
pub trait Row: Serialize {
    /// What the list is of, in the plural: "no flows".
    const NOUN: &str;
    /// Column headings; those that start with `>` are aligned to the right.
    const COLUMNS: &[&str];

    /// Adds the row to a table of [`Row::COLUMNS`].
    fn draw(&self, table: &mut Table);
}

/// Prints a list in the format asked for.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn list<R: Row>(rows: &[R], output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => json(&rows),
        Output::Table if rows.is_empty() => {
            eprintln!("no {}", R::NOUN);
            Ok(())
        }
        Output::Table => {
            let mut table = Table::new(R::COLUMNS);
            for row in rows {
                row.draw(&mut table);
            }
            print(&table.render(Ink::of_stdout()))
        }
    }
}

/// Prints one JSON document.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Writes to standard output; a reader that has gone (`| head`) is no error.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_to_reader(text).map(|_| ())
}

/// Writes to standard output at once, no part of it later; false if nobody reads
/// it any more.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn print_to_reader(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Ink {
    /// Colour on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    #[must_use]
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !refused {
            Self::Colour
        } else {
            Self::Plain
        }
    }
}

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
    fn clock(self, at: Timestamp) -> String {
        let zoned = at.to_zoned(TimeZone::system());
        let form = if self.wall.duration_since(at) < SignedDuration::from_hours(20) {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M"
        };
        zoned.strftime(form).to_string()
    }
}

/// RFC 3339, UTC, to the millisecond: `2026-11-22T12:00:00.250Z`.
fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// To the millisecond.
fn seconds(ns: u64) -> f64 {
    (ns / 1_000_000) as f64 * 1e6 / NS_PER_SEC as f64
}

/// `192.0.2.1:21`, `[2001:db8::1]:21`, or the address alone.
fn endpoint(addr: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(addr, port).to_string(),
        None => addr.to_string(),
    }
}

/// A duration in two units at most: `0.4s`, `12s`, `3m05s`, `2h10m`, `4d23h`.
fn short_time(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// A number of bytes with a binary unit: `999`, `1.5K`, `20.0M`.
fn short_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "";
    for larger in ["K", "M", "G", "T", "P"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit.is_empty() {
        bytes.to_string()
    } else {
        format!("{value:.1}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        let times = [0.25, 9.99, 10.0, 185.0, 7_800.0, 428_400.0].map(short_time);
        assert_eq!(times, ["0.2s", "10s", "10s", "3m05s", "2h10m", "4d23h"]);
        let sizes = [0, 1023, 1536, 20 << 20, u64::MAX].map(short_bytes);
        assert_eq!(sizes, ["0", "1023", "1.5K", "20.0M", "16384.0P"]);
    }

    #[test]
    fn ports_stand_behind_addresses_of_either_family() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(endpoint(v6, Some(21)), "[2001:db8::1]:21");
        assert_eq!(endpoint(v6, None), "2001:db8::1");
    }

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
        let ago = |hours| now.wall - SignedDuration::from_hours(hours);
        assert_eq!(now.clock(ago(19)).len(), "01:46:40".len());
        assert_eq!(now.clock(ago(21)).len(), "2001-09-08 04:46".len());
    }
}

//! `ftp watch`.

use std::net::IpAddr;

use firewall_common::abi::ExpectVia;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Line, Now, ParentView, flow::as_rfc3339};
use crate::journal::Told;

/// Something that happened to an FTP session.
#[derive(Clone, Debug, Serialize)]
pub struct JournalView {
    /// Name of the [`firewall_common::abi::JournalKind`].
    pub event: &'static str,
    /// When, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// Its number in the journal.
    pub seq: u64,
    /// The session's control connection: `client`, `cport`, `server`, `sport`.
    pub session: ParentView,
    /// Where the session stood.
    pub phase: &'static str,
    /// Stable name of the reason; `null` where there is none.
    pub reason: Option<&'static str>,
    /// The command that opened the port; `null` where there is none.
    pub via: Option<&'static str>,
    /// The data connection; `null` where there is none.
    pub connection: Option<DataView>,
    /// How long what is told took, in seconds; `null` where nothing is measured.
    pub duration_s: Option<f64>,
    /// The line that brought it about, control characters escaped; `null` where there is none.
    pub line: Option<String>,
    /// All of it in words.
    pub text: String,
}

/// A data connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataView {
    /// Who connects.
    pub src: IpAddr,
    /// From which port; `null` while that is not known.
    pub sport: Option<u16>,
    /// To whom.
    pub dst: IpAddr,
    /// To which port.
    pub dport: u16,
}

impl JournalView {
    /// The view at `now`.
    #[must_use]
    pub fn new(told: &Told, now: Now) -> Self {
        Self {
            event: told.kind.name(),
            at: now.wall_of(told.at_ns),
            seq: told.seq,
            session: ParentView::of(told.client, told.server),
            phase: told.phase.name(),
            reason: told.reason_name(),
            via: told.via.map(ExpectVia::name),
            connection: told.connection.map(|(src, dst)| DataView {
                src: src.ip(),
                sport: Some(src.port()).filter(|port| *port != 0),
                dst: dst.ip(),
                dport: dst.port(),
            }),
            duration_s: told.duration().map(|time| time.as_secs_f64()),
            line: told.line.as_ref().map(ToString::to_string),
            text: told.text(),
        }
    }
}

impl Now {
    /// The time of day at `ns` of `CLOCK_MONOTONIC`, as far as no clock was set
    /// since; never later than now.
    #[must_use]
    pub fn wall_of(self, ns: u64) -> Timestamp {
        let ago = self.monotonic_ns.saturating_sub(ns);
        let ago = SignedDuration::from_nanos(ago.cast_signed());
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }
}

impl Line for JournalView {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn text(&self) -> String {
        let s = &self.session;
        let end = |ip, port| super::endpoint(ip, Some(port));
        format!(
            "{} -> {} {:<10} {}",
            end(s.client, s.cport),
            end(s.server, s.sport),
            self.event,
            self.text
        )
    }
}

#[cfg(test)]
mod tests {
    use firewall_common::abi::JournalKind;
    use serde_json::json;

    use super::*;
    use crate::{
        ftp::Excerpt,
        journal::{News, tests::entry},
        render::flow::tests::NOW,
    };

    fn view() -> JournalView {
        let ends = (
            "10.0.0.2:0".parse().unwrap(),
            "192.0.2.7:50053".parse().unwrap(),
        );
        let news = News {
            via: Some(ExpectVia::Epsv),
            connection: Some(ends),
            line: Some(Excerpt::bounded(b"229 \x1b[2J (|||50053|)", false)),
            ..News::of(JournalKind::Opened)
        };
        let told = Told::try_from(&entry(&news)).unwrap();
        let at_ns = NOW.monotonic_ns - 2_000_000_000;
        JournalView::new(&Told { at_ns, ..told }, NOW)
    }

    #[test]
    fn the_json() {
        let text = r#"EPSV opens 10.0.0.2 -> 192.0.2.7:50053: "229 \u{1b}[2J (|||50053|)""#;
        assert_eq!(
            serde_json::to_value(view()).unwrap(),
            json!({
                "event": "opened", "at": "2027-01-15T07:59:58.000Z", "seq": 3,
                "session": {
                    "client": "10.0.0.2", "cport": 41822, "server": "192.0.2.7", "sport": 21
                },
                "phase": "ready", "reason": null, "via": "EPSV",
                "connection": {
                    "src": "10.0.0.2", "sport": null, "dst": "192.0.2.7", "dport": 50053
                },
                "duration_s": null, "line": r"229 \u{1b}[2J (|||50053|)", "text": text,
            })
        );
    }

    #[test]
    fn a_line_begins_with_the_session() {
        let line = view().line(false, true).unwrap();
        let start = "2027-01-15T07:59:58.000Z 10.0.0.2:41822 -> 192.0.2.7:21 opened     EPSV opens";
        assert!(line.starts_with(start), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }
}

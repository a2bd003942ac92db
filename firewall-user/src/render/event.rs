//! `flows watch`.

use std::fmt::Write as _;

use firewall_common::abi::{DataFlow, EndReason, FlowEventKind, TableId, flow_flags};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{FlowView, Now, flow::as_rfc3339, rfc3339};
use crate::bpf::{maps::Names, watch::Told};

/// What happened to a flow.
#[derive(Clone, Debug, Serialize)]
pub struct FlowEventView {
    /// `NEW`, `UPDATE` or `DESTROY`.
    pub event: &'static str,
    /// When, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// Why it ended: `expired`, `closed`, `reset`, `reused` or `deleted`; else `null`.
    pub reason: Option<&'static str>,
    /// The flow then.
    #[serde(flatten)]
    pub flow: FlowView,
    #[serde(skip)]
    proto_number: u8,
}

/// Events that could not be told.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LostView {
    /// `LOST`.
    pub event: &'static str,
    /// When it was found out, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// How many; `null` if that is not known, because the watcher was not
    /// running for longer than the programs wait for it.
    pub lost: Option<u64>,
}

/// Flows that a table displaced to take others. Which ones, nobody is told.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EvictedView {
    /// `EVICTED`.
    pub event: &'static str,
    /// When the collector had found out, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// Name of the table's map.
    pub table: &'static str,
    /// How many, at least.
    pub evicted: u64,
}

/// Something to print a line for.
pub trait Line: Serialize {
    /// When it happened.
    fn at(&self) -> Timestamp;

    /// As `conntrack -E` writes it, without an end of line.
    fn text(&self) -> String;

    /// The line, ended.
    ///
    /// # Errors
    /// None that a view gives cause for.
    fn line(&self, json: bool, timestamp: bool) -> serde_json::Result<String> {
        if json {
            return Ok(serde_json::to_string(self)? + "\n");
        }
        let text = self.text();
        Ok(if timestamp {
            format!("{} {text}\n", rfc3339(self.at()))
        } else {
            text + "\n"
        })
    }
}

impl FlowEventView {
    /// The view of `told`, heard at `now`.
    #[must_use]
    pub fn new(told: &Told, names: &Names, now: Now) -> Self {
        let ago = now.monotonic_ns.saturating_sub(told.at_ns);
        let ago = SignedDuration::from_nanos(ago.cast_signed());
        let then = Now {
            monotonic_ns: told.at_ns,
            wall: now.wall.checked_sub(ago).unwrap_or(now.wall),
        };
        let mut flow = FlowView::new(&told.row, names, then);
        if told.kind == FlowEventKind::Destroy {
            flow.expires_s = 0.0;
        }
        Self {
            event: told.kind.name(),
            at: then.wall,
            reason: told.end.map(EndReason::name),
            flow,
            proto_number: told.row.key.proto(),
        }
    }

    /// The same, of the data connection that `data` ties to its control connection.
    #[must_use]
    pub fn with_parent(mut self, data: Option<&DataFlow>) -> Self {
        self.flow = self.flow.with_parent(data);
        self
    }

    /// Source, destination and ports or identifier of a direction.
    fn tuple(&self, reply: bool) -> String {
        let out = &self.flow.original;
        let (src, dst, sport, dport) = if reply {
            (out.dst, out.src, out.dport, out.sport)
        } else {
            (out.src, out.dst, out.sport, out.dport)
        };
        let mut text = format!("src={src} dst={dst}");
        if let (Some(sport), Some(dport)) = (sport, dport) {
            let _ = write!(text, " sport={sport} dport={dport}");
        }
        if let Some(id) = out.id {
            let _ = write!(text, " id={id}");
        }
        text
    }
}

impl Line for FlowEventView {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn text(&self) -> String {
        let flow = &self.flow;
        let mut text = format!(
            "{:>9} {:<8} {}",
            format!("[{}]", self.event),
            flow.proto,
            self.proto_number
        );
        let add = |text: &mut String, word: &str| {
            if !word.is_empty() {
                text.push(' ');
                text.push_str(word);
            }
        };
        if self.reason.is_none() {
            add(&mut text, &format!("{:.0}", flow.expires_s));
        }
        add(&mut text, flow.state);
        let counters = |packets, bytes| match self.reason {
            Some(_) => format!("packets={packets} bytes={bytes}"),
            None => String::new(),
        };
        add(&mut text, &self.tuple(false));
        let (out, back) = (&flow.original, &flow.reply);
        add(&mut text, &counters(out.packets, out.bytes));
        if !flow.flags.has(flow_flags::SEEN_REPLY) {
            add(&mut text, "[UNREPLIED]");
        }
        add(&mut text, &self.tuple(true));
        add(&mut text, &counters(back.packets, back.bytes));
        let mut tags = String::new();
        flow.put_flag_tags(&mut tags);
        add(&mut text, &tags);
        add(
            &mut text,
            &format!("zones={}>{}", flow.zone.from, flow.zone.to),
        );
        if let Some(rule) = &flow.rule {
            add(&mut text, &format!("rule={rule}"));
        }
        if let Some(parent) = &flow.parent {
            let ends = parent.to_string().replace(" > ", ">");
            add(&mut text, &format!("parent={ends} via={}", parent.via));
        }
        if let Some(reason) = self.reason {
            add(&mut text, &format!("age={:.1} reason={reason}", flow.age_s));
        }
        text
    }
}

impl LostView {
    /// `lost` events, found out at `now`.
    #[must_use]
    pub const fn new(lost: Option<u64>, now: Now) -> Self {
        Self {
            event: "LOST",
            at: now.wall,
            lost,
        }
    }
}

impl Line for LostView {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn text(&self) -> String {
        match self.lost {
            Some(lost) => format!("{:>9} {lost}", "[LOST]"),
            None => format!("{:>9} unknown, this watcher stood still", "[LOST]"),
        }
    }
}

impl EvictedView {
    /// `evicted` flows of `table`, told at `now`.
    #[must_use]
    pub const fn new(table: TableId, evicted: u64, now: Now) -> Self {
        Self {
            event: "EVICTED",
            at: now.wall,
            table: table.map(),
            evicted,
        }
    }
}

impl Line for EvictedView {
    fn at(&self) -> Timestamp {
        self.at
    }

    fn text(&self) -> String {
        format!("[EVICTED] {} from {}", self.evicted, self.table)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::render::flow::tests::{NOW, names, ping, tcp};

    fn told(kind: FlowEventKind, end: Option<EndReason>) -> Told {
        Told {
            kind,
            end,
            at_ns: NOW.monotonic_ns - 2_000_000_000,
            row: tcp(),
        }
    }

    #[test]
    fn a_line_is_as_conntrack_writes_it() {
        let view = FlowEventView::new(&told(FlowEventKind::Update, None), &names(), NOW);
        let line = view.line(false, false).unwrap();
        let start = " [UPDATE] tcp      6 ";
        assert!(line.starts_with(start), "{line}");
        let wanted = " ESTABLISHED src=10.0.0.2 dst=10.0.0.1 sport=40000 dport=21 \
                      src=10.0.0.1 dst=10.0.0.2 sport=21 dport=40000 [ASSURED][HELPER ftp] \
                      zones=host>outside rule=ftp-out\n";
        assert!(line.ends_with(wanted), "{line}");
        let stamped = view.line(false, true).unwrap();
        assert_eq!(stamped, format!("2027-01-15T07:59:58.000Z {line}"));
    }

    #[test]
    fn an_end_has_counters_and_a_reason() {
        let end = told(FlowEventKind::Destroy, Some(EndReason::Deleted));
        let view = FlowEventView::new(&end, &names(), NOW);
        let line = view.line(false, false).unwrap();
        for part in [
            "[DESTROY] tcp      6 ESTABLISHED src=10.0.0.2 ",
            " dport=21 packets=12 bytes=900 src=",
            " dport=40000 packets=14000 bytes=20971520 [ASSURED]",
            " reason=deleted\n",
        ] {
            assert!(line.contains(part), "{line}");
        }
        let json = view.line(true, false).unwrap();
        assert_eq!(json.matches('\n').count(), 1, "one line");
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["event"], "DESTROY");
        assert_eq!(json["reason"], "deleted");
        assert_eq!(json["at"], "2027-01-15T07:59:58.000Z");
        assert_eq!(json["original"]["packets"], 12);
        assert_eq!(json["expires_s"], 0.0);
    }

    #[test]
    fn a_data_connection_names_its_control_connection() {
        let data = DataFlow {
            parent: tcp().key,
            parent_incarnation: 7,
            incarnation: 7,
            via: 3,
            client_is_hi: 1,
            reserved: 0,
        };
        let told = told(FlowEventKind::New, None);
        let line = FlowEventView::new(&told, &names(), NOW)
            .with_parent(Some(&data))
            .text();
        let wanted = " rule=ftp-out parent=10.0.0.2:40000>10.0.0.1:21 via=PASV";
        assert!(line.ends_with(wanted), "{line}");
    }

    #[test]
    fn an_echo_has_an_identifier_and_no_answer_yet() {
        let new = Told {
            kind: FlowEventKind::New,
            end: None,
            at_ns: NOW.monotonic_ns,
            row: ping(),
        };
        let line = FlowEventView::new(&new, &names(), NOW).text();
        assert!(line.starts_with("    [NEW] icmpv6   58 "), "{line}");
        assert!(line.contains(" id=77 [UNREPLIED] src="), "{line}");
        assert!(!line.contains("sport"), "{line}");
    }

    #[test]
    fn what_was_lost_and_displaced_is_told() {
        let evicted = EvictedView::new(TableId::Inside4, 7, NOW);
        let line = evicted.line(false, false).unwrap();
        assert_eq!(line, "[EVICTED] 7 from HALF_OPEN4_IN\n");
        let unknown = LostView::new(None, NOW);
        assert!(unknown.text().starts_with("   [LOST] unknown"));
        let lost = LostView::new(Some(3), NOW);
        assert_eq!(lost.line(false, false).unwrap(), "   [LOST] 3\n");
        let json: Value = serde_json::from_str(&lost.line(true, true).unwrap()).unwrap();
        assert_eq!((&json["event"], &json["lost"]), (&"LOST".into(), &3.into()));
    }
}

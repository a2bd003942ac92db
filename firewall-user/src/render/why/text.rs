//! `why` as text: lines about one packet, a table of a capture's.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{HeadersView, SideView, WhyView};
use crate::{
    render::{FlowView, Ink, Paint, Row, Table, ZonesView, endpoint, short_time},
    why::condition::Condition,
};

impl WhyView {
    /// Several lines about one packet.
    #[must_use]
    pub fn render(&self, shadow: bool, ink: Ink) -> String {
        let mut out = format!("{} {}\n", self.what(), self.whereabouts());
        let paint = self.paint();
        let verdict = match (self.verdict, self.reason) {
            (Some(verdict), Some(reason)) => format!("{} {reason}", verdict.to_uppercase()),
            _ => "NOT JUDGED".into(),
        };
        out += &format!("{}: {}\n", ink.paint(&verdict, paint), self.meaning);
        if shadow && self.verdict == Some("drop") {
            out += "  mode: shadow: this packet is only counted as `would-drop`, and passes\n";
        }
        for (label, text) in self.details() {
            out += &format!("  {label}: {text}\n");
        }
        out
    }

    fn what(&self) -> String {
        match (&self.headers, self.ends) {
            (Some(headers), _) => headers.line(),
            (None, Some([src, dst])) => format!("{src} > {dst}, with headers that are refused,"),
            (None, None) => "a frame that is no readable IP packet".into(),
        }
    }

    fn whereabouts(&self) -> String {
        if self.hook == "ingress" {
            format!("in through {}", self.iface)
        } else {
            format!("out through {}", self.iface)
        }
    }

    fn paint(&self) -> Paint {
        match self.verdict {
            Some("pass") => Paint::Good,
            Some(_) => Paint::Bad,
            None => Paint::Notice,
        }
    }

    /// What decided, each under its label.
    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = Vec::new();
        if let Some(rule) = &self.rule {
            details.push(("rule", format!("{} ({})", rule.name, rule.action)));
        }
        if let Some(zone) = self.asked_zones() {
            details.push(("zones", format!("{} > {}", zone.from, zone.to)));
        }
        details.extend(self.flow_lines());
        if let Some(condition) = &self.condition {
            details.push(("because", condition.text()));
        }
        if let Some(windows) = self.windows.filter(|_| self.condition.is_some()) {
            details.push(("originator", windows.original.line()));
            details.push(("replier", windows.reply.line()));
        }
        if let Some(pinhole) = &self.expectation {
            let taken = pinhole
                .taken_by
                .map_or_else(|| "free".into(), |port| format!("taken by port {port}"));
            let parent = &pinhole.parent;
            details.push((
                "pinhole",
                format!(
                    "{} of {} > {}, {taken}, expires in {}",
                    pinhole.via,
                    endpoint(parent.client, Some(parent.cport)),
                    endpoint(parent.server, Some(parent.sport)),
                    short_time(pinhole.expires_s)
                ),
            ));
        }
        let [had, len] = self.captured;
        if had < len {
            details.push((
                "capture",
                format!("{had} of {len} bytes; the rest stands as zeros"),
            ));
        }
        if self.segments > 1 {
            details.push(("length", format!("judged as {} segments", self.segments)));
        }
        if let Some(advice) = self.advice {
            details.push(("what to do", advice.to_owned()));
        }
        details
    }

    /// The zones, if the packet came as far as to be asked for both.
    fn asked_zones(&self) -> Option<&ZonesView> {
        self.zone.as_ref().filter(|zone| &*zone.to != "any")
    }

    fn flow_lines(&self) -> Vec<(&'static str, String)> {
        match (&self.flow, &self.flow_after) {
            (None, None) if self.headers.is_some() => vec![("flow", "none".into())],
            (None, None) => Vec::new(),
            (None, Some(new)) => vec![("flow", format!("new, {}", brief(new)))],
            (Some(old), None) => vec![("flow", format!("{}; it ends", brief(old)))],
            (Some(old), Some(new)) if old.state == new.state && old.tier == new.tier => {
                vec![("flow", brief(old))]
            }
            (Some(old), Some(new)) => {
                let tier = if old.tier == new.tier { "" } else { new.tier };
                vec![(
                    "flow",
                    format!("{}; then {} {tier}", brief(old), new.state)
                        .trim_end()
                        .into(),
                )]
            }
        }
    }

    /// In a few words, for a table.
    fn because(&self) -> String {
        let mut parts = Vec::new();
        if self.verdict.is_none() {
            parts.push(self.meaning.clone());
        }
        parts.extend(self.condition.as_ref().map(Condition::brief));
        parts.extend(self.rule.as_ref().map(|rule| format!("rule {}", rule.name)));
        match (&self.flow, &self.flow_after) {
            (Some(old), Some(new)) if old.state != new.state => {
                parts.push(format!("{} → {}", old.state, new.state));
            }
            (Some(flow), _) => parts.push(flow.state.to_owned()),
            (None, Some(new)) => parts.push(format!("new {}", new.state)),
            // No rule, no flow: the zones say which rules there could be.
            (None, None) => parts.extend(
                self.asked_zones()
                    .map(|zone| format!("{} > {}", zone.from, zone.to)),
            ),
        }
        parts.extend(
            self.expectation
                .as_ref()
                .map(|e| format!("pinhole {}", e.via)),
        );
        parts.join(", ")
    }
}

/// `ESTABLISHED, 192.0.2.1:40000 > 198.51.100.2:21, rule ftp, 12s old, idle 3s, …`.
fn brief(flow: &FlowView) -> String {
    let out = &flow.original;
    let mut text = format!(
        "{} ({}), {} > {}",
        flow.state,
        flow.tier,
        endpoint(out.src, out.sport),
        endpoint(out.dst, out.dport)
    );
    if let Some(rule) = &flow.rule {
        text += &format!(", admitted by rule {rule}");
    }
    text + &format!(
        ", {} old, idle {}, expires in {}",
        short_time(flow.age_s),
        short_time(flow.idle_s),
        short_time(flow.expires_s)
    )
}

impl Row for WhyView {
    const NOUN: &str = "packets in the capture";
    const COLUMNS: &[&str] = &[
        ">#", ">TIME", "VERDICT", "REASON", "PACKET", "SEEN", "BECAUSE",
    ];

    fn draw(&self, table: &mut Table) {
        let (verdict, paint) = (self.verdict.unwrap_or("-").to_owned(), self.paint());
        table.row([
            (self.packet.to_string(), Paint::Dim),
            (
                self.time_s.map_or_else(String::new, |s| format!("{s:.6}")),
                Paint::Dim,
            ),
            (verdict, paint),
            (self.reason.unwrap_or("not judged").to_owned(), paint),
            (self.what(), Paint::None),
            (self.whereabouts(), Paint::None),
            (self.because(), Paint::Dim),
        ]);
    }
}

/// Counts by verdict and reason, the most frequent first: `10 packets: 8 pass
/// (established 7, new 1), 2 drop (policy 2)`.
#[must_use]
pub fn summary(views: &[WhyView]) -> String {
    let mut parts = Vec::new();
    for verdict in [Some("pass"), Some("drop"), None] {
        let mut counts = BTreeMap::new();
        for view in views.iter().filter(|view| view.verdict == verdict) {
            *counts.entry(view.reason.unwrap_or("")).or_insert(0) += 1;
        }
        let total: usize = counts.values().sum();
        if total == 0 {
            continue;
        }
        let mut counts: Vec<_> = counts
            .into_iter()
            .filter(|(name, _)| !name.is_empty())
            .collect();
        counts.sort_by_key(|(_, count)| Reverse(*count));
        let named: Vec<_> = counts
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        parts.push(match verdict {
            Some(verdict) => format!("{total} {verdict} ({})", named.join(", ")),
            None => format!("{total} not judged"),
        });
    }
    format!("{} packets: {}\n", views.len(), parts.join(", "))
}

impl SideView {
    fn line(&self) -> String {
        let Self {
            end,
            maxend,
            maxack,
            maxwin,
        } = self;
        format!("sent to {end}, may to {maxend}, acknowledged {maxack}, window {maxwin}")
    }
}

impl HeadersView {
    /// `tcp 192.0.2.1:40000 > 198.51.100.2:21 [SYN] seq 7 ack 0 len 0`.
    fn line(&self) -> String {
        let mut line = format!(
            "{} {} > {}",
            self.proto,
            endpoint(self.src, self.sport),
            endpoint(self.dst, self.dport)
        );
        if let (Some(flags), Some(seq), Some(ack)) = (&self.flags, self.seq, self.ack) {
            line += &format!(" [{flags}] seq {seq} ack {ack}");
        }
        if let Some(kind) = self.icmp_type {
            line += &format!(" type {kind}");
        }
        if let Some(id) = self.id {
            line += &format!(" id {id}");
        }
        line + &format!(" len {}", self.payload)
    }
}

#[cfg(test)]
mod tests {
    use firewall_common::{
        abi::Explain,
        verdict::{DropReason, PassReason, Verdict},
    };

    use super::*;
    use crate::render::DecidedView;

    fn view(verdict: Verdict) -> WhyView {
        let (name, reason) = match verdict {
            Verdict::Pass(reason) => ("pass", reason.name()),
            Verdict::Drop(reason) => ("drop", reason.name()),
        };
        WhyView {
            packet: 1,
            time_s: None,
            headers: None,
            ends: None,
            iface: "eth0".into(),
            hook: "ingress",
            verdict: Some(name),
            reason: Some(reason),
            number: Some(verdict.index()),
            meaning: "Meaning.".into(),
            advice: None,
            condition: None,
            rule: None,
            zone: None,
            flow: None,
            flow_after: None,
            windows: None,
            expectation: None,
            segments: 1,
            captured: [60, 60],
        }
    }

    #[test]
    fn a_capture_ends_with_counts() {
        let mut views = vec![view(Verdict::Pass(PassReason::Established)); 3];
        views.push(view(Verdict::Drop(DropReason::Policy)));
        views.push(WhyView {
            verdict: None,
            reason: None,
            ..view(Verdict::Drop(DropReason::Policy))
        });
        assert_eq!(
            summary(&views),
            "5 packets: 3 pass (established 3), 1 drop (policy 1), 1 not judged\n"
        );
    }

    #[test]
    fn a_packet_whose_headers_are_refused_is_named_by_its_ends() {
        let end = "192.0.2.1".parse().unwrap();
        let view = WhyView {
            ends: Some([end; 2]),
            ..view(Verdict::Drop(DropReason::Land))
        };
        let text = view.render(false, Ink::Plain);
        assert!(text.starts_with("192.0.2.1 > 192.0.2.1, "), "{text}");
    }

    #[test]
    fn a_line_of_a_capture_has_the_numbers_that_did_not_fit() {
        let notes = Explain {
            value: 5000,
            bound: 4200,
            ..Explain::NONE
        };
        let verdict = Verdict::Drop(DropReason::TcpSeqOver);
        let view = WhyView {
            condition: Condition::of(verdict, &notes),
            ..view(verdict)
        };
        assert_eq!(view.because(), "seq 5000 > 4200");
    }

    #[test]
    fn one_packet_is_told_in_lines() {
        let view = WhyView {
            rule: Some(DecidedView {
                name: "block".into(),
                action: "drop",
            }),
            zone: Some(ZonesView {
                from: "outside".into(),
                to: "host".into(),
            }),
            captured: [54, 60],
            ..view(Verdict::Drop(DropReason::Rule))
        };
        assert_eq!(
            view.render(true, Ink::Plain),
            "a frame that is no readable IP packet in through eth0\n\
             DROP rule: Meaning.\n  \
             mode: shadow: this packet is only counted as `would-drop`, and passes\n  \
             rule: block (drop)\n  \
             zones: outside > host\n  \
             capture: 54 of 60 bytes; the rest stands as zeros\n"
        );
    }
}

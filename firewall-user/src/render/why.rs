//! `why`.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use firewall_common::{
    abi::{ZONE_ANY, action},
    key::Direction,
    verdict::Verdict,
    wire::{Headers, proto},
};
use serde::Serialize;

use super::{ExpectView, FlowView, Ink, Now, Paint, Row, Table, ZonesView, endpoint, short_time};
use crate::{
    bpf::{
        address,
        maps::{FlowRow, Names},
    },
    protocol, reasons,
    why::{
        condition::Condition,
        judge::{Answer, Judged},
        tuple::flag_names,
    },
};

/// What becomes of a packet, and why.
#[derive(Clone, Debug, Serialize)]
pub struct WhyView {
    /// Its number in the capture, from 1; 1 for a single one.
    pub packet: usize,
    /// When it was captured, seconds since 1970; `null` for a single one.
    pub time_s: Option<f64>,
    /// Its headers; `null` if it is not IP, or cannot be read.
    pub headers: Option<HeadersView>,
    /// The interface.
    pub iface: String,
    /// `ingress` (XDP) or `egress` (TC).
    pub hook: &'static str,
    /// `pass` or `drop`; `null` if it could not be judged.
    pub verdict: Option<&'static str>,
    /// The stable name of the reason.
    pub reason: Option<&'static str>,
    /// Its number in the counters.
    pub number: Option<u32>,
    /// What the reason means; without a verdict, why there is none.
    pub meaning: String,
    /// What to do about it.
    pub advice: Option<&'static str>,
    /// The comparison that decided; `null` where none did.
    pub condition: Option<Condition>,
    /// The rule that matched; `null` if none was asked or none did.
    pub rule: Option<DecidedView>,
    /// Zones, as far as they were asked for.
    pub zone: Option<ZonesView>,
    /// The flow that it belongs to, as it was before.
    pub flow: Option<FlowView>,
    /// The flow as the packet left it; `null` if there is none.
    pub flow_after: Option<FlowView>,
    /// What was known of a TCP flow's two sides before.
    pub windows: Option<WindowsView>,
    /// The pinhole for it, as it was before.
    pub expectation: Option<ExpectView>,
    /// Segments that it was cut into to be judged.
    pub segments: usize,
    /// Bytes of it that the capture had, and that it has.
    pub captured: [usize; 2],
}

/// Headers of an IP packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeadersView {
    /// `tcp`, `udp`, …, or the number as text.
    pub proto: String,
    /// Source address.
    pub src: IpAddr,
    /// Source port, `null` for protocols without ports.
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, `null` for protocols without ports.
    pub dport: Option<u16>,
    /// Type of an ICMP message, else `null`.
    pub icmp_type: Option<u8>,
    /// Identifier of an ICMP echo, else `null`.
    pub id: Option<u16>,
    /// TCP flags as `SYN,ACK`; `null` for other protocols.
    pub flags: Option<String>,
    /// TCP sequence number.
    pub seq: Option<u32>,
    /// TCP acknowledgement number.
    pub ack: Option<u32>,
    /// Bytes of payload.
    pub payload: u32,
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecidedView {
    /// Its name.
    pub name: String,
    /// `accept` or `drop`.
    pub action: &'static str,
}

/// What is known of the two sides of a TCP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WindowsView {
    /// The side that sent the flow's first packet.
    pub original: SideView,
    /// The other.
    pub reply: SideView,
}

/// One side of a TCP flow. The names are those of nf_conntrack, without `td_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SideView {
    /// Sequence number after the last byte sent.
    pub end: u32,
    /// Sequence number up to which the other side lets it send.
    pub maxend: u32,
    /// Highest acknowledgement sent.
    pub maxack: u32,
    /// Widest window advertised, bytes; 0 while nothing is known of this side.
    pub maxwin: u32,
}

impl WindowsView {
    fn new(row: &FlowRow) -> Option<Self> {
        let side = |direction: Direction| {
            let side = row.flow.tcp[direction.index()];
            SideView {
                end: side.end,
                maxend: side.maxend,
                maxack: side.maxack,
                maxwin: side.maxwin,
            }
        };
        (row.key.proto() == proto::TCP).then(|| Self {
            original: side(Direction::Original),
            reply: side(Direction::Reply),
        })
    }
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
    fn new(h: &Headers) -> Self {
        let tcp = h.proto == proto::TCP;
        let ports = tcp || h.proto == proto::UDP;
        let icmp = matches!(h.proto, proto::ICMP | proto::ICMPV6);
        Self {
            proto: protocol::name(h.proto).into_owned(),
            src: address(h.src),
            sport: ports.then_some(h.sport),
            dst: address(h.dst),
            dport: ports.then_some(h.dport),
            icmp_type: icmp.then_some(h.icmp_type),
            id: h.is_echo().then_some(h.sport),
            flags: tcp.then(|| flag_names(h.tcp_flags)),
            seq: tcp.then_some(h.seq),
            ack: tcp.then_some(h.ack),
            payload: h.payload_len(),
        }
    }

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

impl WhyView {
    /// The view of an answer, the `packet`th of its capture.
    #[must_use]
    pub fn new(packet: usize, answer: &Answer, names: &Names, now: Now) -> Self {
        let blank = Self {
            packet,
            time_s: answer.at_s,
            headers: answer.headers.as_ref().map(HeadersView::new),
            iface: answer.place.name.clone(),
            hook: answer.place.hook.name(),
            verdict: None,
            reason: None,
            number: None,
            meaning: String::new(),
            advice: None,
            condition: None,
            rule: None,
            zone: None,
            flow: None,
            flow_after: None,
            windows: None,
            expectation: None,
            segments: 1,
            captured: answer.captured.into(),
        };
        match &answer.judged {
            Ok(judged) => blank.judged(judged, names, now),
            Err(why) => Self {
                meaning: format!("not judged: {why}"),
                ..blank
            },
        }
    }

    fn judged(self, judged: &Judged, names: &Names, now: Now) -> Self {
        let (verdict, reason, meaning, advice) = match judged.verdict {
            Verdict::Pass(reason) => ("pass", reason.name(), reason.help(), None),
            Verdict::Drop(reason) => (
                "drop",
                reason.name(),
                reason.help(),
                reasons::advice(reason),
            ),
        };
        let notes = &judged.notes;
        let view = |row: &Option<_>| row.as_ref().map(|row| FlowView::new(row, names, now));
        Self {
            verdict: Some(verdict),
            reason: Some(reason),
            number: Some(judged.verdict.index()),
            meaning: meaning.into(),
            advice,
            condition: Condition::of(judged.verdict, notes),
            windows: judged.before.as_ref().and_then(WindowsView::new),
            rule: judged.rule.map(|rule| DecidedView {
                name: names.rule(rule.id).unwrap_or("unnamed").to_owned(),
                action: if rule.action == action::ACCEPT {
                    "accept"
                } else {
                    "drop"
                },
            }),
            zone: (notes.from_zone != ZONE_ANY).then(|| ZonesView {
                from: names.zone(notes.from_zone),
                to: names.zone(notes.to_zone),
            }),
            flow: view(&judged.before),
            flow_after: view(&judged.after),
            expectation: judged
                .expectation
                .as_ref()
                .map(|(key, value)| ExpectView::new(key, value, &HashMap::new(), names, now)),
            segments: judged.segments,
            ..self
        }
    }

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
        self.headers.as_ref().map_or_else(
            || "a frame that is no readable IP packet".into(),
            HeadersView::line,
        )
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
        if let Some(zone) = self.zone.as_ref().filter(|zone| zone.to != "any") {
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
        parts.extend(self.rule.as_ref().map(|rule| format!("rule {}", rule.name)));
        match (&self.flow, &self.flow_after) {
            (Some(old), Some(new)) if old.state != new.state => {
                parts.push(format!("{} → {}", old.state, new.state));
            }
            (Some(flow), _) => parts.push(flow.state.to_owned()),
            (None, Some(new)) => parts.push(format!("new {}", new.state)),
            (None, None) => {}
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
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
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

#[cfg(test)]
mod tests {
    use firewall_common::verdict::{DropReason, PassReason};

    use super::*;

    fn view(verdict: Verdict) -> WhyView {
        let (name, reason) = match verdict {
            Verdict::Pass(reason) => ("pass", reason.name()),
            Verdict::Drop(reason) => ("drop", reason.name()),
        };
        WhyView {
            packet: 1,
            time_s: None,
            headers: None,
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

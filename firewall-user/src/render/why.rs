//! `why`.

mod text;

use std::{collections::HashMap, net::IpAddr};

use firewall_common::{
    abi::{ZONE_ANY, action},
    key::Direction,
    verdict::Verdict,
    wire::{Headers, proto},
};
use serde::Serialize;

pub use text::summary;

use super::{ExpectView, FlowView, Now, ZonesView};
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
    /// Source and destination of an IP packet whose headers are refused.
    #[serde(skip)]
    pub ends: Option<[IpAddr; 2]>,
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
}

impl WhyView {
    /// The view of an answer, the `packet`th of its capture.
    #[must_use]
    pub fn new(packet: usize, answer: &Answer, names: &Names, now: Now) -> Self {
        let blank = Self {
            packet,
            time_s: answer.at_s,
            headers: answer.headers.as_ref().map(HeadersView::new),
            ends: answer.ends,
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
        let [before, after] = &judged.parents;
        let view = |row: &Option<_>, parent: &Option<_>| {
            row.as_ref()
                .map(|row| FlowView::new(row, names, now).with_parent(parent.as_ref()))
        };
        Self {
            verdict: Some(verdict),
            reason: Some(reason),
            number: Some(judged.verdict.index()),
            meaning: meaning.into(),
            advice,
            condition: Condition::of(judged.verdict, notes),
            windows: judged.before.as_ref().and_then(WindowsView::new),
            rule: judged.rule.map(|rule| DecidedView {
                name: (names.rule(rule.id))
                    .map_or("unnamed", |name| name)
                    .to_owned(),
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
            flow: view(&judged.before, before),
            flow_after: view(&judged.after, after),
            expectation: judged
                .expectation
                .as_ref()
                .map(|(key, value)| ExpectView::new(key, value, &HashMap::new(), names, now)),
            segments: judged.segments,
            ..self
        }
    }
}

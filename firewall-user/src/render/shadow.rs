//! `shadow report`.

use std::net::IpAddr;

use firewall_common::{verdict::DropReason, wire::proto};
use serde::Serialize;

use super::{Ink, Paint, Table, endpoint, short_bytes};
use crate::{
    bpf::{address, maps::FlowRow},
    protocol,
    shadow::{Comparison, Disagreement, Refused, Talker, Tracking},
};

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowView {
    /// Does every packet pass at present, whatever the policy says?
    pub shadow: bool,
    /// What would have been dropped, by reason, most packets first.
    pub would_drop: Vec<RefusedView>,
    /// The comparison with nf_conntrack.
    pub kernel: KernelView,
    /// Connections on which pinhole and nf_conntrack disagree.
    pub disagreements: Vec<DisagreementView>,
    /// Of what reasons `would_drop` tells; of all if this is empty.
    #[serde(skip)]
    reasons: Vec<&'static str>,
}

/// What would have been dropped for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RefusedView {
    /// The stable name.
    pub reason: &'static str,
    /// Packets counted so far.
    pub packets: u64,
    /// Their bytes, of layer 3 upwards.
    pub bytes: u64,
    /// Flows tracked now that began with such a packet.
    pub flows: usize,
    /// Who began most of these flows.
    pub talkers: Vec<TalkerView>,
    /// The flows with most packets.
    pub examples: Vec<ConnectionView>,
    #[serde(skip)]
    help: &'static str,
}

/// A source of refused flows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TalkerView {
    /// Its address.
    pub src: IpAddr,
    /// Flows that it began.
    pub flows: usize,
    /// Their packets, both ways.
    pub packets: u64,
    /// Their bytes, of layer 3 upwards.
    pub bytes: u64,
}

/// A refused flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConnectionView {
    /// Between whom.
    #[serde(flatten)]
    pub ends: EndsView,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes of layer 3 upwards, both ways.
    pub bytes: u64,
}

/// Protocol, originator and replier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndsView {
    /// `tcp`, `udp`, `icmp`, …, or the number as text.
    pub proto: String,
    /// Who began.
    pub src: IpAddr,
    /// Its port, `null` for protocols without ports.
    pub sport: Option<u16>,
    /// With whom.
    pub dst: IpAddr,
    /// Its port, `null` for protocols without ports.
    pub dport: Option<u16>,
}

/// How much could be compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelView {
    /// `active`, `idle` (there, but it tracks nothing here) or `absent`.
    pub tracking: &'static str,
    /// Connections that the kernel tracks in this namespace.
    pub connections: usize,
    /// Connections that were quiet, and so were compared.
    pub compared: usize,
    /// Those that are the same on both sides.
    pub agree: usize,
    /// Connections that changed meanwhile.
    pub busy: usize,
    /// The kernel's that pass no guarded interface, or pass it without a flow.
    pub elsewhere: usize,
}

/// A connection on which the two disagree.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DisagreementView {
    /// `state`, `direction`, `missing-in-kernel` or `missing-in-pinhole`.
    pub kind: &'static str,
    /// Between whom.
    #[serde(flatten)]
    pub ends: EndsView,
    /// State here; `null` if there is none.
    pub pinhole: Option<&'static str>,
    /// State there; `null` if there is none.
    pub kernel: Option<&'static str>,
    /// Why, as far as can be known.
    pub reason: String,
    /// The drop reason for which enforcing refuses it, or `null`.
    pub would_drop: Option<&'static str>,
}

impl ShadowView {
    /// The view of what was found, with at most `top` examples of each reason.
    #[must_use]
    pub fn new(
        shadow: bool,
        refused: &[Refused<'_>],
        tracking: &Tracking,
        compared: &Comparison,
        top: usize,
    ) -> Self {
        let disagreements = compared.disagreements.iter();
        Self {
            shadow,
            would_drop: refused
                .iter()
                .map(|refused| RefusedView::new(refused, top))
                .collect(),
            kernel: KernelView::new(tracking, compared),
            disagreements: disagreements.map(DisagreementView::new).collect(),
            reasons: Vec::new(),
        }
    }

    /// Of what would be dropped, only that for these reasons; all if there are none.
    #[must_use]
    pub fn of_reasons(mut self, reasons: &[DropReason]) -> Self {
        self.reasons = reasons.iter().map(|reason| reason.name()).collect();
        if !reasons.is_empty() {
            self.would_drop
                .retain(|refused| self.reasons.contains(&refused.reason));
        }
        self
    }

    /// Tables, with a line where one would be empty.
    #[must_use]
    pub fn render(&self, ink: Ink) -> String {
        let mut out = String::from(if self.shadow {
            "SHADOW MODE: nothing is dropped\n\n"
        } else {
            "the policy is enforced; what follows was counted in shadow mode before\n\n"
        });
        if !self.would_drop.is_empty() {
            out += &self.refused_table().render(ink);
        } else if self.reasons.is_empty() {
            out += "nothing would have been dropped so far\n";
        } else {
            let reasons = self.reasons.join(" or ");
            out += &format!("nothing would have been dropped for {reasons} so far\n");
        }
        out.push('\n');
        out += &self.kernel.line(self.disagreements.len());
        if !self.disagreements.is_empty() {
            out.push('\n');
            out += &self.disagreements_table().render(ink);
        }
        out
    }

    fn refused_table(&self) -> Table {
        let headings = ["WOULD DROP", ">PACKETS", ">BYTES", ">FLOWS", "MEANING"];
        let mut table = Table::new(&headings);
        for refused in &self.would_drop {
            table.row([
                (refused.reason.to_owned(), Paint::Notice),
                (refused.packets.to_string(), Paint::None),
                (short_bytes(refused.bytes), Paint::None),
                (refused.flows.to_string(), Paint::None),
                (refused.help.to_owned(), Paint::Dim),
            ]);
            for talker in &refused.talkers {
                let TalkerView {
                    src,
                    flows,
                    packets,
                    ..
                } = talker;
                table.note(
                    format!("  from {src}: {flows} flows, {packets} packets"),
                    Paint::None,
                );
            }
            for example in &refused.examples {
                table.note(format!("  e.g. {}", example.ends.text()), Paint::Dim);
            }
        }
        table
    }

    fn disagreements_table(&self) -> Table {
        let headings = ["DISAGREE", "CONNECTION", "PINHOLE", "KERNEL", "WHY"];
        let mut table = Table::new(&headings);
        for one in &self.disagreements {
            let state = |state: Option<&str>| state.unwrap_or("-").to_owned();
            let mut ends = one.ends.text();
            if let Some(reason) = one.would_drop {
                ends += &format!(" [WOULD DROP {reason}]");
            }
            table.row([
                (one.kind.to_owned(), Paint::Bad),
                (ends, Paint::None),
                (state(one.pinhole), Paint::None),
                (state(one.kernel), Paint::None),
                (one.reason.clone(), Paint::Dim),
            ]);
        }
        table
    }
}

impl RefusedView {
    fn new(refused: &Refused<'_>, top: usize) -> Self {
        let examples = refused.flows.iter().take(top);
        Self {
            reason: refused.reason.name(),
            packets: refused.counted.packets,
            bytes: refused.counted.bytes,
            flows: refused.flows.len(),
            talkers: refused.talkers.iter().map(TalkerView::new).collect(),
            examples: examples.map(|row| ConnectionView::new(row)).collect(),
            help: refused.reason.help(),
        }
    }
}

impl TalkerView {
    const fn new(talker: &Talker) -> Self {
        let Talker {
            src,
            flows,
            packets,
            bytes,
        } = *talker;
        Self {
            src,
            flows,
            packets,
            bytes,
        }
    }
}

impl ConnectionView {
    fn new(row: &FlowRow) -> Self {
        let (src, sport, dst, dport) = row.key.endpoints(row.state().first_heading());
        let ends = [(address(src), sport), (address(dst), dport)];
        Self {
            ends: EndsView::new(row.key.proto(), ends),
            packets: row.flow.packets.iter().copied().map(u64::from).sum(),
            bytes: row.flow.all_octets(),
        }
    }
}

impl EndsView {
    fn new(protocol: u8, [(src, sport), (dst, dport)]: [(IpAddr, u16); 2]) -> Self {
        let has_ports = matches!(protocol, proto::TCP | proto::UDP);
        Self {
            proto: protocol::name(protocol).into_owned(),
            src,
            sport: has_ports.then_some(sport),
            dst,
            dport: has_ports.then_some(dport),
        }
    }

    fn text(&self) -> String {
        let (from, to) = (
            endpoint(self.src, self.sport),
            endpoint(self.dst, self.dport),
        );
        format!("{} {from} > {to}", self.proto)
    }
}

impl KernelView {
    fn new(tracking: &Tracking, compared: &Comparison) -> Self {
        let (tracking, connections) = match tracking {
            Tracking::Absent => ("absent", 0),
            Tracking::Idle => ("idle", 0),
            Tracking::Active(entries) => ("active", entries.len()),
        };
        Self {
            tracking,
            connections,
            compared: compared.agree + compared.disagreements.len(),
            agree: compared.agree,
            busy: compared.busy,
            elsewhere: compared.elsewhere,
        }
    }

    fn line(&self, disagreements: usize) -> String {
        match self.tracking {
            "absent" => "nf_conntrack: this kernel has none, so nothing is compared\n".to_owned(),
            "idle" => "nf_conntrack: it tracks nothing in this namespace (no rule asks for it), \
                       so nothing is compared\n"
                .to_owned(),
            _ => format!(
                "nf_conntrack: {} connections quiet on both sides compared: {} agree, \
                 {disagreements} disagree; {} busy, {} not pinhole's to track\n",
                self.compared, self.agree, self.busy, self.elsewhere
            ),
        }
    }
}

impl DisagreementView {
    fn new(one: &Disagreement) -> Self {
        Self {
            kind: one.kind.name(),
            ends: EndsView::new(one.protocol, one.ends),
            pinhole: one.pinhole,
            kernel: one.kernel,
            reason: one.reason.clone(),
            would_drop: one.would_drop.map(DropReason::name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shadow::{
        Kind, by_reason,
        refused_tests::{refused, stats},
    };

    fn view(tracking: &Tracking) -> ShadowView {
        let rows = [refused("192.0.2.1", 40_000, 3)];
        let compared = Comparison {
            agree: 7,
            busy: 1,
            elsewhere: 2,
            disagreements: vec![Disagreement {
                kind: Kind::State,
                protocol: 6,
                ends: ["192.0.2.1", "10.0.0.1"].map(|ip| (ip.parse().unwrap(), 22)),
                pinhole: Some("ESTABLISHED"),
                kernel: Some("CLOSE"),
                reason: "why".into(),
                would_drop: Some(DropReason::Policy),
            }],
        };
        let refused = by_reason(&stats(), &rows, 5);
        ShadowView::new(true, &refused, tracking, &compared, 5)
    }

    #[test]
    fn the_json() {
        let shown = serde_json::to_value(view(&Tracking::Active(Vec::new()))).unwrap();
        assert_eq!(shown["shadow"], true);
        assert_eq!(
            shown["would_drop"][1],
            json!({
                "reason": "policy", "packets": 4, "bytes": 240, "flows": 1,
                "talkers": [{ "src": "192.0.2.1", "flows": 1, "packets": 3, "bytes": 180 }],
                "examples": [{
                    "proto": "tcp", "src": "192.0.2.1", "sport": 40_000, "dst": "10.0.0.1",
                    "dport": 22, "packets": 3, "bytes": 180,
                }],
            })
        );
        assert_eq!(
            shown["kernel"],
            json!({
                "tracking": "active", "connections": 0, "compared": 8, "agree": 7, "busy": 1,
                "elsewhere": 2,
            })
        );
        assert_eq!(
            shown["disagreements"],
            json!([{
                "kind": "state", "proto": "tcp", "src": "192.0.2.1", "sport": 22,
                "dst": "10.0.0.1", "dport": 22, "pinhole": "ESTABLISHED", "kernel": "CLOSE",
                "reason": "why", "would_drop": "policy",
            }])
        );
    }

    #[test]
    fn the_text() {
        let plain = view(&Tracking::Active(Vec::new())).render(Ink::Plain);
        for part in [
            "SHADOW MODE: nothing is dropped\n\nWOULD DROP",
            "  from 192.0.2.1: 1 flows, 3 packets\n",
            "  e.g. tcp 192.0.2.1:40000 > 10.0.0.1:22\n",
            "nf_conntrack: 8 connections quiet on both sides compared: 7 agree, 1 disagree",
            "tcp 192.0.2.1:22 > 10.0.0.1:22 [WOULD DROP policy]  ESTABLISHED  CLOSE   why\n",
        ] {
            assert!(plain.contains(part), "{part:?} in {plain}");
        }
        let stray = view(&Tracking::Absent).of_reasons(&[DropReason::TcpNoFlow]);
        assert_eq!(stray.would_drop.len(), 1, "of two");
        let rule = view(&Tracking::Absent).of_reasons(&[DropReason::Rule]);
        let plain = rule.render(Ink::Plain);
        assert!(plain.contains("dropped for rule so far\n"), "{plain}");
        let none = ShadowView::new(false, &[], &Tracking::Absent, &Comparison::default(), 5);
        let plain = none.render(Ink::Plain);
        assert!(plain.starts_with("the policy is enforced"), "{plain}");
        assert!(
            plain.contains("nothing would have been dropped so far\n"),
            "{plain}"
        );
        assert!(
            plain.ends_with("this kernel has none, so nothing is compared\n"),
            "{plain}"
        );
    }
}

//! `stats`.

use firewall_common::{
    abi::{Counter, Rule, action},
    verdict::{DropReason, Event, PassReason, Verdict},
};
use serde::Serialize;

use super::{Paint, Table, short_bytes, table::Ink};
use crate::bpf::maps::Names;

/// All counters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatsView {
    /// Does every packet pass at present, whatever the policy says?
    pub shadow: bool,
    /// Packets that passed, by [`PassReason`].
    pub pass: Vec<ReasonView>,
    /// Packets that were dropped, by [`DropReason`].
    pub drop: Vec<ReasonView>,
    /// Packets that passed in shadow mode and would have been dropped. They
    /// count neither as passed nor as dropped.
    pub would_drop: Vec<ReasonView>,
    /// What happened beside, by [`Event`].
    pub events: Vec<EventView>,
    /// First packets of flows, by the rule that decided on them, in order of precedence.
    pub rules: Vec<RuleView>,
}

/// Packets of one outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReasonView {
    /// The stable name.
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes of layer 3 upwards.
    pub bytes: u64,
    #[serde(skip)]
    help: &'static str,
}

/// How often something happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventView {
    /// The stable name.
    pub event: &'static str,
    /// Times.
    pub count: u64,
    #[serde(skip)]
    help: &'static str,
}

/// First packets of flows that a rule decided on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleView {
    /// The rule's name.
    pub name: String,
    /// `accept` or `drop`.
    pub action: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes of layer 3 upwards.
    pub bytes: u64,
}

impl StatsView {
    /// From the mode, the `STATS` map and the live rules with their counters;
    /// what is zero only if `all`.
    #[must_use]
    pub fn new(
        shadow: bool,
        stats: &[Counter],
        rules: &[(Rule, Counter)],
        names: &Names,
        all: bool,
    ) -> Self {
        let counter = |index: u32| stats.get(index as usize).copied().unwrap_or_default();
        let reason = |name, help, index| {
            let Counter { packets, bytes } = counter(index);
            (all || packets > 0).then_some(ReasonView {
                reason: name,
                packets,
                bytes,
                help,
            })
        };
        let pass = PassReason::ALL.iter();
        let drop = DropReason::ALL.iter();
        let would_drop = DropReason::ALL.iter();
        Self {
            shadow,
            pass: pass
                .filter_map(|r| reason(r.name(), r.help(), r.index()))
                .collect(),
            drop: drop
                .filter_map(|r| reason(r.name(), r.help(), r.index()))
                .collect(),
            would_drop: would_drop
                .filter_map(|r| reason(r.name(), r.help(), Verdict::in_shadow(r.index())))
                .collect(),
            events: Event::ALL
                .iter()
                .map(|event| EventView {
                    event: event.name(),
                    count: counter(event.index()).packets,
                    help: event.help(),
                })
                .filter(|event| all || event.count > 0)
                .collect(),
            rules: by_rule(rules, names, all),
        }
    }

    /// Nothing counted yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pass.is_empty()
            && self.drop.is_empty()
            && self.would_drop.is_empty()
            && self.events.is_empty()
            && self.rules.is_empty()
    }

    /// Five tables, those without rows left out.
    #[must_use]
    pub fn render(&self, ink: Ink) -> String {
        let mode = if self.shadow {
            "SHADOW MODE: nothing is dropped\n\n"
        } else {
            ""
        };
        let mut parts = Vec::new();
        for (heading, rows, paint) in [
            ("PASSED", &self.pass, Paint::Good),
            ("DROPPED", &self.drop, Paint::Bad),
            ("WOULD DROP", &self.would_drop, Paint::Notice),
        ] {
            let mut table = Table::new(&[heading, ">PACKETS", ">BYTES", "MEANING"]);
            for row in rows {
                table.row([
                    (row.reason.to_owned(), paint),
                    (row.packets.to_string(), Paint::None),
                    (short_bytes(row.bytes), Paint::None),
                    (row.help.to_owned(), Paint::Dim),
                ]);
            }
            parts.push((rows.len(), table));
        }
        parts.push((self.rules.len(), self.rules_table()));
        parts.push((self.events.len(), self.events_table()));
        let filled = parts.iter().filter(|(rows, _)| *rows > 0);
        let texts: Vec<String> = filled.map(|(_, table)| table.render(ink)).collect();
        format!("{mode}{}", texts.join("\n"))
    }

    fn rules_table(&self) -> Table {
        let mut table = Table::new(&["RULE", ">NEW FLOWS", ">BYTES", "ACTION"]);
        for rule in &self.rules {
            table.row([
                (rule.name.clone(), Paint::None),
                (rule.packets.to_string(), Paint::None),
                (short_bytes(rule.bytes), Paint::None),
                (rule.action.to_owned(), Paint::None),
            ]);
        }
        table
    }

    fn events_table(&self) -> Table {
        let mut table = Table::new(&["EVENT", ">COUNT", "MEANING"]);
        for event in &self.events {
            table.row([
                (event.event.to_owned(), Paint::None),
                (event.count.to_string(), Paint::None),
                (event.help.to_owned(), Paint::Dim),
            ]);
        }
        table
    }
}

/// Sums what one rule of the configuration was compiled to.
fn by_rule(rules: &[(Rule, Counter)], names: &Names, all: bool) -> Vec<RuleView> {
    let mut out: Vec<(u16, RuleView)> = Vec::new();
    for (rule, hits) in rules {
        match out.last_mut().filter(|(id, _)| *id == rule.id) {
            Some((_, view)) => {
                view.packets += hits.packets;
                view.bytes += hits.bytes;
            }
            None => out.push((rule.id, rule_view(rule, hits, names))),
        }
    }
    let views = out.into_iter().map(|(_, view)| view);
    views.filter(|view| all || view.packets > 0).collect()
}

fn rule_view(rule: &Rule, hits: &Counter, names: &Names) -> RuleView {
    let name = names.rule(rule.id);
    RuleView {
        name: name.map_or("unnamed", |name| name).to_owned(),
        action: if rule.action == action::ACCEPT {
            "accept"
        } else {
            "drop"
        },
        packets: hits.packets,
        bytes: hits.bytes,
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use firewall_common::verdict::STATS_LEN;
    use serde_json::json;

    use super::*;
    use crate::render::flow::tests::names;

    fn view(all: bool) -> StatsView {
        let mut stats = vec![Counter::default(); STATS_LEN as usize];
        let mut set = |index: u32, packets, bytes| {
            stats[index as usize] = Counter { packets, bytes };
        };
        set(PassReason::Established.index(), 1000, 1 << 20);
        set(DropReason::Policy.index(), 3, 180);
        set(Verdict::in_shadow(DropReason::Rule.index()), 7, 420);
        set(Event::FlowCreated.index(), 5, 0);
        let rule = |id, packets| {
            let rule = Rule {
                id,
                action: action::ACCEPT,
                ..Rule::zeroed()
            };
            (
                rule,
                Counter {
                    packets,
                    bytes: 60 * packets,
                },
            )
        };
        let rules = [rule(0, 2), rule(0, 3), rule(1, 0)];
        StatsView::new(false, &stats, &rules, &names(), all)
    }

    #[test]
    fn the_json() {
        assert_eq!(
            serde_json::to_value(view(false)).unwrap(),
            json!({
                "pass": [{ "reason": "established", "packets": 1000, "bytes": 1 << 20 }],
                "shadow": false,
                "drop": [{ "reason": "policy", "packets": 3, "bytes": 180 }],
                "would_drop": [{ "reason": "rule", "packets": 7, "bytes": 420 }],
                "events": [{ "event": "flow-created", "count": 5 }],
                "rules": [
                    { "name": "ftp-out", "action": "accept", "packets": 5, "bytes": 300 },
                ],
            })
        );
    }

    #[test]
    fn all_means_all() {
        let all = view(true);
        assert_eq!(all.pass.len(), PassReason::ALL.len());
        assert_eq!(all.drop.len(), DropReason::ALL.len());
        assert_eq!(all.would_drop.len(), DropReason::ALL.len());
        assert_eq!(all.events.len(), Event::ALL.len());
        assert_eq!(all.rules.len(), 2);
        assert!(StatsView::new(false, &[], &[], &names(), false).is_empty());
    }

    #[test]
    fn the_tables() {
        let plain = view(false).render(Ink::Plain);
        assert!(
            plain.starts_with(
                "PASSED       PACKETS  BYTES  MEANING\n\
                 established     1000   1.0M  Belongs to a tracked flow.\n\n\
                 DROPPED  PACKETS  BYTES  MEANING\n"
            ),
            "{plain}"
        );
        assert!(
            plain.contains("\n\nWOULD DROP  PACKETS  BYTES  MEANING\nrule"),
            "{plain}"
        );
        let shadow = StatsView {
            shadow: true,
            ..view(false)
        };
        let plain = shadow.render(Ink::Plain);
        assert!(
            plain.starts_with("SHADOW MODE: nothing is dropped\n\nPASSED"),
            "{plain}"
        );
    }
}

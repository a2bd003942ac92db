//! Flows that shadow mode let in, under the policy that comes next.
//!
//! The rules judge first packets, so the programs can judge such a flow anew only
//! when it begins anew. Here its first packet is known from its entry: what the
//! new policy accepts is admitted as it stands, and is not cut off.

use anyhow::Context as _;
use firewall_common::{
    abi::{FlowKey6, action, flow_flags},
    wire::{Family, Headers, proto},
};

use crate::{
    bpf::{
        address,
        loader::Loaded,
        maps::{FlowRow, Pinned},
        requests,
    },
    classes::Classes,
};

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readmitted {
    /// The policy accepts these, and they keep their pass.
    pub admitted: usize,
    /// These it refuses.
    pub refused: usize,
}

/// Admits the refused flows that `rules` accept.
///
/// # Errors
/// Maps that cannot be read, or the control program fails.
pub fn readmit(loaded: &Loaded, rules: &Classes<'_>) -> anyhow::Result<Readmitted> {
    let pinned = Pinned::open(&loaded.instance)?;
    let refused = pinned.flows_where(|row| row.state().has(flow_flags::WOULD_DROP))?;
    let accepted: Vec<FlowKey6> = refused
        .iter()
        .filter(|row| accepts(rules, row))
        .map(|row| row.key)
        .collect();
    let admitted = requests::admit(loaded, &accepted)
        .context("admit what shadow mode let in and the policy accepts")?;
    Ok(Readmitted {
        admitted: admitted as usize,
        refused: refused.len() - accepted.len(),
    })
}

/// Would the flow's first packet be accepted?
fn accepts(rules: &Classes<'_>, row: &FlowRow) -> bool {
    let headers = first_packet(row);
    let (from, to) = (row.flow.from_zone(), row.flow.to_zone());
    rules
        .find(&headers, from, to)
        .is_some_and(|rule| rule.action == action::ACCEPT)
}

fn first_packet(row: &FlowRow) -> Headers {
    let (src, sport, dst, dport) = row.key.endpoints(row.state().first_heading());
    let v4 = address(src).is_ipv4();
    Headers {
        family: if v4 { Family::V4 } else { Family::V6 },
        proto: row.key.proto(),
        src,
        dst,
        sport,
        dport,
        icmp_type: match row.key.proto() {
            proto::ICMP => 8,
            proto::ICMPV6 => 128,
            _ => 0,
        },
        ..Headers::ZERO
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use firewall_common::abi::{Rule, ZONE_ANY, rule_flags};

    use super::*;
    use crate::filter::tests::row;

    fn rule(what: u8, dport: u16) -> Rule {
        Rule {
            from_zone: 1,
            to_zone: ZONE_ANY,
            proto: proto::TCP,
            sport: [0, u16::MAX],
            dport: [dport; 2],
            flags: rule_flags::PORTS,
            action: what,
            ..Rule::zeroed()
        }
    }

    #[test]
    fn the_first_packet_decides_whichever_way_the_key_lies() {
        for (src, dst) in [("192.0.2.9", "10.0.0.1"), ("10.0.0.1", "192.0.2.9")] {
            let ssh = row(6, src, 40_000, dst, 22);
            assert!(accepts(
                &Classes::of(&[rule(action::ACCEPT, 22)]).unwrap(),
                &ssh
            ));
            assert!(!accepts(
                &Classes::of(&[rule(action::ACCEPT, 40_000)]).unwrap(),
                &ssh
            ));
            assert!(!accepts(&Classes::of(&[]).unwrap(), &ssh));
        }
    }

    #[test]
    fn the_first_match_decides_and_zones_count() {
        let ssh = row(6, "2001:db8::9", 40_000, "2001:db8::1", 22);
        let (yes, no) = (rule(action::ACCEPT, 22), rule(action::DROP, 22));
        assert!(!accepts(&Classes::of(&[no, yes]).unwrap(), &ssh));
        assert!(accepts(&Classes::of(&[yes, no]).unwrap(), &ssh));
        let elsewhere = Rule {
            from_zone: 2,
            ..yes
        };
        assert!(!accepts(&Classes::of(&[elsewhere]).unwrap(), &ssh));
    }
}

//! What shadow mode let in although enforcing refuses it, by reason.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use firewall_common::{
    abi::Counter,
    verdict::{DropReason, Verdict},
};

use crate::bpf::{address, maps::FlowRow};

/// What would have been dropped for one reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused<'a> {
    /// The reason.
    pub reason: DropReason,
    /// Packets that were counted under it, and their bytes.
    pub counted: Counter,
    /// Flows under it that are tracked now, the one with most packets first.
    pub flows: Vec<&'a FlowRow>,
    /// Who began most of them.
    pub talkers: Vec<Talker>,
}

/// A source of refused flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Talker {
    /// Its address.
    pub src: IpAddr,
    /// Flows that it began.
    pub flows: usize,
    /// Packets of these flows, both ways.
    pub packets: u64,
    /// Bytes of layer 3 upwards.
    pub bytes: u64,
}

/// Every reason for which something would have been dropped, the one with most
/// packets first, with at most `top` talkers each. `stats` is the `STATS` map.
#[must_use]
pub fn by_reason<'a>(stats: &[Counter], rows: &'a [FlowRow], top: usize) -> Vec<Refused<'a>> {
    let mut flows: BTreeMap<u8, Vec<&FlowRow>> = BTreeMap::new();
    for row in rows {
        if let Some(reason) = row.flow.would_drop() {
            flows.entry(reason as u8).or_default().push(row);
        }
    }
    let mut out: Vec<_> = DropReason::ALL
        .iter()
        .map(|&reason| {
            let index = Verdict::in_shadow(reason.index()) as usize;
            let mut flows = flows.remove(&(reason as u8)).unwrap_or_default();
            flows.sort_by_key(|row| Reverse(packets(row)));
            Refused {
                reason,
                counted: stats.get(index).copied().unwrap_or_default(),
                talkers: talkers(&flows, top),
                flows,
            }
        })
        .filter(|refused| refused.counted.packets > 0 || !refused.flows.is_empty())
        .collect();
    out.sort_by_key(|refused| Reverse(refused.counted.packets));
    out
}

fn packets(row: &FlowRow) -> u64 {
    row.flow.packets.iter().copied().map(u64::from).sum()
}

fn talkers(flows: &[&FlowRow], top: usize) -> Vec<Talker> {
    let mut by_source: HashMap<IpAddr, Talker> = HashMap::new();
    for row in flows {
        let (src, ..) = row.key.endpoints(row.state().first_heading());
        let src = address(src);
        let talker = by_source.entry(src).or_insert(Talker {
            src,
            flows: 0,
            packets: 0,
            bytes: 0,
        });
        talker.flows += 1;
        talker.packets += packets(row);
        talker.bytes += row.flow.all_octets();
    }
    let mut talkers: Vec<_> = by_source.into_values().collect();
    talkers.sort_by_key(|talker| (Reverse(talker.flows), Reverse(talker.packets), talker.src));
    talkers.truncate(top);
    talkers
}

#[cfg(test)]
pub(crate) mod tests {
    use firewall_common::{
        abi::{Last, flow_flags},
        verdict::STATS_LEN,
    };

    use super::*;
    use crate::filter::tests::row;

    /// A flow that `policy` refuses, of `packets` packets.
    pub(crate) fn refused(src: &str, sport: u16, packets: u32) -> FlowRow {
        let mut row = row(6, src, sport, "10.0.0.1", 22);
        row.flow.state = row.state().with(flow_flags::WOULD_DROP).0;
        row.flow.last = Last::new(DropReason::Policy as u16, 1, 2).0;
        row.flow.packets = [packets, 0];
        row.flow.bytes = [u64::from(packets) * 60, 0];
        row
    }

    /// Counters in which `policy` and `tcp-no-flow` would have dropped something.
    pub(crate) fn stats() -> Vec<Counter> {
        let mut stats = vec![Counter::default(); STATS_LEN as usize];
        for (reason, packets) in [(DropReason::Policy, 4), (DropReason::TcpNoFlow, 9)] {
            let index = Verdict::in_shadow(reason.index());
            stats[index as usize] = Counter {
                packets,
                bytes: 60 * packets,
            };
        }
        stats
    }

    #[test]
    fn reasons_come_with_their_flows_and_who_began_them() {
        let rows = [
            refused("192.0.2.1", 1, 1),
            refused("192.0.2.2", 2, 7),
            refused("192.0.2.1", 3, 2),
            refused("192.0.2.3", 4, 1),
            row(6, "192.0.2.9", 5, "10.0.0.1", 22),
        ];
        let found = by_reason(&stats(), &rows, 2);
        let [stray, policy] = &found[..] else {
            panic!("two reasons, not {found:?}");
        };
        assert_eq!(
            (stray.reason, stray.counted.packets),
            (DropReason::TcpNoFlow, 9)
        );
        assert!(stray.flows.is_empty());
        assert_eq!((policy.reason, policy.flows.len()), (DropReason::Policy, 4));
        assert_eq!(policy.flows[0].flow.packets[0], 7, "most packets first");
        let talkers: Vec<_> = policy
            .talkers
            .iter()
            .map(|t| (t.src.to_string(), t.flows, t.packets))
            .collect();
        assert_eq!(
            talkers,
            [
                ("192.0.2.1".to_owned(), 2, 3),
                ("192.0.2.2".to_owned(), 1, 7)
            ]
        );
        assert_eq!(by_reason(&[], &rows[4..], 2), []);
    }
}

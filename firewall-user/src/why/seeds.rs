//! What the private tables must hold for a set of packets to be judged as the
//! live ones would judge them.

use std::collections::HashSet;

use firewall_common::{
    abi::{ExpectKey, FlowKey6, PairKey},
    key::FlowKey as _,
    wire::{Headers, proto},
};

use super::frame;
use crate::bpf::{lookup::Lookup, maps, private};

/// Keys that packets can look up.
#[derive(Debug, Default)]
pub struct Seeds {
    flows: HashSet<FlowKey6>,
    expectations: HashSet<ExpectKey>,
    pairs: HashSet<PairKey>,
}

/// The key of the flow that a packet is judged by: for an ICMP error, that of
/// the packet which it quotes.
#[must_use]
pub fn flow_key(frame: &[u8], h: &Headers) -> Option<FlowKey6> {
    if h.is_icmp_error() {
        return frame::quoted(frame, h).map(|quoted| FlowKey6::of(&quoted).0);
    }
    Some(FlowKey6::of(h).0)
}

/// The pinhole of the connection that begins with this packet.
#[must_use]
pub const fn expect_key(h: &Headers) -> Option<ExpectKey> {
    match h.proto {
        proto::TCP => Some(ExpectKey::tcp(h.src, h.dst, h.dport)),
        _ => None,
    }
}

impl Seeds {
    /// Adds what this packet can look up.
    pub fn add(&mut self, frame: &[u8], h: &Headers) {
        self.flows.extend(flow_key(frame, h));
        if h.proto != proto::TCP {
            return;
        }
        self.pairs.insert(PairKey::new(h.src, h.dst));
        // A reply finds the pinhole of its connection, too: it has served it then.
        let reply = Headers {
            src: h.dst,
            dst: h.src,
            dport: h.sport,
            ..*h
        };
        self.expectations.extend(expect_key(h));
        self.expectations.extend(expect_key(&reply));
    }

    /// How many flows there can be, those of pinholes included.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len() + self.expectations.len()
    }

    /// Copies what there is into the private tables, states and ages as they are.
    ///
    /// # Errors
    ///
    /// Those of the maps.
    pub fn copy(
        &self,
        from: &Lookup,
        to: &mut private::Private,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut flows = self.flows.clone();
        for key in &self.expectations {
            if let Some(expectation) = from.expectation(key)? {
                flows.insert(expectation.parent);
                to.put_expectation(key, &expectation)?;
            }
        }
        for key in &self.pairs {
            if let Some(pair) = from.pair(key)? {
                to.put_pair(key, &pair)?;
            }
        }
        flows.iter().try_for_each(|key| copy_flow(key, from, to))
    }
}

fn copy_flow(
    key: &FlowKey6,
    from: &Lookup,
    to: &mut private::Private,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let found: Option<_> = from
        .flow(key)
        .map_err(|error: maps::Error| Box::new(error))?;
    if let Some(found) = found {
        to.put_flow(key, &found)?;
        if let Some(data) = from.data_flow(key)? {
            to.put_data_flow(key, &data)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::why::{
        frame::Packet,
        tuple::{Detail, Tuple},
    };

    const DETAIL: Detail = Detail {
        flags: 2,
        seq: 0,
        ack: 0,
        window: 0,
        payload: 0,
        icmp_type: 3,
        icmp_code: 4,
        id: 0,
    };

    fn add(seeds: &mut Seeds, packet: &Packet) {
        let h = packet.headers().unwrap().unwrap();
        seeds.add(&packet.frame, &h);
    }

    #[test]
    fn both_directions_want_the_same() {
        let mut seeds = Seeds::default();
        let out = Tuple::parse("tcp", "192.0.2.1:1000", "192.0.2.2:21").unwrap();
        let back = Tuple::parse("tcp", "192.0.2.2:21", "192.0.2.1:1000").unwrap();
        add(&mut seeds, &Packet::ip(&out.packet(&DETAIL)));
        let once = (
            seeds.flows.len(),
            seeds.expectations.len(),
            seeds.pairs.len(),
        );
        assert_eq!(once, (1, 2, 1));
        add(&mut seeds, &Packet::ip(&back.packet(&DETAIL)));
        assert_eq!(seeds.flows(), 3);
    }

    #[test]
    fn an_error_wants_the_flow_that_it_quotes() {
        let quoted = Tuple::parse("udp", "192.0.2.1:1000", "192.0.2.2:53").unwrap();
        let error = Tuple::parse("icmp", "192.0.2.9", "192.0.2.1").unwrap();
        let mut bytes = error.packet(&Detail {
            payload: 28,
            ..DETAIL
        });
        bytes[28..56].copy_from_slice(&quoted.packet(&DETAIL));
        let mut seeds = Seeds::default();
        add(&mut seeds, &Packet::ip(&bytes));
        let wanted = FlowKey6::of(&quoted.headers(&DETAIL)).0;
        assert!(seeds.flows.contains(&wanted), "{seeds:?}");
        assert!(seeds.pairs.is_empty());
    }
}

//! Thousands of rules: the one that decides is the one that a walk through them finds.

use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{Rule, ZONE_ANY, action, maps, rule_flags, rule_id},
    key::map_v4,
    policy::matches,
    verdict::{DropReason, PassReason},
    wire::{Family, Headers},
};

use crate::{
    packets::{End, HOST, PEER, PEER6, udp},
    rig::{OUTSIDE, Rig, dropped, passed, seed},
};

const MANY: u32 = 10_000;

/// The address that the rule with this number is about.
fn server(rule: u32) -> [u8; 4] {
    (0x0a00_0000 + 3 * rule).to_be_bytes()
}

/// Lets UDP from outside reach a server, or does not.
fn about(rule: u32, accept: bool) -> Rule {
    Rule {
        dst: map_v4(u32::from_ne_bytes(server(rule))),
        dst_mask: [u32::MAX; 4],
        sport: [0, u16::MAX],
        dport: [53, 53],
        flags: rule_flags::DST | rule_flags::PORTS | rule_flags::V4_ONLY,
        id: rule as u16,
        proto: 17,
        from_zone: OUTSIDE,
        to_zone: ZONE_ANY,
        action: if accept { action::ACCEPT } else { action::DROP },
        ..Rule::zeroed()
    }
}

/// So many rules of which every third drops, after `first`.
fn policy(first: u32, count: u32) -> Vec<Rule> {
    let rules = first..first + count;
    let numbered = (0..).zip(rules);
    numbered
        .map(|(id, rule)| Rule {
            id,
            ..about(rule, rule % 3 != 2)
        })
        .collect()
}

fn query(sport: u16, to: [u8; 4]) -> Vec<u8> {
    udp(End::V4(PEER, sport), End::V4(to, 53), b"query")
}

#[test]
fn the_first_the_last_and_those_between_decide_and_are_counted() {
    let mut rig = Rig::with_rules(&policy(0, MANY));
    for at in [0, 1, 2, 511, 512, 4096, 5000, MANY - 2, MANY - 1] {
        let before = rig.hits(0);
        let outcome = rig.ingress(&query(4000, server(at)));
        if at % 3 == 2 {
            assert_eq!(outcome, dropped(DropReason::Rule), "{at}");
        } else {
            assert_eq!(outcome, passed(PassReason::NewByRule), "{at}");
            let flows = rig.flows4(maps::HALF_OPEN4_OUT);
            let rule = |flow: &firewall_common::abi::Flow| flow.rule() == rule_id(0, at as u16);
            assert!(flows.values().any(|(_, flow)| rule(flow)), "{at}");
        }
        let after = rig.hits(0);
        let counted: Vec<usize> = (0..MANY as usize)
            .filter(|rule| after[*rule] != before[*rule])
            .collect();
        assert_eq!(counted, [at as usize]);
    }
    for beside in [[10, 0, 0, 1], HOST, [9, 255, 255, 255], [223; 4]] {
        assert_eq!(
            rig.ingress(&query(4001, beside)),
            dropped(DropReason::Policy)
        );
    }
    let six = udp(End::V6(PEER6, 4000), End::V6([0xff; 16], 53), b"query");
    assert_eq!(rig.ingress(&six), dropped(DropReason::Policy));
}

/// The generations take turns; each packet meets one of them, whole.
#[test]
fn many_rules_give_way_to_few_and_come_back() {
    let mut rig = Rig::with_rules(&policy(0, MANY));
    for round in 1..6_u32 {
        let (generation, sport) = (round & 1, 5000 + round as u16);
        let (count, last) = if round % 2 == 1 {
            (10, 10)
        } else {
            (MANY, MANY)
        };
        rig.generation(generation, &policy(1, count));
        let outcomes = [0, 1, last, last + 1].map(|at| rig.ingress(&query(sport, server(at))));
        let decided = if last % 3 == 2 {
            dropped(DropReason::Rule)
        } else {
            passed(PassReason::NewByRule)
        };
        let none = dropped(DropReason::Policy);
        assert_eq!(
            outcomes,
            [none, passed(PassReason::NewByRule), decided, none],
            "{round}"
        );
        let hits = rig.hits(generation);
        assert_eq!((hits[0], hits[count as usize - 1]), (1, 1));
        assert_eq!(hits.iter().sum::<u64>(), 2, "{round}");
    }
}

/// Random policies of every size, packets by the thousand: as many nested prefixes and
/// overlapping ranges as a small world has.
#[test]
fn the_programs_find_what_a_walk_finds() {
    let seed = seed();
    let mut random = Random(seed);
    for count in [0, 1, 8, 9, 50, 100, 600, 3000] {
        let rules: Vec<Rule> = (0..count).map(|id| random.rule(id)).collect();
        let mut rig = Rig::with_rules(&rules);
        for _ in 0..400 {
            let ((a, c), (b, d)) = (random.ends(), random.ends());
            if a == b || c == d {
                continue;
            }
            let (sport, dport) = (random.port(), random.port());
            let (src, dst) = if random.below(2) == 0 {
                (End::V4(a, sport), End::V4(b, dport))
            } else {
                (End::V6(c, sport), End::V6(d, dport))
            };
            let headers = Headers {
                src: src.mapped(),
                dst: dst.mapped(),
                sport: src.port(),
                dport: dst.port(),
                proto: 17,
                family: if matches!(src, End::V4(..)) {
                    Family::V4
                } else {
                    Family::V6
                },
                ..Headers::ZERO
            };
            rig.forget_half_open4();
            rig.forget_half_open6();
            let wanted = rules
                .iter()
                .find(|rule| matches(rule, &headers, OUTSIDE, 0));
            let wanted = wanted.is_some_and(|rule| rule.action == action::ACCEPT);
            let frame = udp(src, dst, b"any");
            assert_eq!(
                rig.feed(&frame),
                wanted,
                "seed {seed}, {count} rules: {headers:?}"
            );
        }
    }
}

/// A generator of numbers (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.next() >> 33) as u32 % end
    }

    /// Addresses of a small world: four bits of each matter.
    fn ends(&mut self) -> ([u8; 4], [u8; 16]) {
        let (a, b) = (self.below(16) as u8, self.below(4) as u8);
        let mut six = PEER6;
        (six[5], six[15]) = (a << 4, b + 1);
        ([11, a << 4, 0, b + 1], six)
    }

    fn port(&mut self) -> u16 {
        [1, 2, 3, 53, 1024, 5000, 65_534, 65_535][self.below(8) as usize]
    }

    fn range(&mut self) -> [u16; 2] {
        let (a, b) = (self.port(), self.port());
        if self.below(3) == 0 {
            [0, u16::MAX]
        } else {
            [a.min(b), a.max(b)]
        }
    }

    fn prefix(&mut self, v6: bool) -> ([u32; 4], [u32; 4]) {
        let (four, six) = self.ends();
        let (address, bits) = if v6 {
            (u128::from_be_bytes(six), [0, 32, 44, 48, 120, 128])
        } else {
            let number = u128::from(u32::from_be_bytes(four)) | 0xffff << 32;
            (number, [96, 104, 108, 112, 126, 128])
        };
        let bits = bits[self.below(6) as usize];
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let cast = |number: u128| bytemuck::cast(number.to_be_bytes());
        (cast(address & mask), cast(mask))
    }

    fn rule(&mut self, id: u16) -> Rule {
        let v6 = self.below(2) == 0;
        let ((src, src_mask), (dst, dst_mask)) = (self.prefix(v6), self.prefix(v6));
        let family = if v6 {
            rule_flags::V6_ONLY
        } else {
            rule_flags::V4_ONLY
        };
        // Source, destination and ports count, or do not.
        let on = self.below(8) as u16;
        Rule {
            src,
            src_mask,
            dst,
            dst_mask,
            sport: self.range(),
            dport: self.range(),
            flags: on
                | if on & 3 == 0 && self.below(2) == 0 {
                    0
                } else {
                    family
                },
            id,
            proto: [0, 17, 17, 6][self.below(4) as usize],
            from_zone: [ZONE_ANY, OUTSIDE, OUTSIDE, 2][self.below(4) as usize],
            to_zone: [ZONE_ANY, 0, 0, OUTSIDE][self.below(4) as usize],
            action: if self.below(2) == 0 {
                action::ACCEPT
            } else {
                action::DROP
            },
        }
    }
}

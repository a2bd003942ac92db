use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{MAX_RULES, action},
    key::{is_v4_mapped, map_v4},
    policy::matches,
    wire::Family,
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// What the rules say one after the other.
fn one_by_one(rules: &[Rule], headers: &Headers, from: u8, to: u8) -> Option<usize> {
    let mut rules = rules.iter();
    rules.position(|rule| matches(rule, headers, from, to))
}

fn any_rule() -> Rule {
    Rule {
        from_zone: ZONE_ANY,
        to_zone: ZONE_ANY,
        sport: [0, u16::MAX],
        dport: [0, u16::MAX],
        action: action::ACCEPT,
        ..Rule::zeroed()
    }
}

/// Few addresses, close together and at both ends, so that prefixes nest and meet.
fn address() -> impl Strategy<Value = [u32; 4]> {
    let v4 = select(vec![
        0,
        1,
        0x0a00_0000,
        0x0a00_0001,
        0x0a00_00ff,
        0x0a00_0100,
        0x0aff_ffff,
        0x0b00_0000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_fffe,
        0xffff_ffff_u32,
    ]);
    let v6 = select(vec![
        0_u128,
        1,
        u128::MAX,
        u128::MAX - 1,
        0x2001_0db8 << 96,
        (0x2001_0db8 << 96) + 1,
        (0x2001_0db8 << 96) + (1 << 64),
        (0x2001_0db9 << 96) - 1,
        1 << 127,
        (0xffff << 32) - 1,
        0x1_0000_0000_0000,
    ]);
    let any4 = prop_oneof![3 => v4, 1 => any::<u32>()];
    let any6 = prop_oneof![3 => v6, 1 => any::<u128>()];
    prop_oneof![
        2 => any4.prop_map(|n| map_v4(n.to_be())),
        1 => any6.prop_map(|n| bytemuck::cast(n.to_be_bytes())),
    ]
}

fn mask(length: u32) -> u128 {
    u128::MAX.checked_shl(128 - length).unwrap_or(0)
}

fn prefix() -> impl Strategy<Value = ([u32; 4], [u32; 4])> {
    let length = prop_oneof![
        select(vec![0_u32, 1, 32, 64, 95, 96, 97, 104, 120, 127, 128]),
        0..=128_u32
    ];
    (address(), length).prop_map(|(words, length)| {
        let number = u128::from_be_bytes(bytemuck::cast(words)) & mask(length);
        let cast = |number: u128| bytemuck::cast(number.to_be_bytes());
        (cast(number), cast(mask(length)))
    })
}

fn number() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => select(vec![0, 1, 21, 22, 79, 80, 81, 443, 1023, 1024, 32_768, 65_534, 65_535]),
        1 => any::<u16>(),
    ]
}

fn range() -> impl Strategy<Value = [u16; 2]> {
    prop_oneof![
        2 => (number(), number()).prop_map(|(a, b)| [a.min(b), a.max(b)]),
        1 => number().prop_map(|a| [a, a]),
        1 => Just([0, u16::MAX]),
        // Nothing is between these.
        1 => Just([2, 1]),
    ]
}

fn protocol() -> impl Strategy<Value = u8> {
    select(vec![
        0,
        proto::TCP,
        proto::UDP,
        proto::ICMP,
        proto::ICMPV6,
        47,
        255,
    ])
}

fn zone() -> impl Strategy<Value = u8> {
    select(vec![0, 1, 2, 32, ZONE_ANY])
}

prop_compose! {
    fn rule()(
        (src, src_mask) in prefix(),
        (dst, dst_mask) in prefix(),
        sport in range(),
        dport in range(),
        on in 0..8_u16,
        family in 0..4_u16,
        proto in protocol(),
        from_zone in zone(),
        to_zone in zone(),
    ) -> Rule {
        let family = [0, 0, rule_flags::V4_ONLY, rule_flags::V6_ONLY][family as usize];
        Rule {
            src, src_mask, dst, dst_mask, sport, dport, proto, from_zone, to_zone,
            // The first three flags: source, destination and ports count.
            flags: on | family,
            ..any_rule()
        }
    }
}

prop_compose! {
    fn packet()(
        src in address(),
        dst in address(),
        sport in number(),
        dport in number(),
        proto in protocol(),
        v4 in any::<bool>(),
    ) -> Headers {
        // Mapped addresses in IPv6 too, though the parser turns them away.
        let family = if v4 && is_v4_mapped(&src) && is_v4_mapped(&dst) {
            Family::V4
        } else {
            Family::V6
        };
        Headers { src, dst, sport, dport, proto, family, ..Headers::ZERO }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_first_match_is_the_one_that_a_walk_finds(
        rules in vec(rule(), 0..60),
        packets in vec((packet(), zone(), zone()), 1..40),
    ) {
        let classes = Classes::of(&rules).unwrap();
        for (headers, from, to) in &packets {
            prop_assert_eq!(
                classes.first(headers, *from, *to),
                one_by_one(&rules, headers, *from, *to),
                "{:?} {} {}", headers, from, to
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn thousands_of_rules_are_searched_as_few_are(
        rules in vec(rule(), 2000..4000),
        packets in vec((packet(), zone(), zone()), 100),
    ) {
        // Those that match everything come last, or nobody else would be heard.
        let (wide, mut rules): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.flags & 7 != 7);
        rules.extend(wide);
        let classes = Classes::of(&rules).unwrap();
        for (headers, from, to) in &packets {
            prop_assert_eq!(
                classes.first(headers, *from, *to),
                one_by_one(&rules, headers, *from, *to)
            );
        }
    }
}

fn host(rule: u32, v6: bool) -> Rule {
    let (dst, flag) = if v6 {
        let number = (0x2001_0db8_u128 << 96) + (u128::from(rule) << 40);
        (bytemuck::cast(number.to_be_bytes()), rule_flags::V6_ONLY)
    } else {
        (
            map_v4((0x0a00_0000 + 2 * rule).to_be()),
            rule_flags::V4_ONLY,
        )
    };
    Rule {
        dst,
        dst_mask: [u32::MAX; 4],
        flags: rule_flags::DST | flag,
        ..any_rule()
    }
}

/// Trees of every depth, each key and what is on either side of it.
#[test]
fn every_interval_of_a_full_table_is_found() {
    for v6 in [false, true] {
        for count in [1, 8, 9, 16, 17, 144, 145, 2456, 2457, MAX_RULES as u32] {
            let rules: Vec<Rule> = (0..count).map(|rule| host(rule, v6)).collect();
            let classes = Classes::of(&rules).unwrap();
            let step = (count / 300).max(1);
            for at in (0..count).step_by(step as usize).chain([count - 1]) {
                let mut headers = Headers {
                    family: if v6 { Family::V6 } else { Family::V4 },
                    dst: rules[at as usize].dst,
                    ..Headers::ZERO
                };
                assert_eq!(
                    classes.first(&headers, 1, 0),
                    Some(at as usize),
                    "{count} {v6}"
                );
                headers.dst[3] = (u32::from_be(headers.dst[3]) + 1).to_be();
                assert_eq!(classes.first(&headers, 1, 0), None, "{count} {v6}");
            }
        }
    }
}

/// The memory that the documentation speaks of.
#[test]
fn ten_thousand_rules_take_a_few_mebibytes() {
    let mut rules: Vec<Rule> = (0..10_000).map(|rule| host(rule, false)).collect();
    rules.push(any_rule());
    let bytes = Classes::of(&rules).unwrap().bytes();
    assert!(bytes < 3 << 20, "{bytes}");
}

/// Rules whose intervals all overlap, in four dimensions at once.
#[test]
fn the_most_that_rules_can_take_is_bounded() {
    let count = MAX_RULES as u32 / 4;
    let scattered = |rule: u32| (rule * 40_503) % 65_536;
    let rules: Vec<Rule> = (0..count)
        .map(|rule| {
            let (low, high) = (scattered(rule) as u16, scattered(rule + count) as u16);
            Rule {
                src: map_v4(rule.wrapping_mul(2_654_435_761).to_be()),
                src_mask: [u32::MAX; 4],
                sport: [low.min(high), low.max(high)],
                dport: [low.max(high) / 2, low.max(high)],
                proto: proto::UDP,
                flags: rule_flags::SRC | rule_flags::PORTS | rule_flags::V4_ONLY,
                ..host(rule, false)
            }
        })
        .map(|rule| Rule {
            flags: rule.flags | rule_flags::DST,
            ..rule
        })
        .collect();
    let classes = Classes::of(&rules).unwrap();
    let bytes = classes.bytes();
    // Each of 8 n intervals: a row, 64 references and a chunk; and keys.
    assert!(bytes < 8 * rules.len() * (16 + 256 + 64 + 32), "{bytes}");
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let gap = Rule {
        src_mask: [u32::MAX, 0, u32::MAX, 0],
        flags: rule_flags::SRC,
        ..any_rule()
    };
    assert_eq!(Classes::of(&[any_rule(), gap]).unwrap_err(), Error::Mask(1));
    let many = vec![any_rule(); MAX_RULES + 1];
    assert_eq!(
        Classes::of(&many).unwrap_err(),
        Error::Number(MAX_RULES + 1)
    );
    let none = Classes::of(&[]).unwrap();
    assert_eq!(none.first(&Headers::ZERO, 1, 0), None);
}

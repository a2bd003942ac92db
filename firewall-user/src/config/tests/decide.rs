//! Compiled rules decide as the policy reads.

use std::net::IpAddr;

use firewall_common::{
    abi::{Rule, ZONE_ANY},
    key::map_v4,
    policy::matches,
    wire::{Family, Headers, proto},
};
use proptest::prelude::*;

use super::*;

/// A packet, as the reference matcher sees it.
#[derive(Clone, Copy, Debug)]
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    sport: u16,
    dport: u16,
}

impl Packet {
    fn new(proto: u8, src: &str, dst: &str, dport: u16) -> Self {
        Self {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            proto,
            sport: 40_000,
            dport,
        }
    }

    fn headers(self) -> Headers {
        let words = |addr: IpAddr| match addr {
            IpAddr::V4(v4) => map_v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => bytemuck::cast(v6.octets()),
        };
        Headers {
            family: if self.src.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            },
            src: words(self.src),
            dst: words(self.dst),
            proto: self.proto,
            sport: self.sport,
            dport: self.dport,
            ..Headers::ZERO
        }
    }
}

fn decide(rules: &[Rule], packet: Packet, from: u8, to: u8) -> Option<&Rule> {
    rules
        .iter()
        .find(|rule| matches(rule, &packet.headers(), from, to))
}

#[test]
fn the_built_in_policy_lets_out_and_nothing_in() {
    let c = prepare(None, &["eth0".into()], None).unwrap();
    let name = |packet, from, to| {
        decide(&c.rules, packet, from, to).map(|r| c.rule_names[usize::from(r.id)].as_str())
    };
    let ftp = Packet::new(proto::TCP, "10.0.0.1", "192.0.2.1", 21);
    let web = Packet::new(proto::TCP, "fd00::1", "2001:db8::1", 443);
    let ping = Packet::new(proto::ICMP, "10.0.0.1", "192.0.2.1", 0);
    assert_eq!(name(ftp, 0, 1), Some("ftp-out"));
    assert_eq!(name(web, 0, 1), Some("out"));
    assert_eq!(name(ping, 0, 1), Some("out"));
    assert_eq!(name(ftp, 1, 0), None);
    assert_eq!(name(web, 1, 0), None);
    let ssh = prepare(None, &["eth0".into()], NonZeroU16::new(22)).unwrap();
    let login = Packet::new(proto::TCP, "192.0.2.1", "10.0.0.1", 22);
    assert_eq!(decide(&ssh.rules, login, 1, 0).map(|r| r.id), Some(0));
    assert!(decide(&ssh.rules, web, 1, 0).is_none());
}

#[test]
fn the_first_match_wins_on_a_gateway() {
    let c = compiled(&format!(
        "{GATEWAY}
[[rule]]
name = \"no-telnet\"
proto = \"tcp\"
dport = 23
action = \"drop\"
[[rule]]
name = \"out\"
from = \"lan\"
to = \"wan\"
action = \"accept\"
[[rule]]
name = \"ftp-in\"
from = \"wan\"
to = \"lan\"
proto = \"tcp\"
dst = [\"10.1.0.5\", \"fd00:1::5\"]
dport = [21, \"5000-5010\"]
action = \"accept\"
helper = \"ftp\"
"
    ));
    assert_eq!(c.rules.len(), 1 + 1 + 4);
    let id = |packet, from, to| decide(&c.rules, packet, from, to).map(|r| r.id);
    let telnet = Packet::new(proto::TCP, "10.1.0.9", "192.0.2.1", 23);
    let web = Packet::new(proto::TCP, "10.1.0.9", "192.0.2.1", 80);
    assert_eq!(id(telnet, 2, 1), Some(0));
    assert_eq!(id(web, 2, 1), Some(1));
    assert_eq!(id(web, 1, 2), None, "the other way");
    assert_eq!(id(web, 2, 0), None, "to the gateway itself");
    for (dst, dport, want) in [
        ("10.1.0.5", 21, Some(2)),
        ("10.1.0.5", 5010, Some(2)),
        ("10.1.0.5", 5011, None),
        ("10.1.0.6", 21, None),
    ] {
        let packet = Packet::new(proto::TCP, "192.0.2.1", dst, dport);
        assert_eq!(id(packet, 1, 2), want, "{packet:?}");
    }
    let six = Packet::new(proto::TCP, "2001:db8::1", "fd00:1::5", 21);
    assert_eq!(id(six, 1, 2), Some(2));
    let udp = Packet {
        proto: proto::UDP,
        ..six
    };
    assert_eq!(id(udp, 1, 2), None);
}

/// What the rule says, read naively.
fn reads_as(rule: &PolicyRule, p: Packet, from: u8, to: u8) -> bool {
    let zone = |want, have| want == ZONE_ANY || want == have;
    let any_net = |nets: &[IpNet], addr: IpAddr| {
        nets.is_empty() || nets.iter().any(|net| net.contains(&addr))
    };
    let any_port = |ranges: &[PortRange], port: u16| {
        ranges.is_empty()
            || ranges
                .iter()
                .any(|r| (r.bounds()[0]..=r.bounds()[1]).contains(&port))
    };
    let has_ports = p.proto == proto::TCP || p.proto == proto::UDP;
    let family = match rule.proto.number() {
        proto::ICMP => p.src.is_ipv4(),
        proto::ICMPV6 => p.src.is_ipv6(),
        _ => true,
    };
    zone(rule.from, from)
        && zone(rule.to, to)
        && (rule.proto.number() == 0 || rule.proto.number() == p.proto)
        && family
        && any_net(&rule.src, p.src)
        && any_net(&rule.dst, p.dst)
        && (has_ports || (rule.sport.is_empty() && rule.dport.is_empty()))
        && any_port(&rule.sport, p.sport)
        && any_port(&rule.dport, p.dport)
}

/// Few values, so that rules and packets meet.
fn rule_text() -> impl Strategy<Value = String> {
    let zone = || prop::sample::select(vec!["any", "host", "wan", "lan"]);
    let nets = || {
        let net = prop::sample::select(vec![
            "\"10.0.0.0/8\"",
            "\"10.0.0.1\"",
            "\"0.0.0.0/0\"",
            "\"::/0\"",
            "\"fd00::/9\"",
            "\"fd00::1\"",
            "\"10.0.0.0/31\"",
        ]);
        prop::collection::vec(net, 0..3)
    };
    let ports = || {
        let port = prop::sample::select(vec!["1", "21", "\"20-22\"", "\"1-65535\"", "65535"]);
        prop::collection::vec(port, 0..3)
    };
    let proto = prop::sample::select(vec!["\"tcp\"", "\"udp\"", "\"any\"", "1", "58", "47"]);
    let action = prop::sample::select(vec!["accept", "drop"]);
    (
        zone(),
        zone(),
        proto,
        nets(),
        nets(),
        ports(),
        ports(),
        action,
    )
        .prop_map(|(from, to, proto, src, dst, sport, dport, action)| {
            let mut text = format!(
                "[[rule]]\nfrom = \"{from}\"\nto = \"{to}\"\nproto = {proto}\n\
                 action = \"{action}\"\n"
            );
            let ported = proto == "\"tcp\"" || proto == "\"udp\"";
            for (key, list, usable) in [
                ("src", src, true),
                ("dst", dst, true),
                ("sport", sport, ported),
                ("dport", dport, ported),
            ] {
                if usable && !list.is_empty() {
                    text.push_str(&format!("{key} = [{}]\n", list.join(", ")));
                }
            }
            text
        })
}

fn packet() -> impl Strategy<Value = Packet> {
    let v4 = || prop::sample::select(vec!["10.0.0.0", "10.0.0.1", "10.0.0.2", "192.0.2.1"]);
    let v6 = || prop::sample::select(vec!["fd00::1", "fd00::2", "fd80::1", "2001:db8::1"]);
    let addrs = prop_oneof![(v4(), v4()), (v6(), v6())];
    let proto = prop::sample::select(vec![1, 6, 17, 47, 58]);
    let port = || prop::sample::select(vec![0_u16, 1, 20, 21, 23, 65_535]);
    (addrs, proto, port(), port()).prop_map(|((src, dst), proto, sport, dport)| Packet {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        proto,
        sport,
        dport,
    })
}

proptest! {
    #[test]
    fn compiled_rules_decide_as_the_policy_reads(
        rules in prop::collection::vec(rule_text(), 0..6),
        packets in prop::collection::vec((packet(), 0_u8..3, 0_u8..3), 1..20),
    ) {
        // What nothing can match is refused; such a file decides nothing.
        let Ok(policy) = parse(&format!("{GATEWAY}{}", rules.concat())) else {
            return Err(TestCaseError::reject("of two families"));
        };
        let compiled = policy.compile().unwrap();
        for (packet, from, to) in packets {
            let want = policy.rules.iter().position(|r| reads_as(r, packet, from, to));
            let got = decide(&compiled.rules, packet, from, to);
            prop_assert_eq!(got.map(|r| usize::from(r.id)), want);
            let accepts = want.map(|index| policy.rules[index].accept);
            prop_assert_eq!(got.map(|r| r.action == 1), accepts);
        }
    }
}

#[test]
fn the_reference_is_a_policy_and_states_the_defaults() {
    let reference = Policy::parse("reference.toml", super::REFERENCE, 2).unwrap();
    let bare = Policy::parse("bare.toml", "[zones.outside]\ninterfaces = [\"eth0\"]", 2).unwrap();
    assert_eq!(reference.essentials, bare.essentials);
    assert_eq!(
        format!("{:?}", reference.timeouts),
        format!("{:?}", bare.timeouts)
    );
    // An alias and a session range have no default.
    let no_alias = |policy: &Policy| super::Ftp {
        aliases: Vec::new(),
        ranges: Vec::new(),
        ..policy.ftp.clone()
    };
    assert_eq!(reference.ftp.aliases.len(), 1);
    assert_eq!(reference.ftp.ranges.len(), 1);
    assert_eq!(no_alias(&reference), bare.ftp);
    let sizes = |tables: &Tables| {
        (
            tables.flows,
            tables.half_open,
            tables.expectations,
            tables.sessions,
        )
    };
    assert_eq!(sizes(&reference.tables), sizes(&bare.tables));
}

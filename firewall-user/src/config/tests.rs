//! Mistakes are refused where they stand.

mod decide;

use firewall_common::{
    abi::{MAX_RULES, ZONE_ANY, config_flags, essentials, rule_flags, table_full, timeout},
    time::ticks_from_secs,
};

use super::*;
use crate::ftp::{ActiveOpen, Ccc};

const OUTSIDE: &str = "[zones.outside]\ninterfaces = [\"eth0\"]\n";
const GATEWAY: &str = "\
[zones.wan]
interfaces = [\"eth0\"]
[zones.lan]
interfaces = [\"eth1\", \"eth2\"]
trusted = true
";

fn parse(text: &str) -> Result<Policy, Error> {
    Policy::parse("fw.toml", text, 2)
}

fn compiled(text: &str) -> Compiled {
    parse(text).unwrap().compile().unwrap()
}

fn with_rule(rule: &str) -> Result<Policy, Error> {
    parse(&format!("{OUTSIDE}[[rule]]\n{rule}"))
}

/// The message of what must fail, and the text its marks stand under.
fn mistake(text: &str) -> (String, String) {
    let error = parse(text).unwrap_err();
    let shown = error.to_string();
    let (line, column) = error.position().unwrap_or_else(|| panic!("{shown}"));
    let marks = shown.lines().find(|l| l.ends_with('^')).unwrap();
    let width = marks.chars().filter(|&c| c == '^').count();
    let meant = text.lines().nth(line - 1).unwrap();
    let meant = meant.chars().skip(column - 1).take(width).collect();
    assert!(
        shown.contains("\n   = help: ") || shown.contains(" = help: "),
        "{shown}"
    );
    (shown, meant)
}

#[track_caller]
fn refused(text: &str, meant: &str, says: &str) {
    let (shown, marked) = mistake(text);
    assert_eq!(marked, meant, "{shown}");
    assert!(shown.contains(says), "{shown}");
}

#[track_caller]
fn rule_refused(rule: &str, meant: &str, says: &str) {
    refused(&format!("{OUTSIDE}[[rule]]\n{rule}\n"), meant, says);
}

#[test]
fn the_fast_path_is_on_unless_the_policy_turns_it_off() {
    let flags = |text: &str| compiled(text).config.flags & config_flags::FAST_PATH;
    assert_ne!(flags(GATEWAY), 0);
    assert_ne!(flags(&format!("{GATEWAY}[fast-path]\n")), 0);
    assert_eq!(
        flags(&format!("{GATEWAY}[fast-path]\nenabled = false\n")),
        0
    );
    let vouched = format!("{GATEWAY}[fast-path]\ncomplete-checksums = [\"eth1\"]\n");
    assert_eq!(compiled(&vouched).complete_checksums, ["eth1"]);
}

#[test]
fn mistakes_in_the_fast_path_are_named() {
    let with = |line: &str| format!("{GATEWAY}[fast-path]\n{line}\n");
    refused(&with("on = true"), "on", "unknown field `on`");
    refused(&with("enabled = \"yes\""), "\"yes\"", "invalid type");
    refused(
        &with("complete-checksums = [\"a name of an interface\"]"),
        "\"a name of an interface\"",
        "cannot be an interface",
    );
    refused(
        &with("complete-checksums = [\"eth7\"]"),
        "\"eth7\"",
        "no zone has the interface `eth7`",
    );
}

#[test]
fn an_error_shows_its_place_and_the_remedy() {
    let text = format!("{OUTSIDE}\n[[rule]]\nfrom = \"ouside\"\naction = \"accept\"\n");
    assert_eq!(
        parse(&text).unwrap_err().to_string(),
        "fw.toml:5:8: unknown zone `ouside`\n  \
           |\n\
         5 | from = \"ouside\"\n  \
           |        ^^^^^^^^\n  \
           = help: use one of: outside, host, any"
    );
}

#[test]
fn the_shape_of_the_file() {
    refused(
        "[zones.a]\ninterface = [\"x\"]\n",
        "interface",
        "unknown field `interface`",
    );
    refused("[zone.a]\n", "zone", "unknown field `zone`");
    refused(
        "[zones.a]\ninterfaces = \"x\"\n",
        "\"x\"",
        "expected a sequence",
    );
    refused("[zones.a]\ntrusted = 1\n", "1", "expected a boolean");
    let error = parse("[zones.a\n").unwrap_err();
    assert_eq!(error.position().unwrap().0, 1, "{error}");
    assert!(parse("").unwrap_err().to_string().contains("has no zone"));
    rule_refused(
        "action = \"acept\"",
        "\"acept\"",
        "expected `accept` or `drop`",
    );
    rule_refused(
        "action = \"accept\"\nhelper = \"tftp\"\nproto = \"tcp\"",
        "\"tftp\"",
        "ftp",
    );
    let missing = with_rule("name = \"x\"\n").unwrap_err();
    assert_eq!(missing.position().unwrap().0, 3, "{missing}");
    assert!(
        missing.to_string().contains("missing field `action`"),
        "{missing}"
    );
}

#[test]
fn zones_do_not_overlap_and_have_names() {
    refused(
        "[zones.b]\ninterfaces = [\"eth0\"]\n[zones.a]\ninterfaces = [\"eth1\", \"eth0\"]\n",
        "\"eth0\"",
        "`eth0` is in two zones: `b` and `a`",
    );
    refused("[zones.a]\ninterfaces = [\"x\", \"x\"]\n", "\"x\"", "twice");
    refused("[zones.host]\n", "host", "reserved");
    refused("[zones.any]\n", "any", "reserved");
    refused("[zones.Outside]\n", "Outside", "lower-case");
    refused(
        "[zones.a]\ninterfaces = [\"a/b\"]\n",
        "\"a/b\"",
        "cannot be an interface",
    );
}

#[test]
fn ports() {
    let tcp = |key: &str| format!("action = \"accept\"\nproto = \"tcp\"\n{key}");
    rule_refused(&tcp("dport = 0"), "0", "0 is not a port");
    rule_refused(&tcp("dport = [22, 0]"), "0", "use 1 to 65535");
    rule_refused(&tcp("sport = 65536"), "65536", "65536 is not a port");
    rule_refused(&tcp("dport = \"9-5\""), "\"9-5\"", "write \"5-9\"");
    rule_refused(&tcp("dport = \"ftp\""), "\"ftp\"", "not a port or a range");
    rule_refused(&tcp("dport = []"), "[]", "matches nothing");
    rule_refused(&tcp("dport = 1.5"), "1.5", "expected a port or a range");
    rule_refused("action = \"drop\"\ndport = 22", "22", "proto = \"tcp\"");
    rule_refused(
        "action = \"drop\"\nproto = \"icmp\"\nsport = [1]",
        "[1]",
        "`sport` without",
    );
}

#[test]
fn addresses() {
    let src = |value: &str| format!("action = \"accept\"\nsrc = {value}");
    rule_refused(
        &src("\"10.0.0.1/8\""),
        "\"10.0.0.1/8\"",
        "write \"10.0.0.0/8\"",
    );
    rule_refused(
        &src("[\"::1\", \"fd00::1/64\"]"),
        "\"fd00::1/64\"",
        "\"fd00::1\"",
    );
    rule_refused(&src("\"10.0.0/8\""), "\"10.0.0/8\"", "not an address");
    rule_refused(
        &src("\"::ffff:10.0.0.1\""),
        "\"::ffff:10.0.0.1\"",
        "write it as IPv4",
    );
    let never = with_rule(&src("\"10.0.0.1\"\ndst = \"::1\"\n")).unwrap_err();
    assert!(never.to_string().contains("nothing matches"), "{never}");
    assert!(with_rule("action = \"drop\"\nproto = \"icmpv6\"\nsrc = \"10.0.0.1\"").is_err());
}

#[test]
fn switches_of_tcp() {
    for name in ["loose", "liberal"] {
        rule_refused(
            &format!("action = \"accept\"\n{name} = true"),
            "true",
            "not for TCP",
        );
        rule_refused(
            &format!("action = \"drop\"\nproto = \"tcp\"\n{name} = true"),
            "true",
            "rule that drops",
        );
    }
    assert!(with_rule("action = \"drop\"\nloose = false").is_ok());
    let on = "action = \"accept\"\nproto = \"tcp\"\nloose = true\nliberal = true";
    let compiled = with_rule(on).unwrap().compile().unwrap();
    let rule = compiled.rules[0];
    assert_eq!(rule.flags & rule_flags::LOOSE, rule_flags::LOOSE);
    assert_eq!(rule.flags & rule_flags::LIBERAL, rule_flags::LIBERAL);
    assert_ne!(compiled.config.flags & config_flags::LOOSE, 0);
}

#[test]
fn helpers_and_names() {
    rule_refused(
        "action = \"accept\"\nhelper = \"ftp\"",
        "\"ftp\"",
        "not for TCP",
    );
    rule_refused(
        "action = \"drop\"\nproto = \"tcp\"\nhelper = \"ftp\"",
        "\"ftp\"",
        "rule that drops",
    );
    rule_refused(
        "action = \"drop\"\nproto = \"tpc\"",
        "\"tpc\"",
        "unknown protocol",
    );
    rule_refused("action = \"drop\"\nproto = 0", "0", "use 1 to 255");
    rule_refused(
        "action = \"drop\"\nname = \"admit-ssh\"",
        "\"admit-ssh\"",
        "reserved",
    );
    rule_refused(
        "action = \"drop\"\nname = \"a\"\n[[rule]]\naction = \"drop\"\nname = \"a\"",
        "\"a\"",
        "rule 2 has the name of rule 1",
    );
}

#[test]
fn numbers_have_bounds() {
    let end = |text: &str| format!("{OUTSIDE}{text}\n");
    refused(&end("[timeouts]\nudp = 0"), "0", "0 seconds");
    refused(
        &end("[timeouts]\nudp = 5000000000"),
        "5000000000",
        "use 1 to 3602",
    );
    refused(
        &end("[timeouts]\nudp = \"30s\""),
        "\"30s\"",
        "without a unit",
    );
    refused(&end("[timeouts]\ntcp = 3"), "tcp", "unknown field");
    refused(&end("[tables]\nflows = 1500"), "1500", "use 1024 or 2048");
    refused(
        &end("[tables]\nhalf-open = 256"),
        "256",
        "use 512 or a larger",
    );
    refused(&end("[tables]\nflows = 512"), "512", "use 1024 or a larger");
    refused(
        &end("[tables]\ntable-full = \"panic\""),
        "\"panic\"",
        "track-unprotected",
    );
    refused(&end("[tables]\nsessions = -1"), "-1", "too small");
    refused(&end("[tables]\nflows = 33554432"), "33554432", "too large");
    refused(
        &end("[ftp]\nmax-expectations-per-session = 0"),
        "0",
        "use 1 to 64",
    );
    refused(&end("[ftp]\nexpectation-timeout = 0"), "0", "0 seconds");
    assert!(parse(&end("[timeouts]\nudp = 36028796")).is_ok());
}

#[test]
fn the_helper_is_told_what_it_may_do() {
    let ftp = |text: &str| parse(&format!("{OUTSIDE}[ftp]\n{text}\n")).unwrap().ftp;
    assert_eq!(ftp("active = \"after-reply\"").active, ActiveOpen::AtReply);
    assert_eq!(ftp("ccc = \"alert\"").ccc, Ccc::Alert);
    assert_eq!(ftp("ccc = \"refuse\"").ccc, Ccc::Refuse);
    assert_eq!(ftp("cut-after = 3").cut_after, None, "kept all the same");
    let cut = ftp("data-after-control = \"cut\"");
    assert_eq!(cut.cut_after.unwrap().get(), 10);
    let cut = ftp("data-after-control = \"cut\"\ncut-after = 3");
    assert_eq!(cut.cut_after.unwrap().get(), 3);
    let few = ftp("max-expectations-per-client = 3");
    assert_eq!(few.max_expectations_per_client, 3);
    let aliases = ftp(
        "[[ftp.alias]]\nserver = \"192.0.2.0/24\"\nannounces = \"10.0.0.7\"\n\
         [[ftp.alias]]\nserver = \"2001:db8::7\"\nannounces = \"fd00::7\"",
    );
    let config = crate::ftp::Config {
        aliases: aliases.aliases.leak(),
        ..Default::default()
    };
    let is_alias = |server: &str, announced: &str| {
        config.is_alias(server.parse().unwrap(), announced.parse().unwrap())
    };
    assert!(is_alias("192.0.2.9", "10.0.0.7") && is_alias("2001:db8::7", "fd00::7"));
    assert!(!is_alias("192.0.3.9", "10.0.0.7") && !is_alias("192.0.2.9", "10.0.0.8"));
}

#[test]
fn what_the_helper_is_told_wrongly_is_shown() {
    let end = |text: &str| format!("{OUTSIDE}[ftp]\n{text}\n");
    refused(&end("active = \"soon\""), "\"soon\"", "at-command");
    refused(&end("ccc = true"), "true", "text needs quotes");
    refused(&end("ccc = \"deny\""), "\"deny\"", "refuse");
    refused(&end("data-after-control = \"drop\""), "\"drop\"", "keep");
    refused(&end("cut-after = 0"), "0", "0 seconds");
    refused(
        &end("max-expectations-per-client = 5000"),
        "5000",
        "use 1 to 4096",
    );
    let alias = |server: &str, announces: &str| {
        end(&format!(
            "[[ftp.alias]]\nserver = \"{server}\"\nannounces = \"{announces}\""
        ))
    };
    refused(
        &alias("192.0.2.7", "10.0.0.0/24"),
        "\"10.0.0.0/24\"",
        "one address, not 10.0.0.0/24",
    );
    refused(
        &alias("192.0.2.7", "fd00::7"),
        "\"fd00::7\"",
        "another family",
    );
    refused(
        &alias("192.0.2.7", "192.0.2.7"),
        "\"192.0.2.7\"",
        "own address",
    );
    refused(&alias("192.0.2.7", "0.0.0.0"), "\"0.0.0.0\"", "no server");
    refused(
        &alias("192.0.2.300", "10.0.0.7"),
        "\"192.0.2.300\"",
        "not an address",
    );
    refused(
        &end("[[ftp.alias]]\nserver = \"192.0.2.7\""),
        "[[ftp.alias]]",
        "missing field",
    );
}

#[test]
fn a_session_range_is_for_hosts_and_ports_with_limits() {
    let range = |text: &str| {
        let text = format!("{OUTSIDE}[[ftp.session-range]]\n{text}\n");
        parse(&text).unwrap().ftp.ranges.remove(0)
    };
    let hosts = "clients = \"10.0.0.0/24\"\nservers = [\"192.0.2.7\"]\nports = \"50000-50100\"\n";
    let plain = range(hosts);
    assert_eq!((plain.ports, plain.active), ([50_000, 50_100], false));
    assert_eq!((plain.max, plain.per_minute), (8, 120));
    let (client, server) = ("10.0.0.2".parse().unwrap(), "192.0.2.7".parse().unwrap());
    assert!(plain.is_for(client, server) && !plain.is_for(server, client));
    let c = compiled(&format!("{OUTSIDE}[[ftp.session-range]]\n{hosts}"));
    assert_eq!(c.config.flags, config_flags::HOLD | config_flags::RANGES);
    let all = range(&format!("{hosts}active = true\nmax = 1\nper-minute = 3"));
    assert!(all.active);
    assert_eq!((all.max, all.per_minute), (1, 3));
}

#[test]
fn a_session_range_that_cannot_be_meant_is_shown() {
    let range = |clients: &str, servers: &str, ports: &str, more: &str| {
        format!(
            "{OUTSIDE}[[ftp.session-range]]\nclients = \"{clients}\"\nservers = \"{servers}\"\n\
             ports = \"{ports}\"\n{more}\n"
        )
    };
    let (client, server, ports) = ("10.0.0.2", "192.0.2.7", "50000-50100");
    refused(
        &range(client, "2001:db8::7", ports, ""),
        "\"2001:db8::7\"",
        "no client of the family",
    );
    refused(
        &range(client, server, "1000-2000", ""),
        "\"1000-2000\"",
        "1024 or above",
    );
    refused(
        &range(client, server, "50100-50000", ""),
        "\"50100-50000\"",
        "reversed",
    );
    refused(
        &range(client, server, ports, "max = 0"),
        "0",
        "0 data connections at once",
    );
    refused(
        &range(client, server, ports, "per-minute = 100000"),
        "100000",
        "use 1 to 60000",
    );
    refused(
        &range(client, server, ports, "passive = true"),
        "passive",
        "unknown field",
    );
    let incomplete = format!("{OUTSIDE}[[ftp.session-range]]\nclients = \"10.0.0.2\"\n");
    refused(&incomplete, "[[ftp.session-range]]", "missing field");
}

#[test]
fn a_fixed_range_is_a_rule_before_the_others() {
    let range = "{ clients = \"10.0.0.2\", servers = \"192.0.2.7\", ports = \"50000-50100\"";
    let policy = |more: &str| {
        let drop = "[[rule]]\nname = \"none\"\naction = \"drop\"\n";
        parse(&format!(
            "{OUTSIDE}{drop}[ftp]\nfixed-range = [{range}{more} }}]\n"
        ))
    };
    let plain = policy("").unwrap();
    let names = |policy: &Policy| {
        policy
            .rules
            .iter()
            .map(|r| r.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&plain), ["fixed-range-1", "none"]);
    let rule = &plain.rules[0];
    assert!(rule.accept && rule.proto == Proto::TCP && !rule.helper);
    assert_eq!((rule.from, rule.to), (ZONE_ANY, ZONE_ANY));
    assert_eq!(rule.dport[0].bounds(), [50_000, 50_100]);
    let zones = ", active = true, client-zone = \"outside\", server-zone = \"host\"";
    let both = policy(zones).unwrap();
    assert_eq!(names(&both)[..2], ["fixed-range-1", "fixed-range-1-active"]);
    let [passive, active] = &both.rules[..2] else {
        panic!("two rules");
    };
    assert_eq!((passive.from, passive.to), (1, ZONE_HOST));
    assert_eq!((active.from, active.to), (ZONE_HOST, 1));
    assert_eq!((&active.src, &active.dst), (&passive.dst, &passive.src));
    assert_eq!(active.dport, passive.dport);
}

#[test]
fn a_fixed_range_that_cannot_be_meant_is_shown() {
    let range = |servers: &str, ports: &str, more: &str| {
        format!(
            "{OUTSIDE}[[ftp.fixed-range]]\nclients = \"10.0.0.2\"\nservers = \"{servers}\"\n\
             ports = \"{ports}\"\n{more}\n"
        )
    };
    refused(
        &range("::7", "50000", ""),
        "\"::7\"",
        "no client of the family",
    );
    refused(
        &range("192.0.2.7", "20-21", ""),
        "\"20-21\"",
        "1024 or above",
    );
    let zone = "client-zone = \"inside\"";
    refused(
        &range("192.0.2.7", "50000", zone),
        "\"inside\"",
        "unknown zone",
    );
    refused(
        &range("192.0.2.7", "50000", "max = 3"),
        "max",
        "unknown field",
    );
    for name in ["fixed-range-1", "fixed-range-20-active"] {
        let rule = format!("name = \"{name}\"\naction = \"accept\"");
        rule_refused(&rule, &format!("\"{name}\""), "is reserved");
    }
    with_rule("name = \"fixed-range-acme\"\naction = \"accept\"").unwrap();
}

#[test]
fn too_many_rules_are_refused_where_they_overflow() {
    let list = |n: usize| (1..=n).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
    let rule = |ports| {
        let ports = list(ports);
        format!("[[rule]]\nproto = \"udp\"\naction = \"drop\"\ndport = [{ports}]\n")
    };
    let (half, rest) = (MAX_RULES / 2, MAX_RULES - MAX_RULES / 2);
    let full = format!("{OUTSIDE}{}{}", rule(half), rule(rest));
    assert_eq!(compiled(&full).rules.len(), MAX_RULES);
    let error = parse(&format!("{full}{}", rule(1))).unwrap_err();
    assert_eq!(error.position().unwrap().0, 11, "{error}");
    let mut policy = parse(&full).unwrap();
    policy.admit_ssh(NonZeroU16::new(22).unwrap());
    assert!(policy.compile().is_err());
}

#[test]
fn what_would_compile_to_millions_is_refused_at_once() {
    let nets = |third: usize| {
        let nets = (0..1000).map(|n| format!("\"10.{}.{third}.{}\"", n / 250, n % 250));
        nets.collect::<Vec<_>>().join(",")
    };
    let rule = format!(
        "[[rule]]\naction = \"drop\"\nsrc = [{}]\ndst = [{}, \"::/0\"]\n",
        nets(1),
        nets(2)
    );
    let error = parse(&format!("{OUTSIDE}{rule}")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("1000000, and there is room for 32768"),
        "{text}"
    );
    assert!(text.contains("use wider networks"), "{text}");
}

#[test]
fn ten_thousand_rules_are_compiled_and_one_too_many_is_named() {
    let rule = |n: usize| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n as u32);
        format!("[[rule]]\nname = \"r{n}\"\nsrc = \"{address}\"\naction = \"drop\"\n")
    };
    let many: String = (0..16_384).map(rule).collect();
    assert_eq!(compiled(&format!("{OUTSIDE}{many}")).rules.len(), 16_384);
    let error = parse(&format!("{OUTSIDE}{many}{}", rule(16_384))).unwrap_err();
    let (line, column) = error.position().unwrap();
    let before = OUTSIDE.lines().count() + 4 * 16_384;
    assert_eq!((line, column), (before + 1, 1), "{error}");
    assert!(
        error.to_string().contains("there is room for 16384"),
        "{error}"
    );
}

#[test]
fn a_small_table_keeps_what_every_cpu_may_take_free() {
    let c = compiled(&format!("{OUTSIDE}[tables]\nflows = 1024\n"));
    // 128 nodes for each of 2 CPUs, and 128 in the common list.
    assert_eq!(c.tables.limits(1024), [458, 182]);
    assert_eq!(c.tables.limits(256), [0, 0]);
    assert_eq!(c.config.tier_limits, [458, 182, 458, 182]);
}

#[test]
fn what_a_full_tier_means_is_chosen() {
    for (word, number) in [
        ("track-unprotected", table_full::TRACK),
        ("drop", table_full::DROP),
        ("pass", table_full::PASS),
    ] {
        let c = compiled(&format!("{OUTSIDE}[tables]\ntable-full = \"{word}\"\n"));
        assert_eq!(c.config.table_full, number);
    }
}

#[test]
fn defaults_are_those_of_nf_conntrack() {
    let c = compiled(OUTSIDE);
    assert_eq!(c.config.timeouts[3], ticks_from_secs(432_000));
    assert_eq!(c.config.timeouts[9], ticks_from_secs(120));
    assert_eq!(c.config.timeouts[timeout::UDP_STREAM], ticks_from_secs(120));
    assert!(c.config.timeouts.iter().all(|&ticks| ticks > 0));
    assert_eq!(c.config.essentials, essentials::ALL);
    assert_eq!(c.config.flags, config_flags::HOLD);
    assert_eq!(c.config.tier_limits, [40_960, 16_384, 40_960, 16_384]);
    assert_eq!(c.config.table_full, table_full::TRACK);
    assert_eq!((c.tables.flows, c.tables.half_open), (65_536, 16_384));
    assert_eq!(c.ftp.max_expectations_per_session, 1);
    assert_eq!(c.ftp.max_expectations_per_client, 512);
    assert_eq!((c.ftp.active, c.ftp.ccc), Default::default());
    assert_eq!(c.ftp.cut_after, None);
    let big = Policy::parse("fw.toml", OUTSIDE, 300).unwrap();
    assert_eq!((big.tables.flows, big.tables.half_open), (262_144, 131_072));
}

#[test]
fn a_gateway_has_two_zones() {
    let c = compiled(GATEWAY);
    assert_eq!(
        c.config.flags & config_flags::GATEWAY,
        config_flags::GATEWAY
    );
    assert_eq!(c.zones, ["wan", "lan"], "numbered in the order of the file");
    let seen: Vec<_> = c
        .ifaces
        .iter()
        .map(|i| (i.name.as_str(), i.zone, i.trusted))
        .collect();
    assert_eq!(
        seen,
        [("eth0", 1, false), ("eth1", 2, true), ("eth2", 2, true)]
    );
    let entry = c.ifaces[1].entry(0);
    assert_eq!(crate::bpf::text(&entry.zone_name), "lan");
}

#[test]
fn essentials_can_be_switched_off() {
    let c = compiled(&format!(
        "{OUTSIDE}[essentials]\narp = false\npath-mtu = false\n"
    ));
    let off = essentials::ARP | essentials::PATH_MTU;
    assert_eq!(c.config.essentials, essentials::ALL & !off);
}

#[test]
fn interfaces_are_narrowed_or_filled_in() {
    let guarded = |text: &str, wanted: &[&str]| {
        let mut policy = parse(text).unwrap();
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        policy.guard(&wanted).map(|()| {
            let ifaces = policy.compile().unwrap().ifaces;
            ifaces
                .into_iter()
                .map(|i| (i.name, i.zone))
                .collect::<Vec<_>>()
        })
    };
    let pair = |name: &str, zone| (name.to_owned(), zone);
    assert_eq!(guarded(GATEWAY, &[]).unwrap().len(), 3);
    assert_eq!(guarded(GATEWAY, &["eth2"]).unwrap(), [pair("eth2", 2)]);
    let error = guarded(GATEWAY, &["eth9"]).unwrap_err().to_string();
    assert!(
        error.contains("eth9") && error.contains("eth0, eth1, eth2"),
        "{error}"
    );
    assert_eq!(guarded(BUILTIN, &["a0", "a0"]).unwrap(), [pair("a0", 1)]);
    assert!(guarded(BUILTIN, &[]).is_err());
    assert!(guarded(BUILTIN, &["a/b"]).is_err());
    let half = format!("{OUTSIDE}[zones.dmz]\n");
    assert_eq!(guarded(&half, &["x"]).unwrap(), [pair("x", 2)]);
    assert_eq!(
        guarded(&half, &["x", "eth0"]).unwrap(),
        [pair("eth0", 1), pair("x", 2)]
    );
}

#[test]
fn arguments_alone_make_a_policy() {
    let c = prepare(None, &["eth7".into()], NonZeroU16::new(2222)).unwrap();
    assert_eq!(c.rule_names, ["admit-ssh", "ftp-out", "out"]);
    assert_eq!(c.ifaces[0].name, "eth7");
    assert!(prepare(None, &[], None).is_err());
    let missing = prepare(Some(Path::new("/nonexistent/fw.toml")), &[], None).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/fw.toml"));
    assert_eq!(crate::error::code(&missing.into()), crate::error::USAGE);
}

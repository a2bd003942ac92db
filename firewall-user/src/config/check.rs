//! From the file's shape to a [`super::Policy`]: names resolved, contradictions refused.

use std::{collections::HashMap, ops::Range};

use firewall_common::{
    abi::{MAX_RULES, MAX_ZONES, ZONE_ANY, ZONE_HOST, essentials, table_full, timeout},
    tcp::State,
    wire::proto,
};
use ipnet::IpNet;
use toml::Spanned;

use super::{
    FastPath, PolicyRule, Tables, Timeouts, Zone,
    compile::{combinations, count},
    error::{Error, Source},
    ranges,
    raw::{
        Action, Raw, RawEssentials, RawFastPath, RawRule, RawTables, RawTimeouts, RawZone,
        TableFull,
    },
    value::{PortRange, Several},
};

/// Free nodes that a CPU takes from an LRU table at once and keeps for itself
/// (`LOCAL_FREE_TARGET`; kernels since June 2025 take fewer of small tables). With
/// fewer left in the common list, it displaces entries to get them.
const LRU_NODES_TAKEN: u64 = 128;
/// Smallest LRU table that works, in elements for each CPU.
const LRU_NODES_PER_CPU: u64 = 2 * LRU_NODES_TAKEN;
/// Smallest proved table: half of it at most is spare ([`Tables::spare`]).
const PROVED_NODES_PER_CPU: u64 = 4 * LRU_NODES_TAKEN;
/// Largest table: 2^24 IPv6 flows take 3 GiB.
const LARGEST_TABLE: u64 = 1 << 24;
/// Rules of a file at most.
const MAX_FILE_RULES: usize = 1 << 14;
/// Name of the rule of `--admit-ssh`.
pub(super) const ADMIT_SSH: &str = "admit-ssh";

/// Zones by name, in the order of the file; the first gets number 1.
pub(super) fn zones(source: &Source<'_>, raw: &Raw) -> Result<Vec<Zone>, Error> {
    let mut named: Vec<(&Spanned<String>, &RawZone)> = raw.zones.iter().collect();
    named.sort_by_key(|(name, _)| name.span().start);
    let Some((first, _)) = named.first() else {
        return Err(Error::general(
            format!("{} has no zone", source.file),
            "add one: [zones.outside] with interfaces = [\"eth0\"]",
        ));
    };
    if named.len() > usize::from(MAX_ZONES) {
        return Err(source.error(
            first.span(),
            format!(
                "{} zones, but there can be {MAX_ZONES} at most",
                named.len()
            ),
            "put interfaces that are treated alike into one zone",
        ));
    }
    let mut owners = HashMap::new();
    named
        .into_iter()
        .map(|(name, zone)| {
            zone_name(source, name)?;
            for iface in &zone.interfaces {
                iface_name(source, iface)?;
                claim(source, &mut owners, iface, name.get_ref())?;
            }
            Ok(Zone {
                name: name.get_ref().clone(),
                trusted: zone.trusted,
                interfaces: zone
                    .interfaces
                    .iter()
                    .map(|i| i.get_ref().clone())
                    .collect(),
            })
        })
        .collect()
}

fn zone_name(source: &Source<'_>, name: &Spanned<String>) -> Result<(), Error> {
    let (text, plain) = (name.get_ref().as_str(), |b: u8| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
    });
    if text == "host" || text == "any" {
        return Err(source.error(
            name.span(),
            format!("the zone name `{text}` is reserved"),
            "`host` is the machine itself and `any` is every zone: choose another name",
        ));
    }
    if text.is_empty() || text.len() > 15 || !text.bytes().all(plain) {
        return Err(source.error(
            name.span(),
            format!("`{text}` cannot name a zone"),
            "use 1 to 15 lower-case letters, digits or `-`",
        ));
    }
    Ok(())
}

fn iface_name(source: &Source<'_>, name: &Spanned<String>) -> Result<(), Error> {
    if is_iface_name(name.get_ref()) {
        return Ok(());
    }
    Err(source.error(
        name.span(),
        format!("`{}` cannot be an interface", name.get_ref()),
        "use a name that `ip link` shows (1 to 15 bytes)",
    ))
}

/// Can the kernel have an interface of this name (`dev_valid_name`)?
pub(super) fn is_iface_name(name: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    !matches!(name, "" | "." | "..") && name.len() < 16 && !name.contains(odd)
}

/// An interface is in one zone, once.
fn claim<'a>(
    source: &Source<'_>,
    owners: &mut HashMap<&'a str, &'a str>,
    iface: &'a Spanned<String>,
    zone: &'a str,
) -> Result<(), Error> {
    let name = iface.get_ref().as_str();
    match owners.insert(name, zone) {
        None => Ok(()),
        Some(other) if other == zone => Err(source.error(
            iface.span(),
            format!("interface `{name}` is listed twice in zone `{zone}`"),
            "keep one of the two",
        )),
        Some(other) => Err(source.error(
            iface.span(),
            format!("interface `{name}` is in two zones: `{other}` and `{zone}`"),
            "zones must not overlap: keep it in one of them",
        )),
    }
}

/// All rules, checked one by one and for their number and names.
pub(super) fn rules(
    source: &Source<'_>,
    raw: Vec<Spanned<RawRule>>,
    zones: &[Zone],
) -> Result<Vec<PolicyRule>, Error> {
    let mut names = HashMap::new();
    let mut compiled = 0;
    let mut out = Vec::with_capacity(raw.len());
    for (number, raw) in (1_usize..).zip(raw) {
        let span = raw.span();
        let raw = raw.into_inner();
        let name_span = raw.name.as_ref().map_or(span.clone(), Spanned::span);
        let rule = rule(source, raw, number, span.clone(), zones)?;
        if let Some(other) = names.insert(rule.name.clone(), number) {
            return Err(source.error(
                name_span,
                format!(
                    "rule {number} has the name of rule {other}, `{}`",
                    rule.name
                ),
                "names tell rules apart in `flows list` and `stats`: choose another",
            ));
        }
        compiled = count(&rule).saturating_add(compiled);
        if number > MAX_FILE_RULES {
            return Err(source.error(
                span,
                format!("too many rules: there is room for {MAX_FILE_RULES}"),
                "one rule can have several networks and port ranges",
            ));
        }
        if compiled > MAX_RULES {
            return Err(source.error(
                span,
                format!(
                    "too many rules: with this one they compile to {compiled}, \
                     and there is room for {MAX_RULES}"
                ),
                "a rule counts once for each combination of its src, dst, sport and dport: \
                 use wider networks and ranges",
            ));
        }
        out.push(rule);
    }
    Ok(out)
}

fn rule(
    source: &Source<'_>,
    raw: RawRule,
    number: usize,
    span: Range<usize>,
    zones: &[Zone],
) -> Result<PolicyRule, Error> {
    ports_need_protocol(source, &raw)?;
    helper_needs_tcp(source, &raw)?;
    switch_needs_tcp(source, &raw, "loose", raw.loose.as_ref())?;
    switch_needs_tcp(source, &raw, "liberal", raw.liberal.as_ref())?;
    let on = |switch: &Option<Spanned<bool>>| switch.as_ref().is_some_and(|s| *s.get_ref());
    let rule = PolicyRule {
        name: rule_name(source, raw.name.as_ref(), number)?,
        from: zone_number(source, raw.from.as_ref(), zones)?,
        to: zone_number(source, raw.to.as_ref(), zones)?,
        proto: raw.proto,
        src: nets(raw.src),
        dst: nets(raw.dst),
        sport: ports(raw.sport),
        dport: ports(raw.dport),
        accept: raw.action == Action::Accept,
        helper: raw.helper.is_some(),
        loose: on(&raw.loose),
        liberal: on(&raw.liberal),
    };
    if combinations(&rule).next().is_none() {
        return Err(source.error(
            span,
            format!(
                "rule `{}` mixes IPv4 and IPv6 so that nothing matches it",
                rule.name
            ),
            "give src, dst and proto (icmp is IPv4, icmpv6 is IPv6) of one family",
        ));
    }
    Ok(rule)
}

fn rule_name(
    source: &Source<'_>,
    name: Option<&Spanned<String>>,
    number: usize,
) -> Result<String, Error> {
    let Some(name) = name else {
        return Ok(format!("rule-{number}"));
    };
    let (text, plain) = (name.get_ref().as_str(), |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
    });
    if text == ADMIT_SSH {
        return Err(source.error(
            name.span(),
            format!("the rule name `{ADMIT_SSH}` is reserved"),
            "it is the rule of `run --admit-ssh`: choose another name",
        ));
    }
    if ranges::is_reserved(text) {
        return Err(source.error(
            name.span(),
            format!("the rule name `{text}` is reserved"),
            "it is that of an [[ftp.fixed-range]]: choose another name",
        ));
    }
    if text.is_empty() || text.len() > 31 || !text.bytes().all(plain) {
        return Err(source.error(
            name.span(),
            format!("`{text}` cannot name a rule"),
            "use 1 to 31 letters, digits, `-`, `_` or `.`",
        ));
    }
    Ok(text.to_owned())
}

/// The zone of this name; without one it is any.
pub(super) fn zone_number(
    source: &Source<'_>,
    name: Option<&Spanned<String>>,
    zones: &[Zone],
) -> Result<u8, Error> {
    let Some(name) = name else {
        return Ok(ZONE_ANY);
    };
    let found = (1..).zip(zones).find(|(_, z)| z.name == *name.get_ref());
    match (name.get_ref().as_str(), found) {
        ("any", _) => Ok(ZONE_ANY),
        ("host", _) => Ok(ZONE_HOST),
        (_, Some((number, _))) => Ok(number),
        (unknown, None) => {
            let known: Vec<&str> = zones.iter().map(|z| z.name.as_str()).collect();
            Err(source.error(
                name.span(),
                format!("unknown zone `{unknown}`"),
                format!("use one of: {}, host, any", known.join(", ")),
            ))
        }
    }
}

fn ports_need_protocol(source: &Source<'_>, raw: &RawRule) -> Result<(), Error> {
    let keys = [("sport", &raw.sport), ("dport", &raw.dport)];
    for (key, ports) in keys {
        if let (Some(ports), false) = (ports, raw.proto.has_ports()) {
            return Err(source.error(
                ports.span(),
                format!("`{key}` without a protocol that has ports"),
                "add proto = \"tcp\" or proto = \"udp\" to this rule",
            ));
        }
    }
    Ok(())
}

fn helper_needs_tcp(source: &Source<'_>, raw: &RawRule) -> Result<(), Error> {
    let Some(helper) = &raw.helper else {
        return Ok(());
    };
    if raw.proto.number() != proto::TCP {
        return Err(source.error(
            helper.span(),
            "the FTP helper on a rule that is not for TCP",
            "add proto = \"tcp\" and the server's dport, 21 as a rule, to this rule",
        ));
    }
    if raw.action == Action::Drop {
        return Err(source.error(
            helper.span(),
            "the FTP helper on a rule that drops",
            "remove the helper, or write action = \"accept\"",
        ));
    }
    Ok(())
}

/// `loose` and `liberal` say how TCP connections are tracked that a rule lets begin.
fn switch_needs_tcp(
    source: &Source<'_>,
    raw: &RawRule,
    name: &str,
    switch: Option<&Spanned<bool>>,
) -> Result<(), Error> {
    let Some(switch) = switch.filter(|switch| *switch.get_ref()) else {
        return Ok(());
    };
    if raw.proto.number() != proto::TCP {
        return Err(source.error(
            switch.span(),
            format!("{name} on a rule that is not for TCP"),
            "add proto = \"tcp\" to this rule",
        ));
    }
    if raw.action == Action::Drop {
        return Err(source.error(
            switch.span(),
            format!("{name} on a rule that drops"),
            format!("remove {name}, or write action = \"accept\""),
        ));
    }
    Ok(())
}

fn nets(raw: Option<Several<super::value::Prefix>>) -> Vec<IpNet> {
    let all = raw.map_or_else(Vec::new, Several::into_vec);
    all.into_iter().map(super::value::Prefix::net).collect()
}

fn ports(raw: Option<Spanned<Several<PortRange>>>) -> Vec<PortRange> {
    raw.map_or_else(Vec::new, |ports| ports.into_inner().into_vec())
}

/// Bits of [`essentials`].
pub(super) fn essential_bits(raw: &RawEssentials) -> u32 {
    [
        (raw.arp, essentials::ARP),
        (raw.neighbour_discovery, essentials::NEIGHBOUR_DISCOVERY),
        (raw.dhcp_client, essentials::DHCP_CLIENT),
        (raw.dhcpv6_client, essentials::DHCPV6_CLIENT),
        (raw.multicast_listener, essentials::MULTICAST_LISTENER),
        (raw.path_mtu, essentials::PATH_MTU),
        (raw.link_control, essentials::LINK_CONTROL),
    ]
    .iter()
    .filter(|(on, _)| *on)
    .fold(0, |bits, (_, bit)| bits | bit)
}

/// By [`timeout`].
pub(super) fn timeouts(raw: &RawTimeouts) -> Timeouts {
    let tcp = |state: State| timeout::TCP + state as usize;
    // What has no key of its own: no TCP flow rests in `None`, the kernel gives
    // SYN_SENT2 the time of SYN_SENT, and the rest of the table is not used.
    let mut out = [raw.other; timeout::LEN];
    for (index, seconds) in [
        (tcp(State::None), raw.tcp_syn_sent),
        (tcp(State::SynSent), raw.tcp_syn_sent),
        (tcp(State::SynRecv), raw.tcp_syn_recv),
        (tcp(State::Established), raw.tcp_established),
        (tcp(State::FinWait), raw.tcp_fin_wait),
        (tcp(State::CloseWait), raw.tcp_close_wait),
        (tcp(State::LastAck), raw.tcp_last_ack),
        (tcp(State::TimeWait), raw.tcp_time_wait),
        (tcp(State::Close), raw.tcp_close),
        (tcp(State::SynSent2), raw.tcp_syn_sent),
        (timeout::TCP_UNACKNOWLEDGED, raw.tcp_unacknowledged),
        (timeout::UDP, raw.udp),
        (timeout::UDP_STREAM, raw.udp_stream),
        (timeout::ICMP, raw.icmp),
        (timeout::OTHER, raw.other),
    ] {
        out[index] = seconds;
    }
    Timeouts(out)
}

/// Takes what the file says of the fast path. A zone that names no interface takes
/// those of `--iface`, which are not known here.
pub(super) fn fast_path(
    source: &Source<'_>,
    raw: RawFastPath,
    zones: &[Zone],
) -> Result<FastPath, Error> {
    let open = zones.iter().any(|zone| zone.interfaces.is_empty());
    for name in &raw.complete_checksums {
        iface_name(source, name)?;
        let mut named = zones.iter().flat_map(|zone| &zone.interfaces);
        if !open && !named.any(|iface| iface == name.get_ref()) {
            return Err(source.error(
                name.span(),
                format!("no zone has the interface `{}`", name.get_ref()),
                "name an interface of a zone, or leave it out",
            ));
        }
    }
    let names = raw.complete_checksums.into_iter();
    Ok(FastPath {
        enabled: raw.enabled,
        complete_checksums: names.map(Spanned::into_inner).collect(),
    })
}

/// Table sizes; those not given grow with the number of CPUs.
pub(super) fn tables(source: &Source<'_>, raw: &RawTables, cpus: usize) -> Result<Tables, Error> {
    let cpus = cpus.max(1) as u64;
    let lru = LRU_NODES_PER_CPU * cpus;
    let proved = PROVED_NODES_PER_CPU * cpus;
    Ok(Tables {
        flows: table(source, "flows", raw.flows.as_ref(), 65_536, proved)?,
        spare: (LRU_NODES_TAKEN * (cpus + 1)) as u32,
        table_full: match raw.table_full {
            TableFull::TrackUnprotected => table_full::TRACK,
            TableFull::Drop => table_full::DROP,
            TableFull::Pass => table_full::PASS,
        },
        half_open: table(source, "half-open", raw.half_open.as_ref(), 16_384, lru)?,
        expectations: table(source, "expectations", raw.expectations.as_ref(), 4096, 1)?,
        sessions: table(source, "sessions", raw.sessions.as_ref(), 4096, 1)?,
    })
}

fn table(
    source: &Source<'_>,
    key: &str,
    given: Option<&Spanned<i64>>,
    default: u64,
    least: u64,
) -> Result<u32, Error> {
    let least = least.next_power_of_two();
    let Some(given) = given else {
        return Ok(default.max(least).min(u64::from(u32::MAX)) as u32);
    };
    let size = u64::try_from(*given.get_ref()).unwrap_or_default();
    let fail = |what: &str, help: String| {
        Err(source.error(
            given.span(),
            format!("`{key}` = {} {what}", given.get_ref()),
            help,
        ))
    };
    if size < least {
        return fail(
            "is too small for the CPUs of this machine",
            format!("use {least} or a larger power of two, or remove the key"),
        );
    }
    if size > LARGEST_TABLE {
        return fail("is too large", format!("use {LARGEST_TABLE} or less"));
    }
    if !size.is_power_of_two() {
        let up = size.next_power_of_two();
        let help = match up / 2 {
            down if down >= least => format!("use {down} or {up}"),
            _ => format!("use {up}"),
        };
        return fail("is not a power of two", help);
    }
    Ok(size as u32)
}

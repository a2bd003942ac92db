//! From a [`Policy`] to what the programs read.

use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{
        Config, EVENTS_BYTES, Iface, MAX_NAMED_RULES, MAX_RULES, Rule, Tier, action, config_flags,
        rule_flags, timeout,
    },
    key::map_v4,
    time::NS_PER_SEC,
    wire::proto,
};
use ipnet::IpNet;

use super::{Ftp, Policy, PolicyRule, Tables, error::Error, value::PortRange};
use crate::bpf::fixed;

/// Age of the heartbeat at which the programs take the agent for dead. It beats
/// several times a second; a stall of this length would hang control connections.
const AGENT_STALE_NS: u64 = 3 * NS_PER_SEC;
/// SYNs held for one host pair in a second. Back-to-back transfers lose the race
/// about once in fifteen connects, and a SYN that is not held costs a second; the
/// programs' budget of reports is twice this.
const HOLD_PER_PAIR: u32 = 32;

/// Holding is a lever for denial of service: only while the ring is less than half full.
const HOLD_RING_LIMIT: u32 = EVENTS_BYTES as u32 / 2;

/// What `run` writes into the maps.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For one generation of the `RULES` map, in order. Their `id` counts from
    /// 0; the loader makes of it what the generation demands ([`Rule::id`]).
    pub rules: Vec<Rule>,
    /// By [`Rule::id`], counted from 0.
    pub rule_names: Vec<String>,
    /// The interfaces to guard.
    pub ifaces: Vec<GuardedIface>,
    /// For the `CONFIG` map. The loader sets `generation` to the half of the
    /// `RULES` map that it wrote; `rule_count` stands in both.
    pub config: Config,
    /// Sizes of the tables.
    pub tables: Tables,
    /// What the helper may do.
    pub ftp: Ftp,
    /// Interfaces to which nobody sends packets with unwritten checksums.
    pub complete_checksums: Vec<String>,
    /// Zone names; index 0 is zone 1.
    pub zones: Vec<String>,
}

/// An interface to guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedIface {
    /// Its name.
    pub name: String,
    /// Number of its zone, 1 to `MAX_ZONES`.
    pub zone: u8,
    /// Name of its zone.
    pub zone_name: String,
    /// Do flows that begin there count as begun inside?
    pub trusted: bool,
}

impl GuardedIface {
    /// For the `IFACES` map; `flags` are of [`firewall_common::abi::iface_flags`].
    #[must_use]
    pub fn entry(&self, flags: u32) -> Iface {
        Iface {
            flags,
            zone: self.zone,
            trusted: u8::from(self.trusted),
            reserved: 0,
            name: fixed(&self.name),
            zone_name: fixed(&self.zone_name),
        }
    }
}

/// Compiles a policy whose interfaces are decided ([`Policy::guard`]).
pub(super) fn compile(policy: &Policy) -> Result<Compiled, Error> {
    if policy.rules.len() > MAX_NAMED_RULES {
        return Err(Error::general(
            format!(
                "{} rules, those of [[ftp.fixed-range]] among them, and there is room for \
                 {MAX_NAMED_RULES}",
                policy.rules.len()
            ),
            "put ranges with the same ports into one, or leave some out",
        ));
    }
    let mut rules = Vec::new();
    let mut rule_names = Vec::new();
    let mut compiled = 0_usize;
    for (id, rule) in (0_u16..).zip(&policy.rules) {
        compiled = compiled.saturating_add(count(rule));
        let room = MAX_RULES.saturating_sub(rules.len());
        rules.extend(
            combinations(rule)
                .take(room)
                .map(|rule| Rule { id, ..rule }),
        );
        rule_names.push(rule.name.clone());
    }
    if compiled > MAX_RULES {
        return Err(Error::general(
            format!("{compiled} compiled rules, and there is room for {MAX_RULES}"),
            "use wider networks and ranges in the rules",
        ));
    }
    Ok(Compiled {
        config: config(policy, rules.len() as u32),
        rules,
        rule_names,
        ifaces: ifaces(policy),
        tables: policy.tables,
        ftp: policy.ftp.clone(),
        complete_checksums: policy.fast_path.complete_checksums.clone(),
        zones: policy.zones.iter().map(|zone| zone.name.clone()).collect(),
    })
}

fn ifaces(policy: &Policy) -> Vec<GuardedIface> {
    let guarded = (1_u8..).zip(&policy.zones).flat_map(|(number, zone)| {
        zone.interfaces.iter().map(move |name| GuardedIface {
            name: name.clone(),
            zone: number,
            zone_name: zone.name.clone(),
            trusted: zone.trusted,
        })
    });
    guarded.collect()
}

fn config(policy: &Policy, rule_count: u32) -> Config {
    let mut timeouts = [0; timeout::LEN];
    for (ticks, seconds) in timeouts.iter_mut().zip(policy.timeouts.0) {
        *ticks = seconds.ticks();
    }
    let gateway = if policy.is_gateway() {
        config_flags::GATEWAY
    } else {
        0
    };
    let loose = if policy.rules.iter().any(|rule| rule.loose) {
        config_flags::LOOSE
    } else {
        0
    };
    let ranges = if policy.ftp.ranges.is_empty() {
        0
    } else {
        config_flags::RANGES
    };
    let fast = if policy.is_gateway() && policy.fast_path.enabled {
        config_flags::FAST_PATH
    } else {
        0
    };
    Config {
        agent_stale_ns: AGENT_STALE_NS,
        flags: gateway | loose | ranges | fast | config_flags::HOLD,
        essentials: policy.essentials,
        rule_count: [rule_count; 2],
        tier_limits: tier_limits(&policy.tables),
        timeouts,
        hold_ring_limit: HOLD_RING_LIMIT,
        hold_per_pair: HOLD_PER_PAIR,
        table_full: policy.tables.table_full,
        ..Config::zeroed()
    }
}

/// By [`Tier`].
fn tier_limits(tables: &Tables) -> [u32; 4] {
    let [tcp, other] = tables.limits(tables.flows);
    let mut limits = [tcp; 4];
    limits[Tier::Other4 as usize] = other;
    limits[Tier::Other6 as usize] = other;
    limits
}

/// How many [`combinations`] there are, without making them.
pub(super) fn count(rule: &PolicyRule) -> usize {
    const FAMILIES: [u16; 3] = [0, rule_flags::V4_ONLY, rule_flags::V6_ONLY];
    let of = |nets: &[IpNet], flag: u16| match flag {
        0 => usize::from(nets.is_empty()),
        flag => nets.iter().filter(|net| of_net(**net) == flag).count(),
    };
    let pairs = FAMILIES
        .iter()
        .flat_map(|src| FAMILIES.iter().map(move |dst| (src, dst)));
    let pairs = pairs.filter(|(src, dst)| agree(of_proto(rule) | **src | **dst));
    let pairs = pairs.fold(0_usize, |sum, (src, dst)| {
        let product = of(&rule.src, *src).saturating_mul(of(&rule.dst, *dst));
        sum.saturating_add(product)
    });
    pairs
        .saturating_mul(rule.sport.len().max(1))
        .saturating_mul(rule.dport.len().max(1))
}

/// The conjunctions that a rule with lists stands for; `id` is 0. Those of two
/// families are left out.
pub(super) fn combinations(rule: &PolicyRule) -> impl Iterator<Item = Rule> + '_ {
    let sources = or_any(&rule.src);
    let destinations = or_any(&rule.dst);
    let pairs = sources.into_iter().flat_map(move |src| {
        let destinations = destinations.clone();
        destinations.into_iter().map(move |dst| (src, dst))
    });
    pairs
        .filter_map(move |(src, dst)| Some((src, dst, family(rule, src, dst)?)))
        .flat_map(move |(src, dst, family)| with_ports(rule, addresses(rule, src, dst, family)))
}

fn or_any<T: Copy>(list: &[T]) -> Vec<Option<T>> {
    if list.is_empty() {
        vec![None]
    } else {
        list.iter().copied().map(Some).collect()
    }
}

/// Flags of the one family that all parts agree on (0 if none says), or `None`.
fn family(rule: &PolicyRule, src: Option<IpNet>, dst: Option<IpNet>) -> Option<u16> {
    let all = of_proto(rule) | src.map_or(0, of_net) | dst.map_or(0, of_net);
    agree(all).then_some(all)
}

const fn agree(families: u16) -> bool {
    families != rule_flags::V4_ONLY | rule_flags::V6_ONLY
}

const fn of_net(net: IpNet) -> u16 {
    match net {
        IpNet::V4(_) => rule_flags::V4_ONLY,
        IpNet::V6(_) => rule_flags::V6_ONLY,
    }
}

const fn of_proto(rule: &PolicyRule) -> u16 {
    match rule.proto.number() {
        proto::ICMP => rule_flags::V4_ONLY,
        proto::ICMPV6 => rule_flags::V6_ONLY,
        _ => 0,
    }
}

fn addresses(rule: &PolicyRule, src: Option<IpNet>, dst: Option<IpNet>, family: u16) -> Rule {
    let mut out = Rule {
        flags: family,
        proto: rule.proto.number(),
        from_zone: rule.from,
        to_zone: rule.to,
        action: if rule.accept {
            action::ACCEPT
        } else {
            action::DROP
        },
        ..Rule::zeroed()
    };
    for (on, flag) in [
        (rule.helper, rule_flags::HELPER_FTP),
        (rule.loose, rule_flags::LOOSE),
        (rule.liberal, rule_flags::LIBERAL),
    ] {
        if on {
            out.flags |= flag;
        }
    }
    if let Some(net) = src {
        out.flags |= rule_flags::SRC;
        (out.src, out.src_mask) = words(net);
    }
    if let Some(net) = dst {
        out.flags |= rule_flags::DST;
        (out.dst, out.dst_mask) = words(net);
    }
    out
}

fn with_ports(rule: &PolicyRule, base: Rule) -> impl Iterator<Item = Rule> + use<'_> {
    let range = |range: Option<PortRange>| range.unwrap_or(PortRange::ANY).bounds();
    let flags = if rule.sport.is_empty() && rule.dport.is_empty() {
        base.flags
    } else {
        base.flags | rule_flags::PORTS
    };
    or_any(&rule.sport).into_iter().flat_map(move |sport| {
        or_any(&rule.dport).into_iter().map(move |dport| Rule {
            flags,
            sport: range(sport),
            dport: range(dport),
            ..base
        })
    })
}

/// Network and mask as the programs compare them: words in network byte order,
/// IPv4 mapped.
fn words(net: IpNet) -> ([u32; 4], [u32; 4]) {
    match net {
        IpNet::V4(net) => {
            let word = |octets: [u8; 4]| u32::from_ne_bytes(octets);
            let mask = word(net.netmask().octets());
            (
                map_v4(word(net.network().octets())),
                [u32::MAX, u32::MAX, u32::MAX, mask],
            )
        }
        IpNet::V6(net) => (
            bytemuck::cast(net.network().octets()),
            bytemuck::cast(net.netmask().octets()),
        ),
    }
}

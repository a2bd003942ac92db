//! Compiled rules.

use bytemuck::{Pod, Zeroable};

use crate::pod;

/// Compiled rules of one policy at most: a bit in [`super::classes`] for each.
pub const MAX_RULES: usize = 1 << 15;

/// Names of the rules of one policy at most: `2^14` of its file, and what else it makes
/// rules of.
pub const MAX_NAMED_RULES: usize = (1 << 14) + 256;

/// Elements of `RULE_NAMES`: two generations.
pub const RULE_NAMES_LEN: usize = 2 * MAX_NAMED_RULES;

/// Counters of one CPU in a map inside `RULE_HITS`, of a policy of so many compiled rules.
///
/// As many as fill pairs of cache lines: where two CPUs count in one line, which the
/// counters of a few rules are, each waits for the other with each new flow.
#[inline(always)]
#[must_use]
pub const fn hits_of_cpu(rules: u32) -> u32 {
    const PAIR_OF_LINES: u32 = 128 / size_of::<super::Counter>() as u32;
    rules.next_multiple_of(PAIR_OF_LINES)
}

/// Flag of the maps inside `RULES`, `RULE_HITS` and `CLASSES` (`BPF_F_INNER_MAP` of
/// `linux/bpf.h`): each has the length that its policy needs.
pub const INNER_MAP: usize = 1 << 12;

/// [`Rule::id`] of flows that no rule admitted: seeded, expected, or a named
/// essential. Its eleven bits stand for it in an entry, whatever the five above
/// them ([`super::Flow::rule`]); no other identifier has all of them set.
pub const RULE_NONE: u16 = 2047;

/// [`Rule::id`] of the rule with this number, from 0, in the configuration.
///
/// The generations take turns, so that the flows of the policy before this one
/// still name their rule.
#[inline(always)]
#[must_use]
pub const fn rule_id(generation: u32, number: u16) -> u16 {
    id_of_name(2 * number as u32 + (generation & 1))
}

/// [`Rule::id`] of the name in this element of `RULE_NAMES`.
#[inline(always)]
#[must_use]
pub const fn id_of_name(slot: u32) -> u16 {
    (slot + slot / RULE_NONE as u32) as u16
}

/// The element of `RULE_NAMES` that names the rule of this [`Rule::id`].
#[inline(always)]
#[must_use]
pub const fn name_of_id(id: u16) -> u32 {
    id as u32 - id as u32 / (RULE_NONE as u32 + 1)
}

const _: () = {
    let last = rule_id(1, MAX_NAMED_RULES as u16 - 1);
    assert!(name_of_id(last) as usize == RULE_NAMES_LEN - 1);
    assert!(name_of_id(rule_id(0, 1024)) == 2048 && rule_id(1, 1023) == RULE_NONE + 1);
};

/// Name of a rule, NUL-terminated.
pub type RuleName = [u8; 32];

/// Values of [`Rule::action`].
pub mod action {
    /// Drop, counted as `rule`.
    pub const DROP: u8 = 0;
    /// Accept and track.
    pub const ACCEPT: u8 = 1;
}

/// Bits of [`Rule::flags`].
pub mod rule_flags {
    /// `src` and `src_mask` count.
    pub const SRC: u16 = 1 << 0;
    /// `dst` and `dst_mask` count.
    pub const DST: u16 = 1 << 1;
    /// The ports count: the rule is for TCP or UDP.
    pub const PORTS: u16 = 1 << 2;
    /// Payload of admitted flows goes to the FTP helper.
    pub const HELPER_FTP: u16 = 1 << 3;
    /// IPv4 only.
    pub const V4_ONLY: u16 = 1 << 4;
    /// IPv6 only.
    pub const V6_ONLY: u16 = 1 << 5;
    /// An ACK without a flow begins one: a TCP connection is picked up in mid-life.
    pub const LOOSE: u16 = 1 << 6;
    /// Segments out of window pass in the flows that the rule admits.
    pub const LIBERAL: u16 = 1 << 7;
}

/// One compiled rule: a conjunction. A rule of the configuration with several
/// addresses or ports becomes several of these under one `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    /// Source prefix, network byte order, IPv4 in mapped form, masked.
    pub src: [u32; 4],
    /// Mask of `src`.
    pub src_mask: [u32; 4],
    /// Destination prefix, as `src`.
    pub dst: [u32; 4],
    /// Mask of `dst`.
    pub dst_mask: [u32; 4],
    /// Lowest and highest source port.
    pub sport: [u16; 2],
    /// Lowest and highest destination port.
    pub dport: [u16; 2],
    /// [`rule_flags`].
    pub flags: u16,
    /// Names the rule of the configuration: [`rule_id`].
    pub id: u16,
    /// IP protocol number; 0 for any.
    pub proto: u8,
    /// Zone of origin, or [`super::ZONE_ANY`].
    pub from_zone: u8,
    /// Zone of destination, or [`super::ZONE_ANY`].
    pub to_zone: u8,
    /// [`action`].
    pub action: u8,
}
pod!(Rule, 80);

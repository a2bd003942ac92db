//! Compiled rules.

use bytemuck::{Pod, Zeroable};

use crate::pod;

/// Rules in one generation of the `RULES` map.
pub const MAX_RULES: usize = 1024;

/// Rules in the configuration. One less than [`MAX_RULES`], so that no
/// [`Rule::id`] of either generation is [`RULE_NONE`].
pub const MAX_NAMED_RULES: usize = MAX_RULES - 1;

/// [`Rule::id`] of flows that no rule admitted: seeded, expected, or a named
/// essential. The highest number that fits in an entry ([`super::Last`]).
pub const RULE_NONE: u16 = 2047;

const _: () = assert!(MAX_NAMED_RULES - 1 + MAX_RULES < RULE_NONE as usize);

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
    /// Slot of the rule's name in `RULE_NAMES`: number of the rule in the
    /// configuration plus [`MAX_RULES`] in generation 1, so that the flows of
    /// the policy before this one still name their rule.
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

//! Matching a new flow against compiled rules: one, or all at once ([`classify`]).

pub mod classify;

use crate::{
    abi::{Rule, ZONE_ANY, rule_flags},
    wire::{Family, Headers, proto},
};

/// Does `rule` match the first packet of a flow from `from` to `to`?
#[inline(always)]
#[must_use]
pub fn matches(rule: &Rule, h: &Headers, from: u8, to: u8) -> bool {
    if rule.from_zone != ZONE_ANY && rule.from_zone != from {
        return false;
    }
    if rule.to_zone != ZONE_ANY && rule.to_zone != to {
        return false;
    }
    if rule.proto != 0 && rule.proto != h.proto {
        return false;
    }
    let v4 = h.family as u8 == Family::V4 as u8;
    if (rule.flags & rule_flags::V4_ONLY != 0 && !v4)
        || (rule.flags & rule_flags::V6_ONLY != 0 && v4)
    {
        return false;
    }
    if rule.flags & rule_flags::PORTS != 0 && !ports_match(rule, h) {
        return false;
    }
    if rule.flags & rule_flags::SRC != 0 && !within(&h.src, &rule.src, &rule.src_mask) {
        return false;
    }
    rule.flags & rule_flags::DST == 0 || within(&h.dst, &rule.dst, &rule.dst_mask)
}

#[inline(always)]
fn ports_match(rule: &Rule, h: &Headers) -> bool {
    (h.proto == proto::TCP || h.proto == proto::UDP)
        && h.sport >= rule.sport[0]
        && h.sport <= rule.sport[1]
        && h.dport >= rule.dport[0]
        && h.dport <= rule.dport[1]
}

#[inline(always)]
fn within(addr: &[u32; 4], prefix: &[u32; 4], mask: &[u32; 4]) -> bool {
    addr[0] & mask[0] == prefix[0]
        && addr[1] & mask[1] == prefix[1]
        && addr[2] & mask[2] == prefix[2]
        && addr[3] & mask[3] == prefix[3]
}

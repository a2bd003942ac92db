//! The rules, and the zone a new flow goes to.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::bpf_fib_lookup as FibParams,
    helpers::generated::{bpf_fib_lookup, bpf_loop},
};
use firewall_common::{
    abi::{Config, MAX_RULES, RULE_NONE, ZONE_HOST, action, config_flags},
    policy::matches,
    verdict::DropReason,
    wire::{Family, Headers},
};

use crate::{explain, forward, maps::RULES, packet::Packet, pipeline, stats, work::Work};

/// What the rules say of a new flow.
#[derive(Clone, Copy)]
pub(crate) struct Decision {
    /// [`action`], or `NO_MATCH`.
    pub action: u8,
    /// `Rule::id`, or [`RULE_NONE`].
    pub id: u16,
    /// `Rule::flags`.
    pub flags: u16,
}

/// [`Decision::action`] when no rule matches: the default, drop.
pub(crate) const NO_MATCH: u8 = 0xff;

struct Scan<'a> {
    headers: &'a Headers,
    base: u32,
    hit: u32,
    found: Decision,
    from: u8,
    to: u8,
}

/// First match wins.
#[inline(always)]
pub(crate) fn decide(config: &Config, work: &mut Work) -> Decision {
    let generation = config.generation & 1;
    let mut scan = Scan {
        headers: &work.headers,
        base: generation * MAX_RULES as u32,
        hit: 0,
        found: Decision {
            action: NO_MATCH,
            id: RULE_NONE,
            flags: 0,
        },
        from: work.from_zone,
        to: work.to_zone,
    };
    let count = config.rule_count[generation as usize];
    let callback = try_rule as extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: `scan` outlives the loop, and the callback has the signature that
    // bpf_loop documents.
    unsafe { bpf_loop(count, callback as *mut c_void, (&raw mut scan).cast(), 0) };
    if scan.found.action != NO_MATCH {
        let (hit, found) = (scan.hit, scan.found);
        stats::rule(hit, work.headers.l3_len);
        explain::rule(work, hit);
        return found;
    }
    scan.found
}

/// One iteration of the loop: 1 stops it.
extern "C" fn try_rule(index: u32, scan: *mut c_void) -> i64 {
    // SAFETY: `decide` passes its own `Scan`, which nothing else refers to meanwhile.
    let scan = unsafe { &mut *scan.cast::<Scan<'_>>() };
    let at = scan.base + index;
    let Some(rule) = RULES.get(at) else {
        return 1;
    };
    if !matches(rule, scan.headers, scan.from, scan.to) {
        return 0;
    }
    scan.found = Decision {
        action: if rule.action == action::ACCEPT {
            action::ACCEPT
        } else {
            action::DROP
        },
        id: rule.id,
        flags: rule.flags,
    };
    scan.hit = at;
    1
}

/// The zone that a packet arriving at XDP goes to.
///
/// In host mode there is but one answer. A gateway asks the routing table, for
/// new flows only: what it would not forward is the host's own.
#[inline(always)]
pub(crate) fn destination_zone<P: Packet>(packet: &P, work: &mut Work) -> Result<u8, DropReason> {
    if work.flags & config_flags::GATEWAY == 0 || stays_on_link(&work.headers) {
        return Ok(ZONE_HOST);
    }
    if let Some(zone) = forward::zone_ahead(packet, work) {
        return Ok(zone);
    }
    match route(packet, work) {
        Route::Local => Ok(ZONE_HOST),
        Route::Via(ifindex) => Ok(pipeline::iface(ifindex).map_or(ZONE_HOST, |i| i.zone)),
        Route::Nowhere => Err(DropReason::NoRoute),
    }
}

/// Is the destination one that no router forwards to? A look-up would find the
/// default route for some of them.
#[inline(always)]
fn stays_on_link(h: &Headers) -> bool {
    if h.family as u8 == Family::V4 as u8 {
        let dst = u32::from_be(h.dst[3]);
        // 255.255.255.255 (RFC 919), 224.0.0.0/24 (RFC 5771, section 4).
        return dst == u32::MAX || dst >> 8 == 0x00e0_0000;
    }
    // Multicast of interface and link scope (RFC 4291, section 2.7).
    let first = u32::from_be(h.dst[0]) >> 16;
    is_link_local(&h.dst) || first == 0xff01 || first == 0xff02
}

/// fe80::/10 (RFC 4291, section 2.5.6).
#[inline(always)]
pub(crate) fn is_link_local(address: &[u32; 4]) -> bool {
    u32::from_be(address[0]) >> 22 == 0xfe80 >> 6
}

enum Route {
    Local,
    Via(u32),
    Nowhere,
}

#[inline(always)]
fn route<P: Packet>(packet: &P, work: &mut Work) -> Route {
    match look_up(packet, work, false) {
        // Without a neighbour yet, or too long for the link, the kernel knows
        // the device all the same and deals with the rest.
        found::SUCCESS | found::NO_NEIGHBOUR | found::FRAGMENTATION_NEEDED => {
            Route::Via(work.route.ifindex)
        }
        // Through a route that encapsulates it goes to a device that the look-up
        // does not tell, so to a zone that no rule can be asked about.
        found::BLACKHOLE..=found::PROHIBIT | found::ENCAPSULATED => Route::Nowhere,
        code if code < 0 => Route::Nowhere,
        // Not forwarded: the host's own address, or forwarding is off.
        _ => Route::Local,
    }
}

/// What a route look-up says: `BPF_FIB_LKUP_RET_*`.
pub(crate) mod found {
    pub(crate) const SUCCESS: i64 = 0;
    pub(crate) const BLACKHOLE: i64 = 1;
    pub(crate) const PROHIBIT: i64 = 3;
    pub(crate) const ENCAPSULATED: i64 = 6;
    pub(crate) const NO_NEIGHBOUR: i64 = 7;
    pub(crate) const FRAGMENTATION_NEEDED: i64 = 8;
    /// No code of the kernel's: the look-up failed.
    pub(crate) const UNKNOWN: u32 = u32::MAX;
}

/// Looks up the route of the packet at hand, the rules of routing included. The result
/// is of [`found`], the route in [`Work::route`]; with `back`, of one from the packet's
/// destination to its source.
#[inline(always)]
pub(crate) fn look_up<P: Packet>(packet: &P, work: &mut Work, back: bool) -> i64 {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let (h, params) = (&work.headers, &mut work.route);
    // SAFETY: all zero is a valid value: integers, arrays and unions of them.
    *params = unsafe { core::mem::zeroed() };
    let ends = [(&h.src, h.sport), (&h.dst, h.dport)];
    let [(src, sport), (dst, dport)] = if back { [ends[1], ends[0]] } else { ends };
    params.l4_protocol = h.proto;
    params.sport = sport.to_be();
    params.dport = dport.to_be();
    params.ifindex = packet.ifindex();
    if h.family as u8 == Family::V4 as u8 {
        params.family = AF_INET;
        params.__bindgen_anon_2.tos = h.service as u8;
        params.__bindgen_anon_3.ipv4_src = src[3];
        params.__bindgen_anon_4.ipv4_dst = dst[3];
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_2.flowinfo = h.service;
        params.__bindgen_anon_3.ipv6_src = *src;
        params.__bindgen_anon_4.ipv6_dst = *dst;
    }
    // SAFETY: context and parameters are valid, the size is theirs.
    unsafe {
        bpf_fib_lookup(
            packet.as_ptr(),
            &raw mut *params,
            size_of::<FibParams>() as i32,
            0,
        )
    }
}

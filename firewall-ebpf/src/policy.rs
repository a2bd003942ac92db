//! The rules, and the zone a new flow goes to.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    bindings::bpf_fib_lookup as FibParams,
    helpers::generated::{bpf_fib_lookup, bpf_loop, bpf_map_lookup_elem},
};
use firewall_common::{
    abi::{
        Config, MAX_RULES, NO_SLOT, RULE_NONE, Rule, ZONE_HOST, action,
        classes::{Block, CHUNK_RULES, dimension, outcome, searches},
        config_flags,
    },
    policy::{
        classify::{self, Blocks, Look, Row, Rows},
        matches,
    },
    verdict::DropReason,
    wire::{Family, Headers},
};

use crate::{
    explain, forward,
    maps::{CLASSES, OfPolicy, RULES},
    packet::Packet,
    pipeline, stats,
    work::Work,
};

/// What the rules say of a new flow.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Decision {
    /// [`action`], or [`NO_MATCH`].
    pub action: u8,
    /// Fills up to the next field.
    reserved: u8,
    /// `Rule::id`, or [`RULE_NONE`].
    pub id: u16,
    /// `Rule::flags`.
    pub flags: u16,
}

/// [`Decision::action`] when no rule matches: the default, drop.
pub(crate) const NO_MATCH: u8 = 0xff;

/// First match wins.
#[inline(always)]
pub(crate) fn decide(config: &Config, work: &mut Work) -> Decision {
    let generation = config.generation & 1;
    let count = config.rule_count[generation as usize];
    let slot = pinhole_rules(work, generation, count);
    if slot != NO_SLOT {
        explain::rule(work, slot);
    }
    work.decision
}

/// Looks for the rule of a new flow, and counts it: what it decides is in
/// [`Work::decision`] then. Returns its slot.
///
/// A global function: the verifier follows it once, and not from each state in which
/// a packet can get here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_rules(work: *mut Work, generation: u32, count: u32) -> u32 {
    // SAFETY: `decide` passes this run's own work area, which nothing else refers
    // to meanwhile.
    let Some(work) = (unsafe { work.as_mut() }) else {
        return NO_SLOT;
    };
    work.decision = Decision {
        action: NO_MATCH,
        reserved: 0,
        id: RULE_NONE,
        flags: 0,
    };
    let found = if count <= WALKED {
        walk(work, generation, count)
    } else {
        search(work, generation)
    };
    let Some(index) = found else {
        return NO_SLOT;
    };
    stats::rule(generation, index, count, work.headers.l3_len);
    generation * MAX_RULES as u32 + index
}

/// So few rules are faster tried one after the other.
const WALKED: u32 = 8;

struct Walk<'a> {
    rules: &'a OfPolicy<Rule>,
    work: &'a mut Work,
    hit: u32,
}

#[inline(always)]
fn walk(work: &mut Work, generation: u32, count: u32) -> Option<u32> {
    let mut walk = Walk {
        rules: RULES.get(generation)?,
        work,
        hit: NO_SLOT,
    };
    let callback = try_rule as extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: `walk` outlives the loop, and the callback has the signature that
    // bpf_loop documents.
    unsafe { bpf_loop(count, callback as *mut c_void, (&raw mut walk).cast(), 0) };
    (walk.hit != NO_SLOT).then_some(walk.hit)
}

/// One iteration of the loop: 1 stops it.
extern "C" fn try_rule(index: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `walk` passes its own, which nothing else refers to meanwhile.
    let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
    let Some([rule]) = walk.rules.get(index) else {
        return 1;
    };
    let work = &mut *walk.work;
    if !matches(rule, &work.headers, work.from_zone, work.to_zone) {
        return 0;
    }
    decided(work, rule.action, rule.id, rule.flags);
    walk.hit = index;
    1
}

#[inline(always)]
fn decided(work: &mut Work, action: u8, id: u16, flags: u16) {
    let accept = action == action::ACCEPT;
    work.decision = Decision {
        action: if accept { action::ACCEPT } else { action::DROP },
        reserved: 0,
        id,
        flags,
    };
}

/// The blocks of a policy, a word in which numbers are hidden, and room for a key.
#[derive(Clone, Copy)]
struct Image {
    blocks: &'static OfPolicy<Block>,
    hidden: *mut u64,
    key: *mut u32,
}

impl Image {
    /// `key` is one for all look-ups: each of its own would take eight bytes of stack.
    #[inline(always)]
    fn of(blocks: &'static OfPolicy<Block>, work: &mut Work, key: &mut u32) -> Self {
        Self {
            blocks,
            hidden: &raw mut work.hidden,
            key,
        }
    }
}

impl Blocks for Image {
    #[inline(always)]
    fn block(&self, at: u32) -> Option<&Block> {
        // SAFETY: the local variable of the function that made this.
        unsafe { self.key.write_volatile(at) };
        let map = (&raw const *self.blocks).cast_mut().cast();
        // SAFETY: a map with keys of this type.
        let block = unsafe { bpf_map_lookup_elem(map, self.key.cast()) };
        // SAFETY: null, or an element, which is valid for the whole run; all are numbers.
        unsafe { block.cast::<Block>().as_ref() }
    }

    #[inline(always)]
    fn hide(&self, number: u64) -> u64 {
        // SAFETY: a field of this run's own work area.
        unsafe { self.hidden.write_volatile(number) };
        // SAFETY: as above.
        unsafe { self.hidden.read_volatile() }
    }

    #[inline(always)]
    fn pace(&self, number: u64) -> u64 {
        let mut number = number;
        // SAFETY: the number stays where it is. (Line information must not be of no
        // instruction at all.)
        unsafe { asm!("{0} = {0}", inout(reg) number, options(nostack, preserves_flags)) };
        number
    }
}

struct Search<'a> {
    blocks: &'static OfPolicy<Block>,
    work: &'a mut Work,
    hit: u32,
}

#[inline(always)]
fn search(work: &mut Work, generation: u32) -> Option<u32> {
    const CHUNKS: u32 = (MAX_RULES / CHUNK_RULES) as u32;
    let blocks = CLASSES.get(generation)?;
    if !find_rows(work, generation) {
        return None;
    }
    let mut search = Search {
        blocks,
        work,
        hit: NO_SLOT,
    };
    let callback = try_chunk as extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: as in `walk`.
    unsafe { bpf_loop(CHUNKS, callback as *mut c_void, (&raw mut search).cast(), 0) };
    let hit = search.hit;
    if hit == NO_SLOT {
        return None;
    }
    let mut key = 0;
    let outcome = classify::outcome(&Image::of(blocks, work, &mut key), hit)?;
    decided(
        work,
        (outcome >> outcome::ACTION) as u8,
        (outcome >> outcome::ID) as u16,
        (outcome >> outcome::FLAGS) as u16,
    );
    Some(hit)
}

/// Fills [`Work::rows`]. Each part is a global function: of others, the verifier of
/// Linux 6.1 follows all that comes behind from each way through them.
#[inline(always)]
fn find_rows(work: &mut Work, generation: u32) -> bool {
    work.rows = Rows::NONE;
    pinhole_rows_place(work, generation) != 0
        && find_addresses(work, generation)
        && pinhole_rows_port(work, generation, 0) != 0
        && pinhole_rows_port(work, generation, 1) != 0
}

#[inline(always)]
fn find_addresses(work: &mut Work, generation: u32) -> bool {
    if work.headers.family as u8 == Family::V4 as u8 {
        pinhole_rows_address4(work, generation, 0) != 0
            && pinhole_rows_address4(work, generation, 1) != 0
    } else {
        pinhole_rows_address6(work, generation, 0) != 0
            && pinhole_rows_address6(work, generation, 1) != 0
    }
}

/// The rows of where the packet runs, and of its protocol. 0 if there are none, as in
/// the next.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_rows_place(work: *mut Work, generation: u32) -> u32 {
    note(work, generation, |image, work| {
        let place = classify::place(image, work.from_zone, work.to_zone)?;
        work.rows.put(dimension::PLACE, place);
        let protocol = classify::protocol(image, &work.headers)?;
        work.rows.put(dimension::PROTOCOL, protocol);
        Some(())
    })
}

/// The row of an IPv4 source, or of a destination if that is not 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_rows_address4(work: *mut Work, generation: u32, destination: u32) -> u32 {
    note_end(work, generation, ADDRESSES, destination, classify::address4)
}

/// The same of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_rows_address6(work: *mut Work, generation: u32, destination: u32) -> u32 {
    note_end(work, generation, ADDRESSES, destination, classify::address6)
}

/// The row of a source port, or of a destination port.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_rows_port(work: *mut Work, generation: u32, destination: u32) -> u32 {
    note_end(work, generation, PORTS, destination, |image, h, to| {
        let (at, port) = if to {
            (searches::DPORT, h.dport)
        } else {
            (searches::SPORT, h.sport)
        };
        classify::port(image, at, port)
    })
}

/// The dimensions of a packet's ends, its source first.
type Ends = [usize; 2];
const ADDRESSES: Ends = [dimension::SOURCE, dimension::DESTINATION];
const PORTS: Ends = [dimension::SPORT, dimension::DPORT];

/// Notes the row that `find` returns for an end, the destination unless that is 0.
#[inline(always)]
fn note_end(
    work: *mut Work,
    generation: u32,
    [source, other]: Ends,
    destination: u32,
    find: impl FnOnce(&Image, &Headers, bool) -> Option<Row>,
) -> u32 {
    note(work, generation, |image, work| {
        let row = find(image, &work.headers, destination != 0)?;
        if destination == 0 {
            work.rows.put(source, row);
        } else {
            work.rows.put(other, row);
        }
        Some(())
    })
}

/// Has `find` note rows of a policy's blocks. 0 if it finds none, or there are no blocks.
#[inline(always)]
fn note(
    work: *mut Work,
    generation: u32,
    find: impl FnOnce(&Image, &mut Work) -> Option<()>,
) -> u32 {
    // SAFETY: as `pinhole_rules`.
    let (Some(work), Some(blocks)) = (unsafe { work.as_mut() }, CLASSES.get(generation)) else {
        return 0;
    };
    let mut key = 0;
    let image = Image::of(blocks, work, &mut key);
    find(&image, work).is_some().into()
}

/// One iteration of the loop: 1 stops it.
extern "C" fn try_chunk(_: u32, search: *mut c_void) -> i64 {
    // SAFETY: `search` passes its own, which nothing else refers to meanwhile.
    let search = unsafe { &mut *search.cast::<Search<'_>>() };
    let mut key = 0;
    let image = Image::of(search.blocks, search.work, &mut key);
    match search.work.rows.look(&image) {
        Look::Not => 0,
        Look::Over => 1,
        Look::Found(rule) => {
            search.hit = rule;
            1
        }
    }
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

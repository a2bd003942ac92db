//! The fast path: what the kernel would do to a packet of a flow, and no more.
//!
//! The tracker has accepted the packet. Whatever is not plain here goes to the kernel,
//! which is always right, only slower.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, PerCpuArray},
    helpers::generated::bpf_redirect,
    macros::btf_map,
    programs::XdpContext,
};
use firewall_common::{
    abi::{
        FAST_LEN, FAST_PLACES, FastCounter, FastIface, HOPS_LEN, Hop, KEPT_LEN, Kept,
        NEIGHBOURS_LEN, config_flags, fast_flags, fast_places, hop_flags, hop_kind,
    },
    forward::{
        holds, holds_plain, is_stale, may_forward, must_lead_back, neighbour, one_hop_less,
        plain_service, route, route_plain, stepped,
    },
    wire::{ETHERNET_LEN, Family, Headers, Reader as _},
};

use crate::{
    atomic::Shared,
    control,
    packet::{Packet, XdpPacket},
    policy::{self, found},
    work::{self, Work},
};

#[btf_map]
static FAST_IFACES: Array<FastIface, FAST_PLACES> = Array::new();
#[btf_map]
static FAST_COUNTERS: PerCpuArray<FastCounter, FAST_LEN> = PerCpuArray::new();
#[btf_map]
static HOPS: PerCpuArray<Hop, HOPS_LEN> = PerCpuArray::new();
#[btf_map]
static NEIGHBOURS: Array<u32, NEIGHBOURS_LEN> = Array::new();

const MODES: u32 = config_flags::FAST_PATH | config_flags::GATEWAY | config_flags::SHADOW;
const ON: u32 = config_flags::FAST_PATH | config_flags::GATEWAY;

/// Forwards the packet that the run in `slot` has accepted, or leaves it to the
/// kernel. Returns an XDP action.
///
/// A global function: verified once, and its stack is gone when it returns.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pinhole_forward(ctx: *mut xdp_md, slot: u32) -> u32 {
    let Some(work) = work::again(slot) else {
        return xdp_action::XDP_PASS;
    };
    let flow = work.flow_ahead;
    if work.flags & MODES != ON || flow & stepped::ACCEPTED == 0 {
        return xdp_action::XDP_PASS;
    }
    let packet = XdpPacket::new(XdpContext::new(ctx));
    let Some(from) = iface(packet.ifindex()) else {
        return xdp_action::XDP_PASS;
    };
    let Some(counter) = FAST_COUNTERS.get_ptr_mut(from.number as u32) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the element is this CPU's own, and XDP runs with bottom halves off.
    let counter = unsafe { &mut *counter };
    match way(&packet, work, from, flow) {
        Ok(ifindex) => {
            sent(counter, work);
            // SAFETY: a helper without pointers.
            unsafe { bpf_redirect(ifindex, 0) as u32 }
        }
        Err(kept) => {
            // Through memory: one number with a bound, not one way for each.
            work.cursor.set(kept as u32);
            if let Some(kept) = counter
                .kept
                .get_mut(work.cursor.get() as usize & (KEPT_LEN - 1))
            {
                *kept = kept.wrapping_add(1);
            }
            xdp_action::XDP_PASS
        }
    }
}

/// Forwards an accepted packet of a proved flow, if its next hop is known and nothing
/// else is to be asked; `None` if it is for [`pinhole_forward`], and not touched.
#[inline(always)]
pub(crate) fn at_once(packet: &XdpPacket, work: &mut Work) -> Option<()> {
    let flow = work.flow_ahead;
    if work.flags & MODES != ON || !control::agent_lives(work) {
        return None;
    }
    let from = iface(packet.ifindex())?;
    const PLAIN: u32 = fast_flags::FROM | fast_flags::PLAIN;
    if from.flags & PLAIN != PLAIN || !is_for_us(packet, from) {
        return None;
    }
    may_forward(&work.headers, flow, packet.frame_len() as u32).ok()?;
    let (h, service) = (&work.headers, plain_service(&work.headers));
    let hop = HOPS.get_ptr_mut(route_plain(&h.dst, service, HOPS_LEN as u32))?;
    // SAFETY: the element is this CPU's own, and XDP runs with bottom halves off.
    let hop = unsafe { &*hop };
    let suits = holds_plain(hop, &h.dst, service, work.now)
        && leads_out(hop, packet, flow)
        && hop.flags == 0
        && h.l3_len <= hop.mtu as u32;
    if !suits {
        return None;
    }
    let counter = FAST_COUNTERS.get_ptr_mut(from.number as u32)?;
    rewrite(packet, work, hop).ok()?;
    // SAFETY: as above.
    sent(unsafe { &mut *counter }, work);
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(hop.out, 0) };
    Some(())
}

/// What the agent says of an interface.
///
/// It writes while this reads: but what is read of an element are words and bytes by
/// themselves, and an address that another one read for the same frame.
#[inline(always)]
fn iface(ifindex: u32) -> Option<&'static FastIface> {
    let [first, second] = fast_places(ifindex);
    let entry = FAST_IFACES.get(first)?;
    if entry.ifindex == ifindex {
        return Some(entry);
    }
    FAST_IFACES
        .get(second)
        .filter(|entry| entry.ifindex == ifindex)
}

/// Counts a packet that is forwarded here.
#[inline(always)]
fn sent(counter: &mut FastCounter, work: &Work) {
    counter.packets = counter.packets.wrapping_add(1);
    counter.bytes = counter.bytes.wrapping_add(work.headers.l3_len as u64);
}

/// What is for another station the kernel would not take.
#[inline(always)]
fn is_for_us(packet: &XdpPacket, from: &FastIface) -> bool {
    packet.read::<6>(0) == Some(from.mac)
}

/// Rewrites the packet for its next hop: the interface to send it out of. What is not
/// forwarded is not touched.
#[inline(always)]
fn way(packet: &XdpPacket, work: &mut Work, from: &FastIface, flow: u32) -> Result<u32, Kept> {
    // Only a living agent sees what a redirect would bypass.
    if from.flags & fast_flags::FROM == 0 || !control::agent_lives(work) {
        return Err(Kept::Interface);
    }
    may_forward(&work.headers, flow, packet.frame_len() as u32)?;
    if !is_for_us(packet, from) {
        return Err(Kept::Frame);
    }
    if must_lead_back(&work.headers, flow) {
        let leads_back = from.flags & fast_flags::PLAIN != 0
            && match hop_of(work, from, Towards::Source) {
                Some(hop) => hop.out == packet.ifindex(),
                None => pinhole_leads_back(packet.as_md(), work.slot) != 0,
            };
        if !leads_back {
            return Err(Kept::Unproved);
        }
    }
    let hop = match hop_of(work, from, Towards::Destination) {
        Some(hop) => hop,
        None => {
            match i64::from(pinhole_route(packet.as_md(), work.slot)) {
                found::SUCCESS => {}
                found::NO_NEIGHBOUR => return Err(Kept::NoNeighbour),
                found::FRAGMENTATION_NEEDED => return Err(Kept::TooBig),
                _ => return Err(Kept::Route),
            }
            element(work, from, Towards::Destination)
                .filter(|hop| hop.kind == work.learnt)
                .ok_or(Kept::WayOut)?
        }
    };
    if !leads_out(hop, packet, flow) || hop.flags & hop_flags::SHUT != 0 {
        return Err(Kept::WayOut);
    }
    if hop.flags & hop_flags::REFRESH != 0 {
        hop.flags &= !hop_flags::REFRESH;
        if let Some(asked) = asked(hop) {
            asked.store(work.now.0);
        }
        return Err(Kept::Refresh);
    }
    if work.headers.l3_len > hop.mtu as u32 {
        return Err(Kept::TooBig);
    }
    rewrite(packet, work, hop)?;
    Ok(hop.out)
}

/// Does the route lead to where the rules were asked about, and not back?
///
/// Another zone is the kernel's affair, as it is without a fast path (another flow to the
/// same host may have been admitted to another zone); and to go back where one came from
/// calls for a redirect.
#[inline(always)]
fn leads_out(hop: &Hop, packet: &XdpPacket, flow: u32) -> bool {
    hop.zone as u32 == flow & stepped::ZONE && hop.out != packet.ifindex()
}

/// Which of a packet's addresses a route is asked for.
#[derive(Clone, Copy)]
enum Towards {
    Destination,
    Source,
}

/// The element of `HOPS` for the packet at hand.
#[inline(always)]
fn element(work: &Work, from: &FastIface, towards: Towards) -> Option<&'static mut Hop> {
    let h = &work.headers;
    let at = if from.flags & fast_flags::PLAIN != 0 {
        route_plain(address(h, towards), plain_service(h), HOPS_LEN as u32)
    } else {
        route(h, from.number, HOPS_LEN as u32)
    };
    let hop = HOPS.get_ptr_mut(at)?;
    // SAFETY: the element is this CPU's own, and XDP runs with bottom halves off.
    Some(unsafe { &mut *hop })
}

#[inline(always)]
const fn address(h: &Headers, towards: Towards) -> &[u32; 4] {
    match towards {
        Towards::Destination => &h.dst,
        Towards::Source => &h.src,
    }
}

/// The same element, if it holds.
#[inline(always)]
fn hop_of(work: &Work, from: &FastIface, towards: Towards) -> Option<&'static mut Hop> {
    let h = &work.headers;
    let hop = element(work, from, towards)?;
    let plain = from.flags & fast_flags::PLAIN != 0;
    let known = if plain {
        holds_plain(hop, address(h, towards), plain_service(h), work.now)
    } else {
        from.flags & fast_flags::STEADY != 0 && holds(hop, h, from.number, work.now)
    };
    known.then_some(hop)
}

/// The zone ahead of the packet at hand by a route that was looked up a moment ago.
#[inline(always)]
pub(crate) fn zone_ahead<P: Packet>(packet: &P, work: &Work) -> Option<u8> {
    if P::EGRESS || work.flags & MODES != ON {
        return None;
    }
    let from = iface(packet.ifindex())?;
    hop_of(work, from, Towards::Destination).map(|hop| hop.zone)
}

/// Looks the route of the packet at hand up, and keeps it. [`found`], as a number without
/// sign; what cannot be known is no route.
///
/// A global function, as `pinhole_forward`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_route(ctx: *mut xdp_md, slot: u32) -> u32 {
    let Some(work) = work::again(slot) else {
        return found::UNKNOWN;
    };
    let packet = XdpPacket::new(XdpContext::new(ctx));
    let code = policy::look_up(&packet, work, false);
    work.learnt = 0;
    if code == found::SUCCESS {
        learn(&packet, work, Towards::Destination);
    }
    if code < 0 {
        found::UNKNOWN
    } else {
        code as u32
    }
}

/// Does the source of the packet at hand lead back to where it came in, by a look-up? 1 if
/// so.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_leads_back(ctx: *mut xdp_md, slot: u32) -> u32 {
    let Some(work) = work::again(slot) else {
        return 0;
    };
    let packet = XdpPacket::new(XdpContext::new(ctx));
    let code = policy::look_up(&packet, work, true);
    if code == found::SUCCESS {
        learn(&packet, work, Towards::Source);
    }
    let has_route = matches!(
        code,
        found::SUCCESS | found::NO_NEIGHBOUR | found::FRAGMENTATION_NEEDED
    );
    u32::from(has_route && work.route.ifindex == packet.ifindex())
}

/// Keeps the route in [`Work::route`], if it leads to a guarded interface, and says so in
/// [`Work::learnt`].
#[inline(always)]
fn learn(packet: &XdpPacket, work: &mut Work, towards: Towards) {
    let out = work.route.ifindex;
    let (Some(from), Some(to)) = (iface(packet.ifindex()), iface(out)) else {
        return;
    };
    let Some(hop) = element(work, from, towards) else {
        return;
    };
    let h = &work.headers;
    let plain = from.flags & fast_flags::PLAIN != 0;
    hop.dst = *address(h, towards);
    hop.src = h.src;
    hop.service = if plain { plain_service(h) } else { h.service };
    hop.at = work.now.0;
    hop.out = out;
    // SAFETY: the kernel has put the MTU in the place of the length (since 5.12).
    hop.mtu = unsafe { work.route.__bindgen_anon_1.mtu_result };
    hop.proto = h.proto;
    hop.from = from.number;
    hop.dmac = work.route.dmac;
    hop.smac = work.route.smac;
    hop.zone = to.zone;
    hop.kind = if plain {
        hop_kind::PLAIN
    } else {
        hop_kind::STEADY
    };
    hop.flags = 0;
    if to.flags & fast_flags::TO == 0 {
        hop.flags |= hop_flags::SHUT;
    }
    if asked(hop).is_none_or(|asked| is_stale(asked.load(), work.now)) {
        hop.flags |= hop_flags::REFRESH;
    }
    work.learnt = hop.kind;
}

/// When the kernel last had a packet to the next hop of `hop`. To the neighbour table a
/// look-up is no use of an entry: without this nobody would ask whether the neighbour is
/// still there.
#[inline(always)]
fn asked(hop: &Hop) -> Option<Shared<u32>> {
    let at = neighbour(hop.dmac, hop.out, NEIGHBOURS_LEN as u32);
    let word = NEIGHBOURS.get_ptr_mut(at)?;
    // SAFETY: a map value is valid for the whole run: four bytes, aligned, and read and
    // written here only; whichever CPU writes it last, it is about now.
    Some(unsafe { Shared::new(word) })
}

/// One hop less, and the addresses of the next.
#[inline(always)]
fn rewrite(packet: &XdpPacket, work: &Work, hop: &Hop) -> Result<(), Kept> {
    const TTL: usize = ETHERNET_LEN + 8;
    const HOP_LIMIT: usize = ETHERNET_LEN + 7;
    if work.headers.family as u8 == Family::V4 as u8 {
        let [ttl, protocol, high, low] = packet.read::<4>(TTL).ok_or(Kept::Frame)?;
        let [high, low] = one_hop_less([high, low]);
        packet
            .write(TTL, [ttl.wrapping_sub(1), protocol, high, low])
            .ok_or(Kept::Frame)?;
    } else {
        let [limit] = packet.read::<1>(HOP_LIMIT).ok_or(Kept::Frame)?;
        packet
            .write(HOP_LIMIT, [limit.wrapping_sub(1)])
            .ok_or(Kept::Frame)?;
    }
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (hop.dmac, hop.smac);
    packet
        .write(0, [a, b, c, d, e, f, g, h, i, j, k, l])
        .ok_or(Kept::Frame)
}

//! The fast path: what the kernel would do to a packet of a proved flow, and no more.
//!
//! The tracker has accepted the packet. Whatever is not plain here goes to the kernel,
//! which is always right, only slower.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::generated::bpf_redirect,
    macros::btf_map,
    programs::XdpContext,
};
use firewall_common::{
    abi::{
        FAST_LEN, FastCounter, FastIface, HOPS_LEN, Hop, KEPT_LEN, Kept, NEIGHBOURS_LEN,
        config_flags, fast_flags,
    },
    forward::{holds, is_stale, may_forward, neighbour, one_hop_less, route, stepped},
    wire::{ETHERNET_LEN, Family, Reader as _},
};

use crate::{
    maps::IFACES_LEN,
    packet::{Packet as _, XdpPacket},
    policy::{self, found},
    work::{self, Work},
};

#[btf_map]
static FAST_IFACES: HashMap<u32, FastIface, IFACES_LEN> = HashMap::new();
#[btf_map]
static FAST_COUNTERS: PerCpuArray<FastCounter, FAST_LEN> = PerCpuArray::new();
#[btf_map]
static HOPS: PerCpuArray<Hop, HOPS_LEN> = PerCpuArray::new();
#[btf_map]
static NEIGHBOURS: Array<u32, NEIGHBOURS_LEN> = Array::new();

/// Forwards the packet that the run in `slot` has accepted, or leaves it to the
/// kernel. Returns an XDP action.
///
/// A global function: verified once, and its stack is gone when it returns.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pinhole_forward(ctx: *mut xdp_md, slot: u32) -> u32 {
    const MODES: u32 = config_flags::FAST_PATH | config_flags::GATEWAY | config_flags::SHADOW;
    const ON: u32 = config_flags::FAST_PATH | config_flags::GATEWAY;
    let Some(work) = work::again(slot) else {
        return xdp_action::XDP_PASS;
    };
    let flow = work.flow_ahead;
    if work.flags & MODES != ON || flow & stepped::ACCEPTED == 0 {
        return xdp_action::XDP_PASS;
    }
    let packet = XdpPacket::new(XdpContext::new(ctx));
    // SAFETY: the agent replaces whole elements. What is read of one are a byte and
    // a word by themselves, and an address that another read for the same frame.
    let Some(from) = (unsafe { FAST_IFACES.get(packet.ifindex()) }) else {
        return xdp_action::XDP_PASS;
    };
    let Some(counter) = FAST_COUNTERS.get_ptr_mut(from.number as u32) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the element is this CPU's own, and XDP runs with bottom halves off.
    let counter = unsafe { &mut *counter };
    match way(&packet, work, from, flow) {
        Ok(ifindex) => {
            counter.packets = counter.packets.wrapping_add(1);
            counter.bytes = counter.bytes.wrapping_add(work.headers.l3_len as u64);
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

/// Rewrites the packet for its next hop: the interface to send it out of. What is not
/// forwarded is not touched.
#[inline(always)]
fn way(packet: &XdpPacket, work: &mut Work, from: &FastIface, flow: u32) -> Result<u32, Kept> {
    if from.flags & fast_flags::FROM == 0 {
        return Err(Kept::Interface);
    }
    may_forward(&work.headers, flow, packet.frame_len() as u32)?;
    // What is for another station the kernel would not take.
    if packet.read::<6>(0) != Some(from.mac) {
        return Err(Kept::Frame);
    }
    let at = route(&work.headers, from.number, HOPS_LEN as u32);
    let hop = HOPS.get_ptr_mut(at).ok_or(Kept::Route)?;
    // SAFETY: the element is this CPU's own, and XDP runs with bottom halves off.
    let hop = unsafe { &mut *hop };
    let steady = from.flags & fast_flags::STEADY != 0;
    if !(steady && holds(hop, &work.headers, from.number, work.now)) {
        look_up(packet, work, from, flow, hop)?;
    }
    // Another flow to the same hosts may have been admitted to another zone, and what
    // is too long is so by its own length.
    if hop.zone as u32 != flow & stepped::ZONE {
        return Err(Kept::WayOut);
    }
    if work.headers.l3_len > hop.mtu as u32 {
        return Err(Kept::TooBig);
    }
    rewrite(packet, work, hop)?;
    Ok(hop.out)
}

/// Looks the packet's route up, and keeps it, unless it is time for the kernel to have
/// one to this next hop.
#[inline(always)]
fn look_up(
    packet: &XdpPacket,
    work: &mut Work,
    from: &FastIface,
    flow: u32,
    hop: &mut Hop,
) -> Result<(), Kept> {
    let len = work.headers.l3_len as u16;
    match policy::look_up(packet, work, len) {
        found::SUCCESS => {}
        found::NO_NEIGHBOUR => return Err(Kept::NoNeighbour),
        found::FRAGMENTATION_NEEDED => return Err(Kept::TooBig),
        _ => return Err(Kept::Route),
    }
    let out = work.route.ifindex;
    // SAFETY: as above.
    let to = unsafe { FAST_IFACES.get(out) }.ok_or(Kept::WayOut)?;
    // A zone that the rules were not asked about is the kernel's affair, as it is
    // without a fast path; and to go back where one came from calls for a redirect.
    if to.flags & fast_flags::TO == 0
        || to.zone as u32 != flow & stepped::ZONE
        || out == packet.ifindex()
    {
        return Err(Kept::WayOut);
    }
    refresh(work, out)?;
    let h = &work.headers;
    hop.src = h.src;
    hop.dst = h.dst;
    hop.service = h.service;
    hop.at = work.now.0;
    hop.out = out;
    // SAFETY: the kernel has put the MTU in the place of the length (since 5.12).
    hop.mtu = unsafe { work.route.__bindgen_anon_1.mtu_result };
    hop.proto = h.proto;
    hop.from = from.number;
    hop.dmac = work.route.dmac;
    hop.smac = work.route.smac;
    hop.zone = to.zone;
    Ok(())
}

/// Lets the kernel have a packet to the next hop now and then. To the neighbour table
/// a look-up is no use of an entry: without this nobody would ask whether the
/// neighbour is still there.
#[inline(always)]
fn refresh(work: &Work, out: u32) -> Result<(), Kept> {
    let at = neighbour(work.route.dmac, out, NEIGHBOURS_LEN as u32);
    let Some(last) = NEIGHBOURS.get_ptr_mut(at) else {
        return Err(Kept::Refresh);
    };
    // SAFETY: a word of the map; whichever CPU writes it last, it is about now.
    let tick = unsafe { last.read_volatile() };
    if !is_stale(tick, work.now) {
        return Ok(());
    }
    // SAFETY: as above.
    unsafe { last.write_volatile(work.now.0) };
    Err(Kept::Refresh)
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

//! Packets of flows that are numbered, for the benchmark: one packet of each flow in
//! turns, as one side of a conversation sends them; and what the packets meet
//! where nothing is measured.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, LruHashMap, PerCpuArray},
    helpers::bpf_redirect,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::plan::{L4_4, L4_6, LEN4, LEN6, Plan, WORD4, WORD6, flags, flow};

/// What is left of a segment without payload when the kernel has cut the padding off.
const SHORTEST: usize = 54;
const IP: usize = 14;
const UDP: u8 = 17;
const TCP: u8 = 6;

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
/// Number of the next packet, by CPU.
#[btf_map]
static NEXT: PerCpuArray<u64, 1> = PerCpuArray::new();
/// Packets that arrived: TCP SYNs, and all other TCP and UDP.
#[btf_map]
static SEEN: PerCpuArray<u64, 2> = PerCpuArray::new();
/// By the ingress interface modulo 16: where to redirect to, and the new Ethernet
/// addresses.
#[btf_map]
static HOPS: Array<Hop, 16> = Array::new();

/// Flows as large as pinhole's over IPv4, with room for all that are looked up. What puts
/// new ones there makes it as large as pinhole's table of flows that nobody has answered yet.
#[btf_map]
static ENTRIES: LruHashMap<[u64; 2], [u64; 10], ENTRIES_LEN> = LruHashMap::new();
/// What is put there.
#[btf_map]
static ENTRY: PerCpuArray<[u64; 10], 1> = PerCpuArray::new();
const ENTRIES_LEN: usize = 1 << 18;

#[derive(Clone, Copy)]
#[repr(C)]
struct Hop {
    ifindex: u32,
    macs: [u8; 12],
}

/// Writes and sends the next packet.
#[xdp]
pub(crate) fn replay(ctx: XdpContext) -> u32 {
    try_replay(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn try_replay(ctx: &XdpContext) -> Option<u32> {
    let plan = PLAN.get(0)?;
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: an element of this CPU's; the program does not nest.
    let number = unsafe { next.read() };
    // SAFETY: as above.
    unsafe { next.write(number.wrapping_add(u64::from(plan.stride))) };
    let (word, port) = flow(plan.word, number as u32 & plan.mask);
    let mut varied = Varied {
        word,
        port,
        seq: plan.seq,
    };
    if plan.flags & flags::ADVANCE != 0 {
        let round = (number >> plan.shift) as u32 & 63;
        varied.seq = varied.seq.wrapping_add(round * 6);
    }
    if plan.flags & flags::V6 == 0 {
        write::<LEN4, L4_4>(ctx, plan, WORD4, &varied)
    } else {
        write::<LEN6, L4_6>(ctx, plan, WORD6, &varied)
    }
}

/// What differs by flow.
struct Varied {
    word: u32,
    port: u16,
    seq: u32,
}

#[inline(always)]
fn write<const LEN: usize, const L4: usize>(
    ctx: &XdpContext,
    plan: &Plan,
    words: [usize; 2],
    varied: &Varied,
) -> Option<u32> {
    let mut frame = [0_u8; LEN];
    frame.copy_from_slice(&plan.frame[..LEN]);
    let varies = halves(varied.word);
    if plan.flags & flags::REPLY == 0 {
        frame[words[0]..words[0] + 4].copy_from_slice(&varied.word.to_be_bytes());
        frame[L4..L4 + 2].copy_from_slice(&varied.port.to_be_bytes());
    } else {
        frame[words[1]..words[1] + 4].copy_from_slice(&varied.word.to_be_bytes());
        frame[L4 + 2..L4 + 4].copy_from_slice(&varied.port.to_be_bytes());
    }
    if L4 == L4_4 {
        let check = !fold(plan.sums[0] + varies);
        frame[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    }
    let sum = plan.sums[1] + varies + u32::from(varied.port);
    if plan.flags & flags::TCP != 0 {
        frame[L4 + 4..L4 + 8].copy_from_slice(&varied.seq.to_be_bytes());
        let check = !fold(sum + halves(varied.seq));
        frame[L4 + 16..L4 + 18].copy_from_slice(&check.to_be_bytes());
    } else {
        let check = !fold(sum);
        // Zero would say that there is none (RFC 768).
        let check = if check == 0 { u16::MAX } else { check };
        frame[L4 + 6..L4 + 8].copy_from_slice(&check.to_be_bytes());
    }
    let start = ctx.data();
    if start + LEN > ctx.data_end() {
        return None;
    }
    // SAFETY: the comparison above bounds the write by the packet's end.
    unsafe { (start as *mut [u8; LEN]).write_unaligned(frame) };
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sink: counts TCP and UDP and drops it.
#[xdp]
pub(crate) fn count(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + SHORTEST > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the comparison above bounds the read by the packet's end.
    let frame: &[u8; SHORTEST] = unsafe { &*(start as *const [u8; SHORTEST]) };
    let (protocol, flags) = match (frame[12], frame[13]) {
        (0x08, 0x00) => (frame[IP + 9], frame[L4_4 + 13]),
        // The flags of TCP over IPv6 are behind what was compared.
        (0x86, 0xdd) => (frame[IP + 6], 0),
        _ => return xdp_action::XDP_PASS,
    };
    if protocol != TCP && protocol != UDP {
        return xdp_action::XDP_PASS;
    }
    let class = u32::from(protocol == TCP && flags & 0x12 == 0x02);
    if let Some(seen) = SEEN.get_ptr_mut(class ^ 1) {
        // SAFETY: an element of this CPU's; the program does not nest.
        let count = unsafe { seen.read() };
        // SAFETY: as above.
        unsafe { seen.write(count + 1) };
    }
    xdp_action::XDP_DROP
}

/// The ceiling: new Ethernet addresses, and out of the other interface.
#[xdp]
pub(crate) fn redirect(ctx: XdpContext) -> u32 {
    try_redirect(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

/// What a new flow costs at least where an LRU hash remembers it: as [`redirect`], with
/// an entry by source and ports, and nothing else. Of IPv4 and UDP without options.
#[xdp]
pub(crate) fn insert(ctx: XdpContext) -> u32 {
    try_insert(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

/// What a packet of a known flow costs at least: as [`redirect`], after one look-up in that
/// table, where its first packet has put it.
#[xdp]
pub(crate) fn lookup(ctx: XdpContext) -> u32 {
    try_lookup(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn try_insert(ctx: &XdpContext) -> Option<u32> {
    insert_entry(&key(ctx)?)?;
    try_redirect(ctx)
}

#[inline(always)]
fn try_lookup(ctx: &XdpContext) -> Option<u32> {
    let key = key(ctx)?;
    if ENTRIES.get_ptr(key).is_none() {
        insert_entry(&key)?;
    }
    try_redirect(ctx)
}

#[inline(always)]
fn insert_entry(key: &[u64; 2]) -> Option<()> {
    const BPF_NOEXIST: u64 = 1;
    // SAFETY: an element of this CPU's, which nobody writes.
    let entry = unsafe { &*ENTRY.get_ptr(0)? };
    let _ = ENTRIES.insert(key, entry, BPF_NOEXIST);
    Some(())
}

/// Source and ports of the packet.
#[inline(always)]
fn key(ctx: &XdpContext) -> Option<[u64; 2]> {
    let start = ctx.data();
    if start + L4_4 + 4 > ctx.data_end() {
        return None;
    }
    // SAFETY: the comparison above bounds the read by the packet's end.
    let source = unsafe { ((start + WORD4[0]) as *const u32).read_unaligned() };
    // SAFETY: as above.
    let ports = unsafe { ((start + L4_4) as *const u32).read_unaligned() };
    Some([u64::from(source) << 32 | u64::from(ports), 0])
}

#[inline(always)]
fn try_redirect(ctx: &XdpContext) -> Option<u32> {
    let start = ctx.data();
    if start + IP > ctx.data_end() {
        return None;
    }
    let hop = HOPS.get(ctx.ingress_ifindex() as u32 & 15)?;
    if hop.ifindex == 0 {
        return Some(xdp_action::XDP_PASS);
    }
    // SAFETY: the comparison above bounds the write by the packet's end.
    unsafe { (start as *mut [u8; 12]).write_unaligned(hop.macs) };
    // SAFETY: the helper takes two numbers.
    Some(unsafe { bpf_redirect(hop.ifindex, 0) } as u32)
}

/// Does nothing: what is needed for a veth to take frames of a redirect, and what a
/// program's cost is measured against.
#[xdp]
pub(crate) fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// As [`pass`], for TC.
#[classifier]
pub(crate) fn pass_on(_ctx: TcContext) -> i32 {
    -1
}

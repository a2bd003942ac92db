//! A load generator for the tests: no part of pinhole.
//!
//! Run through BPF_PROG_RUN on live frames, it sends each frame out of the
//! interface that the frame "came in" by. The kernel recycles the pages as their
//! last user left them, so every run writes the whole header anew: a frame of the
//! template, with a source address, a source port and a sequence number that
//! nobody has seen before.
#![no_std]
#![no_main]

mod plan;
mod replay;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// Bytes of the template: Ethernet, IPv4 without options, TCP without options.
/// UDP uses 42 of them, and the rest is payload.
const HEADERS: usize = 54;
/// Where the source address stands.
const SOURCE: usize = HEADERS + 4;
const IP: usize = 14;
const L4: usize = 34;
const UDP: u8 = 17;

/// What to send: the header with zero checksums; then two destination ports,
/// network byte order, that take turns (0 for any); then the source address, or 0
/// for one of 16.0.0.0/4.
#[btf_map]
static TEMPLATE: Array<[u8; 64], 1> = Array::new();
/// Seed, advanced with each frame. Written by one CPU at a time.
#[btf_map]
static STATE: Array<u64, 1> = Array::new();
/// The frame that is written. Not on the stack, of which the verifier wants words to be
/// aligned.
#[btf_map]
static FRAME: PerCpuArray<[u8; HEADERS], 1> = PerCpuArray::new();

/// Writes and sends one frame.
#[xdp]
pub(crate) fn generate(ctx: XdpContext) -> u32 {
    try_generate(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn try_generate(ctx: &XdpContext) -> Option<u32> {
    let template = TEMPLATE.get(0)?;
    // SAFETY: an element of this CPU's; the program does not nest.
    let frame = unsafe { &mut *FRAME.get_ptr_mut(0)? };
    frame.copy_from_slice(&template[..HEADERS]);
    let state = next_state()?;
    let random = mix(state);
    // 16.0.0.0/4: none of the lab's own addresses, and no martian.
    let source = 0x1000_0000 | (random as u32 & 0x0fff_ffff);
    frame[IP + 12..IP + 16].copy_from_slice(&source.to_be_bytes());
    if template[SOURCE] != 0 {
        frame[IP + 12..IP + 16].copy_from_slice(&template[SOURCE..SOURCE + 4]);
    }
    let port = 1024 | (random >> 32) as u16;
    frame[L4..L4 + 2].copy_from_slice(&port.to_be_bytes());
    let turn = if state & 1 == 0 { HEADERS } else { HEADERS + 2 };
    frame[L4 + 2] = template[turn];
    frame[L4 + 3] = template[turn + 1];
    if frame[L4 + 2] == 0 && frame[L4 + 3] == 0 {
        let port = 1024 | (random >> 13) as u16;
        frame[L4 + 2..L4 + 4].copy_from_slice(&port.to_be_bytes());
    }
    let check = fold(sum(frame, IP, L4));
    frame[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    // UDP over IPv4 needs no checksum (RFC 768).
    if frame[IP + 9] != UDP {
        let seq = (random >> 29) as u32;
        frame[L4 + 4..L4 + 8].copy_from_slice(&seq.to_be_bytes());
        let pseudo = sum(frame, IP + 12, IP + 20) + u32::from(frame[IP + 9]) + 20;
        let check = fold(pseudo + sum(frame, L4, HEADERS));
        frame[L4 + 16..L4 + 18].copy_from_slice(&check.to_be_bytes());
    }
    let start = ctx.data();
    if start + HEADERS > ctx.data_end() {
        return None;
    }
    // SAFETY: the comparison above bounds the write by the packet's end.
    unsafe { (start as *mut [u8; HEADERS]).write_unaligned(*frame) };
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn next_state() -> Option<u64> {
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: an array element; one CPU at a time runs this program on it.
    let next = unsafe { state.read_volatile() }.wrapping_add(1);
    // SAFETY: as above.
    unsafe { state.write_volatile(next) };
    Some(next)
}

/// A good hash of a counter (the finaliser of SplitMix64).
#[inline(always)]
fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sum of the 16-bit words from `from` to `to` (RFC 1071).
#[inline(always)]
fn sum(frame: &[u8; HEADERS], from: usize, to: usize) -> u32 {
    let mut sum = 0;
    let mut at = from;
    while at < to {
        sum += u32::from(frame[at]) << 8 | u32::from(frame[at + 1]);
        at += 2;
    }
    sum
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel reads to decide which helpers may be called.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Entry points of the kernel programs. The data path follows the modules:
//! `packet` → `pipeline` → `conntrack` → (`policy`, `expect`) → `control` → `stats`.
#![no_std]
#![no_main]
// Inline assembly for BPF: see `atomic`.
#![feature(asm_experimental_arch)]

mod atomic;
mod conntrack;
mod control;
mod ctl;
mod data;
mod expect;
mod explain;
mod forward;
mod fragments;
mod log;
mod maps;
mod packet;
mod pair;
mod pipeline;
mod policy;
mod share;
mod stats;
mod watch;
mod work;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::generated::bpf_redirect,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use firewall_common::{
    abi::iface_flags,
    verdict::{DropReason, Event, PassReason, Verdict},
};
use packet::{Packet as _, TcPacket, Xdp, XdpPacket};
use pipeline::OPEN;
use work::Slot;

/// Ingress of a guarded interface.
#[xdp]
pub(crate) fn pinhole_ingress(ctx: XdpContext) -> u32 {
    const ESTABLISHED: u32 = PassReason::Established.index();
    const NEW_BY_RULE: u32 = PassReason::NewByRule.index();
    const NEW_EXPECTED: u32 = PassReason::NewExpected.index();
    const SLOT: u32 = Slot::Ingress as u32;
    let mut outcome = pinhole_open(ctx.ctx);
    if outcome == OPEN {
        outcome = pinhole_judge(ctx.ctx, SLOT);
    }
    match outcome {
        SENT => xdp_action::XDP_REDIRECT,
        ESTABLISHED | NEW_BY_RULE | NEW_EXPECTED => forward::pinhole_forward(ctx.ctx, SLOT),
        outcome => to_xdp(outcome),
    }
}

/// What [`pinhole_open`] says of a packet that is on its way out.
const SENT: u32 = OPEN - 1;

// The parts of judging are global functions, which the verifier looks at one by one.
// In one piece, it would follow each way through the first through all of the second.

/// [`pipeline::open`] at ingress, and [`forward::at_once`]: in one function, because each
/// return costs as much as a look-up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_open(ctx: *mut xdp_md) -> u32 {
    const ESTABLISHED: u32 = PassReason::Established.index();
    let packet = XdpPacket::new(XdpContext::new(ctx));
    let Some(work) = work::area(Slot::Ingress) else {
        return NO_ROOM;
    };
    let outcome = pipeline::open(&packet, work, true);
    if outcome == ESTABLISHED && forward::at_once(&packet, work).is_some() {
        return SENT;
    }
    outcome
}

/// A run has no [`work::Work`].
const NO_ROOM: u32 = DropReason::TableError.index();

/// [`pipeline::open`] of a packet that is run again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_open_again(ctx: *mut xdp_md) -> u32 {
    let packet = XdpPacket::new(XdpContext::new(ctx));
    work::area(Slot::Reinject).map_or(NO_ROOM, |work| pipeline::open(&packet, work, false))
}

/// [`pipeline::judge`] at ingress, and of a packet that is run again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_judge(ctx: *mut xdp_md, slot: u32) -> u32 {
    pipeline::judge(&Xdp::<false>::new(XdpContext::new(ctx)), slot)
}

/// A held SYN again, with holding off. Run by the agent on live frames.
#[xdp]
pub(crate) fn pinhole_reinject(ctx: XdpContext) -> u32 {
    let packet = XdpPacket::new(XdpContext::new(ctx.ctx));
    stats::event(Event::Reinjected);
    // In generic mode the attached program sees the frame again and judges it;
    // judging it here too would count it twice.
    if pipeline::iface(packet.ifindex()).is_some_and(|i| i.flags & iface_flags::XDP_GENERIC != 0) {
        return xdp_action::XDP_PASS;
    }
    let mut outcome = pinhole_open_again(ctx.ctx);
    if outcome == OPEN {
        outcome = pinhole_judge(ctx.ctx, Slot::Reinject as u32);
    }
    to_xdp(outcome)
}

/// Egress of a guarded interface.
#[classifier]
pub(crate) fn pinhole_egress(ctx: TcContext) -> i32 {
    const RING_FULL: u32 = DropReason::RingFull.index();
    const HELD: u32 = DropReason::Held.index();
    const MOVING: u32 = DropReason::Moving.index();
    let skb = ctx.skb.skb;
    let mut outcome = pinhole_open_egress(skb);
    if outcome == OPEN {
        outcome = pinhole_judge_egress(skb);
    }
    match outcome {
        RING_FULL | HELD | MOVING => steal(),
        outcome if Verdict::is_drop(outcome) => TC_ACT_SHOT,
        // "Not my decision": programs behind this one still have their say.
        _ => TC_ACT_UNSPEC,
    }
}

/// [`pipeline::open`] at egress. What does not lie in one piece is not plain.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_open_egress(skb: *mut __sk_buff) -> u32 {
    let packet = TcPacket::<true>::new(TcContext::new(skb));
    work::area(Slot::Egress).map_or(NO_ROOM, |work| pipeline::open(&packet, work, true))
}

/// [`pipeline::judge`] at egress.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_judge_egress(skb: *mut __sk_buff) -> u32 {
    pipeline::judge(
        &TcPacket::<false>::new(TcContext::new(skb)),
        Slot::Egress as u32,
    )
}

/// Drops a packet that its sender shall take for sent.
///
/// Local TCP takes SHOT for congestion and waits for its timer; what it takes for
/// sent it repairs in a few milliseconds. TCX lets pass what is STOLEN (it knows
/// four codes, `enum tcx_action_base`), so the packet is redirected to an interface
/// that is not there, which TCX and clsact both take for success.
#[inline(always)]
fn steal() -> i32 {
    const NO_INTERFACE: u32 = 0;
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(NO_INTERFACE, 0) as i32 }
}

/// Requests of user space that change flows.
#[xdp]
pub(crate) fn pinhole_ctl(ctx: XdpContext) -> u32 {
    ctl::run(&XdpPacket::new(ctx))
}

#[inline(always)]
const fn to_xdp(outcome: u32) -> u32 {
    if Verdict::is_drop(outcome) {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_PASS
    }
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

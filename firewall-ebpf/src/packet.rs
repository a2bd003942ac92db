//! Packet memory: the only place that reads it.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_md,
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use firewall_common::wire::{Headers, OnWire, Reader};

/// A packet at one of the two hooks.
pub(crate) trait Packet: Reader + EbpfContext {
    /// Seen at TC egress, not at XDP ingress.
    const EGRESS: bool;

    /// Interface on which the packet is seen.
    fn ifindex(&self) -> u32;

    /// Interface through which the packet came into the host; 0 if the host made it.
    fn came_in_by(&self) -> u32;

    /// What the packet amounts to on the wire.
    fn on_wire(&self, headers: &Headers) -> OnWire;

    /// Copies `len` bytes at `offset` to `to`; false if they are not there.
    ///
    /// # Safety
    /// `to` must have room for `len` bytes, by a bound that the verifier sees.
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: u32) -> bool;
}

/// `N` bytes at `offset` of the memory from `data` to `end`.
///
/// # Safety
/// These are the two fields of a context, so that the verifier sees whose they are.
#[inline(always)]
unsafe fn direct<const N: usize, const WORDS: bool>(
    data: usize,
    end: usize,
    offset: usize,
) -> Option<[u8; N]> {
    let start = data + offset;
    if start + N > end {
        return None;
    }
    if !WORDS {
        // SAFETY: the comparison above bounds the read by the packet's end, and
        // a byte array needs no alignment.
        return Some(unsafe { (start as *const [u8; N]).read() });
    }
    // Of a byte array the compiler reads each byte by itself as soon as it is used in
    // another place than the next.
    let mut out = MaybeUninit::<[u8; N]>::uninit();
    let (from, to) = (start as *const u8, out.as_mut_ptr().cast::<u8>());
    let mut at = 0;
    while at + 4 <= N {
        // SAFETY: these four bytes are in the packet, by the comparison above, and in `out`.
        unsafe { copy_word::<u32>(from, to, at) };
        at += 4;
    }
    if N & 2 != 0 {
        // SAFETY: as above.
        unsafe { copy_word::<u16>(from, to, at) };
        at += 2;
    }
    if N & 1 != 0 {
        // SAFETY: as above.
        unsafe { copy_word::<u8>(from, to, at) };
    }
    // SAFETY: all of it is written.
    Some(unsafe { out.assume_init() })
}

/// Copies a word of any alignment that begins `at` bytes behind `from` and `to`.
///
/// # Safety
/// It must lie in what may be read behind `from`, and written behind `to`.
#[inline(always)]
unsafe fn copy_word<T: Copy>(from: *const u8, to: *mut u8, at: usize) {
    let (from, to) = (
        from.wrapping_add(at).cast::<T>(),
        to.wrapping_add(at).cast::<T>(),
    );
    // SAFETY: by the contract.
    let word = unsafe { from.read_unaligned() };
    // SAFETY: by the contract.
    unsafe { to.write_unaligned(word) };
}

/// A length from 1 to `max` as the verifier must see it before it may be passed to
/// [`Packet::copy`]; `None` for any other.
///
/// The compiler tests `len - 1 < max` in one register and passes `len` in another.
/// Only verifiers of later kernels know that the two belong together; that of
/// 6.1 wants the register that is passed to be the one that was tested.
#[inline(always)]
pub(crate) fn bounded(max: u32, len: u32) -> Option<u32> {
    let mut less_one = len;
    // SAFETY: one addition on one register. Were it not opaque to the compiler,
    // it would undo it below.
    unsafe { asm!("{0} += -1", inout(wreg) less_one, options(pure, nomem, nostack)) };
    (less_one < max).then(|| less_one + 1)
}

/// A frame at XDP that is read in words, as what most packets pass through does.
pub(crate) type XdpPacket = Xdp<true>;

/// A frame at XDP. `WORDS` says how it is read: in words is quicker, and takes more of the
/// stack, which [`crate::pipeline::judge`] has not.
pub(crate) struct Xdp<const WORDS: bool> {
    ctx: XdpContext,
}

impl<const WORDS: bool> Xdp<WORDS> {
    #[inline(always)]
    pub(crate) const fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }

    /// The context, to hand it on.
    #[inline(always)]
    pub(crate) fn as_md(&self) -> *mut xdp_md {
        self.ctx.ctx
    }

    /// Writes `bytes` at `offset`; `None` past the end.
    #[inline(always)]
    pub(crate) fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the comparison above bounds the write by the packet's end, a byte
        // array needs no alignment, and nothing else refers to the packet.
        unsafe { (start as *mut [u8; N]).write(bytes) };
        Some(())
    }
}

impl<const WORDS: bool> EbpfContext for Xdp<WORDS> {
    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.ctx.as_ptr()
    }
}

impl<const WORDS: bool> Reader for Xdp<WORDS> {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        let mut len = self.ctx.data_end().wrapping_sub(self.ctx.data());
        // Were the difference not opaque to the compiler, it would take an offset
        // from the end in 32 bits, which the verifier forbids of a pointer. It is
        // an instruction, because line information for none is refused.
        // SAFETY: one register, unchanged.
        unsafe { asm!("{0} = {0}", inout(reg) len, options(pure, nomem, nostack)) };
        len
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: those two fields.
        unsafe { direct::<N, WORDS>(self.ctx.data(), self.ctx.data_end(), offset) }
    }
}

impl<const WORDS: bool> Packet for Xdp<WORDS> {
    const EGRESS: bool = false;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        let md = self.ctx.ctx;
        // SAFETY: the kernel passes a valid context.
        unsafe { (*md).ingress_ifindex }
    }

    #[inline(always)]
    fn came_in_by(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn on_wire(&self, headers: &Headers) -> OnWire {
        headers.as_one()
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to` and `len`; the helper checks the source.
        unsafe { bpf_xdp_load_bytes(self.ctx.ctx, offset, to.cast(), len) == 0 }
    }
}

/// A segment at TC. It may span pages, so everything is read through the helper; or
/// `LINEAR`, what is in one piece at its head is read there, and nothing else.
pub(crate) struct TcPacket<const LINEAR: bool> {
    ctx: TcContext,
}

impl<const LINEAR: bool> TcPacket<LINEAR> {
    #[inline(always)]
    pub(crate) const fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }
}

impl<const LINEAR: bool> EbpfContext for TcPacket<LINEAR> {
    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.ctx.as_ptr()
    }
}

impl<const LINEAR: bool> Reader for TcPacket<LINEAR> {
    const UNCUT: bool = true;
    const COPIES: bool = !LINEAR;

    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.ctx.len() as usize
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if LINEAR {
            // SAFETY: those two fields.
            return unsafe { direct::<N, true>(self.ctx.data(), self.ctx.data_end(), offset) };
        }
        let mut out = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: `out` has room for exactly N bytes.
        let ok = unsafe { self.copy(offset as u32, out.as_mut_ptr().cast(), N as u32) };
        if !ok {
            return None;
        }
        // SAFETY: the helper filled all N bytes.
        Some(unsafe { out.assume_init() })
    }

    #[inline(always)]
    fn address(&self, offset: usize, to: &mut [u32; 4]) -> bool {
        // SAFETY: an address has 16 bytes.
        unsafe { self.copy(offset as u32, to.as_mut_ptr().cast(), 16) }
    }

    #[inline(always)]
    fn tags_beside(&self) -> u32 {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel passes a valid context.
        unsafe { (*skb).vlan_present }
    }
}

impl<const LINEAR: bool> Packet for TcPacket<LINEAR> {
    const EGRESS: bool = true;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel passes a valid context.
        unsafe { (*skb).ifindex }
    }

    #[inline(always)]
    fn came_in_by(&self) -> u32 {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel passes a valid context.
        unsafe { (*skb).ingress_ifindex }
    }

    #[inline(always)]
    fn on_wire(&self, headers: &Headers) -> OnWire {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel passes a valid context.
        let segments = unsafe { (*skb).gso_segs };
        // SAFETY: as above.
        let size = unsafe { (*skb).gso_size };
        headers.on_wire(segments, size)
    }

    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to` and `len`; the helper checks the source.
        unsafe { bpf_skb_load_bytes(self.as_ptr(), offset, to.cast(), len) == 0 }
    }
}

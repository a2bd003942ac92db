//! What the control connections between two hosts may have of the ring.
//!
//! Without it one of them could fill the ring with its own payload, and that of all
//! others would be dropped until the agent had read it.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use firewall_common::abi::{RING_SHARES, RingShare, WOKEN};

use crate::{atomic::Shared, control::ring_positions, maps::RING_SHARES as SHARES, work::Work};

/// Lost swaps after which a record is queued uncounted.
const TRIES: usize = 8;

/// May the record in [`Work::event`] be queued, by what its hosts have there already?
#[inline(always)]
pub(crate) fn take(work: &mut Work) -> bool {
    pinhole_ring_share(work) != 0
}

/// A global function: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_ring_share(work: *mut Work) -> u32 {
    // SAFETY: `take` passes this run's own work area, which nothing else refers to.
    let Some(work) = (unsafe { work.as_ref() }) else {
        return 0;
    };
    let Some(secret) = secret() else {
        return 0;
    };
    let index = RingShare::index(&work.headers.src, &work.headers.dst, secret);
    let Some(share) = word(index) else {
        return 0;
    };
    for _ in 0..TRIES {
        let seen = share.load();
        let (read, written) = ring_positions();
        let Some(more) = RingShare(seen).take(read, written, work.event.len) else {
            return 0;
        };
        if share.swap(seen, more.0).is_ok() {
            break;
        }
    }
    1
}

/// The number by which accounts are chosen: the first that needs it draws it.
#[inline(always)]
fn secret() -> Option<u32> {
    let word = word(RING_SHARES as u32)?;
    let seen = word.load();
    if seen != 0 {
        return Some(seen as u32);
    }
    // SAFETY: a helper without arguments.
    let drawn = unsafe { bpf_get_prandom_u32() };
    // Not 0 as a whole, whatever was drawn.
    let drawn = 1 << u32::BITS | drawn as u64;
    match word.swap(0, drawn) {
        Ok(()) => Some(drawn as u32),
        Err(seen) => Some(seen as u32),
    }
}

/// Where the agent's last wake-up takes it at least: how far the programs had come, in bytes,
/// when they submitted the record that woke it.
#[inline(always)]
pub(crate) fn woken() -> Option<Shared<u64>> {
    word(WOKEN as u32)
}

#[inline(always)]
fn word(index: u32) -> Option<Shared<u64>> {
    let word = SHARES.get_ptr_mut(index)?;
    // SAFETY: a map value is valid for the whole run: eight bytes, aligned, and
    // changed by `Shared` only.
    Some(unsafe { Shared::new(word) })
}

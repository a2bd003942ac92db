//! Fragments: the later ones follow the first, which was judged.

use firewall_common::{
    abi::{Bucket, FRAGMENT_TICKS},
    fragment::{Datagram, Piece, Refusal},
    time::Tick,
    verdict::{DropReason, Event, PassReason, Verdict},
};

use crate::{
    atomic::Shared,
    maps::{EEXIST, FRAGMENTS, ORPHANS},
    stats,
    work::{self, Work},
};

/// Lost swaps after which a fragment, or a token, is given up.
const CAS_TRIES: usize = 3;
const BPF_NOEXIST: u64 = 1;

/// Lets a fragment join its datagram: a first one that was accepted, as
/// `work.outcome` says, or a later one. Leaves the verdict there.
#[inline(always)]
pub(crate) fn join(work: &mut Work) {
    pinhole_fragment_join(work.slot);
}

/// [`join`], of the run whose work is in this slot. Global: the verifier looks at it
/// once, not after each of the ways that a packet can have come.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_fragment_join(slot: u32) -> u32 {
    let Some(work) = work::again(slot) else {
        return 0;
    };
    work.datagram.set(&work.headers, work.from_zone);
    for _ in 0..CAS_TRIES {
        if attempt(work) {
            return 1;
        }
    }
    stats::event(Event::Contention);
    settle(work, Verdict::Drop(DropReason::Fragment));
    1
}

/// One try; false if another CPU was faster.
#[inline(never)]
fn attempt(work: &mut Work) -> bool {
    let Some(piece) = Piece::of(&work.headers) else {
        return settle(work, Verdict::Drop(DropReason::Fragment));
    };
    match find(work) {
        Some(word) => advance(work, word, piece),
        None => begin(work, piece),
    }
}

/// The word of the datagram of the fragment at hand. An old datagram of the same
/// identification is forgotten.
///
/// The LRU may give the node to another datagram before the word is swapped.
/// Then that one is wrong by one piece: at worst it is lost, or later fragments
/// of it pass with which no receiver can do anything.
#[inline(always)]
fn find(work: &Work) -> Option<Shared<u64>> {
    let key = &work.datagram;
    let entry = FRAGMENTS.get_ptr_mut(key)?;
    // SAFETY: a map value is valid for the whole run; this field is written at
    // creation only.
    let born = unsafe { (*entry).born };
    if work.now.since(Tick(born)) > FRAGMENT_TICKS {
        // ENOENT only says that another CPU, or the LRU, was faster.
        let _ = FRAGMENTS.remove(key);
        return None;
    }
    // SAFETY: as above.
    let word = unsafe { &raw mut (*entry).word };
    // SAFETY: eight bytes, aligned, changed atomically, but for the store that
    // ends its datagram.
    Some(unsafe { Shared::new(word) })
}

/// A piece of a datagram of which something has come.
#[inline(always)]
fn advance(work: &mut Work, word: Shared<u64>, piece: Piece) -> bool {
    let datagram = Datagram(word.load());
    let next = match datagram.with(piece) {
        Ok(next) => next,
        Err(refusal) => {
            if matches!(refusal, Refusal::Overlap) {
                word.store(Datagram::REFUSED.0);
            }
            return settle(work, Verdict::Drop(DropReason::FragmentOverlap));
        }
    };
    if !next.has_first() && !take_token(work) {
        return settle(work, Verdict::Drop(DropReason::FragmentOrphan));
    }
    if word.swap(datagram.0, next.0).is_err() {
        return false;
    }
    if next.is_complete() {
        // Its identification may be used again.
        let key = &work.datagram;
        let _ = FRAGMENTS.remove(key);
    }
    joined(work, next)
}

/// The first piece of a datagram to come.
#[inline(always)]
fn begin(work: &mut Work, piece: Piece) -> bool {
    let Ok(begun) = Datagram::EMPTY.with(piece) else {
        return settle(work, Verdict::Drop(DropReason::Fragment));
    };
    if !begun.has_first() && !take_token(work) {
        return settle(work, Verdict::Drop(DropReason::FragmentOrphan));
    }
    work.fragments.word = begun.0;
    work.fragments.born = work.now.0;
    let (key, entry) = (&work.datagram, &work.fragments);
    match FRAGMENTS.insert(key, entry, BPF_NOEXIST) {
        Ok(()) => stats::event(Event::FragmentedDatagram),
        Err(EEXIST) => {
            stats::event(Event::CreateRaced);
            return false;
        }
        // Untracked it passes, and what follows it does within the bound.
        Err(_) => stats::event(Event::CreateFailed),
    }
    joined(work, begun)
}

/// The verdict on a piece that has become part of `datagram`.
#[inline(always)]
fn joined(work: &mut Work, datagram: Datagram) -> bool {
    if !datagram.has_first() {
        settle(work, Verdict::Pass(PassReason::FragmentAhead));
    }
    true
}

#[inline(always)]
fn settle(work: &mut Work, verdict: Verdict) -> bool {
    work.outcome.set(verdict.index());
    true
}

/// May one more fragment pass whose first one has not come?
///
/// An empty bucket is only read, so a flood of them costs no atomic operation.
#[inline(always)]
fn take_token(work: &Work) -> bool {
    let Some(bucket) = ORPHANS.get_ptr_mut(work.datagram.bucket()) else {
        return false;
    };
    // SAFETY: an array element, eight bytes, aligned, changed atomically only.
    let bucket = unsafe { Shared::new(bucket) };
    for _ in 0..CAS_TRIES {
        let full = bucket.load();
        let Some(Bucket(less)) = Bucket(full).take(work.now) else {
            return false;
        };
        if bucket.swap(full, less).is_ok() {
            return true;
        }
    }
    false
}

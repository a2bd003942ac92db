//! Who deletes an entry.

use super::{Place, Tables, is_live, is_there};
use crate::{
    abi::{EndReason, FlowState, Phase, is_incarnation_of},
    tcp::{Cells, Word as _},
};

/// Lost swaps after which an entry is left as it is.
const TRIES: usize = 4;

/// Claims an expired entry of the key with this digest, in whatever phase it was
/// left. Its state before, if this call is the one that deletes it.
///
/// A packet on another CPU may have renewed the entry between the look and the
/// swap: then the swap is taken back, so that nothing alive is deleted.
#[inline(always)]
pub fn doom_expired<E: Cells>(
    entry: E,
    digest: u32,
    expired: impl Fn(FlowState) -> bool,
) -> Option<FlowState> {
    let word = FlowState(entry.state().load());
    if !is_incarnation_of(word.incarnation(), digest)
        || matches!(word.phase(), Phase::Doomed)
        || !expired(word)
    {
        return None;
    }
    let doomed = word.with_phase(Phase::Doomed);
    entry.state().swap(word.0, doomed.0).ok()?;
    if !expired(word) {
        let _ = entry.state().swap(doomed.0, word.0);
        return None;
    }
    Some(word)
}

/// What came of [`doom_listed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// This call deletes the entry, which had this state.
    Won(FlowState),
    /// Another flow took its place, another CPU deletes it, or is moving it.
    Gone,
    /// Every swap was lost.
    Contended,
}

/// Claims the entry of this incarnation, alive as it may be.
#[inline(always)]
pub fn doom_listed<E: Cells>(entry: E, incarnation: u32) -> Deletion {
    for _ in 0..TRIES {
        let word = FlowState(entry.state().load());
        if word.incarnation() != incarnation || !is_live(word) {
            return Deletion::Gone;
        }
        if doom(entry, word) {
            return Deletion::Won(word);
        }
    }
    Deletion::Contended
}

/// Claims a live entry that has just this state; true if this call deletes it.
#[inline(always)]
pub fn doom<E: Cells>(entry: E, word: FlowState) -> bool {
    let doomed = word.with_phase(Phase::Doomed);
    is_live(word) && entry.state().swap(word.0, doomed.0).is_ok()
}

/// After the entry of `incarnation` was inserted into the half-open table of its
/// side: takes it out again if the flow has another one. True if it has.
///
/// When the first packets of both directions come at once on two CPUs, both find
/// nothing, and each makes an entry in the table of its own side. Each looks for
/// the other's when its own is there, so one of them at least sees both. The one
/// from inside stays, unless the other has proved itself or is about to. A flow that left
/// the half-open table is in the proved one, which is looked at last, and only if any flow
/// has moved there since it was looked at before ([`Tables::note_moves`]).
#[inline(always)]
pub fn concedes<T: Tables>(tables: &mut T, inside: bool, incarnation: u32) -> bool {
    let other = if inside {
        clear(tables, Place::Outside, None)
    } else {
        peek(tables, Place::Inside)
    };
    let proved = tables.have_moved() && matches!(peek(tables, Place::Proved), Other::Live);
    if !proved && matches!(other, Other::None) {
        return false;
    }
    let own = clear(tables, Place::half_open(inside), Some(incarnation));
    // Another CPU moves it up, or has: then it is the one inside that goes.
    if !inside && (matches!(own, Other::Moving) || is_there(tables)) {
        clear(tables, Place::Inside, None);
    }
    true
}

/// An entry that may be another one of the flow.
#[derive(Clone, Copy)]
enum Other {
    /// There is none, or none any more.
    None,
    Live,
    /// In promotion: another CPU's.
    Moving,
}

/// What the key has in a table.
#[inline(always)]
fn peek<T: Tables>(tables: &T, place: Place) -> Other {
    let Some(entry) = tables.look(place) else {
        return Other::None;
    };
    let word = FlowState(entry.state().load());
    if !is_incarnation_of(word.incarnation(), tables.digest()) {
        return Other::None;
    }
    match word.phase() {
        Phase::Live => Other::Live,
        Phase::Promoting => Other::Moving,
        Phase::Doomed => Other::None,
    }
}

/// Deletes what the key has in a half-open table, if it is live (and of this
/// incarnation). Returns what is left of it.
#[inline(always)]
fn clear<T: Tables>(tables: &mut T, place: Place, only: Option<u32>) -> Other {
    let Some(entry) = tables.look(place) else {
        return Other::None;
    };
    for _ in 0..TRIES {
        let word = FlowState(entry.state().load());
        let of_key = is_incarnation_of(word.incarnation(), tables.digest());
        if !of_key || only.is_some_and(|only| word.incarnation() != only) {
            return Other::None;
        }
        match word.phase() {
            Phase::Live if doom(entry, word) => {
                // Of its own entry a packet has told nobody yet.
                let reason = match only {
                    Some(_) => EndReason::Promoted,
                    None => EndReason::Reused,
                };
                tables.remove(place, entry, word, reason);
                return Other::None;
            }
            Phase::Live => {}
            Phase::Promoting => return Other::Moving,
            Phase::Doomed => return Other::None,
        }
    }
    Other::Live
}

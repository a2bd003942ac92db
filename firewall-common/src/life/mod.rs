//! The life of an entry in the flow tables: found, moved, ended, by several CPUs
//! at once.
//!
//! - [`find`] looks a flow up in both tiers
//! - [`follow`] tells whether its step is lost because it moved meanwhile
//! - [`promote`] moves it up; [`account`] counts in it, wherever it is
//! - [`concedes`] is for the two that made an entry of one flow each
//! - [`doom_expired`], [`doom_listed`] and [`doom`] elect who deletes it
//! - [`generic`] is the step of protocols without states of their own
//!
//! All of it is generic over the tables ([`Tables`]) and over the words of an
//! entry, so that the tests can try every interleaving of the CPUs.

mod end;
pub mod generic;
mod moving;
#[cfg(test)]
pub(crate) mod tests;

pub use end::{Deletion, concedes, doom, doom_expired, doom_listed};
pub use moving::{Followed, Promotion, account, follow, promote};

use crate::{
    abi::{EndReason, Flow, FlowState, Phase, is_incarnation_of},
    key::Direction,
    tcp::{Cells, Counter, Word as _},
    time::Tick,
};

/// Ticks for which an entry in promotion counts as present.
const PROMOTION_TICKS: u32 = 4;

/// One of a family's three tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// Flows that have proved themselves.
    Proved = 0,
    /// Others, begun inside.
    Inside = 2,
    /// Others, begun outside.
    Outside = 4,
}

impl Place {
    /// The half-open table of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn half_open(inside: bool) -> Self {
        if inside { Self::Inside } else { Self::Outside }
    }
}

/// An entry with what it counts.
pub trait Entry: Cells {
    /// Counter of packets.
    type Packets: Counter<u32>;
    /// Counter of bytes.
    type Bytes: Counter<u64>;

    /// [`Flow::packets`] of one direction.
    fn packets(self, direction: Direction) -> Self::Packets;
    /// [`Flow::bytes`] of one direction.
    fn bytes(self, direction: Direction) -> Self::Bytes;
}

/// Why a table did not take an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key has one there.
    Exists,
    /// Anything else.
    Failed,
}

/// What one key has in the tables of its family, as one CPU reaches it.
pub trait Tables {
    /// An entry. It stays readable, but its node can be reused for another flow at
    /// any moment: the incarnation tells.
    type Entry: Entry;

    /// The key's digest, for [`is_incarnation_of`].
    fn digest(&self) -> u32;
    /// Now.
    fn now(&self) -> Tick;
    /// Looks the key up in one table.
    fn look(&self, place: Place) -> Option<Self::Entry>;
    /// Is the time of an entry, whose state is `word`, over?
    fn is_expired(&self, entry: Self::Entry, word: FlowState) -> bool;
    /// Notes how many flows have moved to the proved table, of all keys.
    fn note_moves(&mut self);
    /// Has one moved since that was noted?
    fn have_moved(&self) -> bool;
    /// Counts one that moves: it is in the proved table already, and still where it was.
    fn count_move(&mut self);
    /// Copies an entry to the flow at hand, word by word.
    fn copy(&mut self, entry: Self::Entry);
    /// The flow at hand.
    fn flow(&mut self) -> &mut Flow;
    /// Puts the flow at hand into a table in which the key has no entry.
    ///
    /// # Errors
    /// It has one, or the table does not take it.
    fn insert(&mut self, place: Place) -> Result<(), Refused>;
    /// Takes the key's entry out of a table. Only for the winner of the swap to
    /// doomed or promoting; `word` is the state before that.
    fn remove(&mut self, place: Place, entry: Self::Entry, word: FlowState, reason: EndReason);
    /// [`EndReason`] of an entry whose time is over.
    fn end_of(&self, word: FlowState) -> EndReason;
    /// An entry turned out to be of another key.
    fn recycled(&self);
}

/// A flow that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<E> {
    /// Its entry.
    pub entry: E,
    /// The state in which it was the key's: whatever is done to it from now on is
    /// done to this incarnation.
    pub word: FlowState,
    /// Is it in the proved table? If not, it may be in promotion at this moment;
    /// [`follow`] knows.
    pub proved: bool,
}

/// Where a flow was looked for a moment ago, and had no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Missed {
    /// It was not looked for.
    Nowhere = 0,
    /// In the proved table.
    Proved = 1,
    /// In all three.
    Everywhere = 2,
}

/// Where a flow has no entry that has none in the proved table, which was looked at just
/// now, after [`Tables::note_moves`].
///
/// Looked at one right after the other, they are waited for at once: memory is most of what
/// a new flow costs.
#[inline(always)]
pub fn missed<T: Tables>(tables: &T) -> Missed {
    if tables.look(Place::Inside).is_some() || tables.look(Place::Outside).is_some() {
        Missed::Proved
    } else {
        Missed::Everywhere
    }
}

/// Looks a flow up, the proved table first: there an established packet is done.
///
/// A flow that moves up between the looks is in neither table when looked for:
/// if any flow has moved meanwhile, the proved one is looked at again, unless the packet is
/// `fresh`, one that can only be the first of a flow. Where it was `missed` it is not looked
/// for once more: what came there since came as if after this look.
#[inline(always)]
pub fn find<T: Tables>(tables: &mut T, fresh: bool, missed: Missed) -> Option<Found<T::Entry>> {
    if matches!(missed, Missed::Nowhere) {
        tables.note_moves();
        if let Some(found) = look(tables, Place::Proved) {
            return Some(found);
        }
    }
    if !matches!(missed, Missed::Everywhere) {
        if let Some(found) = look(tables, Place::Inside) {
            return Some(found);
        }
        if let Some(found) = look(tables, Place::Outside) {
            return Some(found);
        }
    }
    if fresh || !tables.have_moved() {
        return None;
    }
    let entry = tables.look(Place::Proved)?;
    let word = FlowState(entry.state().load());
    is_present(tables, word).then_some(Found {
        entry,
        word,
        proved: true,
    })
}

#[inline(always)]
fn look<T: Tables>(tables: &mut T, place: Place) -> Option<Found<T::Entry>> {
    let entry = tables.look(place)?;
    let word = FlowState(entry.state().load());
    // The node may have gone to another key since it was looked up.
    if !is_incarnation_of(word.incarnation(), tables.digest()) {
        tables.recycled();
        return None;
    }
    if tables.is_expired(entry, word) {
        // Expired counts as absent, whether or not the collector has been here.
        let expired = |word| tables.is_expired(entry, word);
        if let Some(word) = doom_expired(entry, tables.digest(), expired) {
            let reason = tables.end_of(word);
            tables.remove(place, entry, word, reason);
        }
        return None;
    }
    let present = match word.phase() {
        Phase::Live => true,
        // A left-over is a miss; a fresh one is another CPU's work of this moment.
        Phase::Promoting => tables.now().since(Tick(entry.seen().load())) <= PROMOTION_TICKS,
        Phase::Doomed => false,
    };
    present.then_some(Found {
        entry,
        word,
        proved: matches!(place, Place::Proved),
    })
}

/// Has the key a live entry in the proved table?
#[inline(always)]
fn is_there<T: Tables>(tables: &T) -> bool {
    tables
        .look(Place::Proved)
        .is_some_and(|entry| is_present(tables, FlowState(entry.state().load())))
}

/// Is it the state of a live entry of the key?
#[inline(always)]
fn is_present<T: Tables>(tables: &T, word: FlowState) -> bool {
    is_incarnation_of(word.incarnation(), tables.digest()) && is_live(word)
}

#[inline(always)]
const fn is_live(word: FlowState) -> bool {
    matches!(word.phase(), Phase::Live)
}

/// Notes that a packet came `now`. False if the entry is being deleted, or gone:
/// the packet is then a miss.
///
/// Who deletes an expired entry swaps its state and then looks at `seen` once more;
/// here `seen` is swapped and then the state is looked at. Both swaps are full
/// barriers, so one of the two at least sees the other, and no packet renews an
/// entry that is deleted all the same.
#[inline(always)]
pub(crate) fn renew<E: Cells>(entry: E, now: Tick, incarnation: u32) -> bool {
    let seen = entry.seen().load();
    if seen == now.0 {
        return true;
    }
    // Lost to another packet of this moment, whose time is as good.
    let _ = entry.seen().swap(seen, now.0);
    let word = FlowState(entry.state().load());
    word.incarnation() == incarnation && !matches!(word.phase(), Phase::Doomed)
}

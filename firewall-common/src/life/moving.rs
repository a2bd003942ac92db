//! From the half-open table to the proved one.

use super::{Entry, Place, Refused, Tables, is_live, is_there};
use crate::{
    abi::{EndReason, FlowState, Phase, flow_flags},
    key::Direction,
    tcp::{Cells as _, Counter as _, Word as _},
    wire::OnWire,
};

/// What a step in a half-open entry was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It stands.
    Made,
    /// Another CPU is making a copy of the entry, or has: what the step wrote may be
    /// missing in that.
    Lost,
}

/// Has another CPU begun to move the flow before a step in its half-open entry was
/// made in full?
///
/// The state is loaded after the step. If it is still live, promotion has not
/// begun, and its copy has all that the step wrote.
#[inline(always)]
pub fn follow<E: Entry>(entry: E, incarnation: u32) -> Followed {
    let word = FlowState(entry.state().load());
    if word.incarnation() == incarnation && matches!(word.phase(), Phase::Promoting) {
        Followed::Lost
    } else {
        Followed::Made
    }
}

/// The live proved entry of this incarnation.
#[inline(always)]
fn arrived<T: Tables>(tables: &T, incarnation: u32) -> Option<T::Entry> {
    let entry = tables.look(Place::Proved)?;
    let word = FlowState(entry.state().load());
    (word.incarnation() == incarnation && is_live(word)).then_some(entry)
}

/// What came of [`promote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promotion {
    /// This call moved the flow; its new entry is the flow at hand, too.
    Moved,
    /// Another packet changed its state first, or is moving it.
    Raced,
    /// The table displaced the half-open entry meanwhile.
    Recycled,
    /// The key has a proved entry already, which stands; the half-open one is gone.
    Joined,
    /// The proved table did not take it: it stays where it is.
    Refused,
}

/// Moves a flow, which has `word` and began `inside` or not, to the proved table.
///
/// The swap to promoting elects one CPU; it inserts, then deletes the half-open
/// entry, so that the flow is in one table at least at any moment.
#[inline(always)]
pub fn promote<T: Tables>(tables: &mut T, entry: T::Entry, word: FlowState) -> Promotion {
    let promoting = word.with_phase(Phase::Promoting);
    if !is_live(word) || entry.state().swap(word.0, promoting.0).is_err() {
        return Promotion::Raced;
    }
    tables.copy(entry);
    // The half-open table may have evicted it under the copy, for another flow.
    if entry.state().load() != promoting.0 {
        return Promotion::Recycled;
    }
    tables.flow().state = word.with(flow_flags::ASSURED).0;
    let result = match tables.insert(Place::Proved) {
        Ok(()) => Promotion::Moved,
        Err(Refused::Exists) if is_there(tables) => Promotion::Joined,
        // Also if what is there is being deleted.
        Err(_) => {
            let _ = entry.state().swap(promoting.0, word.0);
            return Promotion::Refused;
        }
    };
    if matches!(result, Promotion::Moved) {
        hand_over(tables, entry, promoting);
    }
    // Also where another CPU made the proved entry, and has not counted it yet.
    tables.count_move();
    let place = Place::half_open(word.has(flow_flags::FROM_INSIDE));
    tables.remove(place, entry, word, EndReason::Promoted);
    result
}

/// Highest bit of a counter of packets of a half-open entry: its count has moved.
const SEALED_PACKETS: u32 = 1 << 31;
/// The same of bytes.
const SEALED_BYTES: u64 = 1 << 63;

/// Adds to the proved entry what other CPUs counted in the half-open one after it
/// was copied, and seals that: what they count from now on they carry over
/// themselves ([`account`]).
#[inline(always)]
fn hand_over<T: Tables>(tables: &mut T, entry: T::Entry, promoting: FlowState) {
    let Some(there) = tables.look(Place::Proved) else {
        return;
    };
    for direction in [Direction::Original, Direction::Reply] {
        let (counted, octets) = (entry.packets(direction), entry.bytes(direction));
        let (packets, bytes) = (counted.seal(), octets.seal());
        if entry.state().load() != promoting.0 {
            // The table displaced the entry just now, and these are another flow's:
            // adding the highest bit takes it away again.
            counted.add(SEALED_PACKETS);
            octets.add(SEALED_BYTES);
            return;
        }
        let copied = tables.flow();
        let packets = packets.wrapping_sub(copied.packets[direction.index()]);
        let bytes = bytes.wrapping_sub(copied.bytes[direction.index()]);
        if packets != 0 {
            there.packets(direction).add(packets);
        }
        if bytes != 0 {
            there.bytes(direction).add(bytes);
        }
    }
}

/// Counts a packet in the half-open entry of a flow of `incarnation`, and in the
/// proved one if the flow has moved there without this count.
///
/// A counter whose highest bit is its own (a flow that could not be promoted for two
/// thousand million packets) reads as sealed: then there is no proved entry to add to.
#[inline(always)]
pub fn account<T: Tables>(
    tables: &T,
    entry: T::Entry,
    incarnation: u32,
    direction: Direction,
    wire: OnWire,
) {
    let packets = entry.packets(direction).fetch_add(wire.packets) & SEALED_PACKETS != 0;
    let bytes = entry.bytes(direction).fetch_add(wire.bytes as u64) & SEALED_BYTES != 0;
    if !packets && !bytes {
        return;
    }
    let Some(there) = arrived(tables, incarnation) else {
        return;
    };
    if packets {
        there.packets(direction).add(wire.packets);
    }
    if bytes {
        there.bytes(direction).add(wire.bytes as u64);
    }
}

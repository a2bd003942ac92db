//! Segments that ICMP errors quote.

use super::{Cells, Stepped, Word as _, after, before, window::CLAIMED};
use crate::{
    abi::{FlowState, flow_flags},
    key::Direction,
};

/// How far what is quoted may lie behind what its sender has sent, while nothing
/// of that is acknowledged.
const UNACKNOWLEDGED: u32 = 66_000;

/// Can a segment with `seq` that runs in `direction` be on its way? An error is
/// about one that did not arrive (RFC 5927, section 4.1), so it lies between what
/// the other side has acknowledged and what its own has sent. (nf_conntrack does
/// not ask.)
///
/// Nothing is held against a flow of which not enough is known. If false, the two
/// numbers are in `out`.
#[inline(always)]
#[must_use]
pub fn is_in_flight<E: Cells>(cells: E, direction: Direction, seq: u32, out: &mut Stepped) -> bool {
    let word = FlowState(cells.state().load());
    let other = direction.flip();
    let windows = [cells.maxwin(direction).load(), cells.maxwin(other).load()];
    let claimed = (windows[0] | windows[1]) & CLAIMED != 0;
    if windows[0] == 0 || claimed || word.has(flow_flags::LIBERAL) {
        return true;
    }
    let end = cells.end(direction).load();
    let begin = if word.has(flow_flags::maxack_set(other)) {
        // A probe of an idle connection lies one before (RFC 9293, section 3.8.4).
        cells.maxack(other).load().wrapping_sub(1)
    } else {
        end.wrapping_sub(UNACKNOWLEDGED)
    };
    out.value = seq;
    out.bound = if after(seq, end) { end } else { begin };
    !after(seq, end) && !before(seq, begin)
}

//! The step of the segment that most segments are: an ACK, with or without data, that
//! fits the windows of an established flow.
//!
//! It is [`super::step`] with everything left out that such a segment does not need,
//! in one piece that the kernel programs have room for in the middle of their way. The
//! bounds, and what is written, are those of the complete step, by the same functions.

use super::{Arrived, Cells, Segment, State, Word as _, window};
use crate::{
    abi::{FlowState, Last, LastKind, flow_flags},
    life,
    time::Tick,
};

/// Steps a flow, which was found with `word`, by a segment at `now` that leaves this
/// word as it is.
///
/// False if the complete step has to decide, which then does whatever was done here
/// once more and is none the wiser: nothing is written for a segment that is not plain.
#[inline(always)]
pub fn plain<E: Cells>(cells: E, arrived: &Arrived<'_>, word: FlowState, now: Tick) -> bool {
    if !stays(word, arrived) {
        return false;
    }
    let last = Last(cells.last().load());
    let Some(m) = window::plain(cells, word, arrived) else {
        return false;
    };
    let next = last.with_packet(LastKind::Ack, arrived.direction, m.end);
    if next != last {
        // Lost to another segment of the same moment, which is then the last.
        let _ = cells.last().swap(last.0, next.0);
    }
    if !life::renew(cells, now, word.incarnation()) {
        return false;
    }
    window::record(cells, word, arrived, &m);
    true
}

/// Does an accepted segment leave the state word as it is? What it would set is there.
#[inline(always)]
fn stays(word: FlowState, arrived: &Arrived<'_>) -> bool {
    let acknowledged = flow_flags::maxack_set(arrived.direction);
    matches!(arrived.segment, Segment::Ack)
        && !arrived.headers.options_malformed
        && word.is_live_in(State::Established as u8)
        && word.has(flow_flags::SEEN_REPLY)
        && word.has(flow_flags::ASSURED)
        && word.has(acknowledged)
        && !word.has(flow_flags::CUT_SHORT)
}

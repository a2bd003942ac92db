//! The step of protocols without states of their own.

use crate::{
    abi::{FlowState, Phase, flow_flags},
    key::Direction,
    tcp::{Cells, Stepped, TRIES, What, Word as _, generic},
    time::Tick,
};

/// Steps a flow, which was found with `word`, by a packet at `now` that leaves this word
/// as it is, because it is replied. False if [`step`] has to decide.
#[inline(always)]
pub fn plain<E: Cells>(entry: E, word: FlowState, now: Tick) -> bool {
    word.is_live_in(generic::REPLIED)
        && word.has(flow_flags::SEEN_REPLY)
        && super::renew(entry, now, word.incarnation())
}

/// Steps the flow of `incarnation` by a packet at `now`: the first answer makes it
/// replied.
#[inline(always)]
pub fn step<E: Cells>(
    entry: E,
    direction: Direction,
    incarnation: u32,
    now: Tick,
    out: &mut Stepped,
) {
    out.what = What::Gone;
    for _ in 0..TRIES {
        let word = FlowState(entry.state().load());
        out.word = word;
        if word.incarnation() != incarnation {
            return;
        }
        match word.phase() {
            Phase::Live => {}
            // As it is: or the CPU that made it so could not take it back.
            Phase::Promoting => {
                out.what = What::Moving;
                return;
            }
            Phase::Doomed => return,
        }
        let new = match direction {
            Direction::Original => word,
            Direction::Reply => word
                .with_state(generic::REPLIED)
                .with(flow_flags::SEEN_REPLY),
        };
        if new == word || entry.state().swap(word.0, new.0).is_ok() {
            out.word = new;
            out.changed = new.state() != word.state();
            if super::renew(entry, now, incarnation) {
                out.what = What::Accepted;
            }
            return;
        }
    }
    out.what = What::Contended;
}

//! Flows that shadow mode let in although the policy refuses them.
//!
//! In shadow mode they step like any other, and their packets count as what
//! enforcing would drop. When the policy is enforced again they have no pass:
//! whoever begins anew is judged by the rules, and nothing else goes through.

use firewall_common::{
    abi::EndReason,
    key::{Direction, Heading},
    life::Found,
    tcp::Segment,
    verdict::{DropReason, Verdict},
    wire::{Headers, proto},
};

use super::{
    entry::Entry,
    tiers::{Family, end},
};
use crate::work::Work;

/// Judges a packet of such a flow while the policy is enforced. `None` when it
/// begins a flow in its place.
///
/// The entry stays until it expires, and nothing renews it: without it, what the
/// host still answers would begin a flow from inside.
#[inline(always)]
pub(super) fn judge<K: Family>(
    work: &mut Work,
    heading: Heading,
    found: Found<Entry>,
) -> Option<Verdict> {
    let Found {
        entry: Entry(entry),
        word,
        proved,
    } = found;
    let direction = Direction::of(heading, word.first_heading());
    if !begins(&work.headers, direction) {
        return Some(Verdict::Drop(DropReason::RefusedFlow));
    }
    end(&*K::slot(work), entry, word, proved, EndReason::Reused);
    None
}

/// Would the packet begin the flow, were there none?
#[inline(always)]
pub(super) const fn begins(h: &Headers, direction: Direction) -> bool {
    if h.proto == proto::TCP {
        matches!(Segment::of(h.tcp_flags), Some(Segment::Syn))
    } else {
        matches!(direction, Direction::Original)
    }
}

/// What a packet of a flow counts as, if that was `refused`.
#[inline(always)]
pub(super) const fn counted(verdict: Option<Verdict>, refused: bool) -> Option<Verdict> {
    match verdict {
        Some(Verdict::Pass(_)) if refused => Some(Verdict::Drop(DropReason::RefusedFlow)),
        other => other,
    }
}

//! What the SYNs between two hosts with a live FTP session may have of the ring.
//!
//! Global functions: the verifier looks at each once, however many ways lead to
//! its call.

use firewall_common::abi::{Pair, PairKey, PairWindow, Target};

use crate::{
    atomic::Shared,
    control::{agent_lives, ring_fill},
    maps::{CONFIG, PAIRS, TARGETS},
    work::Work,
};

/// SYNs reported of one host pair within a second, those not counted that are held.
const REPORTS_PER_SECOND: u32 = 64;

/// SYNs of other hosts reported of one port within a second: who finds the port may
/// be anybody, and one is enough to tell.
const STRAYS_PER_SECOND: u32 = 4;

/// Lost swaps after which a budget is left alone.
const TRIES: usize = 8;

/// What becomes of a refused SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nobody hears of it.
    Nothing,
    /// The agent hears of it.
    Report,
    /// The agent gets it whole, to run it again.
    Hold,
    /// The agent hears of it: it goes to a port that somebody else is expected at.
    Stray,
}

/// Takes what a refused SYN may have of the ring; held it can be if `may_hold`.
#[inline(always)]
pub(crate) fn refused(work: &mut Work, may_hold: bool) -> Share {
    match pinhole_pair_refused(work, may_hold as u32) {
        0 => Share::Nothing,
        1 => Share::Report,
        2 => Share::Hold,
        _ => Share::Stray,
    }
}

/// Takes what a SYN that passed may have; false if nobody hears of it.
#[inline(always)]
pub(crate) fn passed(work: &mut Work, expected: bool) -> bool {
    pinhole_pair_passed(work, expected as u32) != 0
}

/// The SYN in `work` has found its pinhole: if it was held before, others may be
/// held in its place. So transfers right after one another use no budget up, and
/// SYNs that nobody expects do.
#[inline(always)]
pub(crate) fn came_about(work: &mut Work) {
    pinhole_pair_came_about(work);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_pair_refused(work: *mut Work, may_hold: u32) -> u32 {
    // SAFETY: `refused` passes this run's own work area, which nothing else refers to.
    let (Some(work), Some(config)) = (unsafe { work.as_ref() }, CONFIG.get(0)) else {
        return Share::Nothing as u32;
    };
    // Control payload keeps at least the other part of the ring.
    if !agent_lives(work) || ring_fill() >= config.hold_ring_limit as u64 {
        return Share::Nothing as u32;
    }
    let Some(pair) = find(work) else {
        return if is_stray(work) {
            Share::Stray as u32
        } else {
            Share::Nothing as u32
        };
    };
    // SAFETY: a map value is valid for the whole run; only user space writes this
    // field, with the whole element. Each session can have one SYN under way.
    let sessions = unsafe { (*pair).sessions };
    let limit = config.hold_per_pair.saturating_add(sessions);
    // SAFETY: as above.
    let window = unsafe { &raw mut (*pair).window };
    // SAFETY: eight bytes, aligned, changed by `Shared` only while the agent
    // leaves it alone.
    let window = unsafe { Shared::new(window) };
    if may_hold != 0 && hold(window, work.moment.now_ns, limit) {
        Share::Hold as u32
    } else if report(window, work.moment.now_ns, REPORTS_PER_SECOND) {
        Share::Report as u32
    } else {
        Share::Nothing as u32
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_pair_passed(work: *mut Work, expected: u32) -> u32 {
    // SAFETY: as in `pinhole_pair_refused`.
    let (Some(work), Some(config)) = (unsafe { work.as_ref() }, CONFIG.get(0)) else {
        return 0;
    };
    let Some(pair) = find(work) else {
        return 0;
    };
    if !agent_lives(work) {
        return 0;
    }
    // Those that were expected are as few as the agent allowed.
    if expected != 0 {
        return 1;
    }
    if ring_fill() >= config.hold_ring_limit as u64 {
        return 0;
    }
    // SAFETY: a map value is valid for the whole run.
    let window = unsafe { &raw mut (*pair).passed };
    // SAFETY: as in `pinhole_pair_refused`.
    let window = unsafe { Shared::new(window) };
    report(window, work.moment.now_ns, REPORTS_PER_SECOND) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_pair_came_about(work: *mut Work) -> u32 {
    // SAFETY: as in `pinhole_pair_refused`.
    let Some(work) = (unsafe { work.as_ref() }) else {
        return 0;
    };
    let Some(pair) = find(work) else {
        return 0;
    };
    // SAFETY: a map value is valid for the whole run.
    let window = unsafe { &raw mut (*pair).window };
    // SAFETY: as in `pinhole_pair_refused`.
    let window = unsafe { Shared::new(window) };
    for _ in 0..TRIES {
        let word = window.load();
        let now = PairWindow::at(word, work.moment.now_ns);
        if now.held() == 0 || window.swap(word, now.without_hold().0).is_ok() {
            break;
        }
    }
    0
}

/// The hosts of the packet in `work`, if they have a live session.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key by value would be copied to the stack once more"
)]
#[inline(always)]
fn find(work: &Work) -> Option<*mut Pair> {
    // On the stack: to the verifier of 6.1 what a global function is given is no
    // map value, and only those and the stack hold keys.
    let key = PairKey::new(work.headers.src, work.headers.dst);
    PAIRS.get_ptr_mut(&key)
}

/// Does the SYN in `work` go to a port that somebody is expected at, and may it be
/// told? It is none of the port's host's sessions'.
#[expect(clippy::needless_borrows_for_generic_args, reason = "as in `find`")]
#[inline(always)]
fn is_stray(work: &Work) -> bool {
    let h = &work.headers;
    let target = Target {
        dst: h.dst,
        dport: h.dport,
        proto: h.proto,
        reserved: 0,
    };
    let Some(window) = TARGETS.get_ptr_mut(&target) else {
        return false;
    };
    // SAFETY: a map value is valid for the whole run: eight bytes, aligned, changed
    // by `Shared` only once user space has written it.
    let window = unsafe { Shared::new(window) };
    report(window, work.moment.now_ns, STRAYS_PER_SECOND)
}

/// Takes a hold from the pair's budget; false when it is used up.
#[inline(always)]
fn hold(window: Shared<u64>, now_ns: u64, limit: u32) -> bool {
    for _ in 0..TRIES {
        let word = window.load();
        let now = PairWindow::at(word, now_ns);
        if now.held() >= limit || now.held() >= u16::MAX as u32 {
            return false;
        }
        if window.swap(word, now.with_hold().0).is_ok() {
            return true;
        }
    }
    false
}

/// Takes a report from the budget of this second; false when it is used up.
#[inline(always)]
fn report(window: Shared<u64>, now_ns: u64, limit: u32) -> bool {
    for _ in 0..TRIES {
        let word = window.load();
        let now = PairWindow::at(word, now_ns);
        if now.reported() >= limit {
            return false;
        }
        if window.swap(word, now.with_report().0).is_ok() {
            return true;
        }
    }
    false
}

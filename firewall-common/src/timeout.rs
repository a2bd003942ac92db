//! When a flow ends: a pure function of its entry and the table of time-outs.
//!
//! Nothing stores a point of expiry. So a changed time-out counts at once, for
//! every flow, and a packet that changes what a flow is worth (an acknowledgement
//! that arrives, an end that is announced) needs no second write.

use crate::{
    abi::{FlowState, flow_flags, timeout},
    key::Direction,
    tcp::{State, generic},
    time::Tick,
    wire::proto,
};

/// Time-outs in ticks, by [`timeout`].
pub type Timeouts = [u32; timeout::LEN];

/// Which time-out a flow in `state` has, as far as its state alone decides: an
/// index below [`timeout::LEN`].
#[inline(always)]
#[must_use]
pub const fn index(protocol: u8, state: u8) -> usize {
    let index = match protocol {
        proto::TCP => timeout::TCP + state as usize,
        proto::UDP if state == generic::REPLIED => timeout::UDP_STREAM,
        proto::UDP => timeout::UDP,
        proto::ICMP | proto::ICMPV6 => timeout::ICMP,
        _ => timeout::OTHER,
    };
    // The mask is for the verifier; every index above is below it.
    index & (timeout::LEN - 1)
}

/// After this point a flow that was last renewed at `seen` counts as absent.
///
/// A TCP flow lives for the time-out of its state, but:
/// - with data that nobody has acknowledged, or picked up in mid-life and without
///   an answer that fits, for that of [`timeout::TCP_UNACKNOWLEDGED`] at most;
/// - when each side has sent a FIN or an RST out of window, or one of them an RST
///   in window that does not close it, for the same at most
///   ([`flow_flags::CUT_SHORT`]; `seen` is then the packet that did it).
#[inline(always)]
#[must_use]
pub fn expires(
    protocol: u8,
    word: FlowState,
    seen: Tick,
    unacknowledged: impl FnOnce() -> bool,
    timeouts: &Timeouts,
) -> Tick {
    let life = timeouts[index(protocol, word.state())];
    if protocol != proto::TCP {
        return seen.plus(life);
    }
    let short = timeouts[timeout::TCP_UNACKNOWLEDGED];
    if life <= short {
        return seen.plus(life);
    }
    // A packet that changes nothing can be a reply, too, but it proves nothing.
    let unsure = word.state() == State::Established as u8 && !word.has(flow_flags::ASSURED);
    if unsure || word.has(flow_flags::CUT_SHORT) || unacknowledged() {
        seen.plus(short)
    } else {
        seen.plus(life)
    }
}

/// Has the side that sends in `from` sent what the other has not acknowledged?
///
/// `sender_end` and `sender_maxwin` are its own, `receiver_maxack` is the other's.
#[inline(always)]
#[must_use]
pub const fn is_unacknowledged(
    word: FlowState,
    from: Direction,
    sender_maxwin: u32,
    sender_end: u32,
    receiver_maxack: u32,
) -> bool {
    sender_maxwin != 0
        && word.has(flow_flags::maxack_set(from.flip()))
        && sender_end != receiver_maxack
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Tick = Tick(1000);

    fn table() -> Timeouts {
        let mut table = [600; timeout::LEN];
        table[State::Established as usize] = 5000;
        table[State::Close as usize] = 10;
        table[timeout::TCP_UNACKNOWLEDGED] = 300;
        table[timeout::UDP] = 30;
        table[timeout::UDP_STREAM] = 120;
        table
    }

    fn at(protocol: u8, word: FlowState, unacknowledged: bool) -> u32 {
        expires(protocol, word, SEEN, || unacknowledged, &table()).0 - SEEN.0
    }

    fn tcp(state: State) -> FlowState {
        FlowState::new(state as u8, flow_flags::SEEN_REPLY | flow_flags::ASSURED, 1)
    }

    #[test]
    fn the_state_decides() {
        let udp = |state| FlowState::new(state, 0, 1);
        assert_eq!(at(proto::UDP, udp(generic::UNREPLIED), true), 30);
        assert_eq!(at(proto::UDP, udp(generic::REPLIED), true), 120);
        assert_eq!(at(proto::TCP, tcp(State::Established), false), 5000);
        assert_eq!(at(47, udp(generic::REPLIED), false), 600);
    }

    #[test]
    fn what_is_unsure_lives_shorter() {
        let established = tcp(State::Established);
        assert_eq!(at(proto::TCP, established, true), 300);
        let unsure = established.without(flow_flags::ASSURED);
        assert_eq!(at(proto::TCP, unsure, false), 300);
        assert_eq!(at(proto::TCP, tcp(State::Close), true), 10);
    }

    #[test]
    fn strays_of_both_sides_shorten_and_never_lengthen() {
        let cut = |state| tcp(state).with(flow_flags::CUT_SHORT);
        assert_eq!(at(proto::TCP, cut(State::Established), false), 300);
        assert_eq!(at(proto::TCP, cut(State::Close), false), 10);
    }

    #[test]
    fn data_is_unacknowledged_until_the_other_side_names_its_end() {
        let word = tcp(State::Established).with(flow_flags::MAXACK_REPLY);
        let by = |end, maxack| is_unacknowledged(word, Direction::Original, 100, end, maxack);
        assert!(by(501, 500));
        assert!(!by(501, 501));
        assert!(
            !is_unacknowledged(word, Direction::Original, 0, 501, 500),
            "unknown side"
        );
        assert!(
            !is_unacknowledged(word, Direction::Reply, 100, 501, 500),
            "never acknowledged"
        );
    }
}

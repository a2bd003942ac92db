//! When a flow ends: a pure function of its entry and the table of time-outs.
//!
//! Nothing stores a point of expiry. So a changed time-out counts at once, for
//! every flow, and a packet that changes what a flow is worth (an acknowledgement
//! that arrives, an end that is announced) needs no second write.

use crate::{
    abi::{FlowState, Last, LastKind, flow_flags, timeout},
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
/// - after an RST that left the state as it was, for that of CLOSE, so that a
///   challenge ACK can still revive it (RFC 5961, section 3.2);
/// - with data that nobody has acknowledged, or without a reply, for that of
///   [`timeout::TCP_UNACKNOWLEDGED`] at most;
/// - when each side has sent a FIN or an RST out of window, for the same at most
///   ([`flow_flags::CUT_SHORT`]; `seen` is then the second of them).
#[inline(always)]
#[must_use]
pub fn expires(
    protocol: u8,
    word: FlowState,
    last: Last,
    seen: Tick,
    unacknowledged: impl FnOnce() -> bool,
    timeouts: &Timeouts,
) -> Tick {
    let life = timeouts[index(protocol, word.state())];
    if protocol != proto::TCP {
        return seen.plus(life);
    }
    if matches!(last.kind(), LastKind::Rst) && !last.is_stray() {
        return seen.plus(timeouts[State::Close as usize]);
    }
    let short = timeouts[timeout::TCP_UNACKNOWLEDGED];
    if life <= short {
        return seen.plus(life);
    }
    let unanswered = word.state() == State::Established as u8 && !word.has(flow_flags::SEEN_REPLY);
    if unanswered || word.has(flow_flags::CUT_SHORT) || unacknowledged() {
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
    use crate::abi::RULE_NONE;

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

    fn at(protocol: u8, word: FlowState, last: Last, unacknowledged: bool) -> u32 {
        expires(protocol, word, last, SEEN, || unacknowledged, &table()).0 - SEEN.0
    }

    fn tcp(state: State) -> FlowState {
        FlowState::new(state as u8, flow_flags::SEEN_REPLY, 1)
    }

    const NO_PACKET: Last = Last::new(RULE_NONE, 0, 0);

    #[test]
    fn the_state_decides() {
        let udp = |state| FlowState::new(state, 0, 1);
        assert_eq!(at(proto::UDP, udp(generic::UNREPLIED), NO_PACKET, true), 30);
        assert_eq!(at(proto::UDP, udp(generic::REPLIED), NO_PACKET, true), 120);
        assert_eq!(
            at(proto::TCP, tcp(State::Established), NO_PACKET, false),
            5000
        );
        assert_eq!(at(47, udp(generic::REPLIED), NO_PACKET, false), 600);
    }

    #[test]
    fn what_is_unsure_lives_shorter() {
        let established = tcp(State::Established);
        assert_eq!(at(proto::TCP, established, NO_PACKET, true), 300);
        let alone = established.without(flow_flags::SEEN_REPLY);
        assert_eq!(at(proto::TCP, alone, NO_PACKET, false), 300);
        let rst = NO_PACKET.with_packet(LastKind::Rst, Direction::Reply, 0);
        assert_eq!(at(proto::TCP, established, rst, false), 10);
        assert_eq!(at(proto::TCP, established, rst.astray(), false), 5000);
        assert_eq!(at(proto::TCP, tcp(State::Close), NO_PACKET, true), 10);
    }

    #[test]
    fn strays_of_both_sides_shorten_and_never_lengthen() {
        let cut = |state| tcp(state).with(flow_flags::CUT_SHORT);
        assert_eq!(
            at(proto::TCP, cut(State::Established), NO_PACKET, false),
            300
        );
        assert_eq!(at(proto::TCP, cut(State::Close), NO_PACKET, false), 10);
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

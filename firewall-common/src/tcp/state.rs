//! The transition table of nf_conntrack (`net/netfilter/nf_conntrack_proto_tcp.c`),
//! as explicit arms by direction and segment kind.
//!
//! The kernel sees one end of the conversation from the middle, so its states
//! are not those of either socket: FIN_WAIT means that one FIN was seen,
//! CLOSE_WAIT that it was acknowledged, LAST_ACK that the second FIN was seen.

use crate::{key::Direction, wire::tcp_flags};

/// State of a TCP flow, numbered as `TCP_CONNTRACK_*` in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// No flow yet.
    None = 0,
    /// SYN seen.
    SynSent = 1,
    /// SYN-ACK seen.
    SynRecv = 2,
    /// Handshake complete.
    Established = 3,
    /// One FIN seen.
    FinWait = 4,
    /// That FIN acknowledged.
    CloseWait = 5,
    /// Both FINs seen.
    LastAck = 6,
    /// The last ACK seen.
    TimeWait = 7,
    /// RST seen.
    Close = 8,
    /// SYNs of both sides seen: simultaneous open (RFC 9293, section 3.5).
    SynSent2 = 9,
}

impl State {
    /// The name that `conntrack -L` prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }
}

impl TryFrom<u8> for State {
    type Error = u8;

    #[inline(always)]
    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            0 => Self::None,
            1 => Self::SynSent,
            2 => Self::SynRecv,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            9 => Self::SynSent2,
            other => return Err(other),
        })
    }
}

/// What a segment is, by its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Segment {
    /// SYN without ACK.
    Syn = 0,
    /// SYN and ACK.
    SynAck = 1,
    /// FIN and ACK.
    Fin = 2,
    /// ACK alone.
    Ack = 3,
    /// RST.
    Rst = 4,
}

impl Segment {
    /// The kind of a segment with `flags`, or `None` for a combination that no
    /// stack sends (`tcp_valid_flags` of nf_conntrack; PSH, ECE and CWR do not count).
    #[inline(always)]
    #[must_use]
    pub const fn of(flags: u8) -> Option<Self> {
        use tcp_flags::{ACK, FIN, RST, SYN, URG};
        const SYN_URG: u8 = SYN | URG;
        const SYN_ACK: u8 = SYN | ACK;
        const RST_ACK: u8 = RST | ACK;
        const FIN_ACK: u8 = FIN | ACK;
        const FIN_ACK_URG: u8 = FIN | ACK | URG;
        const ACK_URG: u8 = ACK | URG;
        match flags & (SYN | ACK | RST | FIN | URG) {
            SYN | SYN_URG => Some(Self::Syn),
            SYN_ACK => Some(Self::SynAck),
            RST | RST_ACK => Some(Self::Rst),
            FIN_ACK | FIN_ACK_URG => Some(Self::Fin),
            ACK | ACK_URG => Some(Self::Ack),
            _ => None,
        }
    }
}

/// What a segment does to a flow, as far as its state tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The flow is in this state then, if the segment fits its windows.
    To(State),
    /// Passes and changes no state: it may be valid for the receiver, or provoke
    /// an answer that tells.
    Ignore,
    /// A SYN on a closed tuple: it may begin a new flow in place of this one.
    Reopen,
    /// Does not fit.
    Invalid,
}

/// The transition that `segment` in `direction` makes from `state`.
#[inline(always)]
#[must_use]
pub const fn transition(state: State, direction: Direction, segment: Segment) -> Transition {
    match direction {
        Direction::Original => original(state, segment),
        Direction::Reply => reply(state, segment),
    }
}

#[inline(always)]
const fn original(state: State, segment: Segment) -> Transition {
    use State::{
        Close, CloseWait, Established, FinWait, LastAck, None, SynRecv, SynSent, SynSent2, TimeWait,
    };
    match segment {
        Segment::Syn => match state {
            None | SynSent => Transition::To(SynSent),
            SynSent2 => Transition::To(SynSent2),
            // RFC 9293, section 3.6.1: a new incarnation of the connection.
            TimeWait | Close => Transition::Reopen,
            // A challenge ACK and an RST, or a SYN-ACK, will tell (RFC 5961, section 4).
            SynRecv | Established | FinWait | CloseWait | LastAck => Transition::Ignore,
        },
        // The answer to a simultaneous SYN; anywhere else it is the wrong side's.
        Segment::SynAck => match state {
            SynRecv | SynSent2 => Transition::To(SynRecv),
            _ => Transition::Invalid,
        },
        Segment::Fin => match state {
            None | SynSent | SynSent2 => Transition::Invalid,
            _ => closing(state),
        },
        Segment::Ack => match state {
            SynRecv => Transition::To(Established),
            // The kernel picks up mid-stream from `None` here; that is a switch
            // of its own, so without it there is no such flow.
            None | SynSent | SynSent2 => Transition::Invalid,
            _ => acknowledged(state),
        },
        Segment::Rst => reset(state),
    }
}

#[inline(always)]
const fn reply(state: State, segment: Segment) -> Transition {
    use State::{None, SynRecv, SynSent, SynSent2, TimeWait};
    match segment {
        Segment::Syn => match state {
            SynSent | SynSent2 => Transition::To(SynSent2),
            TimeWait => Transition::Reopen,
            _ => Transition::Invalid,
        },
        Segment::SynAck => match state {
            SynSent | SynSent2 => Transition::To(SynRecv),
            None => Transition::Invalid,
            // Sent again, or the answer to a SYN that was let through above.
            _ => Transition::Ignore,
        },
        Segment::Fin => match state {
            None | SynSent | SynSent2 => Transition::Invalid,
            _ => closing(state),
        },
        Segment::Ack => match state {
            None => Transition::Invalid,
            // Might be a half-open connection on the far side (RFC 9293, section 3.5.1).
            SynSent | SynSent2 => Transition::Ignore,
            SynRecv => Transition::To(SynRecv),
            _ => acknowledged(state),
        },
        Segment::Rst => reset(state),
    }
}

/// A FIN, in a state that has seen the handshake.
#[inline(always)]
const fn closing(state: State) -> Transition {
    match state {
        State::SynRecv | State::Established => Transition::To(State::FinWait),
        State::FinWait | State::CloseWait | State::LastAck => Transition::To(State::LastAck),
        other => Transition::To(other),
    }
}

/// An ACK, in a state that has seen the handshake.
#[inline(always)]
const fn acknowledged(state: State) -> Transition {
    match state {
        State::FinWait => Transition::To(State::CloseWait),
        State::LastAck => Transition::To(State::TimeWait),
        other => Transition::To(other),
    }
}

#[inline(always)]
const fn reset(state: State) -> Transition {
    match state {
        State::None => Transition::Invalid,
        _ => Transition::To(State::Close),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const O: Direction = Direction::Original;
    const R: Direction = Direction::Reply;

    fn walk(segments: &[(Direction, Segment)]) -> State {
        let mut state = State::None;
        for &(direction, segment) in segments {
            match transition(state, direction, segment) {
                Transition::To(next) => state = next,
                Transition::Ignore => {}
                other => panic!("{segment:?} {direction:?} in {state:?}: {other:?}"),
            }
        }
        state
    }

    #[test]
    fn a_connection_opens_and_closes() {
        use Segment::{Ack, Fin, Syn, SynAck};
        let open = [(O, Syn), (R, SynAck), (O, Ack)];
        assert_eq!(walk(&open), State::Established);
        let mut all = open.to_vec();
        all.extend([(O, Fin), (R, Ack), (R, Fin), (O, Ack)]);
        assert_eq!(walk(&all), State::TimeWait);
    }

    #[test]
    fn a_simultaneous_open_is_established() {
        use Segment::{Ack, Syn, SynAck};
        assert_eq!(
            walk(&[(O, Syn), (R, Syn), (O, SynAck), (R, SynAck), (O, Ack)]),
            State::Established
        );
    }

    #[test]
    fn the_responder_alone_establishes_nothing() {
        use Segment::{Ack, Syn, SynAck};
        assert_eq!(
            walk(&[(O, Syn), (R, SynAck), (R, Ack), (R, SynAck), (O, Syn)]),
            State::SynRecv
        );
    }

    #[test]
    fn flags_that_no_stack_sends_are_no_segment() {
        for flags in [0, 0x03, 0x06, 0x07, 0x29, 0x3f, 0x01, 0x20] {
            assert_eq!(Segment::of(flags), None, "{flags:#x}");
        }
        assert_eq!(Segment::of(0x02 | 0xc0), Some(Segment::Syn), "ECN set-up");
        assert_eq!(Segment::of(0x18), Some(Segment::Ack));
    }

    #[test]
    fn a_closed_tuple_is_reused_by_a_syn() {
        let by = |state, direction| transition(state, direction, Segment::Syn);
        assert_eq!(by(State::TimeWait, O), Transition::Reopen);
        assert_eq!(by(State::TimeWait, R), Transition::Reopen);
        assert_eq!(by(State::Close, O), Transition::Reopen);
        assert_eq!(by(State::Close, R), Transition::Invalid);
    }
}

//! What a watcher of flows is told.

use bytemuck::{Pod, Zeroable};

use super::{Flow, FlowKey6};
use crate::{pod, tcp::State, wire::proto};

/// Size of the ring `FLOW_EVENTS`: some 14,000 events.
pub const FLOW_EVENTS_BYTES: usize = 2 << 20;

/// What happened to a flow, [`FlowEvent::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowEventKind {
    /// Its first packet was accepted.
    New = 1,
    /// Its protocol state changed, or it proved itself.
    Update = 2,
    /// It ended.
    Destroy = 3,
}

impl FlowEventKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::New, Self::Update, Self::Destroy];

    /// The stable name, as `conntrack -E` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Update => "UPDATE",
            Self::Destroy => "DESTROY",
        }
    }

    /// Its bit in [`Watch::kinds`].
    #[inline(always)]
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl TryFrom<u8> for FlowEventKind {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Self::ALL
            .into_iter()
            .find(|kind| *kind as u8 == value)
            .ok_or(value)
    }
}

/// Why the programs took an entry out of its table, [`FlowEvent::end`]. Numbers
/// and names are stable. (What the LRU displaces it tells nobody.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndReason {
    /// No packet came within its time-out.
    Expired = 1,
    /// A new flow of the same addresses and ports took its place.
    Reused = 2,
    /// It has proved itself: no end, the flow goes on in the proved table. Never
    /// told as an event.
    Promoted = 3,
    /// The operator deleted it.
    Deleted = 4,
    /// Both ends had said good-bye (FIN), and the time-out after that is over.
    Closed = 5,
    /// An end had reset it (RST), and the time-out after that is over; or an RST
    /// was its only reply.
    Reset = 6,
}

impl EndReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Expired,
        Self::Reused,
        Self::Promoted,
        Self::Deleted,
        Self::Closed,
        Self::Reset,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Reused => "reused",
            Self::Promoted => "promoted",
            Self::Deleted => "deleted",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }

    /// What the end of the time-out means for a flow of this protocol in this state.
    #[inline(always)]
    #[must_use]
    pub const fn of_time_out(protocol: u8, state: u8) -> Self {
        const LAST_ACK: u8 = State::LastAck as u8;
        const TIME_WAIT: u8 = State::TimeWait as u8;
        const CLOSE: u8 = State::Close as u8;
        match (protocol, state) {
            (proto::TCP, LAST_ACK | TIME_WAIT) => Self::Closed,
            (proto::TCP, CLOSE) => Self::Reset,
            _ => Self::Expired,
        }
    }
}

impl TryFrom<u8> for EndReason {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Self::ALL
            .into_iter()
            .find(|end| *end as u8 == value)
            .ok_or(value)
    }
}

/// Whether anybody watches: the one element of the `WATCH` map.
///
/// The watcher writes it anew every second. The programs look at it only where a
/// flow begins, changes its state or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Watch {
    /// `CLOCK_MONOTONIC` ns until which events are wanted; 0 when nobody watches.
    pub until_ns: u64,
    /// Which ones, by [`FlowEventKind::bit`].
    pub kinds: u32,
    /// Process id of the watcher.
    pub pid: u32,
}
pod!(Watch, 16);

/// A record of the ring `FLOW_EVENTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowEvent {
    /// `CLOCK_MONOTONIC`, ns.
    pub at_ns: u64,
    /// Flow, IPv4 in mapped form.
    pub key: FlowKey6,
    /// The entry, this packet counted: state (with incarnation), counters, first
    /// and last packet, zones, rule. Of a flow that ended, as it was before.
    pub flow: Flow,
    /// [`FlowEventKind`].
    pub kind: u8,
    /// [`EndReason`] of a destroyed flow, else 0.
    pub end: u8,
    /// 1 if the flow is in the proved tier.
    pub proved: u8,
    /// Keeps the size a multiple of eight.
    pub reserved: [u8; 5],
}
pod!(FlowEvent, 136);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for kind in FlowEventKind::ALL {
            assert_eq!(FlowEventKind::try_from(kind as u8), Ok(kind));
        }
        for end in EndReason::ALL {
            assert_eq!(EndReason::try_from(end as u8), Ok(end));
        }
        assert_eq!(
            (EndReason::try_from(0), FlowEventKind::try_from(4)),
            (Err(0), Err(4))
        );
    }

    #[test]
    fn a_time_out_after_a_good_bye_is_no_expiry() {
        let tcp = |state: State| EndReason::of_time_out(proto::TCP, state as u8);
        assert_eq!(tcp(State::Established), EndReason::Expired);
        assert_eq!(tcp(State::SynSent), EndReason::Expired);
        assert_eq!(tcp(State::TimeWait), EndReason::Closed);
        assert_eq!(tcp(State::LastAck), EndReason::Closed);
        assert_eq!(tcp(State::Close), EndReason::Reset);
        let udp = EndReason::of_time_out(proto::UDP, State::Close as u8);
        assert_eq!(udp, EndReason::Expired, "the number is no TCP state there");
    }
}

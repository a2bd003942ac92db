//! The flow entry.

use bytemuck::{Pod, Zeroable};

use super::{FlowKey6, FlowState, Last, RULE_NONE, flow_flags};
use crate::{
    key::Direction,
    pod,
    time::Tick,
    timeout::{self, Timeouts},
    verdict::DropReason,
    wire::proto,
};

/// What one side of a TCP flow has sent, and what it may send: the names are
/// those of `struct ip_ct_tcp_state` in nf_conntrack, without their `td_`.
///
/// Sequence numbers modulo 2^32. A packet of side X advances `X.end`,
/// `X.maxack`, `X.maxwin` and `Y.maxend`, each by compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpSide {
    /// Highest sequence number sent, plus one (SYN and FIN count as one).
    pub end: u32,
    /// Highest sequence number that the other side's window lets this one send.
    pub maxend: u32,
    /// Highest acknowledgement sent, once [`flow_flags::maxack_set`] says so.
    /// Before, on the originator's side the sequence number after its SYN; on
    /// the replier's the acknowledgement of its last ignored ACK.
    pub maxack: u32,
    /// Widest window advertised, in bytes (scaled); 0 while nothing is known of
    /// this side.
    pub maxwin: u32,
}
pod!(TcpSide, 16);

impl TcpSide {
    /// Nothing is known of the side.
    pub const UNKNOWN: Self = Self {
        end: 0,
        maxend: 0,
        maxack: 0,
        maxwin: 0,
    };
}

/// A tracked flow.
///
/// 80 bytes, so that an element of the IPv4 map takes 48 + 16 + 16 + 80 = 160
/// bytes and one of the IPv6 map 184 (the kernel's `bpf_lru_node` and
/// `htab_elem` headers are the first two terms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// The [`FlowState`] word. Changed by compare-and-swap only.
    pub state: u64,
    /// The [`Last`] word. Changed by compare-and-swap only.
    pub last: u64,
    /// [`Tick`] of the last packet that renewed the flow's life.
    pub seen: u32,
    /// [`Tick`] of the first packet.
    pub created: u32,
    /// Bytes of layer 3 upwards by [`Direction`], added atomically, modulo 2^58. Above
    /// them are, in the first, the [`Flow::rule_bits`], and bit 63 is that of
    /// [`crate::life`].
    pub bytes: [u64; 2],
    /// Packets by [`Direction`], added atomically, modulo 2^32.
    pub packets: [u32; 2],
    /// TCP windows by [`Direction`]: index 0 is the originator's.
    pub tcp: [TcpSide; 2],
}
pod!(Flow, 80);

impl Flow {
    /// The state word.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> FlowState {
        FlowState(self.state)
    }

    /// The word of the last packet, with rule and zones.
    #[inline(always)]
    #[must_use]
    pub const fn last(&self) -> Last {
        Last(self.last)
    }

    /// Zone from which the first packet came.
    #[inline(always)]
    #[must_use]
    pub const fn from_zone(&self) -> u8 {
        self.last().from_zone()
    }

    /// Zone to which the first packet went.
    #[inline(always)]
    #[must_use]
    pub const fn to_zone(&self) -> u8 {
        self.last().to_zone()
    }

    /// Identifier of the rule that admitted the flow ([`super::Rule::id`]), or
    /// [`RULE_NONE`].
    #[inline(always)]
    #[must_use]
    pub const fn rule(&self) -> u16 {
        match self.last().rule() {
            RULE_NONE => RULE_NONE,
            low => low | (((self.bytes[0] & Self::RULE_BITS) >> Self::RULE_SHIFT) << 11) as u16,
        }
    }

    /// What the first of [`Flow::bytes`] says of `rule`: all but the eleven bits that
    /// [`Last`] has room for.
    #[inline(always)]
    #[must_use]
    pub const fn rule_bits(rule: u16) -> u64 {
        ((rule >> 11) as u64) << Self::RULE_SHIFT
    }

    /// Bytes of layer 3 upwards that were sent in `direction`.
    #[must_use]
    pub const fn octets(&self, direction: Direction) -> u64 {
        self.bytes[direction.index() & 1] & ((1 << Self::RULE_SHIFT) - 1)
    }

    /// Those of both directions.
    #[must_use]
    pub const fn all_octets(&self) -> u64 {
        self.octets(Direction::Original) + self.octets(Direction::Reply)
    }

    const RULE_SHIFT: u32 = 58;
    /// The bits that [`Flow::rule_bits`] can set.
    pub const RULE_BITS: u64 = 31 << Self::RULE_SHIFT;

    /// Why enforcing refuses the flow; `None` if it does not.
    #[must_use]
    pub fn would_drop(&self) -> Option<DropReason> {
        if !self.state().has(flow_flags::WOULD_DROP) {
            return None;
        }
        u8::try_from(self.rule()).ok()?.try_into().ok()
    }

    /// After this point the entry counts as absent. `protocol` is that of its key.
    #[must_use]
    pub fn expires(&self, protocol: u8, timeouts: &Timeouts) -> Tick {
        timeout::expires(
            protocol,
            self.state(),
            Tick(self.seen),
            || self.has_unacknowledged(),
            timeouts,
        )
    }

    /// Has either side of a TCP flow sent what the other has not acknowledged?
    #[must_use]
    pub fn has_unacknowledged(&self) -> bool {
        let by = |from: Direction| {
            let (sender, receiver) = (&self.tcp[from.index()], &self.tcp[from.flip().index()]);
            timeout::is_unacknowledged(
                self.state(),
                from,
                sender.maxwin,
                sender.end,
                receiver.maxack,
            )
        };
        by(Direction::Original) || by(Direction::Reply)
    }
}

/// Admission classes of the proved tier, an index into the `TIER_COUNTS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tier {
    /// TCP over IPv4.
    Tcp4 = 0,
    /// Anything else over IPv4.
    Other4 = 1,
    /// TCP over IPv6.
    Tcp6 = 2,
    /// Anything else over IPv6.
    Other6 = 3,
}

impl Tier {
    /// The class of a flow, IPv4 in mapped form.
    #[must_use]
    pub fn of(key: &FlowKey6) -> Self {
        match (key.narrow().is_some(), key.proto()) {
            (true, proto::TCP) => Self::Tcp4,
            (true, _) => Self::Other4,
            (false, proto::TCP) => Self::Tcp6,
            (false, _) => Self::Other6,
        }
    }
}

/// Length of the `TIER_COUNTS` map.
pub const TIER_COUNTS_LEN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::{FlowKey4, RULE_NAMES_LEN, id_of_name, name_of_id},
        key::FlowKey as _,
    };

    #[test]
    fn an_entry_names_every_rule_and_counts_all_the_same() {
        for rule in [0, 1, 2046, 2048, 4096, 32_783, RULE_NONE] {
            let flow = Flow {
                last: Last::new(rule, 1, 2).0,
                bytes: [Flow::rule_bits(rule) | 1234, 5678],
                ..Flow::zeroed()
            };
            assert_eq!(flow.rule(), rule);
            assert_eq!(flow.octets(Direction::Original), 1234);
            assert_eq!(flow.octets(Direction::Reply), 5678);
            let forgotten = Flow {
                last: flow.last().with_rule(RULE_NONE).0,
                ..flow
            };
            assert_eq!(forgotten.rule(), RULE_NONE);
        }
        for slot in 0..RULE_NAMES_LEN as u32 {
            let id = id_of_name(slot);
            assert!(id & RULE_NONE != RULE_NONE && name_of_id(id) == slot);
        }
    }

    #[test]
    fn tiers_follow_family_and_protocol() {
        let v4 = FlowKey4::from_parts(1, 2, 3, 4, proto::TCP, 0).widen();
        let v6 = FlowKey6::from_parts([1; 4], [2; 4], 3, 4, proto::UDP, 0);
        assert_eq!(Tier::of(&v4), Tier::Tcp4);
        assert_eq!(Tier::of(&v6), Tier::Other6);
    }
}

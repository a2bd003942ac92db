//! The flow entry and its keys.

use bytemuck::{Pod, Zeroable};

use crate::{key::Heading, pod, verdict::DropReason, wire::proto};

/// Key of an IPv4 flow, normalised by construction ([`crate::key::FlowKey::of`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey4 {
    lo: u32,
    hi: u32,
    lo_port: u16,
    hi_port: u16,
    proto: u8,
    aux: u8,
    scope: u16,
}
pod!(FlowKey4, 16);

/// Key of an IPv6 flow, and of any flow where both families share a map: IPv4
/// then stands in its mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey6 {
    lo: [u32; 4],
    hi: [u32; 4],
    lo_port: u16,
    hi_port: u16,
    proto: u8,
    aux: u8,
    scope: u16,
}
pod!(FlowKey6, 40);

macro_rules! key_parts {
    ($name:ident, $addr:ty) => {
        impl $name {
            /// Builds a key from its parts, `lo` being the smaller endpoint.
            #[inline(always)]
            #[must_use]
            pub const fn from_parts(
                lo: $addr,
                hi: $addr,
                lo_port: u16,
                hi_port: u16,
                proto: u8,
                aux: u8,
            ) -> Self {
                Self {
                    lo,
                    hi,
                    lo_port,
                    hi_port,
                    proto,
                    aux,
                    scope: 0,
                }
            }

            /// The smaller address, network byte order.
            #[inline(always)]
            #[must_use]
            pub const fn lo(&self) -> $addr {
                self.lo
            }

            /// The larger address, network byte order.
            #[inline(always)]
            #[must_use]
            pub const fn hi(&self) -> $addr {
                self.hi
            }

            /// Port of `lo`, host byte order; the identifier for ICMP echo.
            #[inline(always)]
            #[must_use]
            pub const fn lo_port(&self) -> u16 {
                self.lo_port
            }

            /// Port of `hi`, host byte order; the identifier for ICMP echo.
            #[inline(always)]
            #[must_use]
            pub const fn hi_port(&self) -> u16 {
                self.hi_port
            }

            /// IP protocol number.
            #[inline(always)]
            #[must_use]
            pub const fn proto(&self) -> u8 {
                self.proto
            }

            /// For ICMP echo, which of two opposite pings; else 0.
            #[inline(always)]
            #[must_use]
            pub const fn aux(&self) -> u8 {
                self.aux
            }

            /// `(source address, source port, destination address, destination port)`
            /// of a packet that heads `heading`.
            #[inline(always)]
            #[must_use]
            pub const fn endpoints(&self, heading: Heading) -> ($addr, u16, $addr, u16) {
                match heading {
                    Heading::Up => (self.lo, self.lo_port, self.hi, self.hi_port),
                    Heading::Down => (self.hi, self.hi_port, self.lo, self.lo_port),
                }
            }
        }
    };
}
key_parts!(FlowKey4, u32);
key_parts!(FlowKey6, [u32; 4]);

impl FlowKey6 {
    /// The IPv4 key, if this is an IPv4 flow in its mapped form.
    #[inline(always)]
    #[must_use]
    pub fn narrow(&self) -> Option<FlowKey4> {
        if crate::key::is_v4_mapped(&self.lo) && crate::key::is_v4_mapped(&self.hi) {
            Some(FlowKey4::from_parts(
                self.lo[3],
                self.hi[3],
                self.lo_port,
                self.hi_port,
                self.proto,
                self.aux,
            ))
        } else {
            None
        }
    }
}

/// What one side of a TCP flow has sent, by its [`Heading`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpSide {
    /// Sequence number after the last byte seen in the handshake (SYN counts
    /// as one); the acknowledgement that completes the handshake must name it.
    pub end: u32,
    /// Room for the window (highest end, highest acknowledgement, widest window).
    pub reserved: [u32; 3],
}
pod!(TcpSide, 16);

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
    /// [`crate::time::Tick`] after which the entry counts as absent.
    pub expires: u32,
    /// [`crate::time::Tick`] of the last accepted packet.
    pub seen: u32,
    /// Bytes of layer 3 upwards by [`crate::key::Direction`], added atomically.
    pub bytes: [u64; 2],
    /// Packets by [`crate::key::Direction`], added atomically, modulo 2^32.
    pub packets: [u32; 2],
    /// [`crate::time::Tick`] of the first packet.
    pub created: u32,
    /// Zone from which the first packet came.
    pub from_zone: u8,
    /// Zone to which the first packet went.
    pub to_zone: u8,
    /// Identifier of the rule that admitted the flow ([`crate::abi::Rule::id`]).
    pub rule: u16,
    /// TCP state by direction: index 0 is the originator's.
    pub tcp: [TcpSide; 2],
}
pod!(Flow, 80);

impl Flow {
    /// Why enforcing refuses the flow; `None` if it does not.
    #[must_use]
    pub fn would_drop(&self) -> Option<DropReason> {
        if !FlowState(self.state).has(flow_flags::WOULD_DROP) {
            return None;
        }
        u8::try_from(self.rule).ok()?.try_into().ok()
    }
}

/// Life of an entry, bits 8 to 9 of the state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Counts as a flow.
    Live = 0,
    /// One CPU is moving it from half-open to proved. For a few ticks others let
    /// its packets pass without a step; after that it is a left-over, and a miss.
    Promoting = 1,
    /// Being deleted; a miss.
    Doomed = 2,
}

/// The atomic state word of a flow: `state | phase << 8 | flags << 10 | incarnation << 32`.
///
/// All that must change together is in one word, so that one compare-and-swap
/// decides between CPUs. The incarnation tells an entry from a later one in the
/// same recycled map node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState(pub u64);

/// Flags of a [`FlowState`].
pub mod flow_flags {
    /// The first packet headed [`crate::key::Heading::Down`].
    pub const FIRST_DOWN: u32 = 1 << 0;
    /// A packet of the reply direction was seen.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Proved: TCP by the originator's ACK of the SYN-ACK, others by two-way traffic.
    pub const ASSURED: u32 = 1 << 2;
    /// Payload goes to the FTP helper.
    pub const HELPER_FTP: u32 = 1 << 3;
    /// The helper missed payload (no agent): nothing more is opened by this flow.
    pub const BLIND: u32 = 1 << 4;
    /// Admitted by an expectation.
    pub const RELATED: u32 = 1 << 5;
    /// Known from a dump at attach, not from its first packet.
    pub const SEEDED: u32 = 1 << 6;
    /// Began inside (a trusted zone or the host itself).
    pub const FROM_INSIDE: u32 = 1 << 7;
    /// A FIN of the originator was seen.
    pub const FIN_ORIGINAL: u32 = 1 << 8;
    /// A FIN of the replier was seen.
    pub const FIN_REPLY: u32 = 1 << 9;
    /// Let in by shadow mode only: the rule field holds the
    /// [`crate::verdict::DropReason`] for which enforcing refuses it.
    pub const WOULD_DROP: u32 = 1 << 10;
}

impl FlowState {
    const PHASE_SHIFT: u32 = 8;
    const FLAGS_SHIFT: u32 = 10;
    const FLAGS_MASK: u64 = 0x003f_ffff;
    const INCARNATION_SHIFT: u32 = 32;

    /// A live state word.
    #[inline(always)]
    #[must_use]
    pub const fn new(state: u8, flags: u32, incarnation: u32) -> Self {
        Self(
            state as u64
                | ((flags as u64 & Self::FLAGS_MASK) << Self::FLAGS_SHIFT)
                | ((incarnation as u64) << Self::INCARNATION_SHIFT),
        )
    }

    /// Protocol state: [`crate::tcp::State`] for TCP, [`crate::tcp::generic`] values else.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> u8 {
        self.0 as u8
    }

    /// The same word with another protocol state.
    #[inline(always)]
    #[must_use]
    pub const fn with_state(self, state: u8) -> Self {
        Self((self.0 & !0xff) | state as u64)
    }

    /// The life phase.
    #[inline(always)]
    #[must_use]
    pub const fn phase(self) -> Phase {
        match (self.0 >> Self::PHASE_SHIFT) & 3 {
            0 => Phase::Live,
            1 => Phase::Promoting,
            _ => Phase::Doomed,
        }
    }

    /// The same word in another phase.
    #[inline(always)]
    #[must_use]
    pub const fn with_phase(self, phase: Phase) -> Self {
        Self((self.0 & !(3 << Self::PHASE_SHIFT)) | ((phase as u64) << Self::PHASE_SHIFT))
    }

    /// All [`flow_flags`].
    #[inline(always)]
    #[must_use]
    pub const fn flags(self) -> u32 {
        ((self.0 >> Self::FLAGS_SHIFT) & Self::FLAGS_MASK) as u32
    }

    /// Is any of `flags` set?
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flags: u32) -> bool {
        self.flags() & flags != 0
    }

    /// The same word with `flags` set.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, flags: u32) -> Self {
        Self(self.0 | ((flags as u64 & Self::FLAGS_MASK) << Self::FLAGS_SHIFT))
    }

    /// The same word with `flags` cleared.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, flags: u32) -> Self {
        Self(self.0 & !((flags as u64 & Self::FLAGS_MASK) << Self::FLAGS_SHIFT))
    }

    /// The incarnation tag.
    #[inline(always)]
    #[must_use]
    pub const fn incarnation(self) -> u32 {
        (self.0 >> Self::INCARNATION_SHIFT) as u32
    }

    /// How the flow's first packet headed.
    #[inline(always)]
    #[must_use]
    pub const fn first_heading(self) -> Heading {
        if self.has(flow_flags::FIRST_DOWN) {
            Heading::Down
        } else {
            Heading::Up
        }
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
    use crate::key::FlowKey as _;

    #[test]
    fn the_state_word_keeps_its_parts_apart() {
        let w = FlowState::new(3, flow_flags::ASSURED | flow_flags::FIRST_DOWN, 0xdead_beef);
        assert_eq!(w.state(), 3);
        assert_eq!(w.phase(), Phase::Live);
        assert_eq!(w.flags(), flow_flags::ASSURED | flow_flags::FIRST_DOWN);
        assert_eq!(w.incarnation(), 0xdead_beef);
        assert_eq!(w.first_heading(), Heading::Down);
        let doomed = w.with_phase(Phase::Doomed).with_state(9);
        assert_eq!(doomed.phase(), Phase::Doomed);
        assert_eq!(doomed.state(), 9);
        assert_eq!(doomed.flags(), w.flags());
        assert_eq!(doomed.incarnation(), w.incarnation());
    }

    #[test]
    fn tiers_follow_family_and_protocol() {
        let v4 = FlowKey4::from_parts(1, 2, 3, 4, proto::TCP, 0).widen();
        let v6 = FlowKey6::from_parts([1; 4], [2; 4], 3, 4, proto::UDP, 0);
        assert_eq!(Tier::of(&v4), Tier::Tcp4);
        assert_eq!(Tier::of(&v6), Tier::Other6);
    }
}

//! The two atomic words of a flow entry.

use super::{RULE_NONE, ZONE_HOST};
use crate::key::{Direction, Heading};

/// Life of an entry, bits 4 to 5 of the state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Counts as a flow.
    Live = 0,
    /// One CPU is moving it from half-open to proved. For a few ticks it counts as
    /// present, and segments of it are dropped; after that it is a left-over, and a miss.
    Promoting = 1,
    /// Being deleted; a miss.
    Doomed = 2,
}

/// The atomic state word of a flow:
/// `state | phase << 4 | flags << 6 | incarnation << 32`.
///
/// All that must change together is in one word, so that one compare-and-swap
/// decides between CPUs. The incarnation tells an entry from a later one in the
/// same recycled map node ([`incarnation`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState(pub u64);

/// Flags of a [`FlowState`]: 26 bits.
pub mod flow_flags {
    use crate::key::Direction;

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
    /// A FIN of the originator was accepted.
    pub const FIN_ORIGINAL: u32 = 1 << 8;
    /// A FIN of the replier was accepted.
    pub const FIN_REPLY: u32 = 1 << 9;
    /// Shadow mode: the flow would have been dropped, and the rule in its
    /// [`super::Last`] word is the number of the [`crate::verdict::DropReason`].
    pub const WOULD_DROP: u32 = 1 << 10;
    /// Packets out of window are accepted all the same.
    pub const LIBERAL: u32 = 1 << 11;
    /// Both sides sent a SYN (RFC 9293, section 3.5).
    pub const SIMULTANEOUS: u32 = 1 << 12;
    /// The originator allowed selective acknowledgements (RFC 2018).
    pub const SACK_ORIGINAL: u32 = 1 << 13;
    /// The replier did.
    pub const SACK_REPLY: u32 = 1 << 14;
    /// The originator has acknowledged something.
    pub const MAXACK_ORIGINAL: u32 = 1 << 15;
    /// The replier has.
    pub const MAXACK_REPLY: u32 = 1 << 16;
    /// A FIN or an RST out of window has come from each side, or an RST in window
    /// that is not exact (RFC 5961, section 3.2): the flow has
    /// [`crate::abi::timeout::TCP_UNACKNOWLEDGED`] left unless a packet in window comes.
    pub const CUT_SHORT: u32 = 1 << 25;
    /// First of four bits: the originator's window scale, or [`NO_SCALE`].
    pub const SCALE_ORIGINAL_SHIFT: u32 = 17;
    /// First of four bits: the replier's.
    pub const SCALE_REPLY_SHIFT: u32 = 21;
    /// A window scale of a side that did not offer one. (The highest is 14: RFC
    /// 7323, section 2.3.)
    pub const NO_SCALE: u8 = 15;
    /// Both scales.
    pub const SCALES: u32 = 0xff << SCALE_ORIGINAL_SHIFT;

    /// Did the side that sends in `direction` allow selective acknowledgements?
    #[inline(always)]
    #[must_use]
    pub const fn sack(direction: Direction) -> u32 {
        SACK_ORIGINAL << direction as u32
    }

    /// Has the side that sends in `direction` acknowledged something?
    #[inline(always)]
    #[must_use]
    pub const fn maxack_set(direction: Direction) -> u32 {
        MAXACK_ORIGINAL << direction as u32
    }

    /// The FIN of the side that sends in `direction`.
    #[inline(always)]
    #[must_use]
    pub const fn fin(direction: Direction) -> u32 {
        FIN_ORIGINAL << direction as u32
    }

    /// Where the scale of the side that sends in `direction` begins.
    #[inline(always)]
    #[must_use]
    pub const fn scale_shift(direction: Direction) -> u32 {
        SCALE_ORIGINAL_SHIFT + 4 * direction as u32
    }

    /// Both scales as flags.
    #[inline(always)]
    #[must_use]
    pub const fn scales(original: u8, reply: u8) -> u32 {
        (original as u32 & 15) << SCALE_ORIGINAL_SHIFT | (reply as u32 & 15) << SCALE_REPLY_SHIFT
    }
}

impl FlowState {
    const STATE_MASK: u64 = 0xf;
    const PHASE_SHIFT: u32 = 4;
    const FLAGS_SHIFT: u32 = 6;
    const FLAGS_MASK: u64 = 0x03ff_ffff;
    const INCARNATION_SHIFT: u32 = 32;

    /// A live state word.
    #[inline(always)]
    #[must_use]
    pub const fn new(state: u8, flags: u32, incarnation: u32) -> Self {
        Self(
            (state as u64 & Self::STATE_MASK)
                | ((flags as u64 & Self::FLAGS_MASK) << Self::FLAGS_SHIFT)
                | ((incarnation as u64) << Self::INCARNATION_SHIFT),
        )
    }

    /// Protocol state: [`crate::tcp::State`] for TCP, [`crate::tcp::generic`] values else.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> u8 {
        (self.0 & Self::STATE_MASK) as u8
    }

    /// The same word with another protocol state.
    #[inline(always)]
    #[must_use]
    pub const fn with_state(self, state: u8) -> Self {
        Self((self.0 & !Self::STATE_MASK) | (state as u64 & Self::STATE_MASK))
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

    /// Is it a live word in the protocol state `state`?
    #[inline(always)]
    #[must_use]
    pub const fn is_live_in(self, state: u8) -> bool {
        // Both stand side by side: one comparison.
        const BOTH: u64 = FlowState::STATE_MASK | 3 << FlowState::PHASE_SHIFT;
        self.0 & BOTH == Self::new(state, 0, 0).0
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

    /// Window scale of the side that sends in `direction`, 0 to 14, or
    /// [`flow_flags::NO_SCALE`].
    #[inline(always)]
    #[must_use]
    pub const fn scale(self, direction: Direction) -> u8 {
        ((self.flags() >> flow_flags::scale_shift(direction)) & 15) as u8
    }

    /// The same word with both window scales set anew.
    #[inline(always)]
    #[must_use]
    pub const fn with_scales(self, original: u8, reply: u8) -> Self {
        self.without(flow_flags::SCALES)
            .with(flow_flags::scales(original, reply))
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

/// An incarnation tag: twelve bits of its key's [`crate::key::FlowKey::digest`],
/// then twenty of `random`.
///
/// A map node that was recycled for another key between the look-up and the
/// first load of its state word shows by the first part, a new flow of the same
/// key by the second.
#[inline(always)]
#[must_use]
pub const fn incarnation(digest: u32, random: u32) -> u32 {
    (digest & !INCARNATION_RANDOM) | (random & INCARNATION_RANDOM)
}

/// Can an entry of `incarnation` be that of a key with `digest`?
#[inline(always)]
#[must_use]
pub const fn is_incarnation_of(incarnation: u32, digest: u32) -> bool {
    (incarnation ^ digest) & !INCARNATION_RANDOM == 0
}

const INCARNATION_RANDOM: u32 = 0x000f_ffff;

/// What the last packet of a TCP flow was, with what is constant in a flow: `end
/// | rule << 32 | from_zone << 43 | to_zone << 49 | kind << 55 | reply << 58 |
/// scale << 59 | sack << 63`.
///
/// The kernel keeps `last_index`, `last_dir` and `last_end` for the same purpose:
/// to recognise the answers to a packet that it let through without being sure
/// of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last(pub u64);

/// Kind of the last packet, bits 55 to 57 of [`Last`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LastKind {
    /// SYN.
    Syn = 0,
    /// SYN-ACK.
    SynAck = 1,
    /// FIN.
    Fin = 2,
    /// ACK.
    Ack = 3,
    /// RST.
    Rst = 4,
    /// None yet.
    None = 5,
    /// A SYN that was let through in LAST_ACK: the next ACK of the other side
    /// may be a challenge (RFC 5961, section 4) and not for the FIN.
    SynInLastAck = 6,
}

impl Last {
    const RULE_SHIFT: u32 = 32;
    const FROM_SHIFT: u32 = 43;
    const TO_SHIFT: u32 = 49;
    const KIND_SHIFT: u32 = 55;
    const REPLY_SHIFT: u32 = 58;
    const SCALE_SHIFT: u32 = 59;
    const SACK_SHIFT: u32 = 63;
    const RULE_MASK: u64 = 0x7ff;
    const ZONE_MASK: u64 = 0x3f;
    /// Rule and zones: what is the same for all of a flow's life.
    const CONSTANT: u64 = (Self::RULE_MASK << Self::RULE_SHIFT)
        | (Self::ZONE_MASK << Self::FROM_SHIFT)
        | (Self::ZONE_MASK << Self::TO_SHIFT);

    /// Of a flow that `rule` ([`super::Rule::id`] or [`RULE_NONE`]) admits, from
    /// one zone to another, before its first packet.
    #[inline(always)]
    #[must_use]
    pub const fn new(rule: u16, from_zone: u8, to_zone: u8) -> Self {
        Self(
            ((rule as u64 & Self::RULE_MASK) << Self::RULE_SHIFT)
                | ((from_zone as u64 & Self::ZONE_MASK) << Self::FROM_SHIFT)
                | ((to_zone as u64 & Self::ZONE_MASK) << Self::TO_SHIFT),
        )
        .with_packet(LastKind::None, Direction::Original, 0)
    }

    /// After a packet of `kind` in `direction` that ended before the sequence
    /// number `end`. No options are kept of it.
    #[inline(always)]
    #[must_use]
    pub const fn with_packet(self, kind: LastKind, direction: Direction, end: u32) -> Self {
        Self(
            (self.0 & Self::CONSTANT)
                | end as u64
                | ((kind as u64) << Self::KIND_SHIFT)
                | ((direction as u64) << Self::REPLY_SHIFT),
        )
    }

    /// The same packet, of a flow that another rule admits.
    #[inline(always)]
    #[must_use]
    pub const fn with_rule(self, rule: u16) -> Self {
        let clear = self.0 & !(Self::RULE_MASK << Self::RULE_SHIFT);
        Self(clear | ((rule as u64 & Self::RULE_MASK) << Self::RULE_SHIFT))
    }

    /// With the options of a SYN: its window scale, or [`flow_flags::NO_SCALE`],
    /// and whether it allows selective acknowledgements.
    #[inline(always)]
    #[must_use]
    pub const fn with_options(self, scale: u8, sack: bool) -> Self {
        let clear = self.0 & !((15 << Self::SCALE_SHIFT) | (1 << Self::SACK_SHIFT));
        Self(
            clear
                | ((scale as u64 & 15) << Self::SCALE_SHIFT)
                | ((sack as u64) << Self::SACK_SHIFT),
        )
    }

    /// The same packet, a FIN or an RST, having been out of window.
    #[inline(always)]
    #[must_use]
    pub const fn astray(self) -> Self {
        self.with_options(0, true)
    }

    /// Was it a FIN or an RST out of window?
    #[inline(always)]
    #[must_use]
    pub const fn is_stray(self) -> bool {
        matches!(self.kind(), LastKind::Fin | LastKind::Rst) && self.sack()
    }

    /// The same packet as one of another kind.
    #[inline(always)]
    #[must_use]
    pub const fn with_kind(self, kind: LastKind) -> Self {
        Self((self.0 & !(7 << Self::KIND_SHIFT)) | ((kind as u64) << Self::KIND_SHIFT))
    }

    /// Sequence number after the packet.
    #[inline(always)]
    #[must_use]
    pub const fn end(self) -> u32 {
        self.0 as u32
    }

    /// The lower eleven bits of the identifier of the rule that admitted the flow, or
    /// [`RULE_NONE`]; the others are in [`super::Flow::rule_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn rule(self) -> u16 {
        ((self.0 >> Self::RULE_SHIFT) & Self::RULE_MASK) as u16
    }

    /// Zone from which the first packet came.
    #[inline(always)]
    #[must_use]
    pub const fn from_zone(self) -> u8 {
        ((self.0 >> Self::FROM_SHIFT) & Self::ZONE_MASK) as u8
    }

    /// Zone to which the first packet went.
    #[inline(always)]
    #[must_use]
    pub const fn to_zone(self) -> u8 {
        ((self.0 >> Self::TO_SHIFT) & Self::ZONE_MASK) as u8
    }

    /// Kind of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> LastKind {
        match (self.0 >> Self::KIND_SHIFT) & 7 {
            0 => LastKind::Syn,
            1 => LastKind::SynAck,
            2 => LastKind::Fin,
            3 => LastKind::Ack,
            4 => LastKind::Rst,
            6 => LastKind::SynInLastAck,
            _ => LastKind::None,
        }
    }

    /// Direction of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn direction(self) -> Direction {
        if self.0 >> Self::REPLY_SHIFT & 1 == 0 {
            Direction::Original
        } else {
            Direction::Reply
        }
    }

    /// Window scale that an ignored SYN offered, or [`flow_flags::NO_SCALE`].
    #[inline(always)]
    #[must_use]
    pub const fn scale(self) -> u8 {
        ((self.0 >> Self::SCALE_SHIFT) & 15) as u8
    }

    /// Did an ignored SYN allow selective acknowledgements?
    #[inline(always)]
    #[must_use]
    pub const fn sack(self) -> bool {
        self.0 >> Self::SACK_SHIFT != 0
    }
}

const _: () = {
    assert!(RULE_NONE as u64 == Last::RULE_MASK && Last::RULE_MASK == (1 << 11) - 1);
    assert!(super::MAX_ZONES as u64 <= Last::ZONE_MASK && ZONE_HOST == 0);
};

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(w.is_live_in(3) && !w.is_live_in(9) && !doomed.is_live_in(9));
        assert_eq!(doomed.flags(), w.flags());
        assert_eq!(doomed.incarnation(), w.incarnation());
        let scaled = doomed.with_scales(7, 14);
        assert_eq!(scaled.scale(Direction::Original), 7);
        assert_eq!(scaled.scale(Direction::Reply), 14);
        assert_eq!(scaled.without(flow_flags::SCALES), doomed);
    }

    #[test]
    fn the_last_word_keeps_its_parts_apart() {
        let first = Last::new(1023, 32, 5);
        assert_eq!(
            (first.rule(), first.from_zone(), first.to_zone()),
            (1023, 32, 5)
        );
        assert_eq!(first.kind(), LastKind::None);
        let syn = first
            .with_packet(LastKind::Syn, Direction::Reply, u32::MAX)
            .with_options(14, true);
        assert_eq!(syn.kind(), LastKind::Syn);
        assert_eq!(syn.direction(), Direction::Reply);
        assert_eq!((syn.end(), syn.scale(), syn.sack()), (u32::MAX, 14, true));
        assert_eq!((syn.rule(), syn.from_zone(), syn.to_zone()), (1023, 32, 5));
        assert_eq!(syn.with_rule(7).rule(), 7);
        assert_eq!(syn.with_rule(7).with_rule(1023), syn);
        let rst = syn.with_packet(LastKind::Rst, Direction::Original, 77);
        assert_eq!((rst.end(), rst.scale(), rst.sack()), (77, 0, false));
        assert!(!rst.is_stray() && rst.astray().is_stray() && !syn.is_stray());
        assert_eq!(Last::new(RULE_NONE, 0, 0).rule(), RULE_NONE);
    }

    #[test]
    fn an_incarnation_tells_keys_and_lives_apart() {
        let first = incarnation(0x1230_0000, 7);
        assert!(is_incarnation_of(first, 0x123f_ffff));
        assert!(!is_incarnation_of(first, 0x1240_0000));
        assert_ne!(first, incarnation(0x1230_0000, 8));
    }
}

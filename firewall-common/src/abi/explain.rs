//! What the programs note of a packet for `pinhole why`.

use bytemuck::{Pod, Zeroable};

use crate::pod;

/// Name of the constant in the object that turns the notes on: one byte, 0 or 1.
///
/// In what is attached it is 0. The verifier knows it then, and takes the notes
/// out of the programs.
pub const EXPLAIN_SWITCH: &str = "PINHOLE_EXPLAIN";

/// [`Explain::rule`] when no rule was matched.
pub const NO_SLOT: u32 = u32::MAX;

/// How one packet was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Explain {
    /// [`crate::verdict::Verdict::index`].
    pub outcome: u32,
    /// Slot of the rule that matched, its generation times [`super::MAX_RULES`] plus its
    /// index in the map of that in `RULES`; or [`NO_SLOT`].
    pub rule: u32,
    /// Zone that the packet came from.
    pub from_zone: u8,
    /// Zone that a new flow would go to, or [`super::ZONE_ANY`] where none was
    /// asked for.
    pub to_zone: u8,
    /// Keeps the size a multiple of four.
    pub reserved: u16,
    /// The number of a TCP segment that did not fit its flow ...
    pub value: u32,
    /// ... and the bound that it exceeds or falls short of ([`crate::tcp::Stepped`]);
    /// both 0 where none was compared.
    pub bound: u32,
}
pod!(Explain, 20);

impl Explain {
    /// Nothing judged yet.
    pub const NONE: Self = Self {
        outcome: 0,
        rule: NO_SLOT,
        from_zone: super::ZONE_ANY,
        to_zone: super::ZONE_ANY,
        reserved: 0,
        value: 0,
        bound: 0,
    };
}

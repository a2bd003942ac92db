//! How the rules of a policy are laid out to be searched: the `CLASSES` map.
//!
//! A packet has a *row* in each of [`DIMENSIONS`]: the set of rules that its zones, its
//! protocol, its source, its destination or one of its ports allow. The first rule in all
//! six rows is the one that decides. A row is a bit for each rule, in *chunks* of
//! [`CHUNK_RULES`]; equal chunks are stored once, empty ones not at all, and one *summary*
//! word tells which of them are not empty. So the search costs the same whether there are
//! a hundred rules or ten thousand, and the map grows with the rules, not with their square.
//!
//! Everything is in blocks of 64 bytes. A block is eight words of 64 bits; where it
//! holds smaller numbers, the lower half of a word comes first. In this order:
//!
//! - block 0, the [`head`];
//! - blocks 1 to 6, a [`search`] each, by [`searches`];
//! - the rest, to which those point.
//!
//! A row takes two words: the summary, and the number of the first of its references,
//! counted in halves of words from the beginning of the map. A reference is the block
//! that holds a chunk; a row has one for each bit of its summary, the lowest first.

/// An element of the map.
pub type Block = [u64; 8];

/// Rows that a packet has.
pub const DIMENSIONS: usize = 6;
/// Rules in a chunk.
pub const CHUNK_RULES: usize = 512;
/// Rows in a block.
pub const ROWS_PER_BLOCK: u32 = 4;

/// Index of a row among those of a packet.
pub mod dimension {
    /// From one zone to another.
    pub const PLACE: usize = 0;
    /// Family and protocol.
    pub const PROTOCOL: usize = 1;
    /// Source address.
    pub const SOURCE: usize = 2;
    /// Destination address.
    pub const DESTINATION: usize = 3;
    /// Source port.
    pub const SPORT: usize = 4;
    /// Destination port.
    pub const DPORT: usize = 5;
}

/// Words of block 0.
pub mod head {
    /// Rules; in the upper half, chunks that they make.
    pub const RULES: usize = 0;
    /// Zones that rules tell apart, with one more for all others: the row of a packet from
    /// zone `a` to `b` is `a * zones + b`. In the upper half, the block of the first row.
    pub const PLACES: usize = 1;
    /// The block of the first of 512 rows: by protocol number, those of IPv6 last. In the
    /// upper half, the block of the first [`super::outcome`].
    pub const PROTOCOLS: usize = 2;
}

/// Block of a search for the interval that a number lies in.
pub mod searches {
    /// IPv4 source address, host byte order.
    pub const SOURCE4: u32 = 1;
    /// IPv4 destination address.
    pub const DESTINATION4: u32 = 2;
    /// IPv6 source address.
    pub const SOURCE6: u32 = 3;
    /// IPv6 destination address.
    pub const DESTINATION6: u32 = 4;
    /// Source port.
    pub const SPORT: u32 = 5;
    /// Destination port.
    pub const DPORT: u32 = 6;
    /// Blocks before the first that searches point to.
    pub const END: u32 = 7;
}

/// Words of a search.
///
/// The numbers at which intervals begin, apart from 0, are the leaves of a tree. A node
/// is a block of keys in ascending order, filled up with the highest number; its
/// child `i` is the node `k * (keys + 1) + i` of the next level, if it is the node `k` of
/// its own. Child 0 is for what is below the first key.
pub mod search {
    /// Levels of the tree; in the upper half, how many intervals begin above 0.
    pub const SHAPE: usize = 0;
    /// The block of the first row: one for each interval, and one for what is below all.
    pub const ROWS: usize = 1;
    /// Blocks at which levels begin, two in a word, the root's first.
    pub const LEVELS: usize = 2;
    /// Levels at most of a tree of 32-bit keys, 16 in a node: with a leaf for each
    /// of `17^3` children, room for more than `2 * MAX_RULES`.
    pub const MAX_LEVELS4: u32 = 4;
    /// Levels at most of a tree of 128-bit keys, 4 in a node, likewise.
    pub const MAX_LEVELS6: u32 = 8;
}

/// What a rule decides, a word each, by its index.
pub mod outcome {
    /// Shift of [`super::super::Rule::id`], 16 bits.
    pub const ID: u32 = 0;
    /// Shift of [`super::super::Rule::flags`], 16 bits.
    pub const FLAGS: u32 = 16;
    /// Shift of [`super::super::Rule::action`], 8 bits.
    pub const ACTION: u32 = 32;
}

const _: () = {
    // A bit of the summary for each chunk.
    assert!(super::MAX_RULES == 64 * CHUNK_RULES && CHUNK_RULES == 8 * size_of::<Block>());
    assert!(16 * 17_usize.pow(search::MAX_LEVELS4 - 1) > 2 * super::MAX_RULES);
    assert!(4 * 5_usize.pow(search::MAX_LEVELS6 - 1) > 2 * super::MAX_RULES);
    assert!(search::LEVELS + search::MAX_LEVELS6 as usize / 2 <= 8);
};

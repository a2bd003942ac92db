//! The first rule that matches, out of thousands: a walk through [`crate::abi::classes`].

use crate::{
    abi::classes::{
        Block, CHUNK_RULES, DIMENSIONS, ROWS_PER_BLOCK, dimension, head, search, searches,
    },
    wire::{Family, Headers},
};

/// Where the blocks of a policy are.
pub trait Blocks {
    /// The block with this number.
    fn block(&self, at: u32) -> Option<&Block>;

    /// The same number, of which neither the compiler nor the kernel's verifier knows
    /// anything any more: arithmetic stays arithmetic, and no way through it is followed
    /// twice.
    #[inline(always)]
    fn hide(&self, number: u64) -> u64 {
        number
    }

    /// The same number. The compiler fetches nothing before it that comes after: there
    /// are few registers, and little stack.
    #[inline(always)]
    fn pace(&self, number: u64) -> u64 {
        number
    }
}

impl Blocks for [Block] {
    #[inline(always)]
    fn block(&self, at: u32) -> Option<&Block> {
        self.get(at as usize)
    }
}

/// The rules that the parts of a packet allow, each on its own.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Chunks that are not empty, by [`dimension`].
    summaries: [u64; DIMENSIONS],
    /// Their first references.
    references: [u64; DIMENSIONS],
    /// Chunks that none of them lacks, and that were not looked at yet.
    left: u64,
}

/// A row as it stands in its block: summary, first reference.
pub type Row = [u64; 2];

/// No bit of a chunk.
const NONE: u32 = u32::MAX;

/// What a look at one chunk gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// This rule matches, and none before it.
    Found(u32),
    /// None of the chunk.
    Not,
    /// There are no more chunks; or blocks are missing, and no later rule may win over
    /// what they say.
    Over,
}

impl Rows {
    /// Before any is known.
    pub const NONE: Self = Self {
        summaries: [0; DIMENSIONS],
        references: [0; DIMENSIONS],
        left: u64::MAX,
    };

    /// Notes the row of a [`dimension`].
    #[inline(always)]
    pub const fn put(&mut self, dimension: usize, row: Row) {
        self.summaries[dimension] = row[0];
        self.references[dimension] = row[1];
        self.left &= row[0];
    }

    /// Looks at the first chunk that is left.
    #[inline(always)]
    pub fn look<B: Blocks + ?Sized>(&mut self, blocks: &B) -> Look {
        if self.left == 0 {
            return Look::Over;
        }
        let below = (self.left & self.left.wrapping_neg()).wrapping_sub(1);
        self.left &= self.left - 1;
        match self.first(blocks, below) {
            Some(NONE) => Look::Not,
            Some(bit) => Look::Found(below.count_ones() * CHUNK_RULES as u32 + bit),
            None => Look::Over,
        }
    }

    /// The lowest bit that the chunk has in all rows, or [`NONE`]; `below` are the bits of
    /// the chunks before it. `None` if a block is missing.
    #[inline(always)]
    fn first<B: Blocks + ?Sized>(&self, blocks: &B, below: u64) -> Option<u32> {
        let a = self.chunk(blocks, 0, below)?;
        let b = self.chunk(blocks, 1, below)?;
        let c = self.chunk(blocks, 2, below)?;
        let d = self.chunk(blocks, 3, below)?;
        let e = self.chunk(blocks, 4, below)?;
        let f = self.chunk(blocks, 5, below)?;
        let mut at = 0;
        while at < a.len() {
            let word = a[at] & b[at] & c[at] & d[at] & e[at] & f[at];
            if word != 0 {
                return Some(at as u32 * u64::BITS + word.trailing_zeros());
            }
            at += 1;
        }
        Some(NONE)
    }

    #[inline(always)]
    fn chunk<'a, B: Blocks + ?Sized>(
        &self,
        blocks: &'a B,
        dimension: usize,
        below: u64,
    ) -> Option<&'a Block> {
        let before = (self.summaries[dimension] & below).count_ones();
        let reference = self.references[dimension] as u32 + before;
        let block = blocks.block(reference / 16)?;
        let word = block[(reference / 2 % 8) as usize];
        blocks.block((word >> (reference % 2 * 32)) as u32)
    }
}

/// What the rule with this index decides, by the shifts of [`crate::abi::classes::outcome`].
#[inline(always)]
pub fn outcome<B: Blocks + ?Sized>(blocks: &B, rule: u32) -> Option<u64> {
    let start = blocks.block(0)?;
    let block = blocks.block((start[head::PROTOCOLS] >> 32) as u32 + rule / 8)?;
    Some(block[(rule % 8) as usize])
}

/// The first of all rules that matches a packet which goes `from` one zone `to`
/// another: its index.
pub fn first<B: Blocks + ?Sized>(blocks: &B, h: &Headers, from: u8, to: u8) -> Option<u32> {
    let mut rows = Rows::NONE;
    rows.put(dimension::PLACE, place(blocks, from, to)?);
    rows.put(dimension::PROTOCOL, protocol(blocks, h)?);
    rows.put(dimension::SOURCE, address(blocks, h, false)?);
    rows.put(dimension::DESTINATION, address(blocks, h, true)?);
    rows.put(dimension::SPORT, port(blocks, searches::SPORT, h.sport)?);
    rows.put(dimension::DPORT, port(blocks, searches::DPORT, h.dport)?);
    loop {
        match rows.look(blocks) {
            Look::Found(rule) => return Some(rule),
            Look::Not => {}
            Look::Over => return None,
        }
    }
}

/// The row of what goes `from` one zone `to` another. `None` if there are no blocks, as
/// in what follows.
#[inline(always)]
pub fn place<B: Blocks + ?Sized>(blocks: &B, from: u8, to: u8) -> Option<Row> {
    let word = blocks.block(0)?[head::PLACES];
    let zones = word & LOW;
    let at = zone(blocks, zones, from) * zones + zone(blocks, zones, to);
    row(blocks, word >> 32, at)
}

/// The row of a packet's family and protocol.
#[inline(always)]
pub fn protocol<B: Blocks + ?Sized>(blocks: &B, h: &Headers) -> Option<Row> {
    let first = blocks.block(0)?[head::PROTOCOLS] & LOW;
    row(blocks, first, (h.family as u64 & 1) << 8 | h.proto as u64)
}

const LOW: u64 = u32::MAX as u64;

/// Which of so many zones a packet's is; the last stands for all that no rule names.
#[inline(always)]
fn zone<B: Blocks + ?Sized>(blocks: &B, zones: u64, zone: u8) -> u64 {
    let others = zones.wrapping_sub(1);
    blocks.hide(if zone as u64 > others {
        others
    } else {
        zone as u64
    })
}

#[inline(always)]
fn row<B: Blocks + ?Sized>(blocks: &B, first: u64, at: u64) -> Option<Row> {
    let at = blocks.hide(at) as u32;
    let block = blocks.block(first as u32 + at / ROWS_PER_BLOCK)?;
    let word = (at % ROWS_PER_BLOCK * 2) as usize;
    Some([block[word], block[word + 1]])
}

/// The row of a packet's source, or of its destination.
#[inline(always)]
pub fn address<B: Blocks + ?Sized>(blocks: &B, h: &Headers, destination: bool) -> Option<Row> {
    if h.family as u8 == Family::V4 as u8 {
        address4(blocks, h, destination)
    } else {
        address6(blocks, h, destination)
    }
}

/// [`address`] of IPv4.
#[inline(always)]
pub fn address4<B: Blocks + ?Sized>(blocks: &B, h: &Headers, destination: bool) -> Option<Row> {
    let words = if destination { &h.dst } else { &h.src };
    let search = blocks.block(searches::SOURCE4 + destination as u32)?;
    let number = blocks.hide(u32::from_be(words[3]) as u64);
    let at = interval(blocks, search, TREE4, |keys| rank4(blocks, keys, number));
    row(blocks, search[search::ROWS], at)
}

/// [`address`] of IPv6.
#[inline(always)]
pub fn address6<B: Blocks + ?Sized>(blocks: &B, h: &Headers, destination: bool) -> Option<Row> {
    let words = if destination { &h.dst } else { &h.src };
    let search = blocks.block(searches::SOURCE6 + destination as u32)?;
    let digit = |at: usize| blocks.hide(u32::from_be(words[at]) as u64);
    let number = [digit(0), digit(1), digit(2), digit(3)];
    let at = interval(blocks, search, TREE6, |keys| rank6(blocks, keys, number));
    row(blocks, search[search::ROWS], at)
}

/// The row of a port, by the block of its search.
#[inline(always)]
pub fn port<B: Blocks + ?Sized>(blocks: &B, at: u32, port: u16) -> Option<Row> {
    let search = blocks.block(at)?;
    let number = blocks.hide(port as u64);
    let at = interval(blocks, search, TREE4, |keys| rank4(blocks, keys, number));
    row(blocks, search[search::ROWS], at)
}

/// Levels that a search has at most, and children of a node: of numbers of one digit.
const TREE4: (u32, u64) = (search::MAX_LEVELS4, 17);
/// The same of numbers of four digits.
const TREE6: (u32, u64) = (search::MAX_LEVELS6, 5);

/// Block at which a level of a search begins.
#[inline(always)]
const fn level(search: &Block, level: u32) -> u32 {
    let word = search[search::LEVELS + level as usize / 2];
    (word >> (level % 2 * 32)) as u32
}

/// How many intervals begin above 0 and not above a number, of which `rank` says how many
/// keys of a node are not above it. A node has `fanout` children, one more than keys.
#[inline(always)]
fn interval<B: Blocks + ?Sized>(
    blocks: &B,
    search: &Block,
    (max_levels, fanout): (u32, u64),
    rank: impl Fn(&Block) -> u64,
) -> u64 {
    let (levels, count) = (search[search::SHAPE] as u32, search[search::SHAPE] >> 32);
    let (mut node, mut leaf, mut at) = (0_u64, 0, 0);
    while at < max_levels && at < levels {
        // Behind the last node, the number is the highest that there is.
        let Some(keys) = blocks.block(level(search, at) + node as u32) else {
            return count;
        };
        leaf = node;
        node = blocks.hide(node * fanout + rank(keys));
        at += 1;
    }
    lower(node - leaf, count)
}

#[inline(always)]
const fn lower(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

/// How many of 16 keys are not above `number`. No comparison: each would double the ways
/// that the verifier follows.
#[inline(always)]
fn rank4<B: Blocks + ?Sized>(blocks: &B, keys: &Block, number: u64) -> u64 {
    let (mut rank, mut at) = (0, 0);
    while at < keys.len() {
        rank += not_above(keys[at] & LOW, number, 1) + not_above(keys[at] >> 32, number, 1);
        rank = blocks.pace(rank);
        at += 1;
    }
    rank
}

/// As [`rank4`], of four keys of four digits, the highest first.
#[inline(always)]
fn rank6<B: Blocks + ?Sized>(blocks: &B, keys: &Block, number: [u64; 4]) -> u64 {
    let (mut rank, mut at) = (0, 0);
    while at < keys.len() {
        let (high, low) = (keys[at], keys[at + 1]);
        let mut borrow = not_above(low >> 32, number[3], 1);
        borrow = not_above(low & LOW, number[2], borrow);
        borrow = not_above(high >> 32, number[1], borrow);
        rank = blocks.pace(rank + not_above(high & LOW, number[0], borrow));
        at += 2;
    }
    rank
}

/// The borrow of `digit - number - borrow`: with 1, whether the digit is not above the number.
#[inline(always)]
const fn not_above(digit: u64, number: u64, borrow: u64) -> u64 {
    digit.wrapping_sub(number).wrapping_sub(borrow) >> 63
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_block_ends_the_search() {
        let mut rows = Rows::NONE;
        for dimension in 0..DIMENSIONS {
            // Two chunks; their references would stand in block 0.
            rows.put(dimension, [0b11, 0]);
        }
        let none: &[Block] = &[];
        assert_eq!(rows.look(none), Look::Over, "no later rule may win");
        let empty: &[Block] = &[[0; 8]];
        assert_eq!(rows.look(empty), Look::Not, "a chunk without bits");
    }
}

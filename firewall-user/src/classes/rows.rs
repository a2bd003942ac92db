//! Sets of rules, stored once each.

use std::collections::HashMap;

use firewall_common::abi::classes::{Block, CHUNK_RULES};

/// A set of rules by index, a bit each.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleSet(Vec<Block>);

impl RuleSet {
    /// The empty one, of so many rules.
    pub(super) fn empty(rules: usize) -> Self {
        Self(vec![[0; 8]; rules.div_ceil(CHUNK_RULES)])
    }

    /// Puts a rule in or takes it out. Says which chunk that changed.
    pub(super) fn set(&mut self, rule: usize, within: bool) -> usize {
        let (chunk, bit) = (rule / CHUNK_RULES, rule % CHUNK_RULES);
        if let Some(block) = self.0.get_mut(chunk) {
            let (word, mask) = (&mut block[bit / 64], 1 << (bit % 64));
            *word = if within { *word | mask } else { *word & !mask };
        }
        chunk
    }

    /// What both have.
    pub(super) fn and(&self, other: &Self) -> Self {
        let both = |(a, b): (&Block, &Block)| std::array::from_fn(|at| a[at] & b[at]);
        Self(self.0.iter().zip(&other.0).map(both).collect())
    }

    pub(super) fn chunk(&self, at: usize) -> Option<&Block> {
        self.0.get(at)
    }
}

impl FromIterator<bool> for RuleSet {
    fn from_iter<T: IntoIterator<Item = bool>>(bits: T) -> Self {
        let mut set = Self::default();
        for (rule, within) in bits.into_iter().enumerate() {
            if rule % CHUNK_RULES == 0 {
                set.0.push([0; 8]);
            }
            set.set(rule, within);
        }
        set
    }
}

/// A stored set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Chunks that are not empty.
    pub(super) summary: u64,
    /// Its first reference.
    pub(super) first: u32,
}

/// A set on its way to be stored: the number of each chunk, `None` for an empty one.
pub(super) type Numbers = Vec<Option<u32>>;

/// Chunks, and lists of references to them.
#[derive(Debug)]
pub(super) struct Store {
    per_row: usize,
    chunks: Vec<Block>,
    numbers: HashMap<Block, u32>,
    references: Vec<u32>,
    lists: HashMap<Vec<u32>, u32>,
}

impl Store {
    /// For sets of so many rules.
    pub(super) fn new(rules: usize) -> Self {
        Self {
            per_row: rules.div_ceil(CHUNK_RULES),
            chunks: Vec::new(),
            numbers: HashMap::new(),
            references: Vec::new(),
            lists: HashMap::new(),
        }
    }

    /// Chunks of a set, the empty ones included.
    pub(super) const fn chunks_of_a_row(&self) -> usize {
        self.per_row
    }

    /// The number of a chunk; `None` if it is empty.
    pub(super) fn number(&mut self, chunk: &Block) -> Option<u32> {
        if *chunk == [0; 8] {
            return None;
        }
        Some(*self.numbers.entry(*chunk).or_insert_with(|| {
            self.chunks.push(*chunk);
            self.chunks.len() as u32 - 1
        }))
    }

    /// Stores a set.
    pub(super) fn row(&mut self, set: &RuleSet) -> Row {
        let numbers: Numbers = set.0.iter().map(|chunk| self.number(chunk)).collect();
        self.row_of(&numbers)
    }

    /// Stores a set whose chunks are stored.
    pub(super) fn row_of(&mut self, numbers: &Numbers) -> Row {
        let bits = (0..).zip(numbers).filter(|(_, number)| number.is_some());
        let summary = bits.fold(0, |summary, (at, _)| summary | 1 << at);
        let list: Vec<u32> = numbers.iter().copied().flatten().collect();
        let next = self.references.len() as u32;
        let first = *self.lists.entry(list).or_insert_with_key(|list| {
            self.references.extend_from_slice(list);
            next
        });
        Row { summary, first }
    }

    pub(super) fn chunks(&self) -> &[Block] {
        &self.chunks
    }

    /// Numbers of chunks.
    pub(super) fn references(&self) -> &[u32] {
        &self.references
    }
}

//! A dimension of numbers, cut into intervals.

use firewall_common::abi::classes::{Block, search};

use super::{
    pair,
    rows::{Numbers, Row, RuleSet, Store},
};

/// The numbers that a rule allows, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval(Option<(u128, u128)>);

/// Of the addresses that stand for those of IPv4 (RFC 4291, section 2.5.5.2).
const MAPPED: u128 = 0xffff << 32;

impl Interval {
    pub(super) const ALL: Self = Self(Some((0, u128::MAX)));
    pub(super) const NONE: Self = Self(None);

    pub(super) const fn between(low: u128, high: u128) -> Self {
        if low <= high {
            Self(Some((low, high)))
        } else {
            Self::NONE
        }
    }

    /// The part of IPv4 in a range of addresses, as numbers of 32 bits.
    pub(super) fn of_v4(self) -> Self {
        let Some((low, high)) = self.0 else {
            return self;
        };
        let last = MAPPED | u128::from(u32::MAX);
        if high < MAPPED || low > last {
            return Self::NONE;
        }
        let (low, high) = (low.max(MAPPED), high.min(last));
        // Nothing ends where the numbers end.
        let high = if high == last {
            u128::MAX
        } else {
            high - MAPPED
        };
        Self(Some((low - MAPPED, high)))
    }
}

/// Where intervals begin, and who is in each.
#[derive(Debug)]
pub(super) struct Search {
    /// Keys by level, the root's first; the last are the leaves, each filled up.
    levels: Vec<Vec<u32>>,
    rows: Vec<Row>,
}

impl Search {
    /// Cuts up what rules allow, in the order of the rules. A key has `DIGITS` of 32 bits.
    pub(super) fn new<const DIGITS: usize>(rules: &[Interval], store: &mut Store) -> Self {
        let mut changes = Vec::new();
        for (rule, interval) in rules.iter().enumerate() {
            let Some((low, high)) = interval.0 else {
                continue;
            };
            changes.push((low, rule, true));
            changes.extend(high.checked_add(1).map(|end| (end, rule, false)));
        }
        changes.sort_unstable();
        let mut set = RuleSet::empty(rules.len());
        let mut numbers: Numbers = vec![None; store.chunks_of_a_row()];
        let (mut keys, mut rows) = (Vec::new(), vec![store.row_of(&numbers)]);
        for group in changes.chunk_by(|a, b| a.0 == b.0) {
            let mut changed: Vec<usize> = group.iter().map(|c| set.set(c.1, c.2)).collect();
            changed.dedup();
            for chunk in changed {
                if let (Some(number), Some(chunk)) = (numbers.get_mut(chunk), set.chunk(chunk)) {
                    *number = store.number(chunk);
                }
            }
            let row = store.row_of(&numbers);
            match group.first() {
                Some((0, ..)) => rows = vec![row],
                Some((key, ..)) if rows.last() != Some(&row) => {
                    keys.push(*key);
                    rows.push(row);
                }
                _ => {}
            }
        }
        Self {
            levels: tree::<DIGITS>(&keys),
            rows,
        }
    }

    pub(super) fn levels(&self) -> &[Vec<u32>] {
        &self.levels
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Where its parts come to stand; `take` says where the next so many blocks are.
    pub(super) fn place(&self, take: &mut impl FnMut(usize) -> u32) -> Placed {
        let levels = self.levels.iter().map(|keys| take(keys.len().div_ceil(16)));
        Placed {
            levels: levels.collect(),
            intervals: self.rows.len() as u32 - 1,
            rows: take(self.rows.len().div_ceil(4)),
        }
    }
}

/// Where the parts of a search stand.
#[derive(Debug)]
pub(super) struct Placed {
    levels: Vec<u32>,
    intervals: u32,
    rows: u32,
}

impl Placed {
    /// Its block.
    pub(super) fn head(&self) -> Block {
        let mut out = [0; 8];
        out[search::SHAPE] = pair(self.levels.len() as u32, self.intervals);
        out[search::ROWS] = u64::from(self.rows);
        for (word, levels) in out[search::LEVELS..].iter_mut().zip(self.levels.chunks(2)) {
            let at = |level| levels.get(level).copied().unwrap_or(0);
            *word = pair(at(0), at(1));
        }
        out
    }
}

/// The levels of the tree whose leaves hold `keys`.
fn tree<const DIGITS: usize>(keys: &[u128]) -> Vec<Vec<u32>> {
    if keys.is_empty() {
        return Vec::new();
    }
    let per_node = 16 / DIGITS;
    let children = per_node + 1;
    // A key tells a child from the one before: it is the lowest of the child's leaves.
    let mut level: Vec<u128> = keys.to_vec();
    let mut nodes = keys.len().div_ceil(per_node);
    let mut under_a_node = 1;
    let mut levels = vec![blocks::<DIGITS>(&level, nodes)];
    while nodes > 1 {
        nodes = nodes.div_ceil(children);
        let lowest = |node: usize, child: usize| {
            let leaf = (node * children + child) * under_a_node;
            keys.get(leaf * per_node).copied().unwrap_or(u128::MAX)
        };
        level = (0..nodes)
            .flat_map(|node| (1..children).map(move |child| (node, child)))
            .map(|(node, child)| lowest(node, child))
            .collect();
        levels.push(blocks::<DIGITS>(&level, nodes));
        under_a_node *= children;
    }
    levels.reverse();
    levels
}

/// Keys by their digits, the highest first, and filled up to whole nodes.
fn blocks<const DIGITS: usize>(keys: &[u128], nodes: usize) -> Vec<u32> {
    let digits = |key: u128| {
        // What is beyond the digits is the filling, which is all ones.
        (0..DIGITS)
            .rev()
            .map(move |digit| (key >> (32 * digit)) as u32)
    };
    let mut out: Vec<u32> = keys.iter().flat_map(|key| digits(*key)).collect();
    out.resize(nodes * 16, u32::MAX);
    out
}

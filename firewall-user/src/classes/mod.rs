//! From compiled rules to the blocks in which the programs look for the first that matches.
//!
//! The layout, and why it is one, is in [`firewall_common::abi::classes`]. Memory is bounded:
//! an interval begins where a rule's begins or ends, so each of the four searched
//! dimensions has `2 * n` at most for `n` rules, and crossing into one changes a bit for
//! each rule that begins or ends there, so no more than `8 * n` chunks are made for them.

mod rows;
mod search;
#[cfg(test)]
mod tests;

use firewall_common::{
    abi::{
        Rule, ZONE_ANY,
        classes::{Block, head, outcome, searches},
        rule_flags, rule_id,
    },
    policy::classify,
    wire::{Headers, proto},
};

use rows::{Row, RuleSet, Store};
use search::{Interval, Search};

/// The searchable form of a policy.
#[derive(Clone, Debug)]
pub struct Classes<'a> {
    rules: &'a [Rule],
    blocks: Vec<Block>,
}

/// Rules that have none, which no configuration compiles to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More than [`MAX_RULES`](firewall_common::abi::MAX_RULES).
    #[error("{0} compiled rules are more than the programs can search")]
    Number(usize),
    /// A mask with a gap.
    #[error("compiled rule {0} has a mask that is no prefix")]
    Mask(usize),
}

impl<'a> Classes<'a> {
    /// Compiles the rules, in their order.
    ///
    /// # Errors
    /// [`Error`].
    pub fn of(rules: &'a [Rule]) -> Result<Self, Error> {
        if rules.len() > firewall_common::abi::MAX_RULES {
            return Err(Error::Number(rules.len()));
        }
        let mut store = Store::new(rules.len());
        let zones = zones(rules);
        let places = places(rules, zones, &mut store);
        let protocols = protocols(rules, &mut store);
        let searches = searches(rules, &mut store)?;
        Ok(Self {
            rules,
            blocks: lay_out(rules, zones, &[places, protocols], &searches, &store),
        })
    }

    /// The rules.
    #[must_use]
    pub const fn rules(&self) -> &'a [Rule] {
        self.rules
    }

    /// For the `RULES` map of a generation: [`Rule::id`], which counts from 0, is that of the
    /// generation there.
    pub fn rules_of(&self, generation: u32) -> impl ExactSizeIterator<Item = Rule> + 'a {
        self.rules.iter().map(move |rule| Rule {
            id: rule_id(generation, rule.id),
            ..*rule
        })
    }

    /// For the `CLASSES` map of a generation, with the same ids.
    #[must_use]
    pub fn blocks_of(&self, generation: u32) -> Vec<Block> {
        let mut blocks = self.blocks.clone();
        let at = (self.blocks[0][head::PROTOCOLS] >> 32) as usize;
        let named = self.rules_of(generation);
        let words: Vec<u64> = named.map(|rule| decides(&rule)).collect();
        for (block, words) in blocks[at..].iter_mut().zip(words.chunks(8)) {
            block[..words.len()].copy_from_slice(words);
        }
        blocks
    }

    /// Bytes of the blocks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice())
    }

    /// Index of the first rule that matches the first packet of a flow, as the programs
    /// find it.
    #[must_use]
    pub fn first(&self, headers: &Headers, from: u8, to: u8) -> Option<usize> {
        classify::first(self.blocks.as_slice(), headers, from, to).map(|rule| rule as usize)
    }

    /// That rule.
    #[must_use]
    pub fn find(&self, headers: &Headers, from: u8, to: u8) -> Option<&'a Rule> {
        self.rules.get(self.first(headers, from, to)?)
    }
}

/// Zones that rules tell apart, with one more for all others.
fn zones(rules: &[Rule]) -> usize {
    let named = rules.iter().flat_map(|rule| [rule.from_zone, rule.to_zone]);
    let highest = named.filter(|zone| *zone != ZONE_ANY).max();
    highest.map_or(1, |zone| usize::from(zone) + 2)
}

/// A row from each zone to each.
fn places(rules: &[Rule], zones: usize, store: &mut Store) -> Vec<Row> {
    let by = |of: fn(&Rule) -> u8| -> Vec<RuleSet> {
        let matching = |zone: usize| {
            let set = rules.iter().map(|rule| {
                let wanted = of(rule);
                wanted == ZONE_ANY || usize::from(wanted) == zone
            });
            set.collect()
        };
        (0..zones).map(matching).collect()
    };
    let (from, to) = (by(|rule| rule.from_zone), by(|rule| rule.to_zone));
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| store.row(&a.and(b))).collect()
}

/// A row for each protocol of IPv4, then of IPv6.
fn protocols(rules: &[Rule], store: &mut Store) -> Vec<Row> {
    let named: std::collections::HashSet<u8> = rules
        .iter()
        .map(|rule| rule.proto)
        .chain([proto::TCP, proto::UDP])
        .collect();
    let mut out = Vec::with_capacity(512);
    for other_family in [rule_flags::V6_ONLY, rule_flags::V4_ONLY] {
        let mut row = |number: u8| {
            let ports = number == proto::TCP || number == proto::UDP;
            let set = rules.iter().map(|rule| {
                (rule.proto == 0 || rule.proto == number)
                    && rule.flags & other_family == 0
                    && (ports || rule.flags & rule_flags::PORTS == 0)
            });
            store.row(&set.collect())
        };
        let mut others = None;
        for number in 0..=u8::MAX {
            let known = if named.contains(&number) {
                row(number)
            } else {
                *others.get_or_insert_with(|| row(number))
            };
            out.push(known);
        }
    }
    out
}

/// In the order of [`searches`].
fn searches(rules: &[Rule], store: &mut Store) -> Result<[Search; 6], Error> {
    let source = |rule: &Rule| {
        let given = rule.flags & rule_flags::SRC != 0;
        (given, rule.src, rule.src_mask)
    };
    let destination = |rule: &Rule| {
        let given = rule.flags & rule_flags::DST != 0;
        (given, rule.dst, rule.dst_mask)
    };
    let sources = addresses(rules, source)?;
    let destinations = addresses(rules, destination)?;
    let ports = |of: fn(&Rule) -> [u16; 2]| -> Vec<Interval> {
        let interval = |rule: &Rule| match of(rule) {
            _ if rule.flags & rule_flags::PORTS == 0 => Interval::ALL,
            [low, high] => Interval::between(low.into(), high.into()),
        };
        rules.iter().map(interval).collect()
    };
    let v4 = |all: &[Interval]| -> Vec<Interval> { all.iter().map(|i| i.of_v4()).collect() };
    Ok([
        Search::new::<1>(&v4(&sources), store),
        Search::new::<1>(&v4(&destinations), store),
        Search::new::<4>(&sources, store),
        Search::new::<4>(&destinations, store),
        Search::new::<1>(&ports(|rule| rule.sport), store),
        Search::new::<1>(&ports(|rule| rule.dport), store),
    ])
}

type Prefix = (bool, [u32; 4], [u32; 4]);

fn addresses(rules: &[Rule], of: fn(&Rule) -> Prefix) -> Result<Vec<Interval>, Error> {
    let number = |words: [u32; 4]| u128::from_be_bytes(bytemuck::cast(words));
    let interval = |(at, rule): (usize, &Rule)| {
        let (given, address, mask) = of(rule);
        if !given {
            return Ok(Interval::ALL);
        }
        let (low, mask) = (number(address), number(mask));
        if mask.leading_ones() + mask.trailing_zeros() < u128::BITS {
            return Err(Error::Mask(at));
        }
        // What is not masked is equal to no masked address.
        Ok(if low & !mask == 0 {
            Interval::between(low, low | !mask)
        } else {
            Interval::NONE
        })
    };
    rules.iter().enumerate().map(interval).collect()
}

fn lay_out(
    rules: &[Rule],
    zones: usize,
    direct: &[Vec<Row>; 2],
    searched: &[Search; 6],
    store: &Store,
) -> Vec<Block> {
    let [places, protocols] = direct;
    let outcomes: Vec<u64> = rules.iter().map(decides).collect();
    // Lengths first: rows say where references are, and references where chunks are.
    let mut end = searches::END;
    let mut take = |blocks: usize| {
        let start = end;
        end += blocks as u32;
        start
    };
    let places_at = take(places.len().div_ceil(4));
    let protocols_at = take(protocols.len().div_ceil(4));
    let outcomes_at = take(outcomes.len().div_ceil(8));
    let found: Vec<_> = searched.iter().map(|s| s.place(&mut take)).collect();
    let references_at = take(store.references().len().div_ceil(16));
    let chunks_at = take(store.chunks().len());

    let mut head = [0; 8];
    head[head::RULES] = pair(rules.len() as u32, store.chunks_of_a_row() as u32);
    head[head::PLACES] = pair(zones as u32, places_at);
    head[head::PROTOCOLS] = pair(protocols_at, outcomes_at);
    let mut out = vec![head];
    out.extend(found.iter().map(search::Placed::head));
    let rows = |rows: &[Row]| -> Vec<u64> {
        let words = |row: &Row| [row.summary, u64::from(row.first + 16 * references_at)];
        rows.iter().flat_map(words).collect()
    };
    fill(&mut out, &rows(places));
    fill(&mut out, &rows(protocols));
    fill(&mut out, &outcomes);
    for search in searched {
        for level in search.levels() {
            fill(&mut out, &halves(level.iter().copied()));
        }
        fill(&mut out, &rows(search.rows()));
    }
    let references = store.references().iter().map(|chunk| chunk + chunks_at);
    fill(&mut out, &halves(references));
    out.extend_from_slice(store.chunks());
    debug_assert_eq!(out.len(), end as usize);
    out
}

/// The word of a rule among the [`outcome`]s.
fn decides(rule: &Rule) -> u64 {
    u64::from(rule.id) << outcome::ID
        | u64::from(rule.flags) << outcome::FLAGS
        | u64::from(rule.action) << outcome::ACTION
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Two numbers in a word.
fn halves(numbers: impl Iterator<Item = u32>) -> Vec<u64> {
    let numbers: Vec<u32> = numbers.collect();
    let word = |two: &[u32]| match *two {
        [low, high] => pair(low, high),
        [low] => pair(low, 0),
        _ => 0,
    };
    numbers.chunks(2).map(word).collect()
}

/// Appends words, from a block of their own on.
fn fill(out: &mut Vec<Block>, words: &[u64]) {
    for words in words.chunks(8) {
        let mut block = [0; 8];
        block[..words.len()].copy_from_slice(words);
        out.push(block);
    }
}

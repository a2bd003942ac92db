//! Compiled rules in the maps: a map of its own for each policy and purpose.

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, MapData, MapError},
};
use firewall_common::abi::{Counter, INNER_MAP, Rule, RuleName, hits_of_cpu, maps};

use super::{
    fixed,
    loader::{Error, map_mut},
    sys,
};
use crate::classes::Classes;

/// The maps of which each policy has its own.
pub(super) const MAPS: [&str; 3] = [maps::RULES, maps::RULE_HITS, maps::CLASSES];

/// Puts rules where programs find them that are told of this generation. Their
/// [`Rule::id`] counts from 0; in the map it is that of the generation.
///
/// The counters come first. For them, too, the kernel waits until no program runs any
/// more that began before, so that none that was told of this generation when it was
/// live the last time meets rules that are newer.
///
/// # Errors
///
/// [`Error::Map`].
pub fn install(ebpf: &mut Ebpf, generation: u32, classes: &Classes<'_>) -> Result<(), Error> {
    let rules: Vec<Rule> = classes.rules_of(generation).collect();
    let cpus = aya::util::nr_cpus().map_err(|(_, e)| Error::map(maps::RULE_HITS)(e))?;
    let hits = (hits_of_cpu(rules.len() as u32) as usize).saturating_mul(cpus);
    put::<Counter>(ebpf, maps::RULE_HITS, generation, hits, &[])?;
    put(ebpf, maps::RULES, generation, rules.len(), &rules)?;
    let blocks = classes.blocks_of(generation);
    put(ebpf, maps::CLASSES, generation, blocks.len(), &blocks)
}

/// Names the rules of a generation.
///
/// # Errors
///
/// [`Error::Map`].
pub(super) fn name(ebpf: &mut Ebpf, generation: u32, names: &[String]) -> Result<(), Error> {
    let map: Array<_, RuleName> = map_mut(ebpf, maps::RULE_NAMES)?;
    let slots: Vec<u32> = (0..names.len() as u32)
        .map(|number| 2 * number + generation)
        .collect();
    let names: Vec<RuleName> = names.iter().map(|name| fixed(name)).collect();
    sys::update_batch(&map, &slots, &names).map_err(Error::map(maps::RULE_NAMES))
}

/// A new map of `len` elements in the place of a generation.
fn put<V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    generation: u32,
    len: usize,
    values: &[V],
) -> Result<(), Error> {
    // A policy without rules has one element that nobody looks at.
    let len = u32::try_from(len.max(1)).unwrap_or(u32::MAX);
    let map = Array::<MapData, V>::create(len, INNER_MAP as u32).map_err(Error::map(name))?;
    let indices: Vec<u32> = (0..len).take(values.len()).collect();
    sys::update_batch(&map, &indices, values).map_err(Error::map(name))?;
    let mut generations: ArrayOfMaps<_, Array<MapData, V>> = map_mut(ebpf, name)?;
    generations
        .set(generation, &map, 0)
        .map_err(Error::map(name))
}

/// All elements of the map of a generation.
pub(super) fn read<V: aya::Pod + bytemuck::Zeroable>(
    generations: &ArrayOfMaps<MapData, Array<MapData, V>>,
    generation: u32,
) -> Result<Vec<V>, MapError> {
    match generations.get(&generation, 0) {
        Ok(map) => sys::lookup_all(&map).map_err(MapError::IoError),
        // No policy was there yet.
        Err(MapError::KeyNotFound) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

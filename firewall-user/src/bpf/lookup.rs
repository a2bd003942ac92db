//! Single entries of the pinned maps, by key.
//!
//! A look-up by system call does not touch the reference bit of an LRU map, so
//! asking for a flow keeps nothing alive.

use aya::maps::{Array, ArrayOfMaps, HashMap, MapData, MapError};
use firewall_common::abi::{
    DataFlow, ExpectKey, Expectation, Flow, FlowKey4, FlowKey6, MAX_RULES, NO_SLOT, Pair, PairKey,
    Rule, maps,
};

use super::maps::{Error, FlowTier, Pinned};

/// A flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    name: &'static str,
    tier: FlowTier,
}

impl Table {
    /// All of them; those of IPv4 first, proved ones before half-open ones, as
    /// the programs look them up.
    pub const ALL: [Self; 6] = [
        Self::new(maps::FLOWS4, FlowTier::Proved),
        Self::new(maps::HALF_OPEN4_IN, FlowTier::HalfOpen),
        Self::new(maps::HALF_OPEN4_OUT, FlowTier::HalfOpen),
        Self::new(maps::FLOWS6, FlowTier::Proved),
        Self::new(maps::HALF_OPEN6_IN, FlowTier::HalfOpen),
        Self::new(maps::HALF_OPEN6_OUT, FlowTier::HalfOpen),
    ];

    const fn new(name: &'static str, tier: FlowTier) -> Self {
        Self { name, tier }
    }

    /// Name of the map.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Its tier.
    #[must_use]
    pub const fn tier(self) -> FlowTier {
        self.tier
    }

    /// The tables in which a flow can be, in the order of look-up.
    pub fn of(key: &FlowKey6) -> impl Iterator<Item = Self> + use<> {
        let v6 = key.narrow().is_none();
        Self::ALL.into_iter().skip(if v6 { 3 } else { 0 }).take(3)
    }
}

/// A flow, and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The table.
    pub table: Table,
    /// The entry, of whatever age and phase.
    pub flow: Flow,
}

/// The maps in which single entries are looked up, opened once.
pub struct Lookup {
    instance: String,
    v4: Vec<HashMap<MapData, FlowKey4, Flow>>,
    v6: Vec<HashMap<MapData, FlowKey6, Flow>>,
    expectations: HashMap<MapData, ExpectKey, Expectation>,
    data_flows: HashMap<MapData, FlowKey6, DataFlow>,
    pairs: HashMap<MapData, PairKey, Pair>,
    rules: ArrayOfMaps<MapData, Array<MapData, Rule>>,
}

impl Lookup {
    /// Opens the maps.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn open(pinned: &Pinned) -> Result<Self, Error> {
        let (v4, v6) = Table::ALL.split_at(3);
        let v4 = v4.iter().map(|table| pinned.typed(table.name));
        let v6 = v6.iter().map(|table| pinned.typed(table.name));
        Ok(Self {
            instance: pinned.instance().to_string(),
            v4: v4.collect::<Result<_, _>>()?,
            v6: v6.collect::<Result<_, _>>()?,
            expectations: pinned.typed(maps::EXPECTATIONS)?,
            data_flows: pinned.typed(maps::DATA_FLOWS)?,
            pairs: pinned.typed(maps::PAIRS)?,
            rules: pinned.typed(maps::RULES)?,
        })
    }

    /// The entry of a flow in the first table that has one.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn flow(&self, key: &FlowKey6) -> Result<Option<Found>, Error> {
        let narrow = key.narrow();
        for (table, at) in Table::of(key).zip(0..) {
            let flow = match (&narrow, self.v4.get(at), self.v6.get(at)) {
                (Some(key), Some(map), _) => self.get(map, table.name, key)?,
                (None, _, Some(map)) => self.get(map, table.name, key)?,
                _ => None,
            };
            if let Some(flow) = flow {
                return Ok(Some(Found { table, flow }));
            }
        }
        Ok(None)
    }

    /// The expectation under `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn expectation(&self, key: &ExpectKey) -> Result<Option<Expectation>, Error> {
        self.get(&self.expectations, maps::EXPECTATIONS, key)
    }

    /// Whose data connection the flow of `key` is.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn data_flow(&self, key: &FlowKey6) -> Result<Option<DataFlow>, Error> {
        self.get(&self.data_flows, maps::DATA_FLOWS, key)
    }

    /// What is known of two hosts that have an FTP session.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn pair(&self, key: &PairKey) -> Result<Option<Pair>, Error> {
        self.get(&self.pairs, maps::PAIRS, key)
    }

    /// The compiled rule in a slot; `None` for [`NO_SLOT`].
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn rule(&self, slot: u32) -> Result<Option<Rule>, Error> {
        if slot == NO_SLOT {
            return Ok(None);
        }
        let (generation, index) = (slot / MAX_RULES as u32, slot % MAX_RULES as u32);
        let rules = self.rules.get(&generation, 0);
        let rule = rules.and_then(|rules| rules.get(&index, 0));
        rule.map(Some)
            .map_err(|error| self.failed(maps::RULES, &error))
    }

    fn get<K: aya::Pod, V: aya::Pod>(
        &self,
        map: &HashMap<MapData, K, V>,
        name: &'static str,
        key: &K,
    ) -> Result<Option<V>, Error> {
        match map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.failed(name, &error)),
        }
    }

    fn failed(&self, map: &'static str, error: &MapError) -> Error {
        Error::Map {
            instance: self.instance.clone(),
            map,
            reason: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_looked_for_where_it_can_be() {
        let v4 = FlowKey4::from_parts(1, 2, 3, 4, 6, 0);
        let v4 = firewall_common::key::FlowKey::widen(&v4);
        let v6 = FlowKey6::from_parts([1; 4], [2; 4], 3, 4, 6, 0);
        let names = |key| Table::of(key).map(Table::name).collect::<Vec<_>>();
        assert_eq!(
            names(&v4),
            [maps::FLOWS4, maps::HALF_OPEN4_IN, maps::HALF_OPEN4_OUT]
        );
        assert_eq!(
            names(&v6),
            [maps::FLOWS6, maps::HALF_OPEN6_IN, maps::HALF_OPEN6_OUT]
        );
    }
}

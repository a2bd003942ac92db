//! Flows of the pinned tables.

use std::{
    cmp::Reverse,
    collections::{self, HashSet},
};

use aya::maps::{HashMap, MapData, MapError};
use bytemuck::Zeroable;
use firewall_common::{
    abi::{DataFlow, Flow, FlowKey4, FlowKey6, flow_flags, maps},
    key::FlowKey,
    time::Tick,
    timeout::Timeouts,
};

use super::{
    maps::{Error, FlowRow, FlowTier, Pinned, each},
    sys,
};

/// The half-open tables come first: a flow moves from them to the proved ones,
/// so one that moves meanwhile is met twice and never missed.
const TABLES: [(&str, &str, FlowTier); 3] = [
    (maps::HALF_OPEN4_IN, maps::HALF_OPEN6_IN, FlowTier::HalfOpen),
    (
        maps::HALF_OPEN4_OUT,
        maps::HALF_OPEN6_OUT,
        FlowTier::HalfOpen,
    ),
    (maps::FLOWS4, maps::FLOWS6, FlowTier::Proved),
];

/// Entries of a [`Parents`] that is added to.
const PARENTS_KEPT: usize = 1 << 16;

/// Control connections of data connections, by the data flow's key.
///
/// Of an entry whose data flow was displaced, or has another incarnation by now,
/// nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Parents(collections::HashMap<FlowKey6, DataFlow>);

impl Parents {
    /// From the entries of `DATA_FLOWS`.
    pub fn new(entries: impl IntoIterator<Item = (FlowKey6, DataFlow)>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// Adds an entry. What is kept is bounded: old entries go when it is too much.
    pub fn insert(&mut self, key: FlowKey6, data: DataFlow) {
        if self.0.len() >= PARENTS_KEPT {
            self.0.clear();
        }
        self.0.insert(key, data);
    }

    /// Strikes out what is known of `row`.
    pub fn remove(&mut self, row: &FlowRow) {
        self.0.remove(&row.key);
    }

    /// Whose data connection `row` is, if it is one.
    #[must_use]
    pub fn of(&self, row: &FlowRow) -> Option<&DataFlow> {
        let data = self.0.get(&row.key)?;
        (data.incarnation == row.state().incarnation()).then_some(data)
    }
}

impl Pinned {
    /// What is known of the parents of `rows`.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn parents(&self, rows: &[FlowRow]) -> Result<Parents, Error> {
        if !rows.iter().any(|row| row.state().has(flow_flags::RELATED)) {
            return Ok(Parents::default());
        }
        self.data_flows().map(Parents::new)
    }

    /// Every data connection's tie to its control connection.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn data_flows(&self) -> Result<Vec<(FlowKey6, DataFlow)>, Error> {
        self.entries(maps::DATA_FLOWS)
    }

    /// That of one data connection.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn data_flow(&self, key: &FlowKey6) -> Result<Option<DataFlow>, Error> {
        self.one(maps::DATA_FLOWS, key)
    }

    /// Hands every live flow of all six tables to `see`, each once.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn each_flow(&self, mut see: impl FnMut(&FlowRow)) -> Result<(), Error> {
        let timeouts = &self.config()?.timeouts;
        let mut met = HashSet::new();
        let mut once = |row: &FlowRow| {
            let is_new = match row.tier {
                FlowTier::HalfOpen => met.insert((row.key, row.state().incarnation())),
                FlowTier::Proved => !met.contains(&(row.key, row.state().incarnation())),
            };
            if is_new {
                see(row);
            }
        };
        for (v4, v6, tier) in TABLES {
            self.each_of::<FlowKey4>(v4, tier, timeouts, &mut once)?;
            self.each_of::<FlowKey6>(v6, tier, timeouts, &mut once)?;
        }
        Ok(())
    }

    /// Every live flow that `wanted` picks, oldest first.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flows_where(&self, wanted: impl Fn(&FlowRow) -> bool) -> Result<Vec<FlowRow>, Error> {
        let mut rows = Vec::new();
        self.each_flow(|row| {
            if wanted(row) {
                rows.push(*row);
            }
        })?;
        let now = Tick::from_ns(sys::monotonic_ns());
        // Rows are large: they are moved once, when their order is known.
        rows.sort_by_cached_key(|row| Reverse(now.since(Tick(row.flow.created))));
        Ok(rows)
    }

    /// Every live flow of all six tables, oldest first.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flows(&self) -> Result<Vec<FlowRow>, Error> {
        self.flows_where(|_| true)
    }

    /// The live flow of this key.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn flow(&self, key: &FlowKey6) -> Result<Option<FlowRow>, Error> {
        let timeouts = &self.config()?.timeouts;
        let now = Tick::from_ns(sys::monotonic_ns());
        for (v4, v6, tier) in TABLES {
            let found: Option<Flow> = match key.narrow() {
                Some(narrow) => self.one(v4, &narrow)?,
                None => self.one(v6, key)?,
            };
            let row = found.map(|flow| FlowRow {
                key: *key,
                flow,
                tier,
                expires: flow.expires(key.proto(), timeouts),
            });
            if let Some(row) = row.filter(|row| row.is_live(now)) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    fn each_of<K>(
        &self,
        name: &'static str,
        tier: FlowTier,
        timeouts: &Timeouts,
        see: &mut impl FnMut(&FlowRow),
    ) -> Result<(), Error>
    where
        K: aya::Pod + Zeroable + FlowKey,
    {
        let map: HashMap<MapData, K, Flow> = self.typed(name)?;
        let now = Tick::from_ns(sys::monotonic_ns());
        let each = each(&map, |key: &K, flow| {
            let row = FlowRow {
                key: key.widen(),
                flow: *flow,
                tier,
                expires: flow.expires(key.widen().proto(), timeouts),
            };
            if row.is_live(now) {
                see(&row);
            }
        });
        each.map_err(|error| self.failed(name, &error))
    }

    fn one<K, V>(&self, name: &'static str, key: &K) -> Result<Option<V>, Error>
    where
        K: aya::Pod,
        V: aya::Pod,
    {
        let map: HashMap<MapData, K, V> = self.typed(name)?;
        match map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.failed(name, &error)),
        }
    }
}

//! The six flow tables, read by batches.

use std::io;

use aya::maps::{HashMap, MapData, MapInfo};
use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{Flow, FlowKey4, FlowKey6, FlowState, TableId},
    key::FlowKey,
};

use crate::bpf::{
    Instance,
    loader::{Error as MapError, pinned},
    sys,
};

/// Elements read at once: a tenth of a millisecond, so that a held SYN does not wait.
pub(super) const BATCH: usize = 512;

enum Either {
    V4(HashMap<MapData, FlowKey4, Flow>),
    V6(HashMap<MapData, FlowKey6, Flow>),
}

/// One of the tables, and how far it is read.
pub(super) struct Table {
    pub(super) id: TableId,
    /// Elements that it has room for.
    pub(super) size: u32,
    map: Either,
    cursor: Option<u32>,
}

/// What one look-up gave; keys of both families in the wide form.
pub(super) struct Batch {
    pub(super) flows: Vec<(FlowKey6, Flow)>,
    /// Was it the last of the table?
    pub(super) done: bool,
}

impl Table {
    pub(super) fn open(instance: &Instance, id: TableId) -> Result<Self, MapError> {
        let map = if id.is_v4() {
            Either::V4(pinned(instance, id.map())?)
        } else {
            Either::V6(pinned(instance, id.map())?)
        };
        let info = MapInfo::from_pin(instance.pin(id.map())).map_err(MapError::map(id.map()))?;
        Ok(Self {
            id,
            size: info.max_entries(),
            map,
            cursor: None,
        })
    }

    /// Reads on. After an error the next read begins anew.
    pub(super) fn next(&mut self) -> io::Result<Batch> {
        let cursor = self.cursor.take();
        let (flows, next) = match &self.map {
            Either::V4(map) => read(map, cursor),
            Either::V6(map) => read(map, cursor),
        }?;
        self.cursor = next;
        Ok(Batch {
            flows,
            done: next.is_none(),
        })
    }

    /// The incarnation of one flow. Like every look-up by system call, this does
    /// not make it look used.
    pub(super) fn incarnation(&self, key: &FlowKey6) -> Option<u32> {
        let flow = match (&self.map, key.narrow()) {
            (Either::V4(map), Some(key)) => map.get(&key, 0),
            (Either::V6(map), None) => map.get(key, 0),
            _ => return None,
        };
        Some(FlowState(flow.ok()?.state).incarnation())
    }
}

type Read = (Vec<(FlowKey6, Flow)>, Option<u32>);

fn read<K: aya::Pod + FlowKey + bytemuck::Zeroable>(
    map: &HashMap<MapData, K, Flow>,
    cursor: Option<u32>,
) -> io::Result<Read> {
    let mut keys = vec![K::zeroed(); BATCH];
    let mut values = vec![Flow::zeroed(); BATCH];
    let batch = sys::lookup_batch(map, cursor, &mut keys, &mut values)?;
    let flows = keys.iter().zip(&values).take(batch.count);
    Ok((
        flows.map(|(key, flow)| (key.widen(), *flow)).collect(),
        batch.cursor,
    ))
}

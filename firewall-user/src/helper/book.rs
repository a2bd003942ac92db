//! Which expectations exist, and whose they are.

use std::collections::HashMap;

use firewall_common::{
    abi::{ExpectKey, FlowKey6},
    time::Tick,
};

/// What the agent has written into the expectation map.
///
/// A key can be negotiated by two sessions in turn; it belongs to the last one,
/// so that the end of the first does not take it away.
#[derive(Debug, Default)]
pub(super) struct Book(HashMap<ExpectKey, Entry>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    owner: FlowKey6,
    expires: Tick,
}

impl Book {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn write(&mut self, key: ExpectKey, owner: FlowKey6, expires: Tick) {
        self.0.insert(key, Entry { owner, expires });
    }

    /// Is a connection of this key expected?
    pub(super) fn expects(&self, key: &ExpectKey, now: Tick) -> bool {
        self.owner(key, now).is_some()
    }

    /// Whose connection of this key is expected?
    pub(super) fn owner(&self, key: &ExpectKey, now: Tick) -> Option<FlowKey6> {
        let entry = self.0.get(key)?;
        (!now.is_after(entry.expires)).then_some(entry.owner)
    }

    /// Strikes the key out if it is `owner`'s; returns whether it was.
    pub(super) fn strike(&mut self, key: &ExpectKey, owner: &FlowKey6) -> bool {
        let owned = self.0.get(key).is_some_and(|entry| entry.owner == *owner);
        if owned {
            self.0.remove(key);
        }
        owned
    }

    /// Keys that have expired, and their owners.
    pub(super) fn expired(&self, now: Tick) -> Vec<(ExpectKey, FlowKey6)> {
        let expired = self.0.iter().filter(|(_, e)| now.is_after(e.expires));
        expired.map(|(key, entry)| (*key, entry.owner)).collect()
    }
}

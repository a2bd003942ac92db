//! Which expectations exist, and whose they are.

use std::{collections::HashMap, net::IpAddr};

use firewall_common::{
    abi::{ExpectKey, FlowKey6, Target},
    time::Tick,
};

use super::crowd::Crowd;

/// What the agent has written into the expectation map.
///
/// A key can be negotiated by two sessions in turn; it belongs to the last one,
/// so that the end of the first does not take it away.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: HashMap<ExpectKey, Entry>,
    /// Who was expected last at each port.
    targets: HashMap<Target, ExpectKey>,
    clients: Crowd,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    owner: FlowKey6,
    /// The client of its session.
    client: IpAddr,
    expires: Tick,
    /// The command that negotiated it, as the ABI numbers it.
    via: u8,
}

impl Book {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many there are of all sessions of `client`.
    pub(super) fn of_client(&self, client: IpAddr) -> usize {
        self.clients.count(client)
    }

    pub(super) fn write(
        &mut self,
        key: ExpectKey,
        owner: FlowKey6,
        client: IpAddr,
        expires: Tick,
        via: u8,
    ) {
        let entry = Entry {
            owner,
            client,
            expires,
            via,
        };
        self.clients.enter(client);
        self.targets.insert(key.target(), key);
        if let Some(old) = self.entries.insert(key, entry) {
            self.clients.leave(old.client);
        }
    }

    /// Is a connection of this key expected?
    pub(super) fn expects(&self, key: &ExpectKey, now: Tick) -> bool {
        self.owner(key, now).is_some()
    }

    /// Whose key it is, expired or not.
    pub(super) fn any_owner(&self, key: &ExpectKey) -> Option<FlowKey6> {
        self.entries.get(key).map(|entry| entry.owner)
    }

    /// Whose connection of this key is expected?
    pub(super) fn owner(&self, key: &ExpectKey, now: Tick) -> Option<FlowKey6> {
        let entry = self.entries.get(key)?;
        (!now.is_after(entry.expires)).then_some(entry.owner)
    }

    /// Whose connection is expected at `target`, of whomever?
    pub(super) fn owner_of_target(&self, target: &Target, now: Tick) -> Option<FlowKey6> {
        self.owner(self.targets.get(target)?, now)
    }

    /// How it was negotiated, as the ABI numbers it; 0 if nobody did.
    pub(super) fn via(&self, key: &ExpectKey) -> u8 {
        self.entries.get(key).map_or(0, |entry| entry.via)
    }

    /// Strikes the key out if it is `owner`'s; returns whether it was.
    pub(super) fn strike(&mut self, key: &ExpectKey, owner: &FlowKey6) -> bool {
        let owned = self.entries.get(key).filter(|entry| entry.owner == *owner);
        let Some(client) = owned.map(|entry| entry.client) else {
            return false;
        };
        self.entries.remove(key);
        if self.targets.get(&key.target()) == Some(key) {
            self.targets.remove(&key.target());
        }
        self.clients.leave(client);
        true
    }

    /// Keys that have expired, and their owners.
    pub(super) fn expired(&self, now: Tick) -> Vec<(ExpectKey, FlowKey6)> {
        let expired = self.entries.iter().filter(|(_, e)| now.is_after(e.expires));
        expired.map(|(key, entry)| (*key, entry.owner)).collect()
    }
}

//! Who has how much of [`BUDGET`].

use std::{collections::HashMap, net::IpAddr};

use super::{crowd::network, reassembly::BUDGET};

/// Of what is free of [`BUDGET`], the sessions of one client may have one part in this
/// many. However many clients take all that they can, something is left for one
/// that has lost a packet.
const PART: usize = 8;

/// What waits in the streams of all sessions for earlier payload, in bytes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    all: usize,
    clients: HashMap<IpAddr, usize>,
}

impl Memory {
    /// Of all sessions.
    pub(super) const fn held(&self) -> usize {
        self.all
    }

    /// What a session of `client` may still take.
    pub(super) fn room(&self, client: IpAddr) -> usize {
        let own = self.clients.get(&network(client)).copied().unwrap_or(0);
        (BUDGET.saturating_sub(self.all) / PART).saturating_sub(own)
    }

    /// A session of `client` has `after` in place of `before`.
    pub(super) fn change(&mut self, client: IpAddr, before: usize, after: usize) {
        if before == after {
            return;
        }
        self.all = self.all.saturating_sub(before).saturating_add(after);
        let own = self.clients.entry(network(client)).or_default();
        *own = own.saturating_sub(before).saturating_add(after);
        if *own == 0 {
            self.clients.remove(&network(client));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_crowd_of_clients_leaves_room_for_another_one() {
        let client = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n));
        let mut memory = Memory::default();
        for n in 0..64 {
            let room = memory.room(client(n));
            memory.change(client(n), 0, room);
            assert_eq!(memory.room(client(n)), 0);
        }
        assert!(memory.room(client(99)) > 300, "{}", memory.held());
        for n in 0..64 {
            let own = memory.clients[&client(n)];
            memory.change(client(n), own, 0);
        }
        assert_eq!((memory.held(), memory.clients.len()), (0, 0));
    }
}

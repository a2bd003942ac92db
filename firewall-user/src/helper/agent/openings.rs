//! Writing and removing expectations.

use std::net::IpAddr;

use firewall_common::{
    abi::{ClosedBy, ExpectKey, ExpectState, ExpectVia, Expectation, FlowKey6, Session, maps},
    time::{Tick, ticks_from_secs},
};

use super::{Agent, checked};
use crate::{
    bpf::words,
    ftp::{Opening, Side},
    helper::{
        live::Live,
        tables::{TableError, Tables},
    },
};

/// Life of an expectation for a SYN that came before it: TCP sends it again after one
/// second, and after three.
pub(super) const RANGE_SECS: u64 = 5;

/// Why a connection is not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unopened {
    /// The client's sessions have as many as they may.
    #[error("its client has too many")]
    ClientFull,
    /// There is no room, or the table refused.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl<T: Tables> Agent<T> {
    /// Lets a connection in, and one that was expected before it no more if there are too many.
    pub(super) fn open(
        &mut self,
        parent: &FlowKey6,
        live: &mut Live,
        opening: &Opening,
        now_ns: u64,
    ) -> Result<(), Unopened> {
        let now = Tick::from_ns(now_ns);
        let key = expect_key(opening);
        live.open.retain(|open| *open != key);
        while live.open.len() >= self.settings.per_session.max(1) {
            if let Some(oldest) = live.open.pop_front() {
                self.note_closed(parent, live, &oldest, ClosedBy::Replaced, now_ns);
                self.strike(parent, &oldest);
            }
        }
        let client = live.client.ip();
        if self.is_full(client) {
            self.expire(now_ns);
        }
        if self.book.of_client(client) >= self.settings.per_client {
            return Err(Unopened::ClientFull);
        }
        if self.book.len() >= self.settings.max_expectations {
            return Err(Unopened::Table(TableError {
                object: maps::EXPECTATIONS,
                reason: format!("{} are open; raise [tables] expectations", self.book.len()),
            }));
        }
        let Session {
            client_zone,
            server_zone,
            incarnation,
            ..
        } = live.record;
        let (from_zone, to_zone) = match opening.listener {
            Side::Server => (client_zone, server_zone),
            Side::Client => (server_zone, client_zone),
        };
        let life = match opening.via {
            // It has come already.
            ExpectVia::RangePassive | ExpectVia::RangeActive => ticks_from_secs(RANGE_SECS),
            _ => self.settings.expectation_ticks,
        };
        let expires = now.plus(life.min(self.settings.expectation_ticks));
        let expectation = Expectation {
            state: ExpectState::Free.word(),
            created_ns: now_ns,
            parent: *parent,
            parent_incarnation: incarnation,
            expires: expires.0,
            from_zone,
            to_zone,
            via: opening.via as u8,
            reserved: [0; 5],
        };
        self.tables.expect(&key, &expectation)?;
        self.book
            .write(key, *parent, client, expires, expectation.via);
        self.trail.opened(key, now_ns);
        live.open.push_back(key);
        self.watch_silence(parent, live, now_ns);
        Ok(())
    }

    fn is_full(&self, client: IpAddr) -> bool {
        self.book.len() >= self.settings.max_expectations
            || self.book.of_client(client) >= self.settings.per_client
    }

    /// Removes an expectation, if it is still this session's.
    pub(super) fn strike(&mut self, owner: &FlowKey6, key: &ExpectKey) {
        if self.book.strike(key, owner) {
            self.trail.closed(key);
            checked("remove an expectation", self.tables.unexpect(key));
        }
    }

    pub(super) fn close_all(&mut self, key: &FlowKey6, live: &mut Live, now_ns: u64) {
        for expected in std::mem::take(&mut live.open) {
            self.note_closed(key, live, &expected, ClosedBy::Session, now_ns);
            self.strike(key, &expected);
        }
    }

    pub(super) fn expire(&mut self, now_ns: u64) {
        for (key, owner) in self.book.expired(Tick::from_ns(now_ns)) {
            if let Some(mut live) = self.sessions.remove(&owner) {
                live.open.retain(|open| *open != key);
                self.note_closed(&owner, &mut live, &key, ClosedBy::Expired, now_ns);
                self.sessions.insert(owner, live);
            }
            self.strike(&owner, &key);
        }
    }
}

/// The key of the connection that was negotiated.
pub(super) fn expect_key(opening: &Opening) -> ExpectKey {
    ExpectKey::tcp(words(opening.src), words(opening.dst), opening.port.get())
}

//! Control connections that fall silent while something is expected of them.
//!
//! A flow that runs out of time says nothing. The programs honour no pinhole of
//! it from that moment on; this is about removing it then, and not at the next
//! sweep.

use std::collections::BTreeMap;

use firewall_common::{
    abi::FlowKey6,
    time::{Tick, ns_from_ticks},
};

use super::{Agent, SessionId, Standing, checked};
use crate::helper::{live::Live, tables::Tables};

/// When the flows of sessions with pinholes are to be looked at: `CLOCK_MONOTONIC`, ns.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BTreeMap<u64, Vec<SessionId>>);

impl Deadlines {
    fn first(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    fn add(&mut self, at_ns: u64, session: SessionId) {
        self.0.entry(at_ns).or_default().push(session);
    }

    fn remove(&mut self, at_ns: u64, session: &SessionId) {
        if let Some(due) = self.0.get_mut(&at_ns) {
            due.retain(|other| other != session);
            if due.is_empty() {
                self.0.remove(&at_ns);
            }
        }
    }

    fn take_due(&mut self, now_ns: u64) -> Vec<SessionId> {
        let later = self.0.split_off(&now_ns.saturating_add(1));
        std::mem::replace(&mut self.0, later)
            .into_values()
            .flatten()
            .collect()
    }
}

impl<T: Tables> Agent<T> {
    /// When [`Self::lapse`] has something to do, at the earliest: `CLOCK_MONOTONIC`, ns.
    #[must_use]
    pub fn next_lapse_ns(&self) -> Option<u64> {
        self.silences.first()
    }

    /// Ends the sessions with pinholes whose flows have run out of time.
    pub fn lapse(&mut self, now_ns: u64) {
        for (key, incarnation) in self.silences.take_due(now_ns) {
            let live = self.sessions.get_mut(&key);
            let Some(live) = live.filter(|live| live.record.incarnation == incarnation) else {
                continue;
            };
            live.watched_until = None;
            let open = !live.open.is_empty();
            if self.standing(&key, incarnation, now_ns) == Standing::Gone {
                self.end(&key, "its flow is gone", now_ns);
            } else if open && let Some(mut live) = self.sessions.remove(&key) {
                // Something came in the meantime.
                self.watch_silence(&key, &mut live, now_ns);
                self.sessions.insert(key, live);
            }
        }
    }

    /// Something is expected of the session: its flow is looked at when it would
    /// run out of time.
    pub(super) fn watch_silence(&mut self, key: &FlowKey6, live: &mut Live, now_ns: u64) {
        if live.watched_until.is_some() {
            return;
        }
        match self.tables.flow(key) {
            Ok(flow) => {
                let now = Tick::from_ns(now_ns);
                let left = flow.map_or(0, |flow| flow.expires.since(now));
                // Expired is what is after the last tick of its life.
                let at_ns = now_ns.saturating_add(ns_from_ticks(left.saturating_add(1)));
                self.silences.add(at_ns, (*key, live.record.incarnation));
                live.watched_until = Some(at_ns);
            }
            Err(error) => {
                checked("look up a control flow", Err(error));
            }
        }
    }

    /// The session has ended: its flow, which may have days left, is not looked at.
    pub(super) fn forget_silence(&mut self, key: &FlowKey6, live: &Live) {
        if let Some(at_ns) = live.watched_until {
            self.silences
                .remove(at_ns, &(*key, live.record.incarnation));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_their_order() {
        let key = |port| (FlowKey6::from_parts([1; 4], [2; 4], port, 21, 6, 0), 7);
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.first(), None);
        for (at, port) in [(30, 3), (10, 1), (20, 2), (10, 4)] {
            deadlines.add(at, key(port));
        }
        assert_eq!(deadlines.first(), Some(10));
        assert!(deadlines.take_due(9).is_empty());
        assert_eq!(deadlines.take_due(20), [key(1), key(4), key(2)]);
        assert_eq!(deadlines.first(), Some(30));
        deadlines.add(30, key(5));
        deadlines.remove(30, &key(5));
        deadlines.add(40, key(6));
        deadlines.remove(40, &key(6));
        deadlines.remove(50, &key(6));
        assert_eq!(deadlines.take_due(u64::MAX), [key(3)]);
        assert_eq!(deadlines.first(), None);
    }
}

//! Who is followed: sessions come and go, and their host pairs with them.

use firewall_common::abi::{FlowKey6, PairKey};
use log::warn;

use super::{Agent, checked};
use crate::helper::{crowd, live::Live, tables::Tables};

impl<T: Tables> Agent<T> {
    /// Enters a session; false if there are too many.
    pub(super) fn begin(&mut self, key: FlowKey6, live: Live, now_ns: u64) -> bool {
        if let Some(why) = self.crowded(&live) {
            if let Some(count) = self.crowded.say(now_ns) {
                warn!("{live}: not helped, {why}; {count} not helped so far");
            }
            checked("take the helper away", self.tables.unhelp(&key));
            return false;
        }
        checked(
            "write a session",
            self.tables.put_session(&key, &live.record),
        );
        self.enter(key, live);
        true
    }

    /// Why there is no room for another session, if so.
    fn crowded(&self, live: &Live) -> Option<String> {
        let max = self.settings.max_sessions;
        let (all, own) = (self.sessions.len(), self.crowd.count(live.client.ip()));
        if all >= max {
            let advice = "raise [tables] sessions";
            Some(format!("there are {all} sessions already; {advice}"))
        } else if own >= crowd::limit(max) {
            let advice = "raise [tables] sessions to allow eight times as many";
            Some(format!("its client has {own} sessions already; {advice}"))
        } else {
            None
        }
    }

    /// Counts a session in that is in the tables.
    pub(super) fn enter(&mut self, key: FlowKey6, live: Live) {
        let pair = live.pair();
        self.crowd.enter(live.client.ip());
        self.sessions.insert(key, live);
        let members = self.pairs.entry(pair).or_default();
        members.push(key);
        let count = members.len();
        self.write_pair(&pair, count);
    }

    /// Counts a session out.
    pub(super) fn leave(&mut self, live: &Live, key: &FlowKey6) {
        self.crowd.leave(live.client.ip());
        let pair = live.pair();
        let Some(members) = self.pairs.get_mut(&pair) else {
            return;
        };
        members.retain(|member| member != key);
        let count = members.len();
        if count == 0 {
            self.pairs.remove(&pair);
        }
        self.write_pair(&pair, count);
    }

    fn write_pair(&mut self, pair: &PairKey, count: usize) {
        let done = match u32::try_from(count) {
            Ok(0) => self.tables.drop_pair(pair),
            count => self.tables.put_pair(pair, count.unwrap_or(u32::MAX)),
        };
        checked("write a host pair", done);
    }
}

//! What an agent takes over from the one before.

use firewall_common::time::Tick;
use log::info;

use super::{Agent, Standing};
use crate::helper::{
    live::Live,
    tables::{Result, Tables},
};

impl<T: Tables> Agent<T> {
    /// Takes over what the tables hold.
    pub(super) fn resume(&mut self, now_ns: u64) -> Result<()> {
        for (key, record) in self.tables.sessions()? {
            let standing = self.standing(&key, record.incarnation, now_ns);
            let live = Live::resumed(&key, record, self.settings.ftp)
                .filter(|_| standing != Standing::Gone);
            let Some(live) = live else {
                self.tables.drop_session(&key)?;
                continue;
            };
            info!("{live}: session resumed, {}", live.phase().name());
            self.enter(key, live);
        }
        self.resume_expectations(now_ns)?;
        for (pair, _) in self.tables.pairs()? {
            if !self.pairs.contains_key(&pair) {
                self.tables.drop_pair(&pair)?;
            }
        }
        // With their expectations in place, so that these are closed.
        self.sweep(now_ns);
        self.resume_ranged(now_ns)?;
        self.resume_children(now_ns)
    }

    fn resume_expectations(&mut self, now_ns: u64) -> Result<()> {
        let mut found = self.tables.expectations()?;
        found.sort_by_key(|(_, expectation)| expectation.created_ns);
        for (key, expectation) in found {
            match self.sessions.get_mut(&expectation.parent) {
                Some(live) if live.record.incarnation == expectation.parent_incarnation => {
                    live.open.push_back(key);
                    self.trail.opened(key, expectation.created_ns);
                    let expires = Tick(expectation.expires);
                    let client = live.client.ip();
                    self.book
                        .write(key, expectation.parent, client, expires, expectation.via);
                }
                _ => self.tables.unexpect(&key)?,
            }
        }
        let expecting = self
            .sessions
            .iter()
            .filter(|(_, live)| !live.open.is_empty());
        let expecting: Vec<_> = expecting.map(|(key, _)| *key).collect();
        for key in expecting {
            if let Some(mut live) = self.sessions.remove(&key) {
                self.watch_silence(&key, &mut live, now_ns);
                self.sessions.insert(key, live);
            }
        }
        Ok(())
    }
}

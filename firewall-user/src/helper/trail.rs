//! What the agent remembers in order to tell of it.

use std::{collections::HashMap, net::SocketAddr};

use firewall_common::{
    abi::{ExpectKey, FlowKey6, FlowState, JournalKind, flow_flags},
    tcp::State,
    time::NS_PER_SEC,
};

/// Data connections whose fate is looked for at a time.
const MAX_FOLLOWED: usize = 4096;
/// A SYN without an answer for this long is told of: it was sent again twice
/// (after 1 s and 3 s, RFC 6298), and nobody waits for long.
pub(super) const SILENCE_NS: u64 = 3 * NS_PER_SEC;
/// No answer comes after this any more (the kernel's `tcp_syn_retries`).
const FORGET_NS: u64 = 130 * NS_PER_SEC;
/// Events of a session within a second that open nothing: more are counted only.
const PER_SECOND: u64 = 32;

/// The journal's last number, and what later events refer to.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// Sequence number of the last record.
    pub(super) last: u64,
    /// When pinholes were opened, ns.
    opened: HashMap<ExpectKey, u64>,
    followed: HashMap<FlowKey6, Followed>,
}

/// A data connection whose SYN passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    /// The session that it belongs to.
    pub(super) control: FlowKey6,
    /// When its SYN passed, ns.
    pub(super) at_ns: u64,
    /// Who connects to whom.
    pub(super) ends: (SocketAddr, SocketAddr),
    /// It was told that nobody answers.
    pub(super) told: bool,
}

/// What has come of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// No answer yet.
    Waiting,
    /// It came about.
    Connected,
    /// An RST was the answer.
    Reset,
}

impl Fate {
    /// From its entry, if there is one.
    pub(super) fn of(state: Option<FlowState>) -> Self {
        let Some(word) = state else {
            // The programs delete a connection whose only answer was an RST.
            return Self::Reset;
        };
        let is = |state: State| word.state() == state as u8;
        if word.has(flow_flags::ASSURED) {
            Self::Connected
        } else if is(State::Close) {
            Self::Reset
        } else {
            Self::Waiting
        }
    }
}

impl Trail {
    pub(super) fn opened(&mut self, key: ExpectKey, now_ns: u64) {
        self.opened.insert(key, now_ns);
    }

    /// How long a pinhole has been open, ns.
    pub(super) fn age(&self, key: &ExpectKey, now_ns: u64) -> u64 {
        let at = self.opened.get(key);
        at.map_or(0, |at| now_ns.saturating_sub(*at))
    }

    pub(super) fn closed(&mut self, key: &ExpectKey) {
        self.opened.remove(key);
    }

    pub(super) fn follow(&mut self, flow: FlowKey6, followed: Followed) {
        if self.followed.len() < MAX_FOLLOWED {
            self.followed.insert(flow, followed);
        }
    }

    /// Connections to look at.
    pub(super) fn followed(&self) -> Vec<(FlowKey6, Followed)> {
        self.followed.iter().map(|(k, v)| (*k, *v)).collect()
    }

    /// Those of a session, which are not followed any more.
    pub(super) fn take(&mut self, control: &FlowKey6) -> Vec<(FlowKey6, Followed)> {
        let own = |(_, f): &(&FlowKey6, &mut Followed)| f.control == *control;
        if !self.followed.iter_mut().any(|pair| own(&pair)) {
            return Vec::new();
        }
        self.followed
            .extract_if(|_, followed| followed.control == *control)
            .collect()
    }

    /// Goes on following, or not.
    pub(super) fn settle(&mut self, flow: &FlowKey6, fate: Fate, now_ns: u64) {
        let Some(followed) = self.followed.get_mut(flow) else {
            return;
        };
        let age = now_ns.saturating_sub(followed.at_ns);
        if fate == Fate::Waiting && age < FORGET_NS {
            followed.told |= age >= SILENCE_NS;
        } else {
            self.followed.remove(flow);
        }
    }
}

/// Bounds what a session can have told of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quota {
    second: u64,
    used: u64,
    skipped: u64,
}

impl Quota {
    /// May it be told? Returns how many were left out before it.
    pub(super) fn take(&mut self, kind: JournalKind, now_ns: u64) -> Option<u64> {
        let bounded = matches!(
            kind,
            JournalKind::Refused
                | JournalKind::Dropped
                | JournalKind::WouldDrop
                | JournalKind::Passed
                | JournalKind::Failed
        );
        let second = now_ns / NS_PER_SEC;
        if second != self.second {
            (self.second, self.used) = (second, 0);
        }
        if bounded && self.used >= PER_SECOND {
            self.skipped += 1;
            return None;
        }
        self.used += u64::from(bounded);
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_told_once() {
        let mut quota = Quota::default();
        let told = (0..100).filter_map(|_| quota.take(JournalKind::Refused, 5));
        assert_eq!(told.collect::<Vec<_>>(), vec![0; 32]);
        assert_eq!(quota.take(JournalKind::Opened, 6), Some(68));
        assert_eq!(quota.take(JournalKind::Refused, 6), None);
        assert_eq!(quota.take(JournalKind::Refused, NS_PER_SEC), Some(1));
    }

    #[test]
    fn the_fate_of_a_connection_shows_in_its_entry() {
        let word = |state: State, flags| Some(FlowState::new(state as u8, flags, 1));
        let replied = flow_flags::SEEN_REPLY;
        assert_eq!(Fate::of(None), Fate::Reset);
        assert_eq!(Fate::of(word(State::SynSent, 0)), Fate::Waiting);
        assert_eq!(Fate::of(word(State::SynRecv, replied)), Fate::Waiting);
        assert_eq!(Fate::of(word(State::Close, replied)), Fate::Reset);
        for state in [State::Established, State::TimeWait, State::Close] {
            assert_eq!(Fate::of(word(state, flow_flags::ASSURED)), Fate::Connected);
        }
    }
}

//! What the agent remembers in order to tell of it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use firewall_common::{
    abi::{ExpectKey, FlowKey6, FlowState, JournalKind, flow_flags},
    tcp::State,
    time::NS_PER_SEC,
};

use super::crowd::network;

/// Data connections whose fate is looked for at a time.
const MAX_FOLLOWED: usize = 4096;
/// Those of one session: more than it can begin between two looks.
const MAX_OF_SESSION: usize = 256;
/// A SYN without an answer for this long is told of: it was sent again twice
/// (after 1 s and 3 s, RFC 6298), and nobody waits for long.
pub(super) const SILENCE_NS: u64 = 3 * NS_PER_SEC;
/// No answer comes after this any more (the kernel's `tcp_syn_retries`).
const FORGET_NS: u64 = 130 * NS_PER_SEC;
/// Events of a session within a second that open nothing: more are counted only.
const PER_SECOND: u64 = 32;
/// Events of all sessions of a client within a second, of whatever kind: more are
/// counted only. What is told goes to the log, too, and the journal holds 4096.
const CLIENT_PER_SECOND: u64 = 1024;

/// The journal's last number, and what later events refer to.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// Sequence number of the last record.
    pub(super) last: u64,
    /// When pinholes were opened, ns.
    opened: HashMap<ExpectKey, u64>,
    /// By their control connections, of which each ends with its own.
    followed: HashMap<FlowKey6, HashMap<FlowKey6, Followed>>,
    /// How many these are.
    following: usize,
    clients: HashMap<IpAddr, Spoken>,
}

/// How much was told of a client in a second.
#[derive(Clone, Copy, Debug, Default)]
struct Spoken {
    second: u64,
    count: u64,
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

    /// May another event of a session of `client` be told?
    pub(super) fn may_tell(&mut self, client: IpAddr, now_ns: u64) -> bool {
        let spoken = self.clients.entry(network(client)).or_default();
        let second = now_ns / NS_PER_SEC;
        if second > spoken.second {
            *spoken = Spoken { second, count: 0 };
        }
        spoken.count += 1;
        spoken.count <= CLIENT_PER_SECOND
    }

    /// Forgets the clients of whom nothing was told in this second.
    pub(super) fn forget_clients(&mut self, now_ns: u64) {
        let second = now_ns / NS_PER_SEC;
        self.clients.retain(|_, spoken| spoken.second >= second);
    }

    pub(super) fn follow(&mut self, flow: FlowKey6, followed: Followed) {
        if self.following >= MAX_FOLLOWED {
            return;
        }
        let own = self.followed.entry(followed.control).or_default();
        if own.len() < MAX_OF_SESSION && own.insert(flow, followed).is_none() {
            self.following += 1;
        }
    }

    /// Connections to look at.
    pub(super) fn followed(&self) -> Vec<(FlowKey6, Followed)> {
        let all = self.followed.values().flatten();
        all.map(|(flow, followed)| (*flow, *followed)).collect()
    }

    /// Those of a session, which are not followed any more.
    pub(super) fn take(&mut self, control: &FlowKey6) -> Vec<(FlowKey6, Followed)> {
        let own = self.followed.remove(control).unwrap_or_default();
        self.following = self.following.saturating_sub(own.len());
        own.into_iter().collect()
    }

    /// Goes on following, or not.
    pub(super) fn settle(&mut self, control: &FlowKey6, flow: &FlowKey6, fate: Fate, now_ns: u64) {
        let Some(own) = self.followed.get_mut(control) else {
            return;
        };
        let Some(followed) = own.get_mut(flow) else {
            return;
        };
        let age = now_ns.saturating_sub(followed.at_ns);
        if fate == Fate::Waiting && age < FORGET_NS {
            followed.told |= age >= SILENCE_NS;
            return;
        }
        own.remove(flow);
        self.following = self.following.saturating_sub(1);
        if own.is_empty() {
            self.followed.remove(control);
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
        // What was seen earlier can be told later.
        if second > self.second {
            (self.second, self.used) = (second, 0);
        }
        if bounded && self.used >= PER_SECOND {
            self.skipped += 1;
            return None;
        }
        self.used += u64::from(bounded);
        Some(std::mem::take(&mut self.skipped))
    }

    /// So many more were not told.
    pub(super) fn skip(&mut self, count: u64) {
        self.skipped += count;
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
        // An event of the second before does not begin another one.
        let late = (0..100).filter_map(|n| quota.take(JournalKind::Dropped, n % 2 * NS_PER_SEC));
        assert_eq!(late.count(), 31);
    }

    #[test]
    fn one_session_does_not_keep_others_from_being_followed() {
        let key = |sport, dport| FlowKey6::from_parts([1; 4], [2; 4], sport, dport, 6, 0);
        let followed = |control| Followed {
            control,
            at_ns: 0,
            ends: (
                "10.0.0.2:0".parse().unwrap(),
                "192.0.2.7:5".parse().unwrap(),
            ),
            told: false,
        };
        let (greedy, other) = (key(1, 21), key(2, 21));
        let mut trail = Trail::default();
        for port in 1000..60_000 {
            trail.follow(key(port, 5), followed(greedy));
        }
        trail.follow(key(3, 5), followed(other));
        assert_eq!(trail.take(&other).len(), 1);
        let own = trail.followed();
        assert_eq!(own.len(), MAX_OF_SESSION);
        for (flow, _) in &own {
            trail.settle(&greedy, flow, Fate::Connected, 1);
        }
        assert!(trail.followed.is_empty());
        assert_eq!(trail.following, 0);
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

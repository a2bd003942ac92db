//! Data connections that were dropped or are held.

use std::net::SocketAddr;

use firewall_common::{
    abi::{
        DataFlow, DroppedSyn, EventKind, ExpectKey, FlowKey6, JournalKind, PairKey, SessionPhase,
        event_flags,
    },
    time::Tick,
};
use log::debug;

use super::{Agent, REINJECT_NS, STALE_NS, Tuple, checked, range::is_ranged};
use crate::{
    bpf::{address, ends},
    ftp::DataPort,
    helper::{
        frame::{to_run_again, to_send_again},
        ring::Record,
        tables::{Result, Tables},
        trail::Followed,
    },
    journal::News,
};

impl<T: Tables> Agent<T> {
    /// A SYN between the hosts of a session was dropped, or is held.
    pub(super) fn syn(&mut self, record: &Record<'_>, now_ns: u64) {
        let header = &record.header;
        let (src, sport, dst, dport) = header.key.endpoints(record.heading());
        let expected = ExpectKey::tcp(src, dst, dport);
        let ends = ends(&header.key, record.heading());
        let stale = header.at_ns.saturating_add(STALE_NS) < self.started_ns;
        let expects = self.book.expects(&expected, Tick::from_ns(now_ns));
        let zones = (header.from_zone, header.to_zone);
        let ranged = !expects && !stale && self.range_opens(&header.key, ends, zones, now_ns);
        if self.settings.shadow {
            if self.admit(record, &expected, now_ns) {
                return;
            }
        } else if record.kind == EventKind::SynHeld
            && !stale
            && self.run_again(record, (sport, header.seq, expected), now_ns)
        {
            // On its way in it has its flow by now.
            if ranged && header.flags & event_flags::EGRESS == 0 {
                self.range_served(&expected);
            }
            return;
        }
        let Some(key) = self.blamed(&PairKey::new(src, dst)) else {
            return;
        };
        let news = self.of_drop(header.reason, ends);
        self.with(&key, now_ns, |live, _| {
            let from_client = live.client.ip() == address(src);
            live.remember_drop(DroppedSyn {
                at_ns: header.at_ns,
                sport,
                dport,
                from_client: u8::from(from_client),
                reason: header.reason,
                reserved: 0,
            });
        });
        self.note_of(&key, &news, header.at_ns);
    }

    /// A SYN of another host came to a port that somebody is expected at, and was dropped.
    pub(super) fn stray(&mut self, record: &Record<'_>) {
        let header = &record.header;
        let (src, _, dst, dport) = header.key.endpoints(record.heading());
        let target = ExpectKey::tcp(src, dst, dport).target();
        let now = Tick::from_ns(header.at_ns);
        let Some(control) = self.book.owner_of_target(&target, now) else {
            return;
        };
        let ends = ends(&header.key, record.heading());
        let news = self.of_drop(header.reason, ends);
        self.note_of(&control, &news, header.at_ns);
    }

    /// News of a data connection that was dropped, or would be.
    fn of_drop(&self, reason: u8, ends: (SocketAddr, SocketAddr)) -> News {
        let kind = if self.settings.shadow {
            JournalKind::WouldDrop
        } else {
            JournalKind::Dropped
        };
        News {
            reason,
            connection: Some(ends),
            ..News::of(kind)
        }
    }

    /// A SYN between the hosts of a session began a flow.
    pub(super) fn passed(&mut self, record: &Record<'_>) {
        let header = &record.header;
        let (src, _, dst, dport) = header.key.endpoints(record.heading());
        let expected = ExpectKey::tcp(src, dst, dport);
        let at_ns = header.at_ns;
        let pair = PairKey::new(src, dst);
        let owner = (header.flags & event_flags::EXPECTED != 0)
            .then(|| self.taker_of(&pair, &header.key, &expected, at_ns))
            .flatten();
        let kind = match owner {
            Some(_) => JournalKind::Used,
            // What goes to a service of the system is no data connection.
            None if dport < DataPort::MIN => return,
            None => JournalKind::Passed,
        };
        let Some(control) = owner.or_else(|| self.blamed(&pair)) else {
            return;
        };
        self.came(&control, record, kind, &expected, at_ns);
    }

    /// Whose pinhole a connection took. Its tie knows, even if the pinhole has been
    /// replaced since; without it, the
    /// book, and what ranges let in.
    fn taker_of(
        &mut self,
        pair: &PairKey,
        flow: &FlowKey6,
        expected: &ExpectKey,
        at_ns: u64,
    ) -> Option<FlowKey6> {
        match self.tables.data_flow(flow) {
            Ok(Some(tie)) => {
                let live = self.sessions.get(&tie.parent);
                if live.is_some_and(|live| live.record.incarnation == tie.parent_incarnation) {
                    if is_ranged(&tie) {
                        self.range_took(&tie.parent, flow, at_ns);
                    }
                    return Some(tie.parent);
                }
            }
            Ok(None) => {}
            Err(error) => {
                checked("look up a data connection", Err(error));
            }
        }
        let owner = self.book.owner(expected, Tick::from_ns(at_ns));
        owner.or_else(|| self.ranged_owner(pair, flow))
    }

    /// Tells of a SYN that passed, and sees what comes of it.
    fn came(
        &mut self,
        control: &FlowKey6,
        record: &Record<'_>,
        kind: JournalKind,
        expected: &ExpectKey,
        at_ns: u64,
    ) {
        let ends = ends(&record.header.key, record.heading());
        let news = News {
            lasted_ns: self.trail.age(expected, at_ns),
            connection: Some(ends),
            ..News::of(kind)
        };
        self.note_of(control, &news, at_ns);
        let followed = Followed {
            control: *control,
            at_ns,
            ends,
            told: false,
        };
        self.trail.follow(record.header.key, followed);
    }

    /// In shadow mode the SYN has passed. Enforcing would have held it, or dropped
    /// it and met it again, until the pinhole was there: if it is there by now, the
    /// connection is admitted, and has used its pinhole up.
    fn admit(&mut self, record: &Record<'_>, expected: &ExpectKey, now_ns: u64) -> bool {
        let Some(owner) = self.book.owner(expected, Tick::from_ns(now_ns)) else {
            return false;
        };
        match self.tables.admit(&record.header.key) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => return checked("admit a data connection", Err(error)),
        }
        debug!("data connection to port {} admitted", expected.dport);
        checked(
            "tie a data connection",
            self.tie(&record.header.key, &owner, expected),
        );
        self.came(&owner, record, JournalKind::Used, expected, now_ns);
        self.strike(&owner, expected);
        if let Some(live) = self.sessions.get_mut(&owner) {
            live.open.retain(|open| open != expected);
        }
        true
    }

    /// Ties an admitted flow to its control connection, as the programs do where
    /// they take a pinhole themselves.
    fn tie(&mut self, key: &FlowKey6, owner: &FlowKey6, expected: &ExpectKey) -> Result<()> {
        let (Some(live), Some(state)) = (self.sessions.get(owner), self.tables.state(key)?) else {
            return Ok(());
        };
        let data = DataFlow {
            parent: *owner,
            parent_incarnation: live.record.incarnation,
            incarnation: state.incarnation(),
            via: self.book.via(expected),
            client_is_hi: live.record.client_is_hi,
            reserved: 0,
        };
        self.tables.tie(key, &data)
    }

    /// Runs a held SYN again if it is expected by now; false if it stays dropped.
    fn run_again(&mut self, record: &Record<'_>, tuple: Tuple, now_ns: u64) -> bool {
        let recently = |at: &u64| now_ns.saturating_sub(*at) < REINJECT_NS;
        if !self.book.expects(&tuple.2, Tick::from_ns(now_ns))
            || self.reinjected.get(&tuple).is_some_and(recently)
        {
            return false;
        }
        self.reinjected.insert(tuple, now_ns);
        let flag = |flag| record.header.flags & flag != 0;
        let bare = flag(event_flags::NO_ETHERNET);
        let ifindex = record.header.ifindex;
        let done = if flag(event_flags::EGRESS) {
            let frame = to_send_again(record.data, bare);
            self.tables.resend(&frame, ifindex)
        } else {
            let frame = to_run_again(record.data, bare);
            self.tables.reinject(&frame, ifindex)
        };
        let waited = now_ns.saturating_sub(record.header.at_ns) / 1000;
        debug!(
            "held SYN to port {} run again after {waited} µs",
            tuple.2.dport
        );
        checked("run a held SYN again", done)
    }

    /// The session of a host pair that a dropped data connection most likely
    /// belongs to: one that cannot be read before one that can, then the last active.
    fn blamed(&self, pair: &PairKey) -> Option<FlowKey6> {
        let members = self.pairs.get(pair)?.iter();
        let rank = |key: &&FlowKey6| {
            self.sessions.get(key).map(|live| {
                let unread = matches!(live.phase(), SessionPhase::Tls | SessionPhase::Blind);
                (unread, live.record.last_ns)
            })
        };
        members.max_by_key(rank).copied()
    }
}

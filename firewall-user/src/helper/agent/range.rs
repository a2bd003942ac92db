//! Session ranges: data connections of sessions that nobody can read.
//!
//! The SYN that the rules refuse comes on the ring. If its two hosts have an
//! encrypted session that a range is for, an expectation for exactly this
//! connection is written, and the SYN runs again; one that was not held is let in
//! when it is sent again. Which ranges there are no program knows; that there are some
//! it does (`config_flags::RANGES`), and holds such SYNs even when the agent has read
//! all that was said. With no agent nothing is let in.

use std::{collections::HashSet, net::SocketAddr};

use firewall_common::{
    abi::{DataFlow, ExpectKey, ExpectVia, FlowKey6, JournalKind, PairKey, SessionPhase},
    tcp::State,
    time::NS_PER_SEC,
};
use log::{info, warn};

use super::{
    Agent, SessionId, Standing, audit,
    children::{flow_of, session_of},
    openings::RANGE_SECS,
};
use crate::{
    ftp::{DataPort, Opening, Refusal, SessionRange, Side},
    helper::{
        live::Live,
        tables::{Result, Tables},
    },
    journal::News,
};

const MINUTE_NS: u64 = 60 * NS_PER_SEC;
/// A connection that was let in and has no entry yet may still come while its
/// expectation lives.
const COMES_NS: u64 = RANGE_SECS * NS_PER_SEC;

/// What a session has of its range.
#[derive(Clone, Debug, Default)]
pub(in crate::helper) struct Ranged {
    /// Data connections that were let in and may be up: their flows, and since when.
    up: Vec<(FlowKey6, u64)>,
    /// When connections were let in within the last minute, ns.
    let_in: Vec<u64>,
}

/// What may be left of the ranges of sessions that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leftovers {
    /// There may be something.
    due: bool,
    /// When it was looked for, `CLOCK_MONOTONIC`, ns.
    looked_ns: u64,
}

impl Leftovers {
    /// Is there nothing to look for?
    pub(super) const fn is_empty(&self) -> bool {
        !self.due
    }
}

impl<T: Tables> Agent<T> {
    /// Expects a data connection of which a SYN came, if a range is for it.
    pub(super) fn range_opens(
        &mut self,
        flow: &FlowKey6,
        ends: (SocketAddr, SocketAddr),
        zones: (u8, u8),
        now_ns: u64,
    ) -> bool {
        let Some((control, range)) = self.range_for(ends, zones) else {
            return false;
        };
        let Some(incarnation) = self.sessions.get(&control).map(|s| s.record.incarnation) else {
            return false;
        };
        if self.standing(&control, incarnation, now_ns) == Standing::Gone {
            return false;
        }
        let Some(mut live) = self.sessions.remove(&control) else {
            return false;
        };
        let opened = self.open_in_range(&control, &mut live, range, (flow, ends), now_ns);
        if let Err(refusal) = opened {
            let news = News {
                connection: Some(ends),
                ..News::of(JournalKind::Refused)
            };
            self.refuse(&control, &mut live, refusal, news, now_ns);
            self.count_refusals();
        }
        live.update_record();
        self.sessions.insert(control, live);
        self.unsaved.insert(control);
        opened.is_ok()
    }

    /// The encrypted session of two hosts whose range the connection is in; of
    /// several the last active one.
    fn range_for(
        &self,
        (src, dst): (SocketAddr, SocketAddr),
        zones: (u8, u8),
    ) -> Option<(FlowKey6, &'static SessionRange)> {
        let pair = PairKey::new(crate::bpf::words(src.ip()), crate::bpf::words(dst.ip()));
        let found =
            self.pairs.get(&pair)?.iter().filter_map(|control| {
                let live = self.sessions.get(control)?;
                let listener = listener(live, dst);
                let mut ranges = self.settings.ranges.iter();
                let (client, server) = (live.client.ip(), live.server.ip());
                let range = ranges.find(|r| r.admits(client, server, listener, dst.port()))?;
                (live.phase() == SessionPhase::Tls && zones_to(live, listener) == zones)
                    .then_some((live.record.last_ns, *control, range))
            });
        let (_, control, range) = found.max_by_key(|(last_ns, ..)| *last_ns)?;
        Some((control, range))
    }

    fn open_in_range(
        &mut self,
        control: &FlowKey6,
        live: &mut Live,
        range: &SessionRange,
        (flow, ends): (&FlowKey6, (SocketAddr, SocketAddr)),
        now_ns: u64,
    ) -> std::result::Result<(), Refusal> {
        self.prune(&mut live.ranged, now_ns);
        live.ranged.up.retain(|(up, _)| up != flow);
        if live.ranged.let_in.len() >= range.per_minute {
            return Err(Refusal::RangeRate);
        }
        if live.ranged.up.len() >= range.max {
            return Err(Refusal::RangeFull);
        }
        let listener = listener(live, ends.1);
        let opening = Opening {
            listener,
            src: ends.0.ip(),
            dst: ends.1.ip(),
            port: DataPort::new(ends.1.port())?,
            via: match listener {
                Side::Server => ExpectVia::RangePassive,
                Side::Client => ExpectVia::RangeActive,
            },
        };
        if let Err(error) = self.open(control, live, &opening, now_ns) {
            warn!("{live}: cannot let a data connection in: {error}");
            return Err(Refusal::TableFull);
        }
        live.record.opened = live.record.opened.wrapping_add(1);
        live.ranged.up.push((*flow, now_ns));
        live.ranged.let_in.push(now_ns);
        let news = News {
            connection: Some(ends),
            ..audit::of_pinhole(JournalKind::Opened, &opening)
        };
        self.note(control, live, &news, now_ns);
        Ok(())
    }

    /// Whose range let this flow in?
    pub(super) fn ranged_owner(&self, pair: &PairKey, flow: &FlowKey6) -> Option<FlowKey6> {
        let mut members = self.pairs.get(pair)?.iter();
        let has = |control: &&FlowKey6| {
            let live = self.sessions.get(control);
            live.is_some_and(|live| live.ranged.up.iter().any(|(up, _)| up == flow))
        };
        members.find(has).copied()
    }

    /// A range of this session let a connection in: it counts, whether it is the one
    /// whose SYN came first or another one that took its place.
    pub(super) fn range_took(&mut self, control: &FlowKey6, flow: &FlowKey6, at_ns: u64) {
        let live = self.sessions.get_mut(control);
        if let Some(up) = live.map(|live| &mut live.ranged.up)
            && !up.iter().any(|(known, _)| known == flow)
        {
            up.push((*flow, at_ns));
        }
    }

    /// Forgets what is over.
    fn prune(&mut self, ranged: &mut Ranged, now_ns: u64) {
        let tables = &mut self.tables;
        ranged.up.retain(|(flow, at_ns)| match tables.state(flow) {
            Ok(Some(word)) => {
                let over = [State::Close, State::TimeWait].map(|state| state as u8);
                !over.contains(&word.state())
            }
            Ok(None) => now_ns.saturating_sub(*at_ns) < COMES_NS,
            // It counts until somebody knows.
            Err(_) => true,
        });
        ranged
            .let_in
            .retain(|at_ns| now_ns.saturating_sub(*at_ns) < MINUTE_NS);
    }

    /// A SYN was run again and has its flow: the expectation has served.
    pub(super) fn range_served(&mut self, expected: &ExpectKey) {
        let Some(owner) = self.book.any_owner(expected) else {
            return;
        };
        let Some(live) = self.sessions.get_mut(&owner) else {
            return;
        };
        live.open.retain(|open| open != expected);
        self.strike(&owner, expected);
    }

    /// The session ended: what its range let in ends with it.
    pub(super) fn end_range(&mut self, control: &FlowKey6, live: &Live) {
        if live.ranged.up.is_empty() {
            return;
        }
        self.ranged.due = true;
        match self.cut_ranged((*control, live.record.incarnation), &live.ranged.up) {
            Ok(0) => {}
            Ok(count) => {
                info!("{live}: {count} data connections of its session range cut with it");
            }
            Err(error) => warn!("{live}: cannot cut data connections: {error}"),
        }
    }

    /// Cuts what the range of a session let in, as far as is known. Returns how many
    /// there were.
    fn cut_ranged(&mut self, session: SessionId, up: &[(FlowKey6, u64)]) -> Result<u32> {
        let mut flows = Vec::new();
        for (key, _) in up {
            let tie = self.tables.data_flow(key)?;
            if let Some(data) = tie.filter(|d| is_ranged(d) && session_of(d) == session) {
                flows.push(flow_of(&(*key, data)));
            }
        }
        if flows.is_empty() {
            return Ok(0);
        }
        self.tables.delete(&flows)
    }

    /// Cuts what the ranges of sessions that have ended let in unheard: a SYN that
    /// passes is not told of when the ring is full. All ties are read, so it is done
    /// once for all that ended within a second.
    pub(super) fn cut_leftovers(&mut self, now_ns: u64) {
        let recently = now_ns.saturating_sub(self.ranged.looked_ns) < NS_PER_SEC;
        if !self.ranged.due || recently {
            return;
        }
        self.ranged = Leftovers {
            due: false,
            looked_ns: now_ns,
        };
        let live = self.sessions.iter();
        let live: HashSet<SessionId> = live.map(|(k, s)| (*k, s.record.incarnation)).collect();
        match self.cut(|data| is_ranged(data) && !live.contains(&session_of(data))) {
            Ok(0) => {}
            Ok(count) => info!("{count} data connections of session ranges cut"),
            Err(error) => warn!("cannot cut data connections: {error}"),
        }
    }

    /// Takes over what an earlier agent let in, and ends what has lost its session
    /// or whose range is no more.
    pub(super) fn resume_ranged(&mut self, now_ns: u64) -> Result<()> {
        let mut orphans = Vec::new();
        let mut flows = self.tables.data_flows()?;
        flows.retain(|(_, data)| is_ranged(data));
        for flow in &flows {
            let (control, incarnation) = session_of(&flow.1);
            let ranges = self.settings.ranges;
            let live = self.sessions.get_mut(&control).filter(|live| {
                let (client, server) = (live.client.ip(), live.server.ip());
                live.record.incarnation == incarnation
                    && ranges.iter().any(|range| range.is_for(client, server))
            });
            match live {
                Some(live) => live.ranged.up.push((flow.0, now_ns)),
                None => orphans.push(flow_of(flow)),
            }
        }
        if !orphans.is_empty() {
            self.tables.delete(&orphans)?;
        }
        Ok(())
    }
}

/// Did a range let it in?
pub(super) fn is_ranged(data: &DataFlow) -> bool {
    let via = ExpectVia::try_from(data.via);
    matches!(via, Ok(ExpectVia::RangePassive | ExpectVia::RangeActive))
}

/// Who listens for a data connection to `dst`.
fn listener(live: &Live, dst: SocketAddr) -> Side {
    if dst.ip() == live.server.ip() {
        Side::Server
    } else {
        Side::Client
    }
}

/// From which zone to which a connection to `listener` goes.
fn zones_to(live: &Live, listener: Side) -> (u8, u8) {
    let (client, server) = (live.record.client_zone, live.record.server_zone);
    match listener {
        Side::Server => (client, server),
        Side::Client => (server, client),
    }
}

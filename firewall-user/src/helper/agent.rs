//! The agent: from ring records to expectations.
//!
//! [`Agent`] does no I/O of its own and reads no clock, so tests drive it over
//! tables in memory; [`run`] drives it over the ring.

mod audit;
mod children;
mod openings;
mod range;
mod resume;
mod roster;
mod silence;
mod syn;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    pin::pin,
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use firewall_common::{
    abi::{
        EventKind, ExpectKey, FlowKey6, JournalKind, PairKey, Session, SessionPhase, flow_flags,
    },
    tcp::State,
    time::{NS_PER_SEC, Tick},
};
use log::{debug, warn};

use self::openings::{Unopened, expect_key};
use self::range::Leftovers;
pub(super) use self::range::Ranged;
use super::{
    book::Book,
    crowd::Crowd,
    live::Live,
    memory::Memory,
    ring::{Events, Record, RecordError},
    seldom::Seldom,
    tables::{FlowView, Result, Tables},
    trail::Trail,
    urgency::Urgency,
};
use crate::{
    bpf::sys::{Alarm, monotonic_ns},
    ftp::{self, Action, Ccc, Excerpt, Refusal, Remark, SessionRange},
    journal::News,
};
use children::Cut;
pub use children::SessionId;
use silence::Deadlines;

/// Time between two signs of life.
pub const HEARTBEAT_NS: u64 = NS_PER_SEC / 4;
/// The same while there is nothing to help with. The programs take an agent for dead
/// that has given none for three seconds.
const REST_NS: u64 = NS_PER_SEC;
/// A record that was older than this when the agent started is not parsed:
/// the peers have long gone on.
const STALE_NS: u64 = NS_PER_SEC;
/// Time between two looks for sessions whose flow is gone without a FIN or RST.
const SWEEP_NS: u64 = 10 * NS_PER_SEC;
/// Time within which one tuple's SYN is run again at most once.
const REINJECT_NS: u64 = NS_PER_SEC;
/// Time for which records are handled before the rest has its turn, the sign of
/// life for one. A segment of 64 kB can have thousands of lines, and if each of many
/// does, the programs must not take the agent for dead.
const TURN_NS: u64 = NS_PER_SEC / 20;

/// What an operator can choose about the helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Life of an expectation, in ticks ([`firewall_common::time::ticks_from_secs`]).
    pub expectation_ticks: u32,
    /// Expectations that a session has at a time; the newest replaces the oldest.
    pub per_session: usize,
    /// Expectations of all sessions of a client; more are refused.
    pub per_client: usize,
    /// Expectations in all; no more than the map holds.
    pub max_expectations: usize,
    /// Sessions in all; no more than the map holds. One client has an eighth of
    /// them at most, or 16 if that is more.
    pub max_sessions: usize,
    /// Nothing is dropped, held or run again: data connections that came before
    /// their pinhole are admitted afterwards.
    pub shadow: bool,
    /// How sessions are read.
    pub ftp: ftp::Config,
    /// How long after the end of its session a data connection is cut, in ns;
    /// `None`: it goes on.
    pub cut_after_ns: Option<u64>,
    /// What encrypted sessions may have; for the life of the process.
    pub ranges: &'static [SessionRange],
}

/// A SYN's source port, its sequence number, and where it goes.
type Tuple = (u16, u32, ExpectKey);

/// The FTP helper: reads control connections and keeps the tables that follow from them.
#[derive(Debug)]
pub struct Agent<T> {
    tables: T,
    settings: Settings,
    started_ns: u64,
    swept_ns: u64,
    sessions: HashMap<FlowKey6, Live>,
    /// Those whose records in the tables are older than they are.
    unsaved: HashSet<FlowKey6>,
    pairs: HashMap<PairKey, Vec<FlowKey6>>,
    book: Book,
    reinjected: HashMap<Tuple, u64>,
    held: Memory,
    out_of_memory: Seldom,
    crowd: Crowd,
    crowded: Seldom,
    unopened: Seldom,
    /// Refused lines that are not in the tables yet, by reason.
    refusals: BTreeMap<u8, u64>,
    cuts: Vec<Cut>,
    ranged: Leftovers,
    silences: Deadlines,
    trail: Trail,
}

impl<T: Tables> Agent<T> {
    /// Takes over what an earlier agent left in the tables, and gives the first
    /// sign of life. `now_ns` is `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// Tables that cannot be read or written.
    pub fn start(tables: T, settings: Settings, now_ns: u64) -> Result<Self> {
        let mut agent = Self {
            tables,
            settings,
            started_ns: now_ns,
            swept_ns: now_ns,
            sessions: HashMap::new(),
            unsaved: HashSet::new(),
            pairs: HashMap::new(),
            book: Book::default(),
            reinjected: HashMap::new(),
            held: Memory::default(),
            out_of_memory: Seldom::default(),
            crowd: Crowd::default(),
            crowded: Seldom::default(),
            unopened: Seldom::default(),
            refusals: BTreeMap::new(),
            cuts: Vec::new(),
            ranged: Leftovers::default(),
            silences: Deadlines::default(),
            trail: Trail::default(),
        };
        agent.trail.last = agent.tables.last_of_journal()?;
        agent.resume(now_ns)?;
        agent.save();
        agent.tables.heartbeat(now_ns, std::process::id())?;
        Ok(agent)
    }

    /// Sessions that are followed at present.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The tables.
    #[must_use]
    pub const fn tables(&self) -> &T {
        &self.tables
    }

    /// Handles one record of the ring.
    ///
    /// # Errors
    /// Bytes that are no record. What the tables refuse is logged, since no
    /// caller could do more.
    pub fn handle(&mut self, bytes: &[u8], now_ns: u64) -> std::result::Result<(), RecordError> {
        let handled = self.take(bytes, now_ns);
        self.save();
        handled
    }

    /// As [`Agent::handle`], but for the sessions' records, which [`Agent::save`] writes.
    fn take(&mut self, bytes: &[u8], now_ns: u64) -> std::result::Result<(), RecordError> {
        let record = Record::parse(bytes)?;
        match record.kind {
            EventKind::Open => self.opened(&record, now_ns),
            EventKind::Payload => self.payload(&record, now_ns),
            EventKind::Fin => {
                self.payload(&record, now_ns);
                self.ended(&record, "FIN", now_ns);
            }
            EventKind::Rst => self.ended(&record, "RST", now_ns),
            EventKind::SynDropped | EventKind::SynHeld => self.syn(&record, now_ns),
            EventKind::SynPassed => self.passed(&record),
            EventKind::SynStray => self.stray(&record),
        }
        Ok(())
    }

    /// Writes the records of the sessions that have changed: once for all that was read in one
    /// turn, and after what a packet waits for. An agent that dies before misses no more
    /// than that turn's lines, which is a gap to the next one.
    fn save(&mut self) {
        for key in self.unsaved.drain() {
            if let Some(live) = self.sessions.get(&key) {
                let saved = self.tables.put_session(&key, &live.record);
                checked("write a session", saved);
            }
        }
    }

    /// How long it is from one [`Agent::tick`] to the next, ns.
    fn pace_ns(&self) -> u64 {
        let rests = self.sessions.is_empty()
            && self.book.len() == 0
            && self.cuts.is_empty()
            && self.reinjected.is_empty()
            && self.ranged.is_empty()
            && self.trail.followed().is_empty();
        if rests { REST_NS } else { HEARTBEAT_NS }
    }

    /// Handles what is on the ring, within [`TURN_NS`].
    fn listen(&mut self, events: &mut Events) {
        events.drain(TURN_NS, |bytes| {
            if let Err(error) = self.take(bytes, monotonic_ns()) {
                warn!("{error}");
            }
        });
        self.save();
    }

    /// What is due every [`HEARTBEAT_NS`]: the sign of life, expiry, the sweep.
    pub fn tick(&mut self, now_ns: u64) {
        let beat = self.tables.heartbeat(now_ns, std::process::id());
        checked("give a sign of life", beat);
        self.expire(now_ns);
        self.cut_due(now_ns);
        self.cut_leftovers(now_ns);
        self.follow(now_ns);
        self.trail.forget_clients(now_ns);
        self.reinjected
            .retain(|_, at| now_ns.saturating_sub(*at) < REINJECT_NS);
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.sweep(now_ns);
        }
        self.save();
    }

    fn opened(&mut self, record: &Record<'_>, now_ns: u64) {
        let key = record.header.key;
        let known = self.sessions.get(&key);
        if known.is_some_and(|live| live.record.incarnation == record.header.incarnation) {
            return;
        }
        self.end(&key, "replaced by a new connection", now_ns);
        if self.begin(key, Live::begun(record, self.settings.ftp), now_ns) {
            self.note_of(&key, &News::of(JournalKind::Began), now_ns);
            self.payload(record, now_ns);
        }
    }

    /// Makes sure that the record's flow has a session; false if it cannot have one.
    fn known(&mut self, record: &Record<'_>, now_ns: u64) -> bool {
        let key = record.header.key;
        match self.sessions.get(&key) {
            Some(live) if live.record.incarnation == record.header.incarnation => return true,
            Some(_) => self.end(&key, "replaced by a new connection", now_ns),
            None => {}
        }
        // The rest of a session that ended with a FIN is none.
        if self.standing(&key, record.header.incarnation, now_ns) != Standing::Open {
            return false;
        }
        let begun = self.begin(key, Live::adopted(record, self.settings.ftp), now_ns);
        if begun {
            let news = News {
                reason: 1,
                ..News::of(JournalKind::Began)
            };
            self.note_of(&key, &news, now_ns);
        }
        begun
    }

    fn payload(&mut self, record: &Record<'_>, now_ns: u64) {
        if record.data.is_empty() || !self.known(record, now_ns) {
            return;
        }
        let stale = record.header.at_ns.saturating_add(STALE_NS) < self.started_ns;
        let client = self.sessions.get(&record.header.key).map(|s| s.client.ip());
        let room = client.map_or(0, |client| self.held.room(client));
        let mut fits = true;
        self.with(&record.header.key, now_ns, |live, out| {
            if stale {
                live.talk.miss(out);
            } else if live.talk.is_read() {
                fits = live.payload(record, room, out);
            }
        });
        if !fits && let Some(count) = self.out_of_memory.say(now_ns) {
            warn!(
                "{} bytes of control payload wait for earlier ones, and no more may of this client: \
                 a session whose payload came out of order is not helped any more ({count} so far)",
                self.held.held()
            );
        }
    }

    /// Lets `change` loose on a session, and does what follows from it.
    fn with(
        &mut self,
        key: &FlowKey6,
        now_ns: u64,
        change: impl FnOnce(&mut Live, &mut Vec<Action>),
    ) {
        // Out of the table meanwhile, so that the table's owner can be used.
        let Some(mut live) = self.sessions.remove(key) else {
            return;
        };
        let mut actions = Vec::new();
        let was_read = live.talk.is_read();
        let held = live.held();
        change(&mut live, &mut actions);
        let remarks = live.talk.take_remarks();
        let mut lines = remarks.iter().filter_map(|remark| match remark {
            Remark::Line(did, line) => Some((did, line)),
            _ => None,
        });
        // Both are in the order of the lines.
        let mut next = lines.next();
        for (at, action) in actions.into_iter().enumerate() {
            while next.is_some_and(|(did, _)| did.end <= at) {
                next = lines.next();
            }
            let line = next.filter(|(did, _)| did.contains(&at));
            self.act(key, &mut live, action, line.map(|(_, line)| line), now_ns);
        }
        self.count_refusals();
        self.note_remarks(key, &mut live, remarks, now_ns);
        if was_read && !live.talk.is_read() && live.phase() != SessionPhase::Closed {
            // Nothing that it says matters any more; its FIN still comes.
            checked("mark a flow blind", self.tables.blind(key));
        }
        if !live.talk.is_read() {
            live.discard();
        }
        self.held.change(live.client.ip(), held, live.held());
        live.update_record();
        self.sessions.insert(*key, live);
        self.unsaved.insert(*key);
    }

    fn act(
        &mut self,
        key: &FlowKey6,
        live: &mut Live,
        action: Action,
        line: Option<&Excerpt>,
        now_ns: u64,
    ) {
        let line = line.cloned();
        let refused = |line| News {
            line,
            ..News::of(JournalKind::Refused)
        };
        match action {
            Action::Open(opening) => match self.open(key, live, &opening, now_ns) {
                Ok(()) => {
                    live.record.opened = live.record.opened.wrapping_add(1);
                    let news = audit::of_pinhole(JournalKind::Opened, &opening);
                    self.note(key, live, &News { line, ..news }, now_ns);
                }
                Err(Unopened::ClientFull) => {
                    self.refuse(key, live, Refusal::ClientFull, refused(line), now_ns);
                }
                Err(Unopened::Table(error)) => {
                    if let Some(count) = self.unopened.say(now_ns) {
                        warn!("{live}: cannot open a port: {error} ({count} times so far)");
                    }
                    self.refuse(key, live, Refusal::TableFull, refused(line), now_ns);
                }
            },
            Action::Withdraw(opening) => {
                let expected = expect_key(&opening);
                let news = News {
                    line,
                    lasted_ns: self.trail.age(&expected, now_ns),
                    ..audit::of_pinhole(JournalKind::Withdrawn, &opening)
                };
                self.note(key, live, &news, now_ns);
                live.open.retain(|open| *open != expected);
                self.strike(key, &expected);
            }
            Action::CloseAll => self.close_all(key, live, now_ns),
            Action::Phase(phase) => {
                if phase == SessionPhase::Tls {
                    live.record.tls_ns = now_ns;
                } else if phase == SessionPhase::Cleared && self.settings.ftp.ccc == Ccc::Alert {
                    warn!(
                        "{live}: clear text again after TLS (CCC): what follows can be read and \
                         changed on the way"
                    );
                }
                debug!("{live}: {}", phase.name());
                self.note_phase(key, live, phase, line, now_ns);
            }
            Action::Refused(refusal) => self.refuse(key, live, refusal, refused(line), now_ns),
        }
    }

    /// Counts a refusal, and tells of it: `news` but for the reason.
    fn refuse(
        &mut self,
        key: &FlowKey6,
        live: &mut Live,
        refusal: Refusal,
        news: News,
        now_ns: u64,
    ) {
        let reason = refusal as u8;
        live.record.refused = live.record.refused.wrapping_add(1);
        live.record.last_refusal = reason;
        *self.refusals.entry(reason).or_default() += 1;
        self.note(key, live, &News { reason, ..news }, now_ns);
    }

    /// Writes what was counted: once a segment and reason, which can have thousands
    /// of refused lines.
    fn count_refusals(&mut self) {
        for (reason, count) in std::mem::take(&mut self.refusals) {
            let counted = self.tables.count_refusals(reason, count);
            checked("count refusals", counted);
        }
    }

    fn ended(&mut self, record: &Record<'_>, how: &str, now_ns: u64) {
        let key = record.header.key;
        let ends = |live: &Live| {
            live.record.incarnation == record.header.incarnation && live.may_end(record)
        };
        if self.sessions.get(&key).is_some_and(ends) {
            self.end(&key, how, now_ns);
        }
    }

    /// The control connection is over, and all that it opened with it.
    fn end(&mut self, key: &FlowKey6, how: &str, now_ns: u64) {
        let Some(mut live) = self.sessions.remove(key) else {
            return;
        };
        self.held.change(live.client.ip(), live.held(), 0);
        self.forget_silence(key, &live);
        self.close_all(key, &mut live, now_ns);
        checked("remove a session", self.tables.drop_session(key));
        self.leave(&live, key);
        self.follow_last(key, &mut live, now_ns);
        self.end_range(key, &live);
        let news = News {
            lasted_ns: now_ns.saturating_sub(live.record.started_ns),
            line: Some(Excerpt::text(how)),
            ..News::of(JournalKind::Ended)
        };
        self.note(key, &mut live, &news, now_ns);
        self.end_children((*key, live.record.incarnation), live.record.opened);
        let Session {
            opened,
            refused,
            dropped,
            ..
        } = live.record;
        debug!(
            "{live}: {opened} opened, {refused} refused, {dropped} data connections dropped meanwhile"
        );
    }

    /// Ends sessions whose flow is gone, and notes those that the programs made blind.
    fn sweep(&mut self, now_ns: u64) {
        let keys: Vec<_> = self
            .sessions
            .iter()
            .map(|(key, live)| (*key, live.record.incarnation))
            .collect();
        for (key, incarnation) in keys {
            match self.standing(&key, incarnation, now_ns) {
                Standing::Gone => self.end(&key, "its flow is gone", now_ns),
                Standing::Blind => self.with(&key, now_ns, |live, out| live.talk.miss(out)),
                Standing::Open => {}
            }
        }
    }

    fn standing(&mut self, key: &FlowKey6, incarnation: u32, now_ns: u64) -> Standing {
        match self.tables.flow(key) {
            Ok(flow) => Standing::of(flow, incarnation, Tick::from_ns(now_ns)),
            // The programs check the parent at every use, so nothing is open
            // for longer because of this.
            Err(error) => {
                warn!("cannot look up a control flow: {error}");
                Standing::Open
            }
        }
    }
}

/// How a control flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Established, and its payload is queued.
    Open,
    /// Established, but payload passed without being queued.
    Blind,
    /// Ended, expired, or another one by now.
    Gone,
}

impl Standing {
    fn of(flow: Option<FlowView>, incarnation: u32, now: Tick) -> Self {
        let Some(FlowView { state, expires }) = flow else {
            return Self::Gone;
        };
        let ended = state.has(flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY)
            || state.state() != State::Established as u8;
        if ended || state.incarnation() != incarnation || now.is_after(expires) {
            Self::Gone
        } else if state.has(flow_flags::BLIND) {
            Self::Blind
        } else {
            Self::Open
        }
    }
}

/// Logs what a table refused; true if it did not.
fn checked(what: &str, done: Result<()>) -> bool {
    if let Err(error) = &done {
        warn!("cannot {what}: {error}");
    }
    done.is_ok()
}

/// Runs the agent over the ring until `shutdown`. Enforcement stays when it returns.
///
/// Needs a tokio runtime with I/O and time, and no thread of its own.
///
/// # Errors
/// A ring that cannot be waited for.
pub async fn run<T: Tables>(
    mut agent: Agent<T>,
    ring: RingBuf<MapData>,
    mut urgency: Urgency,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut events = Events::new(ring).context("cannot wait for the ring EVENTS")?;
    let mut alarm = Alarm::new().context("no timer for the FTP helper's sign of life")?;
    let mut beaten_ns = monotonic_ns();
    let mut shutdown = pin!(shutdown);
    loop {
        // In this order: a flood of records starves neither the heartbeat nor the end.
        let lapse = agent.next_lapse_ns();
        let beat_ns = beaten_ns.saturating_add(agent.pace_ns());
        tokio::select! {
            biased;
            () = &mut shutdown => {
                // What nobody was woken for: the next agent would find it too old, and take
                // its sessions for such as were not followed.
                agent.listen(&mut events);
                return Ok(());
            }
            due = alarm.wait_until(beat_ns) => {
                due.context("cannot wait for the FTP helper's sign of life")?;
                beaten_ns = monotonic_ns();
                agent.tick(beaten_ns);
                urgency.review();
                // What nobody was woken for.
                agent.listen(&mut events);
            }
            () = until(lapse.unwrap_or_default()), if lapse.is_some() => {
                agent.lapse(monotonic_ns());
            }
            heard = events.wait() => {
                heard.context("cannot wait for the ring EVENTS")?;
                agent.listen(&mut events);
            }
        }
    }
}

/// Waits until `CLOCK_MONOTONIC` is `at_ns`.
async fn until(at_ns: u64) {
    let left = at_ns.saturating_sub(monotonic_ns());
    tokio::time::sleep(Duration::from_nanos(left)).await;
}

#[cfg(test)]
mod tests;

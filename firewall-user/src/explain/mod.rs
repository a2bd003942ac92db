//! What became of an FTP session, put together from the journal. Pure.
//!
//! - [`Account`] is the story of one session
//! - [`remedies`] says what would have helped it

pub mod remedies;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use firewall_common::{
    abi::{ClosedBy, ExpectVia, FlowKey6, JournalKind, Session, SessionPhase, session_flags},
    key::Heading,
    time::NS_PER_SEC,
    verdict::DropReason,
};

use crate::{
    bpf::ends,
    ftp::{Excerpt, Refusal, Side},
    journal::{SessionId, Told},
};

/// A data connection that was announced this long ago and has not come, never came.
const NEVER_NS: u64 = 3 * NS_PER_SEC;

/// What became of a data connection, as far as this firewall can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its SYN was dropped here.
    DroppedHere(DropReason),
    /// As [`Fate::DroppedHere`], in shadow mode: it passed.
    WouldDrop(DropReason),
    /// Its SYN passed here, and nobody answered for so long, ns: a firewall or a
    /// host beyond.
    NoReply(u64),
    /// Its SYN passed here, and the other end reset it.
    Reset,
    /// It came about.
    Connected,
    /// Its SYN passed here; it is too early to say more.
    Waiting,
    /// It was announced, and no SYN of it came here.
    NeverSeen,
    /// The server refused it in the end, or it was announced just now.
    Withdrawn,
}

impl Fate {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DroppedHere(_) => "dropped-here",
            Self::WouldDrop(_) => "would-be-dropped-here",
            Self::NoReply(_) => "passed-no-reply",
            Self::Reset => "passed-reset",
            Self::Connected => "connected",
            Self::Waiting => "waiting",
            Self::NeverSeen => "never-seen",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// Did it fail, or is it about to?
    #[must_use]
    pub const fn is_trouble(self) -> bool {
        !matches!(self, Self::Connected | Self::Waiting | Self::Withdrawn)
    }
}

/// A data connection: one that came, or one that was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// When its SYN came, or when it was announced, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// Who connects; port 0 if no SYN came.
    pub src: SocketAddr,
    /// To whom.
    pub dst: SocketAddr,
    /// Who listens.
    pub listener: Side,
    /// Who was expected to connect, if `src` is another host.
    pub in_place_of: Option<IpAddr>,
    /// What announced it; `None` if the helper could read nothing, or if a rule let it in.
    pub via: Option<ExpectVia>,
    /// The line that announced it.
    pub line: Option<Excerpt>,
    /// SYNs seen, sent again ones included; 0 if none came.
    pub syns: u32,
    /// Was the session encrypted then?
    pub encrypted: bool,
    /// What became of it.
    pub fate: Fate,
}

/// Something that the server or a line said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// The line.
    pub line: Option<Excerpt>,
}

/// The story of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its control connection's originator.
    pub client: SocketAddr,
    /// Its other end.
    pub server: SocketAddr,
    /// When it began, `CLOCK_MONOTONIC` ns.
    pub started_ns: u64,
    /// Where it stands, or stood in the end.
    pub phase: SessionPhase,
    /// When and how it ended; `None` while it lives.
    pub ended: Option<Said>,
    /// When it was encrypted last, and by which line.
    pub tls: Option<Said>,
    /// When it went back to clear text.
    pub cleared_ns: Option<u64>,
    /// When it stopped being read, for good (blind or poisoned).
    pub unread_ns: Option<u64>,
    /// Does the server list CCC? `None`: nobody saw its features.
    pub ccc: Option<bool>,
    /// Its data connections, in order.
    pub data: Vec<Data>,
    /// Lines that opened nothing, and data connections beyond a limit.
    pub refused: Vec<(Refusal, Said)>,
    /// Replies of the server that something failed: 425, 426, 5yz.
    pub failed: Vec<Said>,
    /// The journal does not hold its begin any more.
    pub cut: bool,
    /// Zones of client and server, while it lives.
    pub zones: Option<(u8, u8)>,
}

impl Account {
    /// Is there anything wrong with it?
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        self.data.iter().any(|data| data.fate.is_trouble())
            || !self.refused.is_empty()
            || !self.failed.is_empty()
            || matches!(self.phase, SessionPhase::Blind | SessionPhase::Poisoned)
    }

    /// Data connections of its two hosts that failed while nobody could read the session.
    pub fn blind(&self) -> impl Iterator<Item = &Data> {
        let blind =
            |data: &&Data| data.encrypted && data.fate.is_trouble() && data.in_place_of.is_none();
        self.data.iter().filter(blind)
    }

    fn begun(told: &Told) -> Self {
        Self {
            cut: told.kind != JournalKind::Began,
            ..Self::unheard(told.client, told.server, told.started_ns, told.phase)
        }
    }

    /// Of which the journal has told nothing yet.
    const fn unheard(
        client: SocketAddr,
        server: SocketAddr,
        started_ns: u64,
        phase: SessionPhase,
    ) -> Self {
        Self {
            client,
            server,
            started_ns,
            phase,
            ended: None,
            tls: None,
            cleared_ns: None,
            unread_ns: None,
            ccc: None,
            data: Vec::new(),
            refused: Vec::new(),
            failed: Vec::new(),
            cut: true,
            zones: None,
        }
    }

    fn said(told: &Told) -> Said {
        Said {
            at_ns: told.at_ns,
            line: told.line.clone(),
        }
    }

    /// Takes in what happened next.
    fn hear(&mut self, told: &Told) {
        self.phase = told.phase;
        match told.kind {
            JournalKind::Phase => self.enter(told),
            JournalKind::Features => self.ccc = Some(told.reason == 1),
            JournalKind::Failed => self.failed.push(Self::said(told)),
            JournalKind::Ended => self.ended = Some(Self::said(told)),
            JournalKind::Refused => {
                if let Ok(refusal) = Refusal::try_from(told.reason) {
                    self.refused.push((refusal, Self::said(told)));
                }
            }
            JournalKind::Opened => self.announced(told),
            JournalKind::Withdrawn => self.settle(told, Fate::Withdrawn),
            JournalKind::Closed if told.reason == ClosedBy::Expired as u8 => {
                self.settle(told, Fate::NeverSeen);
            }
            JournalKind::Used | JournalKind::Passed => self.came(told, Fate::Waiting),
            JournalKind::Connected => self.becomes(told, Fate::Connected),
            JournalKind::Unanswered if told.reason == 1 => self.becomes(told, Fate::Reset),
            JournalKind::Unanswered => self.becomes(told, Fate::NoReply(told.lasted_ns)),
            JournalKind::Dropped | JournalKind::WouldDrop => self.dropped(told),
            JournalKind::Began | JournalKind::Closed | JournalKind::Skipped => {}
        }
    }

    fn enter(&mut self, told: &Told) {
        match told.entered() {
            Some(SessionPhase::Tls) => self.tls = Some(Self::said(told)),
            Some(SessionPhase::Cleared) => self.cleared_ns = Some(told.at_ns),
            Some(SessionPhase::Blind | SessionPhase::Poisoned) => {
                self.unread_ns = Some(told.at_ns);
            }
            _ => {}
        }
    }

    fn is_encrypted(&self) -> bool {
        self.phase == SessionPhase::Tls
    }

    fn new_data(&self, told: &Told, fate: Fate, syns: u32) -> Option<Data> {
        let (src, dst) = told.connection?;
        let (listener, opener) = if dst.ip() == self.server.ip() {
            (Side::Server, self.client.ip())
        } else {
            (Side::Client, self.server.ip())
        };
        let in_place_of = (src.ip() != opener).then_some(opener);
        // Another host's SYN comes to a port that was announced to the opener.
        let to_it = |data: &&Data| data.dst == dst && data.via.is_some();
        let announced = in_place_of.and_then(|_| self.data.iter().rev().find(to_it));
        let (via, line) = announced.map_or((told.via, &told.line), |data| (data.via, &data.line));
        Some(Data {
            at_ns: told.at_ns,
            src,
            dst,
            listener,
            in_place_of,
            via,
            line: line.clone(),
            syns,
            encrypted: self.is_encrypted(),
            fate,
        })
    }

    /// A port opened. Ranges are opened for a SYN that is there already.
    fn announced(&mut self, told: &Told) {
        self.data.extend(self.new_data(told, Fate::NeverSeen, 0));
    }

    /// The data connection that was announced for the destination, and has not come.
    fn expected(&mut self, told: &Told) -> Option<&mut Data> {
        let (src, dst) = told.connection?;
        let is = |data: &&mut Data| data.syns == 0 && data.dst == dst && data.src.ip() == src.ip();
        self.data.iter_mut().rev().find(is)
    }

    fn settle(&mut self, told: &Told, fate: Fate) {
        if let Some(data) = self.expected(told) {
            data.fate = fate;
        }
    }

    /// A SYN passed.
    fn came(&mut self, told: &Told, fate: Fate) {
        let Some((src, _)) = told.connection else {
            return;
        };
        match self.expected(told) {
            Some(data) => (data.src, data.syns, data.fate, data.at_ns) = (src, 1, fate, told.at_ns),
            None => match self.same(told) {
                // Dropped at first, and let in when it was sent again.
                Some(data) => (data.syns, data.fate) = (data.syns + 1, fate),
                None => self.data.extend(self.new_data(told, fate, 1)),
            },
        }
    }

    /// The last data connection of both ends.
    fn same(&mut self, told: &Told) -> Option<&mut Data> {
        let ends = told.connection?;
        let is = |data: &&mut Data| (data.src, data.dst) == ends;
        self.data.iter_mut().rev().find(is)
    }

    fn becomes(&mut self, told: &Told, fate: Fate) {
        if let Some(data) = self.same(told) {
            data.fate = fate;
        }
    }

    fn dropped(&mut self, told: &Told) {
        let reason = DropReason::try_from(told.reason).unwrap_or(DropReason::Policy);
        let fate = if told.kind == JournalKind::Dropped {
            Fate::DroppedHere(reason)
        } else {
            Fate::WouldDrop(reason)
        };
        match self.same(told) {
            Some(data) if data.fate != Fate::Connected => {
                (data.syns, data.fate) = (data.syns + 1, fate);
            }
            _ => self.data.extend(self.new_data(told, fate, 1)),
        }
    }

    /// What was announced just now may still come.
    fn close(&mut self, now_ns: u64) {
        let over_ns = self.ended.as_ref().map_or(now_ns, |ended| ended.at_ns);
        for data in &mut self.data {
            let early = over_ns.saturating_sub(data.at_ns) < NEVER_NS && self.ended.is_none();
            if data.fate == Fate::NeverSeen && early {
                data.fate = Fate::Withdrawn;
            }
        }
    }

    /// Adds what the session's record knows, while it lives.
    fn record(&mut self, session: &Session) {
        let flag = |flag| session.flags & flag != 0;
        if self.ccc.is_none() && flag(session_flags::CCC_LISTED | session_flags::CCC_UNLISTED) {
            self.ccc = Some(flag(session_flags::CCC_LISTED));
        }
        self.zones = Some((session.client_zone, session.server_zone));
        if let Ok(phase) = SessionPhase::try_from(session.phase) {
            self.phase = phase;
        }
        if self.tls.is_none() && session.tls_ns != 0 {
            self.tls = Some(Said {
                at_ns: session.tls_ns,
                line: None,
            });
        }
    }

    /// Of a live session of which the journal holds nothing any more.
    fn of_record(key: &FlowKey6, session: &Session) -> Option<Self> {
        let (client, server) = ends(key, Heading::from_end(session.client_is_hi));
        let phase = SessionPhase::try_from(session.phase).ok()?;
        let mut account = Self::unheard(client, server, session.started_ns, phase);
        account.record(session);
        let mut drops: Vec<_> = session.drops.iter().filter(|d| d.at_ns != 0).collect();
        drops.sort_by_key(|drop| drop.at_ns);
        for drop in drops {
            let passive = drop.from_client != 0;
            let (from, to) = if passive {
                (client.ip(), server.ip())
            } else {
                (server.ip(), client.ip())
            };
            account.data.push(Data {
                at_ns: drop.at_ns,
                src: SocketAddr::new(from, drop.sport),
                dst: SocketAddr::new(to, drop.dport),
                listener: if passive { Side::Server } else { Side::Client },
                in_place_of: None,
                via: None,
                line: None,
                syns: 1,
                encrypted: account.is_encrypted(),
                fate: Fate::DroppedHere(
                    DropReason::try_from(drop.reason).unwrap_or(DropReason::Policy),
                ),
            });
        }
        Some(account)
    }
}

/// The story of every session, oldest first: of those that the journal tells of, and
/// of those in `live`. `now_ns` is `CLOCK_MONOTONIC`.
#[must_use]
pub fn accounts(told: &[Told], live: &[(FlowKey6, Session)], now_ns: u64) -> Vec<Account> {
    let mut found: BTreeMap<u64, Account> = BTreeMap::new();
    let mut by_id = std::collections::HashMap::new();
    for told in told {
        // By the first record of each, so that the order is that of the journal.
        let at = *by_id.entry(told.session).or_insert(told.seq);
        let account = found.entry(at).or_insert_with(|| Account::begun(told));
        account.hear(told);
    }
    let mut forgotten = Vec::new();
    for (key, session) in live {
        let id = SessionId {
            key: *key,
            incarnation: session.incarnation,
        };
        match by_id.get(&id).and_then(|at| found.get_mut(at)) {
            Some(account) => account.record(session),
            None => forgotten.extend(Account::of_record(key, session)),
        }
    }
    forgotten.extend(found.into_values());
    forgotten.sort_by_key(|account| account.started_ns);
    for account in &mut forgotten {
        account.close(now_ns);
    }
    forgotten
}

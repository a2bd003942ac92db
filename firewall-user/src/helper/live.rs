//! A session as the agent holds it: the conversation, its streams, its record.

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
};

use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{DroppedSyn, ExpectKey, FlowKey6, PairKey, Session, SessionPhase},
    key::Heading,
};

use super::{
    agent::Ranged,
    reassembly::{Outcome, Reassembler},
    ring::Record,
    trail::Quota,
};
use crate::{
    bpf::{ends, words},
    ftp::{self, Action, Config, Conversation, Side},
};

/// A live session.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) record: Session,
    pub(super) talk: Conversation,
    /// Its expectations, oldest first.
    pub(super) open: VecDeque<ExpectKey>,
    /// What a session range let in for it.
    pub(super) ranged: Ranged,
    /// What it may still have told in the journal.
    pub(super) quota: Quota,
    /// When its flow is looked at, because it may have run out of time: `CLOCK_MONOTONIC`, ns.
    pub(super) watched_until: Option<u64>,
    streams: [Reassembler; 2],
    /// Resumed from the map, and no payload has met the recorded sequence number yet.
    unmet: [bool; 2],
}

impl Live {
    /// A session whose control flow was seen to begin.
    pub(super) fn begun(record: &Record<'_>, config: Config) -> Self {
        let streams = [record.header.seq, record.header.ack].map(Reassembler::at);
        Self::seen(record, streams, |client, server| {
            Conversation::new(client, server, config)
        })
    }

    /// A session first seen in mid-life.
    pub(super) fn adopted(record: &Record<'_>, config: Config) -> Self {
        let streams = [(); 2].map(|()| Reassembler::anywhere());
        Self::seen(record, streams, |client, server| {
            Conversation::adopted(client, server, config)
        })
    }

    fn seen(
        record: &Record<'_>,
        streams: [Reassembler; 2],
        talk: impl FnOnce(IpAddr, IpAddr) -> Conversation,
    ) -> Self {
        let header = &record.header;
        let (client, server) = ends(&header.key, record.first_heading());
        let mut live = Self {
            client,
            server,
            record: Session {
                started_ns: header.at_ns,
                last_ns: header.at_ns,
                incarnation: header.incarnation,
                client_is_hi: record.first_heading() as u8,
                client_zone: header.from_zone,
                server_zone: header.to_zone,
                ..Session::zeroed()
            },
            talk: talk(client.ip(), server.ip()),
            open: VecDeque::new(),
            ranged: Ranged::default(),
            watched_until: None,
            quota: Quota::default(),
            streams,
            unmet: [false; 2],
        };
        live.update_record();
        live
    }

    /// A session that an earlier agent left in the map; `None` if its record makes no sense.
    pub(super) fn resumed(key: &FlowKey6, record: Session, config: Config) -> Option<Self> {
        let phase = SessionPhase::try_from(record.phase).ok()?;
        let (client, server) = ends(key, Heading::from_end(record.client_is_hi));
        let session =
            ftp::Session::resume(client.ip(), server.ip(), config, phase, record.outstanding)
                .with_adopted(record.adopted != 0)
                .with_flags(record.flags);
        Some(Self {
            client,
            server,
            record,
            talk: Conversation::of(session),
            open: VecDeque::new(),
            ranged: Ranged::default(),
            watched_until: None,
            quota: Quota::default(),
            streams: record.next_seq.map(Reassembler::at),
            unmet: [true; 2],
        })
    }

    /// Reads the payload of a record; what it brings about goes to `out`.
    /// [`Self::held`] grows by no more than `room`; false if that was too little.
    pub(super) fn payload(
        &mut self,
        record: &Record<'_>,
        room: usize,
        out: &mut Vec<Action>,
    ) -> bool {
        let side = side_of(record);
        let header = &record.header;
        self.record.last_ns = header.at_ns;
        let other = &self.streams[side.other().index()];
        if other.missed(header.ack) {
            self.talk.miss(out);
            return true;
        }
        let talk = &mut self.talk;
        let stream = &mut self.streams[side.index()];
        let outcome = stream.push(header.seq, record.data, room, |bytes| {
            talk.feed(side, bytes, out);
        });
        let unmet = &mut self.unmet[side.index()];
        match outcome {
            Outcome::Delivered => *unmet = false,
            // While nobody was there to see them, bytes went by.
            Outcome::Waiting | Outcome::NoRoom if *unmet => self.talk.miss(out),
            // The packet has passed already, so its bytes will not come again.
            Outcome::OverBudget => self.talk.miss(out),
            _ => {}
        }
        outcome != Outcome::OverBudget
    }

    /// Memory of its segments that wait for their turn, in bytes.
    pub(super) fn held(&self) -> usize {
        self.streams.iter().map(Reassembler::held).sum()
    }

    /// Gives back what no session needs that is not read any more.
    pub(super) fn discard(&mut self) {
        self.streams.iter_mut().for_each(Reassembler::discard);
    }

    /// Can the FIN or RST of `record` be of this flow?
    pub(super) fn may_end(&self, record: &Record<'_>) -> bool {
        let side = side_of(record);
        // A FIN stands behind the payload of its segment.
        let at = record.header.seq.wrapping_add(record.header.len);
        // A session that is not read does not know its window any more.
        !self.talk.is_read() || self.streams[side.index()].is_in_window(at)
    }

    /// Brings the record for the map up to date with the conversation.
    pub(super) fn update_record(&mut self) {
        let session = self.talk.session();
        self.record.phase = session.phase() as u8;
        self.record.outstanding = session.outstanding();
        self.record.adopted = u8::from(session.is_adopted());
        self.record.flags = session.flags();
        for side in [Side::Client, Side::Server] {
            let next = self.streams[side.index()].next().unwrap_or(0);
            // An agent that resumes here must be given an unfinished line from its begin.
            self.record.next_seq[side.index()] = next.wrapping_sub(self.talk.unread(side));
        }
    }

    /// Remembers a dropped data connection of this session's hosts.
    pub(super) fn remember_drop(&mut self, dropped: DroppedSyn) {
        let slot = self.record.dropped as usize % self.record.drops.len();
        if let Some(slot) = self.record.drops.get_mut(slot) {
            *slot = dropped;
        }
        self.record.dropped = self.record.dropped.wrapping_add(1);
    }

    pub(super) fn pair(&self) -> PairKey {
        PairKey::new(words(self.client.ip()), words(self.server.ip()))
    }

    pub(super) fn phase(&self) -> SessionPhase {
        self.talk.session().phase()
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ftp {} -> {}", self.client, self.server)
    }
}

fn side_of(record: &Record<'_>) -> Side {
    match record.direction() {
        firewall_common::key::Direction::Original => Side::Client,
        firewall_common::key::Direction::Reply => Side::Server,
    }
}

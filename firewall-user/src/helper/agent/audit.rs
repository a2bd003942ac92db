//! The journal: what becomes of each session, for the operator.

use std::net::SocketAddr;

use firewall_common::abi::{
    ClosedBy, ExpectKey, FlowKey6, JournalEntry, JournalKind, SessionPhase,
};
use log::{debug, info};

use super::{Agent, checked};
use crate::{
    bpf::address,
    ftp::{Excerpt, Opening, Remark},
    helper::{
        live::Live,
        tables::Tables,
        trail::{Fate, SILENCE_NS, Trail},
    },
    journal::{News, Told},
};

/// Writes a record, and logs it.
pub(super) fn note<T: Tables>(
    trail: &mut Trail,
    tables: &mut T,
    key: &FlowKey6,
    live: &mut Live,
    news: &News,
    now_ns: u64,
) {
    let Some(skipped) = live.quota.take(news.kind, now_ns) else {
        return;
    };
    if !trail.may_tell(live.client.ip(), now_ns) {
        return live.quota.skip(skipped + 1);
    }
    if skipped > 0 {
        let count = News {
            lasted_ns: skipped,
            ..News::of(JournalKind::Skipped)
        };
        write(trail, tables, key, live, &count, now_ns);
    }
    write(trail, tables, key, live, news, now_ns);
}

fn write<T: Tables>(
    trail: &mut Trail,
    tables: &mut T,
    key: &FlowKey6,
    live: &Live,
    news: &News,
    now_ns: u64,
) {
    trail.last += 1;
    let entry = JournalEntry {
        seq: trail.last,
        ..news.entry(key, &live.record, live.phase(), now_ns)
    };
    checked("write the journal", tables.journal(&entry.sealed()));
    if let Ok(told) = Told::try_from(&entry) {
        match told.kind {
            JournalKind::Connected | JournalKind::Passed => debug!("{live}: {}", told.text()),
            _ => info!("{live}: {}", told.text()),
        }
    }
}

/// Who is expected to connect to whom; the source's port is not known.
pub(super) fn ends(key: &ExpectKey) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(address(key.src), 0),
        SocketAddr::new(address(key.dst), key.dport),
    )
}

/// News of a pinhole.
pub(super) fn of_pinhole(kind: JournalKind, opening: &Opening) -> News {
    let ends = (
        SocketAddr::new(opening.src, 0),
        SocketAddr::new(opening.dst, opening.port.get()),
    );
    News {
        via: Some(opening.via),
        connection: Some(ends),
        ..News::of(kind)
    }
}

impl<T: Tables> Agent<T> {
    /// As [`note`], of a session that is out of the table at the moment.
    pub(super) fn note(&mut self, key: &FlowKey6, live: &mut Live, news: &News, now_ns: u64) {
        note(&mut self.trail, &mut self.tables, key, live, news, now_ns);
    }

    /// As [`note`], of a session that is in the table.
    pub(super) fn note_of(&mut self, key: &FlowKey6, news: &News, now_ns: u64) {
        if let Some(live) = self.sessions.get_mut(key) {
            note(&mut self.trail, &mut self.tables, key, live, news, now_ns);
        }
    }

    /// Tells that a pinhole closes.
    pub(super) fn note_closed(
        &mut self,
        key: &FlowKey6,
        live: &mut Live,
        expected: &ExpectKey,
        by: ClosedBy,
        now_ns: u64,
    ) {
        let news = News {
            reason: by as u8,
            lasted_ns: self.trail.age(expected, now_ns),
            connection: Some(ends(expected)),
            ..News::of(JournalKind::Closed)
        };
        self.note(key, live, &news, now_ns);
    }

    /// Tells that the session is in another phase.
    pub(super) fn note_phase(
        &mut self,
        key: &FlowKey6,
        live: &mut Live,
        phase: SessionPhase,
        line: Option<Excerpt>,
        now_ns: u64,
    ) {
        // The way to the log-in is no news.
        if matches!(phase, SessionPhase::Greeting | SessionPhase::Login) {
            return;
        }
        let news = News {
            reason: phase as u8,
            line,
            ..News::of(JournalKind::Phase)
        };
        self.note(key, live, &news, now_ns);
    }

    /// Tells what was remarked beside the actions.
    pub(super) fn note_remarks(
        &mut self,
        key: &FlowKey6,
        live: &mut Live,
        remarks: Vec<Remark>,
        now_ns: u64,
    ) {
        for remark in remarks {
            let news = match remark {
                Remark::Line(..) => continue,
                Remark::Failed(line) => News {
                    line: Some(line),
                    ..News::of(JournalKind::Failed)
                },
                Remark::Features { ccc } => News {
                    reason: u8::from(ccc),
                    ..News::of(JournalKind::Features)
                },
            };
            self.note(key, live, &news, now_ns);
        }
    }

    /// Looks what has come of the data connections whose SYN passed.
    pub(super) fn follow(&mut self, now_ns: u64) {
        for (flow, followed) in self.trail.followed() {
            let fate = self.fate(&flow);
            let age = now_ns.saturating_sub(followed.at_ns);
            let silent = fate == Fate::Waiting && age >= SILENCE_NS && !followed.told;
            if let Some(news) = told_of(fate, followed.told, silent) {
                let news = News {
                    lasted_ns: age,
                    connection: Some(followed.ends),
                    ..news
                };
                self.note_of(&followed.control, &news, now_ns);
            }
            self.trail.settle(&followed.control, &flow, fate, now_ns);
        }
    }

    /// Tells what has come of a session's data connections, because it ends.
    pub(super) fn follow_last(&mut self, key: &FlowKey6, live: &mut Live, now_ns: u64) {
        for (flow, followed) in self.trail.take(key) {
            let fate = self.fate(&flow);
            if let Some(news) = told_of(fate, followed.told, !followed.told) {
                let news = News {
                    lasted_ns: now_ns.saturating_sub(followed.at_ns),
                    connection: Some(followed.ends),
                    ..news
                };
                self.note(key, live, &news, now_ns);
            }
        }
    }

    fn fate(&mut self, flow: &FlowKey6) -> Fate {
        match self.tables.state(flow) {
            Ok(state) => Fate::of(state),
            // It can be looked at again.
            Err(_) => Fate::Waiting,
        }
    }
}

/// What there is to tell; `silent` if it is to be told that nobody answers, which
/// was `told` already or not.
fn told_of(fate: Fate, told: bool, silent: bool) -> Option<News> {
    match fate {
        Fate::Connected => Some(News::of(JournalKind::Connected)),
        // After that its entry has gone for another reason.
        Fate::Reset if told => None,
        Fate::Reset => Some(News {
            reason: 1,
            ..News::of(JournalKind::Unanswered)
        }),
        Fate::Waiting if silent => Some(News::of(JournalKind::Unanswered)),
        Fate::Waiting => None,
    }
}

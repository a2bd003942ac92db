//! The journal of FTP sessions: its records as typed values and in words. Pure.
//!
//! The agent writes it ([`crate::helper`]), `ftp watch` and `ftp explain` read it.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{ClosedBy, ExpectVia, FlowKey6, JournalEntry, JournalKind, Session, SessionPhase},
    key::Heading,
    verdict::DropReason,
};

use crate::{
    bpf::{address, ends, words},
    ftp::{Excerpt, Refusal},
};

/// A record that this pinhole cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {0} of the journal is of another version; run `pinhole unload` and attach again")]
pub struct Unknown(pub u64);

/// A session, of which the control connection may have been reused since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// Key of its control flow.
    pub key: FlowKey6,
    /// Incarnation of that flow.
    pub incarnation: u32,
}

/// Something that happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its number, from 1.
    pub seq: u64,
    /// `CLOCK_MONOTONIC`, ns.
    pub at_ns: u64,
    /// As [`JournalEntry::lasted_ns`].
    pub lasted_ns: u64,
    /// `CLOCK_MONOTONIC` of the session's begin, ns.
    pub started_ns: u64,
    /// To which session.
    pub session: SessionId,
    /// The control connection's originator.
    pub client: SocketAddr,
    /// Its other end.
    pub server: SocketAddr,
    /// What happened.
    pub kind: JournalKind,
    /// As [`JournalEntry::reason`].
    pub reason: u8,
    /// Where the session stood then.
    pub phase: SessionPhase,
    /// The command that opened the port.
    pub via: Option<ExpectVia>,
    /// Who connects to whom; the source's port is 0 where it is not known.
    pub connection: Option<(SocketAddr, SocketAddr)>,
    /// The line that brought it about.
    pub line: Option<Excerpt>,
}

/// What the agent knows when something happens; the rest is the session's.
#[derive(Clone, Debug)]
pub struct News {
    /// What happened.
    pub kind: JournalKind,
    /// As [`JournalEntry::reason`].
    pub reason: u8,
    /// As [`JournalEntry::lasted_ns`].
    pub lasted_ns: u64,
    /// The command that opened the port.
    pub via: Option<ExpectVia>,
    /// Who connects to whom; port 0 where it is not known.
    pub connection: Option<(SocketAddr, SocketAddr)>,
    /// The line that brought it about.
    pub line: Option<Excerpt>,
}

impl News {
    /// Of this kind, and nothing else known.
    #[must_use]
    pub const fn of(kind: JournalKind) -> Self {
        Self {
            kind,
            reason: 0,
            lasted_ns: 0,
            via: None,
            connection: None,
            line: None,
        }
    }

    /// The record, not numbered and not sealed yet.
    #[must_use]
    pub fn entry(
        &self,
        key: &FlowKey6,
        session: &Session,
        phase: SessionPhase,
        at_ns: u64,
    ) -> JournalEntry {
        let mut entry = JournalEntry {
            at_ns,
            lasted_ns: self.lasted_ns,
            started_ns: session.started_ns,
            session: *key,
            incarnation: session.incarnation,
            kind: self.kind as u8,
            reason: self.reason,
            phase: phase as u8,
            via: self.via.map_or(0, |via| via as u8),
            client_is_hi: session.client_is_hi,
            ..JournalEntry::zeroed()
        };
        if let Some((src, dst)) = self.connection {
            (entry.src, entry.sport) = (words(src.ip()), src.port());
            (entry.dst, entry.dport) = (words(dst.ip()), dst.port());
        }
        if let Some(line) = &self.line {
            for (slot, byte) in entry.line.iter_mut().zip(line.bytes()) {
                *slot = *byte;
            }
            entry.line_len = u8::try_from(line.bytes().len()).unwrap_or(u8::MAX);
            entry.line_cut = u8::from(line.is_cut());
        }
        entry
    }
}

impl TryFrom<&JournalEntry> for Told {
    type Error = Unknown;

    fn try_from(entry: &JournalEntry) -> Result<Self, Unknown> {
        let unknown = |_| Unknown(entry.seq);
        let (client, server) = ends(&entry.session, Heading::from_end(entry.client_is_hi));
        let end = |words, port| SocketAddr::new(address(words), port);
        Ok(Self {
            seq: entry.seq,
            at_ns: entry.at_ns,
            lasted_ns: entry.lasted_ns,
            started_ns: entry.started_ns,
            session: SessionId {
                key: entry.session,
                incarnation: entry.incarnation,
            },
            client,
            server,
            kind: JournalKind::try_from(entry.kind).map_err(unknown)?,
            reason: entry.reason,
            phase: SessionPhase::try_from(entry.phase).map_err(unknown)?,
            via: ExpectVia::try_from(entry.via).ok(),
            connection: (entry.dport != 0)
                .then(|| (end(entry.src, entry.sport), end(entry.dst, entry.dport))),
            line: (entry.line_len != 0)
                .then(|| Excerpt::bounded(entry.line(), entry.line_cut != 0)),
        })
    }
}

impl Told {
    /// The stable name of the reason, where the kind has one.
    #[must_use]
    pub fn reason_name(&self) -> Option<&'static str> {
        let name = match self.kind {
            JournalKind::Closed => ClosedBy::try_from(self.reason).ok().map(ClosedBy::name),
            JournalKind::Refused => Refusal::try_from(self.reason).ok().map(Refusal::name),
            JournalKind::Dropped | JournalKind::WouldDrop => {
                DropReason::try_from(self.reason).ok().map(DropReason::name)
            }
            JournalKind::Phase => self.entered().map(SessionPhase::name),
            JournalKind::Unanswered if self.reason == 1 => Some("reset"),
            JournalKind::Unanswered => Some("no-reply"),
            JournalKind::Features if self.reason == 1 => Some("ccc"),
            JournalKind::Features => Some("no-ccc"),
            JournalKind::Began if self.reason == 1 => Some("adopted"),
            _ => return None,
        };
        Some(name.unwrap_or("unknown"))
    }

    /// The phase that the session entered, of [`JournalKind::Phase`].
    #[must_use]
    pub fn entered(&self) -> Option<SessionPhase> {
        let phase = SessionPhase::try_from(self.reason).ok();
        phase.filter(|_| self.kind == JournalKind::Phase)
    }

    /// How long what the kind says took; `None` where there is nothing to measure.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        use JournalKind::{Closed, Connected, Ended, Unanswered, Used, Withdrawn};
        let measured = matches!(
            self.kind,
            Used | Connected | Unanswered | Withdrawn | Closed | Ended
        );
        measured.then(|| Duration::from_nanos(self.lasted_ns))
    }

    /// Does another host connect than the session's client or server?
    fn is_of_another_host(&self) -> bool {
        let own = [self.client.ip(), self.server.ip()];
        self.connection
            .is_some_and(|(src, _)| !own.contains(&src.ip()))
    }

    /// In words, without the session and without the time.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.what();
        if let Some(line) = self
            .line
            .as_ref()
            .filter(|_| self.kind != JournalKind::Ended)
        {
            let _ = write!(text, ": \"{line}\"");
        }
        text
    }

    fn what(&self) -> String {
        let lasted = short(Duration::from_nanos(self.lasted_ns));
        let reason = self.reason_name().unwrap_or_default();
        let via = self.via.map_or("?", ExpectVia::name);
        let way = self.connection.map(way).unwrap_or_default();
        let port = self.connection.map_or(0, |(_, dst)| dst.port());
        match self.kind {
            JournalKind::Began if self.reason == 1 => "session adopted in mid-life".into(),
            JournalKind::Began => "session begins".into(),
            JournalKind::Opened => format!("{via} opens {way}"),
            JournalKind::Used => format!("{way} takes its pinhole, {lasted} after it was opened"),
            JournalKind::Passed => format!("{way} passes by a rule"),
            JournalKind::Connected => format!("{way} is connected, {lasted} after its SYN"),
            JournalKind::Unanswered if self.reason == 1 => {
                format!("{way} passed here, and its other end reset it within {lasted}")
            }
            JournalKind::Unanswered => format!("{way} passed here, no reply for {lasted}"),
            JournalKind::Withdrawn => {
                format!("{via} was refused, port {port} closes after {lasted}")
            }
            JournalKind::Closed => format!("port {port} closes after {lasted} ({reason})"),
            JournalKind::Refused => {
                let help = Refusal::try_from(self.reason).map_or("", Refusal::help);
                let of = if way.is_empty() { "" } else { " " };
                format!("{way}{of}refused, {reason} ({help})")
            }
            JournalKind::Dropped | JournalKind::WouldDrop => {
                let dropped = match self.kind {
                    JournalKind::Dropped => "was dropped",
                    _ => "would be dropped",
                };
                let whose = if self.is_of_another_host() {
                    " of another host"
                } else {
                    ""
                };
                format!(
                    "data connection {way}{whose} {dropped} ({reason}); the session is {}",
                    self.phase.name()
                )
            }
            JournalKind::Phase => match self.entered() {
                Some(SessionPhase::Tls) => {
                    "encrypted from here on, the helper reads nothing".into()
                }
                Some(SessionPhase::Cleared) => "in clear again (CCC), the helper reads on".into(),
                _ => format!("the session is {reason}"),
            },
            JournalKind::Failed => "the server says that something failed".into(),
            JournalKind::Features if self.reason == 1 => "the server lists CCC".into(),
            JournalKind::Features => "the server's features do not list CCC".into(),
            JournalKind::Ended => {
                let how = self
                    .line
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                format!("session ends after {lasted} ({how})")
            }
            JournalKind::Skipped => format!("{} more events are not told", self.lasted_ns),
        }
    }
}

/// Who connects to whom.
fn way((src, dst): (SocketAddr, SocketAddr)) -> String {
    match src.port() {
        0 => format!("{} -> {dst}", src.ip()),
        _ => format!("{src} -> {dst}"),
    }
}

/// `850 µs`, `2.1 ms`, `3.0 s`, `4m05s`.
#[must_use]
pub fn short(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        _ => {
            let s = time.as_secs();
            match s {
                0..3600 => format!("{}m{:02}s", s / 60, s % 60),
                _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ftp::Side;

    pub(crate) fn entry(news: &News) -> JournalEntry {
        let client = "10.0.0.2".parse().unwrap();
        let server = "192.0.2.7".parse().unwrap();
        let key = FlowKey6::from_parts(words(client), words(server), 41822, 21, 6, 0);
        let session = Session {
            started_ns: 5,
            incarnation: 9,
            ..Session::zeroed()
        };
        let mut entry = news.entry(&key, &session, SessionPhase::Ready, 7);
        entry.seq = 3;
        entry.sealed()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let ends = (
            "10.0.0.2:0".parse().unwrap(),
            "192.0.2.7:50053".parse().unwrap(),
        );
        let news = News {
            via: Some(ExpectVia::Epsv),
            connection: Some(ends),
            line: Some(Excerpt::of(Side::Server, b"229 (|||50053|)")),
            ..News::of(JournalKind::Opened)
        };
        let entry = entry(&news);
        assert!(entry.is_whole());
        let told = Told::try_from(&entry).unwrap();
        assert_eq!((told.seq, told.at_ns, told.started_ns), (3, 7, 5));
        assert_eq!(told.client, "10.0.0.2:41822".parse().unwrap());
        assert_eq!(told.server, "192.0.2.7:21".parse().unwrap());
        assert_eq!(told.connection, Some(ends));
        assert_eq!(
            told.text(),
            "EPSV opens 10.0.0.2 -> 192.0.2.7:50053: \"229 (|||50053|)\""
        );
        let unknown = JournalEntry { kind: 99, ..entry };
        assert_eq!(Told::try_from(&unknown), Err(Unknown(3)));
    }

    #[test]
    fn every_kind_has_words() {
        for kind in JournalKind::ALL {
            let news = News {
                reason: 1,
                lasted_ns: 2_100_000,
                line: Some(Excerpt::text("FIN")),
                ..News::of(kind)
            };
            let told = Told::try_from(&entry(&news)).unwrap();
            assert!(!told.text().contains("unknown"), "{}", told.text());
            assert!(told.text().len() > 8, "{}", told.text());
        }
    }

    #[test]
    fn durations_are_short() {
        let all = [850, 2_100, 3_000_000, 245_000_000, 7_800_000_000];
        let texts = all.map(|us| short(Duration::from_micros(us)));
        assert_eq!(texts, ["850 µs", "2.1 ms", "3.0 s", "4m05s", "2h10m"]);
    }
}

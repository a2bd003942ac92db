//! What became of FTP sessions: the agent's journal.
//!
//! A pinned array of records, written in turn by the agent alone and read by
//! anybody, so that it tells of sessions that have ended, and needs no agent. The
//! record of sequence number `n` stands in slot `n % JOURNAL_LEN`.

use bytemuck::{Pod, Zeroable, bytes_of};

use super::FlowKey6;
use crate::pod;

/// Records of the map `JOURNAL`: 1 MiB.
pub const JOURNAL_LEN: usize = 4096;

/// Bytes of a line that a record keeps.
pub const JOURNAL_LINE: usize = 128;

/// What happened, `JournalEntry::kind`. Numbers and names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum JournalKind {
    /// A session began; `reason` is 1 if it was first seen in mid-life.
    Began = 1,
    /// A pinhole was opened, by `via`.
    Opened = 2,
    /// A data SYN took a pinhole, `lasted_ns` after it was opened.
    Used = 3,
    /// A SYN between the session's hosts, no control connection's, was accepted by a rule.
    Passed = 4,
    /// The connection of a SYN that passed came about, `lasted_ns` after the SYN.
    Connected = 5,
    /// No answer came to a SYN that passed, for `lasted_ns` now.
    Unanswered = 6,
    /// The server refused what a pinhole had been opened for.
    Withdrawn = 7,
    /// A pinhole closed, `lasted_ns` after it was opened; `reason` is a [`ClosedBy`].
    Closed = 8,
    /// A line opened nothing; `reason` is the helper's.
    Refused = 9,
    /// A data SYN was dropped; `reason` is a [`crate::verdict::DropReason`].
    Dropped = 10,
    /// The session is in another phase; `reason` is a [`super::SessionPhase`].
    Phase = 11,
    /// The server's reply was 425, 426 or 5yz.
    Failed = 12,
    /// The server listed its features; `reason` is 1 if CCC was among them.
    Features = 13,
    /// The session ended, `lasted_ns` after it began; the line says how.
    Ended = 14,
    /// `lasted_ns` counts records of the session that were left out, because there were too
    /// many within a second.
    Skipped = 15,
    /// As [`JournalKind::Dropped`], in shadow mode: it passed.
    WouldDrop = 16,
}

impl JournalKind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Began,
        Self::Opened,
        Self::Used,
        Self::Passed,
        Self::Connected,
        Self::Unanswered,
        Self::Withdrawn,
        Self::Closed,
        Self::Refused,
        Self::Dropped,
        Self::Phase,
        Self::Failed,
        Self::Features,
        Self::Ended,
        Self::Skipped,
        Self::WouldDrop,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Began => "began",
            Self::Opened => "opened",
            Self::Used => "used",
            Self::Passed => "passed",
            Self::Connected => "connected",
            Self::Unanswered => "unanswered",
            Self::Withdrawn => "withdrawn",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Phase => "phase",
            Self::Failed => "failed",
            Self::Features => "features",
            Self::Ended => "ended",
            Self::Skipped => "skipped",
            Self::WouldDrop => "would-drop",
        }
    }
}

impl TryFrom<u8> for JournalKind {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Self::ALL
            .into_iter()
            .find(|kind| *kind as u8 == value)
            .ok_or(value)
    }
}

/// Why a pinhole closed, `JournalEntry::reason` of [`JournalKind::Closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ClosedBy {
    /// Its time was over.
    Expired = 1,
    /// A newer one of its session took its place.
    Replaced = 2,
    /// Its session ended, or cannot be read any more.
    Session = 3,
}

impl ClosedBy {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Session => "session",
        }
    }
}

impl TryFrom<u8> for ClosedBy {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            1 => Self::Expired,
            2 => Self::Replaced,
            3 => Self::Session,
            other => return Err(other),
        })
    }
}

/// A record of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct JournalEntry {
    /// Counts from 1; 0 in an unused slot.
    pub seq: u64,
    /// `CLOCK_MONOTONIC`, ns.
    pub at_ns: u64,
    /// A duration, ns, as the kind says; else 0.
    pub lasted_ns: u64,
    /// `CLOCK_MONOTONIC` of the session's begin, ns.
    pub started_ns: u64,
    /// The control connection.
    pub session: FlowKey6,
    /// Source of the data connection, network byte order, IPv4 in mapped form; zero if there is none.
    pub src: [u32; 4],
    /// Its destination, likewise.
    pub dst: [u32; 4],
    /// Incarnation of the control flow.
    pub incarnation: u32,
    /// Source port of the data connection; 0 if it is not known.
    pub sport: u16,
    /// Destination port of the data connection; 0 if there is none.
    pub dport: u16,
    /// [`JournalKind`].
    pub kind: u8,
    /// As the kind says; else 0.
    pub reason: u8,
    /// [`super::SessionPhase`] of the session then.
    pub phase: u8,
    /// [`super::ExpectVia`]; 0 for none.
    pub via: u8,
    /// 1 if the client is the larger endpoint (`hi`) of `session`.
    pub client_is_hi: u8,
    /// Bytes of `line`.
    pub line_len: u8,
    /// 1 if the line went on.
    pub line_cut: u8,
    /// Keeps the size a multiple of eight.
    pub reserved: u8,
    /// [`JournalEntry::digest`] of all the rest: the kernel copies an element
    /// while another process may read it.
    pub check: u64,
    /// The line that brought it about, as it came, without its end.
    pub line: [u8; JOURNAL_LINE],
}
pod!(JournalEntry, 256);

impl JournalEntry {
    /// FNV-1a over the record with `check` 0.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let bare = Self { check: 0, ..*self };
        bytes_of(&bare)
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    /// The same record, to be written.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.check = self.digest();
        self
    }

    /// Was it read as it was written?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.seq != 0 && self.check == self.digest()
    }

    /// Slot of the record of this sequence number.
    #[must_use]
    pub const fn slot(seq: u64) -> u32 {
        (seq % JOURNAL_LEN as u64) as u32
    }

    /// The bytes of the line.
    #[must_use]
    pub fn line(&self) -> &[u8] {
        let len = usize::from(self.line_len).min(JOURNAL_LINE);
        self.line.get(..len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_round_trip() {
        for kind in JournalKind::ALL {
            assert_eq!(JournalKind::try_from(kind as u8), Ok(kind));
        }
        assert_eq!(JournalKind::try_from(0), Err(0));
    }

    #[test]
    fn a_torn_record_shows() {
        let mut entry = JournalEntry {
            seq: 7,
            at_ns: 1,
            ..JournalEntry::zeroed()
        }
        .sealed();
        assert!(entry.is_whole());
        entry.line[5] = 1;
        assert!(!entry.is_whole());
        assert!(!JournalEntry::zeroed().sealed().is_whole());
    }
}

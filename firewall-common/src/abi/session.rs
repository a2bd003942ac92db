//! FTP sessions, as far as a restarted agent and the command line must know them.

use bytemuck::{Pod, Zeroable};

use crate::pod;

/// Dropped data SYNs that a session remembers.
pub const DROPPED_KEPT: usize = 4;

/// Where a session stands, `Session::phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SessionPhase {
    /// Connected; the server's 220 has not come yet.
    Greeting = 1,
    /// 220 seen, log-in not complete.
    Login = 2,
    /// Logged in (230), or a negotiation was seen that shows it.
    Ready = 3,
    /// Encrypted; nothing is parsed.
    Tls = 4,
    /// Clear again after CCC.
    Cleared = 5,
    /// Not parsed any more: payload was missed, or the configuration refuses CCC.
    Blind = 6,
    /// Not FTP: can never open anything.
    Poisoned = 7,
    /// Adopted in mid-life: parsed, but opens nothing before a complete command and reply.
    Adopted = 8,
    /// Closing: FIN, RST or 221 seen.
    Closed = 9,
}

impl SessionPhase {
    /// The phase's name, as the command line shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Login => "login",
            Self::Ready => "ready",
            Self::Tls => "tls",
            Self::Cleared => "cleared",
            Self::Blind => "blind",
            Self::Poisoned => "poisoned",
            Self::Adopted => "adopted",
            Self::Closed => "closed",
        }
    }
}

impl TryFrom<u8> for SessionPhase {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            1 => Self::Greeting,
            2 => Self::Login,
            3 => Self::Ready,
            4 => Self::Tls,
            5 => Self::Cleared,
            6 => Self::Blind,
            7 => Self::Poisoned,
            8 => Self::Adopted,
            9 => Self::Closed,
            other => return Err(other),
        })
    }
}

/// Outstanding command of a session, `Session::outstanding`: the one whose final
/// reply may open a pinhole. Numbered as [`super::ExpectVia`].
pub mod outstanding {
    /// None.
    pub const NONE: u8 = 0;
    /// PASV.
    pub const PASV: u8 = 3;
    /// EPSV.
    pub const EPSV: u8 = 4;
    /// LPSV.
    pub const LPSV: u8 = 6;
}

/// Length of the `REFUSALS` map: the helper's reasons for refusing a line are below it.
pub const REFUSALS_LEN: usize = 64;

/// Bits of `Session::flags`.
pub mod session_flags {
    /// EPSV ALL was granted: nothing else negotiates.
    pub const EPSV_ALL: u8 = 1 << 0;
    /// The server lists CCC in its answer to FEAT.
    pub const CCC_LISTED: u8 = 1 << 1;
    /// It answered FEAT, and does not list CCC.
    pub const CCC_UNLISTED: u8 = 1 << 2;
}

/// A data connection that was dropped between the two hosts of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DroppedSyn {
    /// `CLOCK_MONOTONIC`, ns; 0 in an unused slot.
    pub at_ns: u64,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// 1 if the session's client sent it (passive), 0 if its server did (active).
    pub from_client: u8,
    /// [`crate::verdict::DropReason`].
    pub reason: u8,
    /// Keeps the size a multiple of eight.
    pub reserved: u16,
}
pod!(DroppedSyn, 16);

/// An FTP session. The map's key is the key of its control flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Session {
    /// `CLOCK_MONOTONIC` of the session's begin, ns.
    pub started_ns: u64,
    /// `CLOCK_MONOTONIC` of its last control payload, ns.
    pub last_ns: u64,
    /// `CLOCK_MONOTONIC` at which it went TLS, ns; 0 if it did not.
    pub tls_ns: u64,
    /// Incarnation of the control flow.
    pub incarnation: u32,
    /// Next sequence number to parse, by [`crate::key::Direction`].
    pub next_seq: [u32; 2],
    /// Pinholes opened so far.
    pub opened: u32,
    /// Negotiations refused so far.
    pub refused: u32,
    /// Data SYNs dropped between the two hosts since the session began.
    pub dropped: u32,
    /// [`SessionPhase`].
    pub phase: u8,
    /// [`outstanding`].
    pub outstanding: u8,
    /// 1 if the client is the larger endpoint (`hi`) of the key.
    pub client_is_hi: u8,
    /// Why the last refused line was refused: the helper's reason, 0 for none.
    pub last_refusal: u8,
    /// Zone of the client.
    pub client_zone: u8,
    /// Zone of the server.
    pub server_zone: u8,
    /// 1 if it was first seen in mid-life.
    pub adopted: u8,
    /// [`session_flags`].
    pub flags: u8,
    /// The last dropped data SYNs, oldest overwritten: slot `dropped % DROPPED_KEPT` is next.
    pub drops: [DroppedSyn; DROPPED_KEPT],
}
pod!(Session, 120);

/// Two hosts, the smaller address first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PairKey {
    lo: [u32; 4],
    hi: [u32; 4],
}
pod!(PairKey, 32);

impl PairKey {
    /// The pair of `a` and `b` (network byte order, IPv4 mapped), in either order.
    #[inline(always)]
    #[must_use]
    pub fn new(a: [u32; 4], b: [u32; 4]) -> Self {
        let up = if a[0] != b[0] {
            a[0] < b[0]
        } else if a[1] != b[1] {
            a[1] < b[1]
        } else if a[2] != b[2] {
            a[2] < b[2]
        } else {
            a[3] <= b[3]
        };
        if up {
            Self { lo: a, hi: b }
        } else {
            Self { lo: b, hi: a }
        }
    }

    /// The smaller address.
    #[must_use]
    pub const fn lo(&self) -> [u32; 4] {
        self.lo
    }

    /// The larger address.
    #[must_use]
    pub const fn hi(&self) -> [u32; 4] {
        self.hi
    }
}

/// What the programs know of a host pair with a live FTP session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pair {
    /// The budget of held or reported SYNs, [`super::PairWindow`]. Atomic.
    pub window: u64,
    /// The same of SYNs that passed. Atomic.
    pub passed: u64,
    /// Live sessions between the two hosts; written by the agent.
    pub sessions: u32,
    /// Keeps the size a multiple of eight.
    pub reserved: u32,
}
pod!(Pair, 24);

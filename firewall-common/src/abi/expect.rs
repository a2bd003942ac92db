//! Expectations: the pinholes.

use bytemuck::{Pod, Zeroable};

use super::FlowKey6;
use crate::{pod, wire::proto};

/// Which connection is expected. The source port is not known in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ExpectKey {
    /// Who will connect: address, network byte order, IPv4 in mapped form.
    pub src: [u32; 4],
    /// To whom: address, as `src`.
    pub dst: [u32; 4],
    /// To which port, host byte order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Keeps the size a multiple of four.
    pub reserved: u8,
}
pod!(ExpectKey, 36);

impl ExpectKey {
    /// A TCP connection from `src` to `dst`, addresses and port as in the fields.
    #[must_use]
    pub const fn tcp(src: [u32; 4], dst: [u32; 4], dport: u16) -> Self {
        Self {
            src,
            dst,
            dport,
            proto: proto::TCP,
            reserved: 0,
        }
    }

    /// Where the connection goes, whoever begins it.
    #[must_use]
    pub const fn target(&self) -> Target {
        Target {
            dst: self.dst,
            dport: self.dport,
            proto: self.proto,
            reserved: 0,
        }
    }
}

/// A port that somebody is expected at: an [`ExpectKey`] without who will connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Target {
    /// Address, network byte order, IPv4 in mapped form.
    pub dst: [u32; 4],
    /// Host byte order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Keeps the size a multiple of four.
    pub reserved: u8,
}
pod!(Target, 20);

/// An expected connection. Serves one; dies with its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Expectation {
    /// [`ExpectState`]: free, or taken by which source port. Compare-and-swap only.
    pub state: u64,
    /// When it was written, `CLOCK_MONOTONIC` ns.
    pub created_ns: u64,
    /// The control flow that negotiated it.
    pub parent: FlowKey6,
    /// Incarnation of that flow.
    pub parent_incarnation: u32,
    /// [`crate::time::Tick`] after which it counts as absent.
    pub expires: u32,
    /// Zone from which the connection must come.
    pub from_zone: u8,
    /// Zone to which it must go.
    pub to_zone: u8,
    /// The command that opened it, [`ExpectVia`].
    pub via: u8,
    /// Keeps the size a multiple of eight.
    pub reserved: [u8; 5],
}
pod!(Expectation, 72);

/// A data connection's tie to its control connection. The map's key is the key
/// of the data flow; the entry is written when the expectation is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DataFlow {
    /// The control flow that negotiated it.
    pub parent: FlowKey6,
    /// Incarnation of that flow.
    pub parent_incarnation: u32,
    /// Incarnation of the data flow itself: the entry counts for no other one.
    pub incarnation: u32,
    /// How it was negotiated, [`ExpectVia`].
    pub via: u8,
    /// 1 if the control flow's client is the larger endpoint (`hi`) of its key.
    pub client_is_hi: u8,
    /// Keeps the size a multiple of four.
    pub reserved: u16,
}
pod!(DataFlow, 52);

/// The command that negotiated an expectation, `Expectation::via`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExpectVia {
    /// PORT (RFC 959).
    Port = 1,
    /// EPRT (RFC 2428).
    Eprt = 2,
    /// PASV, answered by 227 (RFC 959).
    Pasv = 3,
    /// EPSV, answered by 229 (RFC 2428).
    Epsv = 4,
    /// LPRT (RFC 1639).
    Lprt = 5,
    /// LPSV, answered by 228 (RFC 1639).
    Lpsv = 6,
    /// None: the session is encrypted, and a session range lets its client connect.
    RangePassive = 7,
    /// As `RangePassive`, its server.
    RangeActive = 8,
}

impl ExpectVia {
    /// The command's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "PORT",
            Self::Eprt => "EPRT",
            Self::Pasv => "PASV",
            Self::Epsv => "EPSV",
            Self::Lprt => "LPRT",
            Self::Lpsv => "LPSV",
            Self::RangePassive => "session-range",
            Self::RangeActive => "session-range-active",
        }
    }
}

impl TryFrom<u8> for ExpectVia {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        Ok(match value {
            1 => Self::Port,
            2 => Self::Eprt,
            3 => Self::Pasv,
            4 => Self::Epsv,
            5 => Self::Lprt,
            6 => Self::Lpsv,
            7 => Self::RangePassive,
            8 => Self::RangeActive,
            other => return Err(other),
        })
    }
}

/// `Expectation::state`, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectState {
    /// Nobody connected yet.
    Free,
    /// The connection from this source port took it; its retransmitted SYN is
    /// honoured until the connection is there.
    Taken(u16),
}

impl ExpectState {
    const TAKEN: u64 = 1 << 63;
    const SERVED: u64 = 1 << 62;

    /// Reads the word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        if word & Self::TAKEN == 0 {
            Self::Free
        } else {
            Self::Taken(word as u16)
        }
    }

    /// The word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Taken(port) => Self::TAKEN | port as u64,
        }
    }

    /// The word once the connection from `port` has come about: it reads as
    /// taken by that port, but is not what its SYN compares with any more.
    #[inline(always)]
    #[must_use]
    pub const fn served_word(port: u16) -> u64 {
        Self::SERVED | Self::Taken(port).word()
    }
}

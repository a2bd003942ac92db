//! FTP, as far as a firewall must understand it. Pure: no I/O, no clock.
//!
//! - [`mod@line`] turns a byte stream into lines
//! - [`command`] and [`reply`] read a line
//! - [`tls`] follows records, without looking into them
//! - [`session`] decides which line opens what
//! - [`excerpt`] is a line as it can be told of, [`remarks`] what is worth telling
//! - [`range`] is what an operator opens for encrypted sessions
//! - [`refusal`] names every reason not to
//! - [`conversation`] runs all of them over the two directions of a control connection

use std::net::IpAddr;

use firewall_common::abi::{ExpectVia, SessionPhase};
use ipnet::IpNet;

pub mod command;
pub mod conversation;
pub mod excerpt;
pub mod line;
pub mod range;
pub mod refusal;
pub mod remarks;
pub mod reply;
pub mod session;
pub mod tls;

pub use conversation::Conversation;
pub use excerpt::Excerpt;
pub use range::SessionRange;
pub use refusal::Refusal;
pub use remarks::Remark;
pub use session::Session;

/// A side of the control connection. The client is who sent the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Sends commands.
    Client,
    /// Sends replies.
    Server,
}

impl Side {
    /// 0 or 1, to index per-side fields; the same as the flow's
    /// [`Direction`](firewall_common::key::Direction) in which the side sends.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }

    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// When an active data connection is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActiveOpen {
    /// At PORT or EPRT. Some servers connect before they reply (pyftpdlib does).
    #[default]
    AtCommand,
    /// At the 2xx reply to it.
    AtReply,
}

/// What becomes of a session that goes back to clear text after TLS (CCC, RFC
/// 4217, section 12.3), where everybody on the way can read it and change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ccc {
    /// It is read from then on.
    #[default]
    Allow,
    /// Likewise, with a warning.
    Alert,
    /// It is not read any more.
    Refuse,
}

/// An address that a server announces in place of its own, because a NAT stands
/// between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The servers, by the address to which the control connection goes.
    pub server: IpNet,
    /// What they announce. The data connection goes to the server's own address.
    pub announces: IpAddr,
}

/// What an operator can choose about reading sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// When an active data connection is let in.
    pub active: ActiveOpen,
    /// Whether clear text after TLS is read.
    pub ccc: Ccc,
    /// Aliases; for the life of the process, so that each session can hold them.
    pub aliases: &'static [Alias],
}

impl Config {
    /// May `server` announce `address` for itself?
    #[must_use]
    pub fn is_alias(&self, server: IpAddr, address: IpAddr) -> bool {
        let mut aliases = self.aliases.iter();
        aliases.any(|alias| alias.announces == address && alias.server.contains(&server))
    }
}

/// A port that a pinhole may lead to: 1024 or above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataPort(u16);

impl DataPort {
    /// The lowest port that no service of the system sits on (RFC 6335, section 6).
    pub const MIN: u16 = 1024;

    /// Takes a port, host byte order.
    ///
    /// # Errors
    /// [`Refusal::BadNumber`] for 0, [`Refusal::PrivilegedPort`] below [`Self::MIN`].
    pub const fn new(port: u16) -> Result<Self, Refusal> {
        match port {
            0 => Err(Refusal::BadNumber),
            1..Self::MIN => Err(Refusal::PrivilegedPort),
            _ => Ok(Self(port)),
        }
    }

    /// The number, host byte order.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A data connection that was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Who waits for the connection: the server in passive mode, the client in active mode.
    pub listener: Side,
    /// Who will connect. IPv4 in its own form, not mapped.
    pub src: IpAddr,
    /// To whom: the listener's own address.
    pub dst: IpAddr,
    /// To which port.
    pub port: DataPort,
    /// The command that negotiated it.
    pub via: ExpectVia,
}

/// What a line brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let this one connection in.
    Open(Opening),
    /// The server refused this PORT or EPRT: do not let it in after all.
    Withdraw(Opening),
    /// Let nothing in any more that was negotiated so far.
    CloseAll,
    /// The session is in another phase.
    Phase(SessionPhase),
    /// A line opened nothing, for this reason. It is forwarded all the same.
    Refused(Refusal),
}

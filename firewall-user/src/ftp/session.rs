//! The session machine: which lines open what.
//!
//! Commands and final replies are matched in the order in which they came (RFC
//! 959, section 5.4). A passive port is opened by the final reply to an
//! outstanding PASV, EPSV or LPSV and by nothing else; an active one at PORT,
//! EPRT or LPRT, or at their reply. Both only for the announcing host's own address.
//!
//! A session first seen in mid-life may have begun as anything. It opens nothing
//! but at a reply, for good, and the first line that is no command of FTP ends
//! its reading until a command and its reply were seen in order.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use firewall_common::abi::{ExpectVia, SessionPhase, outstanding, session_flags};

use super::{
    Action, ActiveOpen, Ccc, Config, DataPort, Opening, Side,
    command::Command,
    refusal::Refusal,
    reply::{self, Line, ReplyReader},
};

/// Commands whose replies are waited for; more are only counted.
const MAX_PENDING: usize = 32;

/// A command that has no final reply yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// Opens nothing.
    Plain,
    /// Opens nothing, and some servers never answer it.
    Idle,
    Pasv,
    Epsv,
    Lpsv,
    /// A passive one that was refused already: its reply opens nothing.
    Refused,
    EpsvAll,
    Feat,
    /// PORT, EPRT or LPRT; was it opened at the command?
    Active(Opening, bool),
    Auth {
        tls: bool,
    },
    LogIn,
    Rein {
        before: SessionPhase,
    },
}

impl Pending {
    /// How a passive one negotiates.
    const fn via(self) -> ExpectVia {
        match self {
            Self::Pasv => ExpectVia::Pasv,
            Self::Lpsv => ExpectVia::Lpsv,
            _ => ExpectVia::Epsv,
        }
    }

    const fn is_passive(self) -> bool {
        matches!(self, Self::Pasv | Self::Epsv | Self::Lpsv | Self::Refused)
    }
}

/// An FTP session: the state of one control connection.
#[derive(Debug)]
pub struct Session {
    client: IpAddr,
    server: IpAddr,
    config: Config,
    phase: SessionPhase,
    /// The server's greeting was seen, or is not waited for.
    greeted: bool,
    /// First seen in mid-life: opens at replies only.
    adopted: bool,
    pending: VecDeque<Pending>,
    /// Commands that found `pending` full, and all that came after them.
    uncounted: u64,
    replies: ReplyReader,
    /// EPSV ALL was granted: nothing else negotiates any more.
    only_epsv: bool,
    /// Does the server list CCC among its features, if it was asked?
    lists_ccc: Option<bool>,
    /// It does in the answer that is under way.
    listing_ccc: bool,
}

impl Session {
    /// A session whose greeting is still to come. IPv4 addresses in their own form, not mapped.
    #[must_use]
    pub fn new(client: IpAddr, server: IpAddr, config: Config) -> Self {
        Self::resume(
            client,
            server,
            config,
            SessionPhase::Greeting,
            outstanding::NONE,
        )
    }

    /// A session that is known to be in `phase`, with `outstanding` ([`outstanding`]) unanswered.
    #[must_use]
    pub fn resume(
        client: IpAddr,
        server: IpAddr,
        config: Config,
        phase: SessionPhase,
        outstanding: u8,
    ) -> Self {
        let pending = match outstanding {
            outstanding::PASV => VecDeque::from([Pending::Pasv]),
            outstanding::EPSV => VecDeque::from([Pending::Epsv]),
            outstanding::LPSV => VecDeque::from([Pending::Lpsv]),
            _ => VecDeque::new(),
        };
        Self {
            client,
            server,
            config,
            phase,
            greeted: phase != SessionPhase::Greeting,
            adopted: phase == SessionPhase::Adopted,
            pending,
            uncounted: 0,
            replies: ReplyReader::default(),
            only_epsv: false,
            lists_ccc: None,
            listing_ccc: false,
        }
    }

    /// The same session, of which [`session_flags`] are known.
    #[must_use]
    pub const fn with_flags(mut self, flags: u8) -> Self {
        self.only_epsv = flags & session_flags::EPSV_ALL != 0;
        self.lists_ccc = match flags & (session_flags::CCC_LISTED | session_flags::CCC_UNLISTED) {
            session_flags::CCC_LISTED => Some(true),
            session_flags::CCC_UNLISTED => Some(false),
            _ => None,
        };
        self
    }

    /// What a later agent must know beside the phase: [`session_flags`].
    #[must_use]
    pub const fn flags(&self) -> u8 {
        let epsv = if self.only_epsv {
            session_flags::EPSV_ALL
        } else {
            0
        };
        epsv | match self.lists_ccc {
            Some(true) => session_flags::CCC_LISTED,
            Some(false) => session_flags::CCC_UNLISTED,
            None => 0,
        }
    }

    /// Does the server list CCC in its answer to FEAT (RFC 2389)? `None` if it was
    /// not asked in clear text, or does not know FEAT. A server can know CCC all
    /// the same (pure-ftpd does).
    #[must_use]
    pub const fn lists_ccc(&self) -> Option<bool> {
        self.lists_ccc
    }

    /// The same session, of which it is known that it was adopted in mid-life.
    #[must_use]
    pub const fn with_adopted(mut self, adopted: bool) -> Self {
        self.adopted |= adopted;
        self
    }

    /// Was it first seen in mid-life?
    #[must_use]
    pub const fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Where the session stands.
    #[must_use]
    pub const fn phase(&self) -> SessionPhase {
        self.phase
    }

    /// Which outstanding command the next final reply answers, as the ABI numbers it.
    #[must_use]
    pub fn outstanding(&self) -> u8 {
        match self.pending.front() {
            Some(Pending::Pasv) => outstanding::PASV,
            Some(Pending::Epsv) => outstanding::EPSV,
            Some(Pending::Lpsv) => outstanding::LPSV,
            _ => outstanding::NONE,
        }
    }

    /// The most that [`Self::held`] comes to.
    pub const MOST_HELD: usize = MAX_PENDING * size_of::<Pending>();

    /// Memory of the commands that wait for their replies, in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.pending.capacity() * size_of::<Pending>()
    }

    /// Where in the server's stream the reply began that is not complete, if one is.
    #[must_use]
    pub const fn reply_begin(&self) -> Option<u32> {
        self.replies.begin()
    }

    /// Are lines read at all in this phase?
    #[must_use]
    pub const fn reads_lines(&self) -> bool {
        matches!(
            self.phase,
            SessionPhase::Greeting
                | SessionPhase::Login
                | SessionPhase::Ready
                | SessionPhase::Cleared
                | SessionPhase::Adopted
        )
    }

    /// Reads a line of the client, without its end.
    pub fn client_line(&mut self, line: &[u8], out: &mut Vec<Action>) {
        if !self.reads_lines() {
            return;
        }
        let command = Command::parse(line);
        if let Some(refusal) = self.foreign(command) {
            return self.poison(refusal, out);
        }
        let pending = match command {
            Command::ReplyLike => {
                out.push(Action::Refused(Refusal::WrongSide));
                Pending::Plain
            }
            Command::Port(address) => self.active(address, ExpectVia::Port, out),
            Command::Eprt(address) => self.active(address, ExpectVia::Eprt, out),
            Command::Lprt(address) => self.active(address, ExpectVia::Lprt, out),
            Command::Pasv => self.passive(Pending::Pasv, out),
            // The data connection has the control connection's family (RFC 2428, section 3).
            Command::Epsv { v4: Some(v4) } if v4 != self.server.is_ipv4() => {
                out.push(Action::Refused(Refusal::WrongFamily));
                Pending::Refused
            }
            Command::Epsv { .. } => self.passive(Pending::Epsv, out),
            Command::Lpsv => self.passive(Pending::Lpsv, out),
            Command::EpsvAll => Pending::EpsvAll,
            Command::Feat => Pending::Feat,
            Command::Auth { tls } => Pending::Auth { tls },
            Command::LogIn => Pending::LogIn,
            Command::Rein => Pending::Rein { before: self.phase },
            Command::Abor | Command::Idle => Pending::Idle,
            Command::Ccc
            | Command::Quit
            | Command::Host
            | Command::Http
            | Command::Header
            | Command::Known
            | Command::Other => Pending::Plain,
        };
        self.push(pending, out);
    }

    /// As [`Self::client_line`], of a line that is too long: it is some command,
    /// and will be answered, but opens nothing.
    pub fn client_long_line(&mut self, head: &[u8], out: &mut Vec<Action>) {
        if !self.reads_lines() {
            return;
        }
        out.push(Action::Refused(Refusal::LineTooLong));
        match self.foreign(Command::parse(head)) {
            Some(refusal) => self.poison(refusal, out),
            None => self.push(Pending::Plain, out),
        }
    }

    /// Why a line shows that this is no FTP session, if so.
    fn foreign(&self, command: Command) -> Option<Refusal> {
        match command {
            Command::Http => Some(Refusal::HttpVerb),
            Command::Header => Some(Refusal::NotFtp),
            // The HTTP request line, say, can be among what was not seen; its
            // headers and body are no commands.
            Command::Other if self.phase == SessionPhase::Adopted => Some(Refusal::NotFtp),
            _ => None,
        }
    }

    fn push(&mut self, pending: Pending, out: &mut Vec<Action>) {
        if self.uncounted == 0 && self.pending.len() < MAX_PENDING {
            if matches!(pending, Pending::Rein { .. }) && self.greeted {
                self.enter(SessionPhase::Greeting, out);
            }
            self.pending.push_back(pending);
            return;
        }
        self.uncounted += 1;
        match pending {
            Pending::Active(opening, true) => {
                // Its own opening, not an earlier one of the same port.
                out.pop_if(|action| *action == Action::Open(opening));
                out.push(Action::Refused(Refusal::TooManyOutstanding));
            }
            Pending::Active(..) | Pending::Pasv | Pending::Epsv | Pending::Lpsv => {
                out.push(Action::Refused(Refusal::TooManyOutstanding));
            }
            _ => {}
        }
    }

    /// Why nothing may be negotiated now by `via`, if so.
    fn closed_to_negotiation(&self, via: ExpectVia) -> Option<Refusal> {
        let in_auth = |p: &Pending| matches!(p, Pending::Auth { tls: true });
        if self.phase == SessionPhase::Greeting {
            Some(Refusal::BeforeGreeting)
        } else if self.pending.iter().any(in_auth) {
            // What is sent between AUTH and TLS may be read by nobody, or by
            // somebody else than who is authenticated later.
            Some(Refusal::DuringAuth)
        } else {
            self.after_epsv_all(via)
        }
    }

    /// After EPSV ALL a server refuses everything else (RFC 2428, section 4), and
    /// the client has said that it will not come.
    fn after_epsv_all(&self, via: ExpectVia) -> Option<Refusal> {
        (self.only_epsv && via != ExpectVia::Epsv).then_some(Refusal::AfterEpsvAll)
    }

    fn passive(&self, pending: Pending, out: &mut Vec<Action>) -> Pending {
        match self.closed_to_negotiation(pending.via()) {
            Some(refusal) => {
                out.push(Action::Refused(refusal));
                Pending::Refused
            }
            None => pending,
        }
    }

    fn active(
        &self,
        address: Result<SocketAddr, Refusal>,
        via: ExpectVia,
        out: &mut Vec<Action>,
    ) -> Pending {
        let opening = self
            .closed_to_negotiation(via)
            .map_or(Ok(()), Err)
            .and(address)
            .and_then(|address| self.opening(Side::Client, address.ip(), address.port(), via));
        match opening {
            Ok(opening) => {
                let proved = matches!(self.phase, SessionPhase::Ready | SessionPhase::Cleared);
                let at_command = self.config.active == ActiveOpen::AtCommand && !self.adopted;
                // Its answer decides whether this may come.
                let unsure = self.pending.contains(&Pending::EpsvAll);
                let now = proved && at_command && !unsure;
                if now {
                    out.push(Action::Open(opening));
                }
                Pending::Active(opening, now)
            }
            Err(refusal) => {
                out.push(Action::Refused(refusal));
                Pending::Plain
            }
        }
    }

    /// The opening towards `listener`, who announced `address` and `port` as its own.
    fn opening(
        &self,
        listener: Side,
        address: IpAddr,
        port: u16,
        via: ExpectVia,
    ) -> Result<Opening, Refusal> {
        let (src, dst) = match listener {
            Side::Client => (self.server, self.client),
            Side::Server => (self.client, self.server),
        };
        if address.is_ipv4() != dst.is_ipv4() {
            return Err(Refusal::WrongFamily);
        }
        let announces = listener == Side::Server && self.config.is_alias(dst, address);
        if address != dst && !announces {
            return Err(Refusal::ForeignAddress);
        }
        let port = DataPort::new(port)?;
        Ok(Opening {
            listener,
            src,
            dst,
            port,
            via,
        })
    }

    /// Reads a line of the server, without its end; it began at `at` in the stream.
    pub fn server_line(&mut self, line: &[u8], at: u32, out: &mut Vec<Action>) {
        if !self.reads_lines() {
            return;
        }
        match self.replies.next(line, at) {
            Line::Partial => {
                let asked = self.pending.front() == Some(&Pending::Feat);
                self.listing_ccc |= asked && line.trim_ascii().eq_ignore_ascii_case(b"CCC");
            }
            Line::Reply(100..=199, _) => {}
            Line::Reply(code, text) => self.reply(code, text, out),
            Line::Stray if line.starts_with(b"HTTP/") => self.poison(Refusal::HttpVerb, out),
            Line::Stray if !self.greeted && !line.is_empty() => {
                self.poison(Refusal::NotFtp, out);
            }
            Line::Stray => {}
        }
    }

    /// As [`Self::server_line`], of a line that is too long: only its code counts.
    pub fn server_long_line(&mut self, head: &[u8], at: u32, out: &mut Vec<Action>) {
        if self.reads_lines() {
            out.push(Action::Refused(Refusal::LineTooLong));
        }
        let code = head.get(..4).unwrap_or(head);
        self.server_line(code, at, out);
    }

    /// A final reply.
    fn reply(&mut self, code: u16, text: &[u8], out: &mut Vec<Action>) {
        match code {
            // 421 says that the server closes, whatever it answers.
            221 | 421 => {
                out.push(Action::CloseAll);
                self.enter(SessionPhase::Closed, out);
            }
            // 234 answers nothing but AUTH (RFC 2228): taken for it even where
            // the AUTH was not seen, since TLS must never be read as text.
            234 => self.enter_tls(out),
            _ if !self.greeted => self.greeting(code, out),
            228 => self.passive_reply(Pending::Lpsv, text, out),
            227 => self.passive_reply(Pending::Pasv, text, out),
            229 => self.passive_reply(Pending::Epsv, text, out),
            _ => self.other_reply(code, out),
        }
    }

    fn greeting(&mut self, code: u16, out: &mut Vec<Action>) {
        match code {
            220 => self.enter(SessionPhase::Login, out),
            230 => self.enter(SessionPhase::Ready, out),
            227..=229 => return out.push(Action::Refused(Refusal::BeforeGreeting)),
            _ => return,
        }
        self.greeted = true;
    }

    fn passive_reply(&mut self, wanted: Pending, text: &[u8], out: &mut Vec<Action>) {
        // An ABOR or NOOP that was never answered does not stand in the way.
        let idle = self
            .pending
            .iter()
            .take_while(|p| **p == Pending::Idle)
            .count();
        if self.pending.get(idle) == Some(&Pending::Refused) {
            self.pending.drain(..=idle);
            return;
        }
        if self.pending.get(idle) != Some(&wanted) {
            out.push(Action::Refused(Refusal::Unsolicited));
            return self.resynchronise(wanted);
        }
        self.pending.drain(..=idle);
        let announced = match wanted {
            Pending::Pasv => match self.server {
                IpAddr::V4(_) => reply::passive(text),
                IpAddr::V6(server) => reply::passive_v6(text, server),
            },
            Pending::Lpsv => reply::long_passive(text),
            _ => reply::extended_passive(text).map(|(address, port)| {
                let address = address.unwrap_or(self.server);
                SocketAddr::new(address, port)
            }),
        };
        let via = wanted.via();
        let opening = self
            .after_epsv_all(via)
            .map_or(Ok(()), Err)
            .and(announced)
            .and_then(|a| self.opening(Side::Server, a.ip(), a.port(), via));
        match opening {
            Ok(opening) => {
                self.proved(out);
                out.push(Action::Open(opening));
            }
            Err(refusal) => out.push(Action::Refused(refusal)),
        }
    }

    /// Whatever an unsolicited reply answered: nothing before the command that it
    /// names is outstanding any more. So the next negotiation is in step again.
    fn resynchronise(&mut self, wanted: Pending) {
        if self.pending.is_empty() {
            self.uncounted = self.uncounted.saturating_sub(1);
        } else {
            let through = self.pending.iter().position(|p| *p == wanted).unwrap_or(0);
            self.pending.drain(..=through);
        }
    }

    /// The log-in was granted, or a negotiation that shows that it was.
    fn proved(&mut self, out: &mut Vec<Action>) {
        if matches!(self.phase, SessionPhase::Login | SessionPhase::Adopted) {
            self.enter(SessionPhase::Ready, out);
        }
    }

    /// A final reply other than 227 to 229.
    fn other_reply(&mut self, code: u16, out: &mut Vec<Action>) {
        let positive = (200..400).contains(&code);
        let Some(&answered) = self.pending.front() else {
            self.uncounted = self.uncounted.saturating_sub(1);
            return;
        };
        // None of them is granted by another code: a left-over, a
        // second reply to an aborted transfer for one.
        if answered.is_passive() && positive {
            return;
        }
        self.pending.pop_front();
        match answered {
            Pending::Auth { tls: true } if code == 334 => return self.enter_tls(out),
            Pending::Active(opening, false) if (200..300).contains(&code) => {
                match self.after_epsv_all(opening.via) {
                    None => {
                        self.proved(out);
                        out.push(Action::Open(opening));
                    }
                    Some(refusal) => out.push(Action::Refused(refusal)),
                }
            }
            // 220 among them: pure-ftpd's.
            Pending::EpsvAll if (200..300).contains(&code) => self.only_epsv = true,
            Pending::Feat => {
                let listed = std::mem::take(&mut self.listing_ccc);
                if code == 211 {
                    self.lists_ccc = Some(listed);
                }
            }
            Pending::Active(opening, true) if !positive => out.push(Action::Withdraw(opening)),
            Pending::LogIn if matches!(code, 202 | 230 | 232) => self.proved(out),
            Pending::Rein { before } => self.reinitialised(code, before, out),
            _ => {}
        }
        if self.phase == SessionPhase::Adopted {
            self.adopt(code, out);
        }
    }

    /// REIN was answered: by 220 as if newly connected (RFC 959, section 4.1.1), else it had no effect.
    fn reinitialised(&mut self, code: u16, before: SessionPhase, out: &mut Vec<Action>) {
        if code == 220 {
            self.only_epsv = false;
            out.push(Action::CloseAll);
            self.enter(SessionPhase::Login, out);
        } else if before == SessionPhase::Greeting {
            self.enter(SessionPhase::Login, out);
        } else {
            self.enter(before, out);
        }
    }

    /// A command and its reply were seen in order: the reply shows where the session stands.
    fn adopt(&mut self, code: u16, out: &mut Vec<Action>) {
        match code {
            331 | 332 | 530 => self.enter(SessionPhase::Login, out),
            200..=299 => self.enter(SessionPhase::Ready, out),
            _ => {}
        }
    }

    /// From here on TLS. Nothing that was negotiated before it carries over.
    pub fn enter_tls(&mut self, out: &mut Vec<Action>) {
        self.greeted = true;
        self.only_epsv = false;
        self.forget();
        out.push(Action::CloseAll);
        self.enter(SessionPhase::Tls, out);
    }

    /// One direction went back to clear text after TLS.
    pub fn cleared(&mut self, out: &mut Vec<Action>) {
        if self.phase != SessionPhase::Tls {
            return;
        }
        if self.config.ccc == Ccc::Refuse {
            return self.stop(SessionPhase::Blind, Refusal::CccRefused, out);
        }
        self.enter(SessionPhase::Cleared, out);
    }

    /// Not FTP: never read again.
    pub fn poison(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        self.stop(SessionPhase::Poisoned, refusal, out);
    }

    /// Bytes were missed: never read again.
    pub fn blind(&mut self, out: &mut Vec<Action>) {
        self.stop(SessionPhase::Blind, Refusal::BytesMissed, out);
    }

    fn stop(&mut self, phase: SessionPhase, refusal: Refusal, out: &mut Vec<Action>) {
        self.forget();
        out.push(Action::Refused(refusal));
        out.push(Action::CloseAll);
        self.enter(phase, out);
    }

    fn forget(&mut self) {
        self.pending.clear();
        self.uncounted = 0;
        self.listing_ccc = false;
        self.replies = ReplyReader::default();
    }

    fn enter(&mut self, phase: SessionPhase, out: &mut Vec<Action>) {
        if self.phase != phase {
            self.phase = phase;
            out.push(Action::Phase(phase));
        }
    }
}

#[cfg(test)]
mod tests;

//! Both directions of a control connection, as bytes.

use std::net::IpAddr;

use firewall_common::abi::SessionPhase;

use super::{
    Action, Config, Refusal, Session, Side,
    line::{Event, LineReader, MAX_LINE},
    remarks::{Remark, Remarks},
    tls::{self, Framer},
};

/// How a direction is read at present.
#[derive(Debug)]
enum Mode {
    Lines(LineReader),
    Tls(Framer),
    /// Not at all.
    Off,
}

/// What the first byte of all can tell: no line of FTP begins as a TLS record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// It is the connection's first: implicit TLS (port 990, say) begins with a
    /// handshake record.
    OfAll,
    /// It is the first that was seen: of a record, of whatever type, if the segment
    /// began with one.
    OfTheRest,
    /// It was seen.
    Seen,
}

/// A control connection: bytes of both sides in, [`Action`]s out.
///
/// Bytes must come in the order of each side's sequence numbers, and in the
/// order in which they passed the firewall between the sides. How they are cut
/// into segments makes no difference.
#[derive(Debug)]
pub struct Conversation {
    session: Session,
    modes: [Mode; 2],
    first: First,
    remarks: Remarks,
}

impl Conversation {
    /// A connection seen from its first byte.
    #[must_use]
    pub fn new(client: IpAddr, server: IpAddr, config: Config) -> Self {
        Self {
            session: Session::new(client, server, config),
            modes: [(); 2].map(|()| Mode::Lines(LineReader::new())),
            first: First::OfAll,
            remarks: Remarks::default(),
        }
    }

    /// A connection first seen in mid-life: the line that is under way in each
    /// direction is skipped (bytes that no line holds still count), and nothing
    /// is opened but at the reply to a command that was seen before it.
    #[must_use]
    pub fn adopted(client: IpAddr, server: IpAddr, config: Config) -> Self {
        let mut adopted = Self::resumed(client, server, config, SessionPhase::Adopted, 0);
        adopted.modes = [(); 2].map(|()| Mode::Lines(LineReader::within_a_line()));
        adopted.first = First::OfTheRest;
        adopted
    }

    /// A connection of which an earlier agent knew the phase and the
    /// [`outstanding`](firewall_common::abi::outstanding) command, each
    /// direction at the beginning of a line. TLS stays TLS for good: where the
    /// records begin is not known any more.
    #[must_use]
    pub fn resumed(
        client: IpAddr,
        server: IpAddr,
        config: Config,
        phase: SessionPhase,
        outstanding: u8,
    ) -> Self {
        Self::of(Session::resume(client, server, config, phase, outstanding))
    }

    /// As [`Self::resumed`], of a session in any state.
    #[must_use]
    pub fn of(session: Session) -> Self {
        let phase = session.phase();
        let modes = [(); 2].map(|()| match phase {
            SessionPhase::Tls => Mode::Tls(Framer::lost()),
            _ if session.reads_lines() => Mode::Lines(LineReader::new()),
            _ => Mode::Off,
        });
        Self {
            session,
            modes,
            first: First::Seen,
            remarks: Remarks::default(),
        }
    }

    /// The session machine.
    #[must_use]
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// What of the bytes so far is worth telling, since the last time.
    pub fn take_remarks(&mut self) -> Vec<Remark> {
        self.remarks.take()
    }

    /// Is there any byte that could still open something?
    #[must_use]
    pub const fn is_read(&self) -> bool {
        !matches!(self.modes, [Mode::Off, Mode::Off])
    }

    /// Bytes of `side`'s stream at its end that are not read to their end yet:
    /// an unfinished line, or a reply whose last line has not come. An agent
    /// that resumes the session must be given them again.
    #[must_use]
    pub const fn unread(&self, side: Side) -> u32 {
        let Mode::Lines(reader) = &self.modes[side.index()] else {
            return 0;
        };
        match self.session.reply_begin() {
            Some(begin) if matches!(side, Side::Server) => reader.read().wrapping_sub(begin),
            _ => reader.pending(),
        }
    }

    /// The most that [`Self::held`] comes to: an over-long line each way, and
    /// the commands that wait for their replies.
    pub const MOST_HELD: usize = 2 * MAX_LINE + Session::MOST_HELD;

    /// Memory that it holds beside itself, in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        let lines = self.modes.iter().map(|mode| match mode {
            Mode::Lines(reader) => reader.held(),
            Mode::Tls(_) | Mode::Off => 0,
        });
        lines.sum::<usize>() + self.session.held()
    }

    /// Bytes of the connection were missed: it is never read again.
    ///
    /// An encrypted session stays known as such, since that explains more.
    pub fn miss(&mut self, out: &mut Vec<Action>) {
        match self.session.phase() {
            SessionPhase::Tls => self.modes = [(); 2].map(|()| Mode::Tls(Framer::lost())),
            SessionPhase::Blind | SessionPhase::Poisoned | SessionPhase::Closed => {}
            _ => {
                self.session.blind(out);
                self.modes = [Mode::Off, Mode::Off];
            }
        }
    }

    /// Reads the next bytes of `side`.
    pub fn feed(&mut self, side: Side, mut bytes: &[u8], out: &mut Vec<Action>) {
        if let Some(&first) = bytes.first() {
            let framer: Option<fn() -> Framer> = match self.first {
                First::OfAll if first == tls::HANDSHAKE => Some(Framer::new),
                // Other segments of it may have been missed.
                First::OfTheRest if tls::begins_record(first) => Some(Framer::lost),
                _ => None,
            };
            self.first = First::Seen;
            if let Some(framer) = framer {
                self.session.enter_tls(out);
                self.modes = [(); 2].map(|()| Mode::Tls(framer()));
            }
        }
        while !bytes.is_empty() {
            match &mut self.modes[side.index()] {
                Mode::Off => return,
                Mode::Lines(_) => self.lines(side, &mut bytes, out),
                Mode::Tls(_) => self.records(side, &mut bytes, out),
            }
        }
    }

    /// Reads lines up to a change of mode.
    fn lines(&mut self, side: Side, bytes: &mut &[u8], out: &mut Vec<Action>) {
        let Mode::Lines(reader) = &mut self.modes[side.index()] else {
            return;
        };
        while let Some((at, event)) = reader.next_at(bytes) {
            let phase = self.session.phase();
            let listed = self.session.lists_ccc();
            let session = &mut self.session;
            let (text, acted) = (event.text(), out.len());
            match (side, event) {
                (Side::Client, Event::Line(line)) => session.client_line(line, out),
                (Side::Client, Event::TooLong(head)) => session.client_long_line(head, out),
                (Side::Server, Event::Line(line)) => session.server_line(line, at, out),
                (Side::Server, Event::TooLong(head)) => session.server_long_line(head, at, out),
                (_, Event::Binary) => session.poison(Refusal::BinaryBytes, out),
            }
            // An action can have been taken back.
            let did = acted.min(out.len())..out.len();
            let complete = self.session.reply_begin().is_none();
            self.remarks.line(side, text, did, complete);
            if let Some(ccc) = self.session.lists_ccc()
                && listed != Some(ccc)
            {
                self.remarks.features(ccc);
            }
            if self.session.phase() != phase && !self.session.reads_lines() {
                return self.leave_lines(side);
            }
        }
    }

    /// The session went TLS at the end of a line of `side`, or is not read any more.
    fn leave_lines(&mut self, side: Side) {
        if self.session.phase() != SessionPhase::Tls {
            self.modes = [Mode::Off, Mode::Off];
            return;
        }
        // The other side has nothing to say in between; if it began a line, its
        // records begin who knows where.
        let other = match self.unread(side.other()) {
            0 => Framer::new(),
            _ => Framer::lost(),
        };
        self.modes[side.index()] = Mode::Tls(Framer::new());
        self.modes[side.other().index()] = Mode::Tls(other);
    }

    /// Follows records up to a return to clear text.
    fn records(&mut self, side: Side, bytes: &mut &[u8], out: &mut Vec<Action>) {
        let Mode::Tls(framer) = &mut self.modes[side.index()] else {
            return;
        };
        if framer.next(bytes) != Some(tls::End::NotTls) {
            return;
        }
        // CCC comes encrypted, and so does its answer: before both directions
        // carried application data, clear text is no return from TLS.
        let both_carried = self.modes.iter().all(|mode| match mode {
            Mode::Tls(framer) => framer.carried_data(),
            Mode::Lines(_) | Mode::Off => true,
        });
        let is_text = bytes.first().is_some_and(|first| match side {
            Side::Client => first.is_ascii_alphabetic(),
            Side::Server => first.is_ascii_digit(),
        });
        if is_text && both_carried {
            self.modes[side.index()] = Mode::Lines(LineReader::new());
            self.session.cleared(out);
            if !self.session.reads_lines() {
                self.modes = [Mode::Off, Mode::Off];
            }
        } else {
            self.modes[side.index()] = Mode::Tls(Framer::lost());
        }
    }
}

#[cfg(test)]
mod tests;

//! What was said, by the plainest reading, and whether it justifies an opening.
//!
//! This reads no lines and follows no telnet, so it cannot be wrong in the way
//! in which the session machine could be: it looks for the letters.

use firewall_common::abi::{ExpectVia, SessionPhase};

use crate::{
    Hosts,
    ftp::{Opening, Side},
};

/// The bytes of both sides.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    said: [Vec<u8>; 2],
    /// Up to where the client's words are used up, by [`ExpectVia`]: one command, one opening.
    used: [usize; 8],
}

impl Heard {
    /// What the client had said before it was listened to.
    pub(crate) fn earlier(&mut self, bytes: &[u8]) {
        self.said[Side::Client.index()].extend_from_slice(bytes);
    }

    pub(crate) fn byte(&mut self, side: Side, byte: u8) {
        self.said[side.index()].push(byte);
    }

    /// Can a line open something in this phase?
    pub(crate) fn may_open_in(&self, phase: SessionPhase) -> bool {
        match phase {
            SessionPhase::Login
            | SessionPhase::Ready
            | SessionPhase::Cleared
            | SessionPhase::Adopted => true,
            // A REIN waits for its answer behind the negotiation, which is answered first.
            SessionPhase::Greeting => find(&self.said[Side::Client.index()], b"REIN").is_some(),
            _ => false,
        }
    }

    /// Holds an opening by the last byte of `side` against what was said.
    pub(crate) fn justifies(&mut self, side: Side, opening: &Opening, hosts: &Hosts) {
        let listener = opening.listener;
        assert_eq!(opening.dst, hosts.of(listener), "a foreign address");
        assert_eq!(opening.src, hosts.of(listener.other()), "a foreign peer");
        assert!(opening.port.get() >= 1024, "a privileged port");
        let verb = opening.via.name();
        let code: &[u8] = match opening.via {
            ExpectVia::Pasv => b"227",
            ExpectVia::Epsv => b"229",
            ExpectVia::Lpsv => b"228",
            ExpectVia::Port | ExpectVia::Eprt | ExpectVia::Lprt => b"2",
            ExpectVia::RangePassive | ExpectVia::RangeActive => {
                unreachable!("no line opens a range")
            }
        };
        let passive = code.len() == 3;
        let speaker = if passive { Side::Server } else { Side::Client };
        assert_eq!(listener, speaker);
        self.use_up(opening.via, verb.as_bytes());
        assert!(self.names(speaker, opening), "the port was not announced");
        if passive {
            assert_eq!(side, Side::Server, "opened without a reply");
        }
        if side == Side::Server {
            assert!(
                find(&self.said[side.index()], code).is_some(),
                "no {code:?}"
            );
        }
    }

    /// The client said `verb`, and no opening has used that up.
    fn use_up(&mut self, via: ExpectVia, verb: &[u8]) {
        let from = &mut self.used[via as usize];
        let said = &self.said[Side::Client.index()];
        let end = find(&said[*from..], verb);
        *from += end.unwrap_or_else(|| panic!("opened without a {via:?}"));
    }

    /// Did the speaker name the port?
    fn names(&self, speaker: Side, opening: &Opening) -> bool {
        let port = opening.port.get();
        let said = &self.said[speaker.index()];
        let named = |number: u16| find(said, number.to_string().as_bytes()).is_some();
        match opening.via {
            ExpectVia::Epsv | ExpectVia::Eprt => named(port),
            _ => named(port >> 8) && named(port & 0xff),
        }
    }
}

/// Where the first `word` ends in `text`: in either case, with telnet commands
/// and NUL allowed between its letters.
fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    (0..text.len()).find_map(|start| {
        let mut at = start;
        for letter in word {
            loop {
                match text.get(at..)? {
                    [0xff, 251..=255, _, ..] => at += 3,
                    [0xff, 240..=250, ..] => at += 2,
                    [0, ..] => at += 1,
                    _ => break,
                }
            }
            if !text.get(at)?.eq_ignore_ascii_case(letter) {
                return None;
            }
            at += 1;
        }
        Some(at)
    })
}

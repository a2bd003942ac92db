//! What of a conversation is worth telling beside its actions: the lines that
//! brought them about, replies that say that something failed, and whether the
//! server lists CCC.

use std::ops::Range;

use super::{Excerpt, Side};

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The line that brought about the actions of these positions.
    Line(Range<usize>, Excerpt),
    /// The server replied 425, 426 or 5yz.
    Failed(Excerpt),
    /// The server listed its features (RFC 2389); is CCC (RFC 2228) among them?
    Features {
        /// Is it?
        ccc: bool,
    },
}

/// How far the answer to FEAT has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Feat {
    /// Nobody asked.
    #[default]
    Idle,
    /// FEAT was sent.
    Asked,
    /// Between `211-` and `211 `; was CCC there?
    Listing(bool),
}

/// Collects remarks, at most [`Remarks::MAX`] between two times that they are taken.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    feat: Feat,
    made: Vec<Remark>,
}

impl Remarks {
    const MAX: usize = 256;

    /// A line of `side` was read, and brought about the actions `did`.
    pub(super) fn line(&mut self, side: Side, line: &[u8], did: Range<usize>) {
        if !did.is_empty() {
            self.make(Remark::Line(did, Excerpt::of(side, line)));
        }
        match side {
            Side::Client if line.trim_ascii().eq_ignore_ascii_case(b"FEAT") => {
                self.feat = Feat::Asked;
            }
            Side::Client => {}
            Side::Server => self.reply(line),
        }
    }

    fn reply(&mut self, line: &[u8]) {
        self.feat = match (self.feat, line.get(..4)) {
            (Feat::Asked, Some(b"211-")) => Feat::Listing(false),
            (Feat::Listing(ccc), Some(b"211 ")) => {
                self.make(Remark::Features { ccc });
                Feat::Idle
            }
            (Feat::Listing(_), _) if line.trim_ascii().eq_ignore_ascii_case(b"CCC") => {
                Feat::Listing(true)
            }
            (feat, _) => feat,
        };
        let failed = matches!(
            line,
            [b'4', b'2', b'5' | b'6', b' ', ..] | [b'5', b'0'..=b'9', b'0'..=b'9', b' ', ..]
        );
        if failed && !matches!(self.feat, Feat::Listing(_)) {
            self.make(Remark::Failed(Excerpt::of(Side::Server, line)));
        }
    }

    fn make(&mut self, remark: Remark) {
        if self.made.len() < Self::MAX {
            self.made.push(remark);
        }
    }

    /// What was remarked since the last time.
    pub(super) fn take(&mut self) -> Vec<Remark> {
        std::mem::take(&mut self.made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[(Side, &str)]) -> Vec<Remark> {
        let mut remarks = Remarks::default();
        for (side, line) in lines {
            remarks.line(*side, line.as_bytes(), 0..0);
        }
        remarks.take()
    }

    #[test]
    fn ccc_counts_only_within_the_list_that_was_asked_for() {
        use Side::{Client, Server};
        let listed = [
            (Client, "FEAT"),
            (Server, "211-Features:"),
            (Server, " AUTH TLS"),
            (Server, " CCC"),
            (Server, "211 End"),
        ];
        assert_eq!(said(&listed), [Remark::Features { ccc: true }]);
        let without = [listed[0], listed[1], listed[2], listed[4]];
        assert_eq!(said(&without), [Remark::Features { ccc: false }]);
        assert_eq!(said(listed.get(1..).unwrap()), []);
    }

    #[test]
    fn failures_are_final_replies() {
        use Side::{Client, Server};
        let failed = |line: &str| vec![Remark::Failed(Excerpt::text(line))];
        for line in ["425 no data connection", "550 no such file", "426 cut"] {
            assert_eq!(said(&[(Server, line)]), failed(line));
            assert_eq!(said(&[(Client, line)]), []);
        }
        for line in ["550-part", "226 done", "450 busy", "5500 no"] {
            assert_eq!(said(&[(Server, line)]), []);
        }
    }
}

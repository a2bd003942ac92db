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

/// Collects remarks, at most [`Remarks::MAX`] between two times that they are taken.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    made: Vec<Remark>,
}

impl Remarks {
    const MAX: usize = 256;

    /// A line of `side` was read, and brought about the actions `did`; no reply is
    /// under way after it if it is `complete`.
    pub(super) fn line(&mut self, side: Side, line: &[u8], did: Range<usize>, complete: bool) {
        if !did.is_empty() {
            self.make(Remark::Line(did, Excerpt::of(side, line)));
        }
        let failed = matches!(
            line,
            [b'4', b'2', b'5' | b'6', b' ', ..] | [b'5', b'0'..=b'9', b'0'..=b'9', b' ', ..]
        );
        if side == Side::Server && complete && failed {
            self.make(Remark::Failed(Excerpt::of(Side::Server, line)));
        }
    }

    /// The server listed its features.
    pub(super) fn features(&mut self, ccc: bool) {
        self.make(Remark::Features { ccc });
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
            remarks.line(*side, line.as_bytes(), 0..0, true);
        }
        remarks.take()
    }

    #[test]
    fn failures_are_final_replies() {
        use Side::{Client, Server};
        let failed = |line: &str| vec![Remark::Failed(Excerpt::text(line))];
        for line in ["425 no data connection", "550 no such file", "426 cut"] {
            assert_eq!(said(&[(Server, line)]), failed(line));
            assert_eq!(said(&[(Client, line)]), []);
        }
        let mut within = Remarks::default();
        within.line(Server, b"550 of a longer one", 0..0, false);
        assert_eq!(within.take(), []);
        for line in ["550-part", "226 done", "450 busy", "5500 no"] {
            assert_eq!(said(&[(Server, line)]), []);
        }
    }
}

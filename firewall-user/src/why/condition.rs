//! Which comparison failed: the sequence numbers behind a verdict.

use firewall_common::{abi::Explain, verdict::Verdict};
use serde::Serialize;

/// A comparison that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The packet's number: `seq`, `ack`, `sack` (the highest selective
    /// acknowledgement), or `end` (the sequence number after it).
    pub what: &'static str,
    /// Its value.
    pub value: u32,
    /// `>`, `<` or `!=`, modulo 2^32.
    pub relation: &'static str,
    /// What it was compared with.
    pub bound: u32,
    /// What that is.
    pub bound_is: &'static str,
    /// How far apart they are.
    pub by: u32,
}

impl Condition {
    /// The comparison behind `verdict`; `None` if none was made.
    #[must_use]
    pub fn of(verdict: Verdict, notes: &Explain) -> Option<Self> {
        let reason = match verdict {
            Verdict::Pass(reason) => reason.name(),
            Verdict::Drop(reason) => reason.name(),
        };
        let (_, [what, relation, bound_is]) = *COMPARED.iter().find(|(name, _)| *name == reason)?;
        let (value, bound) = (notes.value, notes.bound);
        // Both 0: the flow was not compared with, or not known enough for that.
        (value != bound).then(|| Self {
            what,
            value,
            relation,
            bound,
            bound_is,
            by: value.wrapping_sub(bound).cast_signed().unsigned_abs(),
        })
    }

    /// `seq 5000 > 4200, the end of what the receiver's window allows (by 800)`.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { bound_is, by, .. } = self;
        format!("{}, {bound_is} (by {by})", self.brief())
    }

    /// `seq 5000 > 4200`.
    #[must_use]
    pub fn brief(&self) -> String {
        let Self {
            what,
            value,
            relation,
            bound,
            ..
        } = self;
        format!("{what} {value} {relation} {bound}")
    }
}

/// By reason: the packet's number, the relation, and what it is compared with.
const COMPARED: &[(&str, [&str; 3])] = {
    const ALLOWED: &str = "the end of what the receiver's window allows";
    const SENT: &str = "the end of what the other side sent";
    &[
        ("tcp-seq-over", ["seq", ">", ALLOWED]),
        ("tcp-overshot", ["seq", ">", ALLOWED]),
        ("tcp-ack-over", ["ack", ">", SENT]),
        (
            "tcp-sack-over",
            [
                "sack",
                ">",
                "the farthest that a window reaches from the ack",
            ],
        ),
        ("tcp-handshake", ["ack", "!=", SENT]),
        (
            "tcp-rst",
            ["seq", "<", "what the other side has acknowledged"],
        ),
        (
            "icmp-sequence",
            [
                "quoted seq",
                "!=",
                "the nearest that its connection has on its way",
            ],
        ),
        (
            "tcp-old-data",
            ["end", "<", "the begin of what the receiver may still want"],
        ),
        (
            "tcp-old-ack",
            ["ack", "<", "the oldest acknowledgement that counts"],
        ),
    ]
};

#[cfg(test)]
mod tests {
    use firewall_common::verdict::DropReason;

    use super::*;

    #[test]
    fn the_numbers_are_told_across_their_wrap() {
        let notes = Explain {
            value: 5,
            bound: u32::MAX - 4,
            ..Explain::NONE
        };
        let wrong = Condition::of(Verdict::Drop(DropReason::TcpHandshake), &notes).unwrap();
        assert_eq!(
            wrong.text(),
            "ack 5 != 4294967291, the end of what the other side sent (by 10)"
        );
        assert_eq!(
            Condition::of(Verdict::Drop(DropReason::Policy), &notes),
            None
        );
        let none = Condition::of(Verdict::Drop(DropReason::TcpHandshake), &Explain::NONE);
        assert_eq!(none, None);
    }
}

//! The outcomes of a packet as a reference: number, name, meaning, what to do.
//!
//! `docs/reasons.md` is [`markdown`]; `pinhole why --list-reasons` prints the
//! same from the code.

use firewall_common::verdict::{DropReason, Event, PassReason};
use serde::Serialize;

use crate::render::{Paint, Row, Table};

/// An outcome, or an event beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonRow {
    /// `pass`, `drop` or `event`.
    pub kind: &'static str,
    /// Index into the counters; never used again for another.
    pub number: u32,
    /// The stable name.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it; `null` where nothing is wrong.
    pub advice: Option<&'static str>,
}

impl Row for ReasonRow {
    const NOUN: &str = "reasons";
    const COLUMNS: &[&str] = &["KIND", ">NUMBER", "NAME", "MEANING"];

    fn draw(&self, table: &mut Table) {
        let paint = match self.kind {
            "pass" => Paint::Good,
            "drop" => Paint::Bad,
            _ => Paint::Dim,
        };
        table.row([
            (self.kind.to_owned(), paint),
            (self.number.to_string(), Paint::None),
            (self.name.to_owned(), Paint::None),
            (self.meaning.to_owned(), Paint::None),
        ]);
        if let Some(advice) = self.advice {
            table.note(advice, Paint::Dim);
        }
    }
}

/// All of them, by number.
#[must_use]
pub fn all() -> Vec<ReasonRow> {
    let pass = PassReason::ALL.iter().map(|reason| ReasonRow {
        kind: "pass",
        number: reason.index(),
        name: reason.name(),
        meaning: reason.help(),
        advice: None,
    });
    let drop = DropReason::ALL.iter().map(|reason| ReasonRow {
        kind: "drop",
        number: reason.index(),
        name: reason.name(),
        meaning: reason.help(),
        advice: advice(*reason),
    });
    let events = Event::ALL.iter().map(|event| ReasonRow {
        kind: "event",
        number: event.index(),
        name: event.name(),
        meaning: event.help(),
        advice: None,
    });
    pass.chain(drop).chain(events).collect()
}

/// What an operator can do about packets that are dropped for `reason`.
#[must_use]
pub fn advice(reason: DropReason) -> Option<&'static str> {
    let found = ADVICE.iter().find(|(reasons, _)| reasons.contains(&reason));
    found.map(|(_, advice)| *advice)
}

/// A table and not a match: whoever adds a reason is told by the test below.
const ADVICE: &[(&[DropReason], &str)] = {
    use DropReason::*;
    &[
        (
            &[
                MalformedEthernet,
                MalformedVlan,
                MalformedIpv4,
                MalformedIpv6,
                MalformedTcp,
                MalformedUdp,
                MalformedIcmp,
            ],
            "No stack sends such a packet: look who does (`tcpdump -e`). One of your own points to \
             a broken driver or offload.",
        ),
        (
            &[UnsupportedEthertype],
            "pinhole guards IP. What carries IP inside it (MPLS, PPPoE) must be guarded where it \
             is taken out.",
        ),
        (
            &[Fragment],
            "Find out why it is fragmented: let path-MTU discovery work (`[essentials]`), or lower \
             the sender's MTU.",
        ),
        (
            &[ExtensionHeaders],
            "No ordinary traffic has so many or such headers: look who sends them.",
        ),
        (
            &[Moving],
            "Nothing, if they are few: two processors had packets of one connection in the same \
             microsecond, and TCP sends the dropped one again.",
        ),
        (
            &[FragmentOverlap],
            "A duplicate of the network, or an attack: look who sends it (`tcpdump -e`). Reused \
             identifications look the same: let path-MTU discovery work instead of fragmenting.",
        ),
        (
            &[FragmentOrphan],
            "A flood, or the first fragments are refused: see the other drops. If the network \
             reorders as much as that, let path-MTU discovery work instead of fragmenting.",
        ),
        (
            &[SourceRoute],
            "No ordinary host uses them (RFC 5095, RFC 7126): look who sends it (`tcpdump -e`).",
        ),
        (
            &[Martian, Land],
            "The address is a spoofed or a misconfigured one: look who sends it (`tcpdump -e`).",
        ),
        (&[TcpFlags], "A port scan, mostly: nothing to do."),
        (
            &[TcpInvalid],
            "If a second path carries half of the connection, guard that path, too.",
        ),
        (
            &[TcpSeqOver, TcpAckOver],
            "Where it is real traffic, packets of the connection take another path, or something rewrites sequence \
             numbers between the two hooks.",
        ),
        (
            &[TcpSackOver],
            "No stack sends such a packet: look who does (`tcpdump -v`), or what rewrites sequence \
             numbers on the way and forgets those in the SACK option.",
        ),
        (
            &[TcpRst],
            "An attempt to cut a connection, or an RST that the network delayed: nothing to do. The \
             real end of the connection sends one that fits.",
        ),
        (
            &[TcpHandshake],
            "A guess by somebody who cannot see the connection. If it is real traffic, a packet of \
             the handshake takes another path.",
        ),
        (
            &[TcpNoFlow],
            "A connection from before pinhole, expired, or with its other half on another path: it \
             must begin anew; see the time-outs in `[timeouts]`.",
        ),
        (
            &[Policy],
            "If it is wanted, add a `[[rule]]` that accepts it for these zones, protocol and port.",
        ),
        (
            &[Rule],
            "`pinhole why` names the rule: change it, or put one that accepts before it.",
        ),
        (
            &[IcmpUnsolicited],
            "Nobody here asked, or asked through another path: nothing to do.",
        ),
        (
            &[IcmpUnrelated],
            "An error about a connection that is not tracked (any more), or one with \
             `path-mtu` of `[essentials]` off.",
        ),
        (
            &[IcmpSequence],
            "A guess by somebody who cannot see the connection (RFC 5927), or an error that came \
             too late to matter: nothing to do.",
        ),
        (
            &[ZoneMismatch],
            "Its answers come in where it did not go out: make the routing symmetric, or put both \
             interfaces into one zone.",
        ),
        (
            &[ExpectationTaken],
            "A second connection to a port that was negotiated for one: nothing to do.",
        ),
        (
            &[ExpectationOrphaned],
            "Its FTP session has ended: look at it with `pinhole ftp list`.",
        ),
        (
            &[ExpectationZone],
            "The data connection comes through another zone than the session negotiated it in: \
             make the routing symmetric.",
        ),
        (
            &[RingFull],
            "The agent is behind or stopped: see `pinhole status`. TCP repairs single ones.",
        ),
        (
            &[Held],
            "It waits for the agent, and passes if its session has negotiated it: if it is counted \
             as another drop afterwards, that is the verdict.",
        ),
        (
            &[TableError],
            "The kernel refused memory or an update: make `[tables]` smaller, look at `dmesg`.",
        ),
        (
            &[NoRoute],
            "Add a route to its destination (`ip route get ADDRESS`). One with `encap` hides the \
             device that it leads to: use a tunnel device instead, which can be in a zone.",
        ),
        (
            &[UnknownInterface],
            "Run `pinhole run` again: the interface is not in the policy that is loaded.",
        ),
        (
            &[RefusedFlow],
            "Shadow mode let the flow in: `pinhole why` with its first packet says why enforcing \
             would not.",
        ),
        (
            &[VlanTags],
            "Two tags are what QinQ has: guard the interface where the outer ones are taken off.",
        ),
        (
            &[NotIp],
            "Such a device carries IP alone: look what its other end sends.",
        ),
        (
            &[TierFull],
            "More flows than the tables have room for: raise `[tables]` of the policy, or look who \
             opens them with `pinhole flows count`.",
        ),
    ]
};

/// The reference as a document.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Outcomes\n\n\
         Every packet is counted once, under one of these. Number and name are stable: a number \
         is never\nused for another outcome, a name never changes. `pinhole stats` counts them, \
         `pinhole why` gives\nthe one of a packet with the flow, its state, and for a segment \
         that does not fit the numbers that\nwere compared; `pinhole why --list-reasons` prints \
         this list (`-o json`, too).\n\n\
         This file is made by `pinhole why --list-reasons --markdown`; a test compares both.\n",
    );
    let parts = [
        ("pass", "Passed"),
        ("drop", "Dropped"),
        ("event", "Events beside the verdict"),
    ];
    let rows = all();
    for (kind, heading) in parts {
        let advised = kind == "drop";
        out += &format!("\n## {heading}\n\n| number | name | meaning |");
        out += if advised { " what to do |\n" } else { "\n" };
        out += "| ---: | --- | --- |";
        out += if advised { " --- |\n" } else { "\n" };
        for row in rows.iter().filter(|row| row.kind == kind) {
            out += &format!("| {} | `{}` | {} |", row.number, row.name, row.meaning);
            if advised {
                out += &format!(" {} |", row.advice.unwrap_or_default());
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/reasons.md is out of date: target/debug/pinhole why --list-reasons --markdown \
             > docs/reasons.md"
        );
    }

    #[test]
    fn numbers_are_unique_and_drops_have_advice() {
        let rows = all();
        let mut numbers: Vec<u32> = rows.iter().map(|row| row.number).collect();
        numbers.dedup();
        assert!(numbers.is_sorted() && numbers.len() == rows.len());
        for row in rows {
            assert_eq!(row.advice.is_some(), row.kind == "drop", "{}", row.name);
            assert!(
                !row.meaning.contains('|') && row.meaning.ends_with('.'),
                "{}",
                row.name
            );
        }
    }
}

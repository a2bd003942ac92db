//! `ftp list`.

use firewall_common::{
    abi::{
        DROPPED_KEPT, DroppedSyn, ExpectKey, Expectation, FlowKey6, Session, SessionPhase,
        session_flags,
    },
    key::Heading,
    verdict::DropReason,
};
use serde::Serialize;

use super::{Now, Paint, ParentView, Row, Table, endpoint, short_time};
use crate::{bpf::maps::Names, ftp::Refusal};

/// An FTP session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionView {
    /// The control connection's ends: `client`, `cport`, `server`, `sport`.
    #[serde(flatten)]
    pub control: ParentView,
    /// Zones of both.
    pub zone: SessionZonesView,
    /// `greeting`, `login`, `ready`, `tls`, `cleared`, `blind`, `poisoned`,
    /// `adopted` or `closed`.
    pub phase: &'static str,
    /// Can nothing of the control connection be read now?
    pub encrypted: bool,
    /// Since it began.
    pub age_s: f64,
    /// Since its last control payload.
    pub idle_s: f64,
    /// Since it was encrypted; `null` if it never was.
    pub tls_age_s: Option<f64>,
    /// Does the server list CCC among its features? `null` if nobody asked in clear text.
    pub lists_ccc: Option<bool>,
    /// Pinholes opened.
    pub opened: u32,
    /// Negotiations refused.
    pub refused: u32,
    /// Why the last one was, the name of a [`Refusal`]; `null` if none was.
    pub last_refusal: Option<&'static str>,
    /// Data connections dropped between its two hosts.
    pub dropped: u32,
    /// The last of them, newest first.
    pub drops: Vec<DropView>,
    /// Live pinholes.
    pub expectations: usize,
}

/// Zones of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionZonesView {
    /// Of the client.
    pub client: String,
    /// Of the server.
    pub server: String,
}

/// A data connection that was dropped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DropView {
    /// How long ago.
    pub ago_s: f64,
    /// Who sent the SYN: `client` (passive mode) or `server` (active mode).
    pub from: &'static str,
    /// Its source port.
    pub sport: u16,
    /// Its destination port.
    pub dport: u16,
    /// Name of the [`DropReason`].
    pub reason: &'static str,
}

impl SessionView {
    /// The view at `now`; `expectations` are all there are.
    #[must_use]
    pub fn new(
        key: &FlowKey6,
        session: &Session,
        expectations: &[(ExpectKey, Expectation)],
        names: &Names,
        now: Now,
    ) -> Self {
        let phase = SessionPhase::try_from(session.phase);
        let own = |e: &&(ExpectKey, Expectation)| {
            e.1.parent == *key && e.1.parent_incarnation == session.incarnation
        };
        Self {
            control: ParentView::new(key, Heading::from_end(session.client_is_hi)),
            zone: SessionZonesView {
                client: names.zone(session.client_zone).to_string(),
                server: names.zone(session.server_zone).to_string(),
            },
            phase: phase.map_or("unknown", SessionPhase::name),
            encrypted: phase == Ok(SessionPhase::Tls),
            age_s: now.since(session.started_ns),
            idle_s: now.since(session.last_ns),
            tls_age_s: (session.tls_ns != 0).then(|| now.since(session.tls_ns)),
            lists_ccc: match session.flags {
                flags if flags & session_flags::CCC_LISTED != 0 => Some(true),
                flags if flags & session_flags::CCC_UNLISTED != 0 => Some(false),
                _ => None,
            },
            opened: session.opened,
            refused: session.refused,
            last_refusal: refusal(session.last_refusal),
            dropped: session.dropped,
            drops: drops(session, now),
            expectations: expectations.iter().filter(own).count(),
        }
    }

    fn paint(&self) -> Paint {
        match self.phase {
            "ready" | "cleared" => Paint::Good,
            "tls" | "adopted" => Paint::Notice,
            "blind" | "poisoned" | "unknown" => Paint::Bad,
            _ => Paint::Dim,
        }
    }

    fn notes(&self, table: &mut Table) {
        if let Some(reason) = self.last_refusal {
            let known = Refusal::ALL.iter().find(|r| r.name() == reason);
            let help = known.map_or("", |refusal| refusal.help());
            table.note(format!("last refused: {reason}: {help}"), Paint::Bad);
        }
        for drop in &self.drops {
            let (from, to) = match drop.from {
                "client" => (self.control.client, self.control.server),
                _ => (self.control.server, self.control.client),
            };
            let text = format!(
                "dropped {} ago: data connection of the {}, {} > {} ({})",
                short_time(drop.ago_s),
                drop.from,
                endpoint(from, Some(drop.sport)),
                endpoint(to, Some(drop.dport)),
                drop.reason
            );
            table.note(text, Paint::Bad);
        }
        if self.encrypted && self.dropped > 0 {
            let text = "the control connection is encrypted: no helper can read the port in it";
            table.note(text, Paint::Notice);
        }
    }
}

/// The helper's reason by its number, 0 for none.
fn refusal(number: u8) -> Option<&'static str> {
    (number != 0).then(|| Refusal::try_from(number).map_or("unknown", Refusal::name))
}

fn drops(session: &Session, now: Now) -> Vec<DropView> {
    let mut kept: Vec<&DroppedSyn> = session.drops.iter().filter(|d| d.at_ns != 0).collect();
    kept.sort_by_key(|drop| std::cmp::Reverse(drop.at_ns));
    kept.truncate(DROPPED_KEPT);
    let view = |drop: &DroppedSyn| DropView {
        ago_s: now.since(drop.at_ns),
        from: if drop.from_client != 0 {
            "client"
        } else {
            "server"
        },
        sport: drop.sport,
        dport: drop.dport,
        reason: DropReason::try_from(drop.reason).map_or("unknown", DropReason::name),
    };
    kept.into_iter().map(view).collect()
}

impl Row for SessionView {
    const NOUN: &str = "FTP sessions";
    const COLUMNS: &[&str] = &[
        "CLIENT",
        "SERVER",
        "PHASE",
        ">AGE",
        ">IDLE",
        ">OPENED",
        ">REFUSED",
        ">DROPPED",
        ">EXPECTED",
        "ZONES",
    ];

    fn draw(&self, table: &mut Table) {
        let bad = |count: u32| {
            let paint = if count > 0 { Paint::Bad } else { Paint::None };
            (count.to_string(), paint)
        };
        let ends = &self.control;
        table.row([
            (endpoint(ends.client, Some(ends.cport)), Paint::None),
            (endpoint(ends.server, Some(ends.sport)), Paint::None),
            (self.phase.to_owned(), self.paint()),
            (short_time(self.age_s), Paint::None),
            (short_time(self.idle_s), Paint::None),
            (self.opened.to_string(), Paint::None),
            bad(self.refused),
            bad(self.dropped),
            (self.expectations.to_string(), Paint::None),
            (
                format!("{} > {}", self.zone.client, self.zone.server),
                Paint::None,
            ),
        ]);
        self.notes(table);
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use serde_json::json;

    use super::*;
    use crate::render::{
        Ink,
        flow::tests::{NOW, names, v4},
    };

    fn drop(seconds_ago: u64, dport: u16, from_client: u8) -> DroppedSyn {
        DroppedSyn {
            at_ns: NOW.monotonic_ns - seconds_ago * 1_000_000_000,
            sport: 40_001,
            dport,
            from_client,
            reason: DropReason::Policy as u8,
            reserved: 0,
        }
    }

    fn view() -> SessionView {
        let key = FlowKey6::from_parts(v4(1), v4(2), 21, 40_000, 6, 0);
        let session = Session {
            started_ns: NOW.monotonic_ns - 60_000_000_000,
            last_ns: NOW.monotonic_ns - 5_000_000_000,
            tls_ns: NOW.monotonic_ns - 59_000_000_000,
            incarnation: 7,
            opened: 3,
            refused: 1,
            last_refusal: Refusal::PrivilegedPort as u8,
            dropped: 2,
            phase: SessionPhase::Tls as u8,
            client_is_hi: 1,
            client_zone: 0,
            server_zone: 1,
            flags: session_flags::CCC_UNLISTED,
            drops: [
                drop(4, 50_001, 1),
                drop(2, 50_002, 0),
                DroppedSyn::default(),
                DroppedSyn::default(),
            ],
            ..Session::zeroed()
        };
        let of = |parent_incarnation| {
            let expectation = Expectation {
                parent: key,
                parent_incarnation,
                ..Expectation::zeroed()
            };
            (ExpectKey::zeroed(), expectation)
        };
        SessionView::new(&key, &session, &[of(7), of(6)], &names(), NOW)
    }

    #[test]
    fn the_json() {
        assert_eq!(
            serde_json::to_value(view()).unwrap(),
            json!({
                "client": "10.0.0.2", "cport": 40_000, "server": "10.0.0.1", "sport": 21,
                "zone": { "client": "host", "server": "outside" },
                "phase": "tls", "encrypted": true,
                "age_s": 60.0, "idle_s": 5.0, "tls_age_s": 59.0, "lists_ccc": false,
                "opened": 3, "refused": 1, "last_refusal": "privileged-port", "dropped": 2,
                "drops": [
                    { "ago_s": 2.0, "from": "server", "sport": 40_001, "dport": 50_002, "reason": "policy" },
                    { "ago_s": 4.0, "from": "client", "sport": 40_001, "dport": 50_001, "reason": "policy" },
                ],
                "expectations": 1,
            })
        );
    }

    #[test]
    fn drops_stand_under_their_session() {
        let mut table = Table::new(SessionView::COLUMNS);
        view().draw(&mut table);
        let plain = table.render(Ink::Plain);
        assert!(
            plain.contains("10.0.0.2:40000  10.0.0.1:21  tls"),
            "{plain}"
        );
        assert!(
            plain.contains(
                "    dropped 2.0s ago: data connection of the server, \
                 10.0.0.1:40001 > 10.0.0.2:50002 (policy)\n    dropped 4.0s ago"
            ),
            "{plain}"
        );
        assert!(
            plain.contains("    last refused: privileged-port: The "),
            "{plain}"
        );
        assert!(plain.contains("encrypted"), "{plain}");
    }
}

//! `expect list`.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use firewall_common::{
    abi::{ExpectKey, ExpectState, ExpectVia, Expectation, FlowKey6, Session},
    key::Heading,
};
use serde::Serialize;

use super::{Now, Paint, Row, Table, ZonesView, endpoint, short_time};
use crate::bpf::{address, ends, maps::Names};
use crate::protocol;

/// An expected connection: a pinhole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpectView {
    /// Who will connect.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// To which port.
    pub dport: u16,
    /// `tcp`.
    pub proto: String,
    /// `PORT`, `EPRT`, `LPRT`, `PASV`, `EPSV`, `LPSV`, `session-range` or
    /// `session-range-active`.
    pub via: &'static str,
    /// `free` or `taken`.
    pub state: &'static str,
    /// Source port of the connection that took it; `null` while free.
    pub taken_by: Option<u16>,
    /// The control connection that negotiated it.
    pub parent: ParentView,
    /// Zones of the expected connection.
    pub zone: ZonesView,
    /// Since it was opened.
    pub age_s: f64,
    /// Until it closes, if nothing comes.
    pub expires_s: f64,
}

/// An FTP control connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParentView {
    /// Address of the client.
    pub client: IpAddr,
    /// Port of the client.
    pub cport: u16,
    /// Address of the server.
    pub server: IpAddr,
    /// Port of the server.
    pub sport: u16,
}

impl ParentView {
    /// The control flow `key`, whose first packet ran this way.
    pub(super) fn new(key: &FlowKey6, first: Heading) -> Self {
        let (client, server) = ends(key, first);
        Self::of(client, server)
    }

    /// The control connection from `client` to `server`.
    pub(super) const fn of(client: SocketAddr, server: SocketAddr) -> Self {
        Self {
            client: client.ip(),
            cport: client.port(),
            server: server.ip(),
            sport: server.port(),
        }
    }
}

impl ExpectView {
    /// The view at `now`; `sessions` tell which side of the parent is the client.
    #[must_use]
    pub fn new(
        key: &ExpectKey,
        expectation: &Expectation,
        sessions: &HashMap<FlowKey6, Session>,
        names: &Names,
        now: Now,
    ) -> Self {
        let via = ExpectVia::try_from(expectation.via);
        let taken_by = match ExpectState::from_word(expectation.state) {
            ExpectState::Free => None,
            ExpectState::Taken(port) => Some(port),
        };
        let first = match sessions.get(&expectation.parent) {
            Some(session) => Heading::from_end(session.client_is_hi),
            None => client_by_command(key, expectation, via.ok()),
        };
        Self {
            src: address(key.src),
            dst: address(key.dst),
            dport: key.dport,
            proto: protocol::name(key.proto).into_owned(),
            via: via.map_or("unknown", ExpectVia::name),
            state: if taken_by.is_none() { "free" } else { "taken" },
            taken_by,
            parent: ParentView::new(&expectation.parent, first),
            zone: ZonesView {
                from: names.zone(expectation.from_zone),
                to: names.zone(expectation.to_zone),
            },
            age_s: now.since(expectation.created_ns),
            expires_s: now.until_tick(expectation.expires),
        }
    }
}

/// Without its session: in passive mode the client connects, in active mode the server.
fn client_by_command(key: &ExpectKey, e: &Expectation, via: Option<ExpectVia>) -> Heading {
    let client = match via {
        Some(ExpectVia::Port | ExpectVia::Eprt | ExpectVia::Lprt | ExpectVia::RangeActive) => {
            key.dst
        }
        Some(ExpectVia::Pasv | ExpectVia::Epsv | ExpectVia::Lpsv | ExpectVia::RangePassive)
        | None => key.src,
    };
    if e.parent.hi() == client {
        Heading::Down
    } else {
        Heading::Up
    }
}

impl Row for ExpectView {
    const NOUN: &str = "expectations";
    const COLUMNS: &[&str] = &[
        "PROTO",
        "FROM",
        "TO",
        "VIA",
        "STATE",
        ">AGE",
        ">EXPIRES",
        "ZONES",
        "CONTROL CONNECTION",
    ];

    fn draw(&self, table: &mut Table) {
        let parent = &self.parent;
        let (state, paint) = match self.taken_by {
            Some(port) => (format!("taken by {port}"), Paint::Good),
            None => ("free".into(), Paint::Notice),
        };
        let control = format!(
            "{} > {}",
            endpoint(parent.client, Some(parent.cport)),
            endpoint(parent.server, Some(parent.sport))
        );
        table.row([
            (self.proto.clone(), Paint::None),
            (self.src.to_string(), Paint::None),
            (endpoint(self.dst, Some(self.dport)), Paint::None),
            (self.via.to_owned(), Paint::None),
            (state, paint),
            (short_time(self.age_s), Paint::None),
            (short_time(self.expires_s), Paint::None),
            (
                format!("{} > {}", self.zone.from, self.zone.to),
                Paint::None,
            ),
            (control, Paint::None),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use firewall_common::time::Tick;
    use serde_json::json;

    use super::*;
    use crate::render::{
        Ink,
        flow::tests::{NOW, names, v4},
    };

    /// Client 10.0.0.2 (the larger endpoint), server 10.0.0.1.
    fn expected(via: ExpectVia, state: ExpectState) -> (ExpectKey, Expectation) {
        let (src, dst) = match via {
            ExpectVia::Pasv | ExpectVia::Epsv | ExpectVia::Lpsv | ExpectVia::RangePassive => {
                (v4(2), v4(1))
            }
            _ => (v4(1), v4(2)),
        };
        let key = ExpectKey::tcp(src, dst, 50_053);
        let expectation = Expectation {
            state: state.word(),
            created_ns: NOW.monotonic_ns - 2_000_000_000,
            parent: FlowKey6::from_parts(v4(1), v4(2), 21, 40_000, 6, 0),
            expires: Tick::from_ns(NOW.monotonic_ns + 58_000_000_000).0,
            from_zone: 0,
            to_zone: 1,
            via: via as u8,
            ..Expectation::zeroed()
        };
        (key, expectation)
    }

    fn view(via: ExpectVia, state: ExpectState) -> ExpectView {
        let (key, expectation) = expected(via, state);
        ExpectView::new(&key, &expectation, &HashMap::new(), &names(), NOW)
    }

    #[test]
    fn the_client_is_known_without_a_session() {
        for via in [
            ExpectVia::Port,
            ExpectVia::Eprt,
            ExpectVia::Pasv,
            ExpectVia::Epsv,
            ExpectVia::Lprt,
            ExpectVia::Lpsv,
            ExpectVia::RangePassive,
            ExpectVia::RangeActive,
        ] {
            let parent = view(via, ExpectState::Free).parent;
            assert_eq!((parent.cport, parent.sport), (40_000, 21), "{via:?}");
        }
    }

    #[test]
    fn the_session_decides_who_is_the_client() {
        let (key, expectation) = expected(ExpectVia::Epsv, ExpectState::Free);
        let sessions = HashMap::from([(expectation.parent, Session::zeroed())]);
        let view = ExpectView::new(&key, &expectation, &sessions, &names(), NOW);
        assert_eq!(view.parent.cport, 21);
    }

    #[test]
    fn the_json() {
        let mut shown =
            serde_json::to_value(view(ExpectVia::Epsv, ExpectState::Taken(40_001))).unwrap();
        assert_eq!(shown["age_s"].take(), json!(2.0));
        assert!(shown["expires_s"].take().as_f64().unwrap() > 57.0);
        assert_eq!(
            shown,
            json!({
                "src": "10.0.0.2", "dst": "10.0.0.1", "dport": 50_053, "proto": "tcp",
                "via": "EPSV", "state": "taken", "taken_by": 40_001,
                "parent": {
                    "client": "10.0.0.2", "cport": 40_000, "server": "10.0.0.1", "sport": 21,
                },
                "zone": { "from": "host", "to": "outside" },
                "age_s": null, "expires_s": null,
            })
        );
    }

    #[test]
    fn the_table() {
        let mut table = Table::new(ExpectView::COLUMNS);
        view(ExpectVia::Port, ExpectState::Free).draw(&mut table);
        let plain = table.render(Ink::Plain);
        assert!(
            plain.contains("10.0.0.1  10.0.0.2:50053  PORT  free"),
            "{plain}"
        );
        assert!(plain.ends_with("10.0.0.2:40000 > 10.0.0.1:21\n"), "{plain}");
    }
}

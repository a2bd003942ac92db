//! `flows list` and `flows get`.

use std::{borrow::Cow, fmt, net::IpAddr, rc::Rc};

use firewall_common::{
    abi::{DataFlow, ExpectVia, flow_flags},
    key::{Direction, Heading},
    tcp::{State, generic},
    verdict::DropReason,
    wire::proto,
};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{Now, Paint, ParentView, Put as _, Row, Table, endpoint, rfc3339};
use crate::{
    bpf::{
        address,
        maps::{FlowRow, FlowTier, Names},
    },
    protocol,
};

/// A flow.
#[derive(Clone, Debug, Serialize)]
pub struct FlowView {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `gre` …, or the number as text.
    pub proto: Cow<'static, str>,
    /// As `conntrack -L` names it for TCP; else `UNREPLIED` or `REPLIED`.
    pub state: &'static str,
    /// `proved` or `half-open`.
    pub tier: &'static str,
    /// The direction of the first packet.
    pub original: OriginalView,
    /// The other direction.
    pub reply: ReplyView,
    /// Zones of the first packet.
    pub zone: ZonesView,
    /// Name of the rule that admitted it; `null` if none did (expected, seeded).
    pub rule: Option<Rc<str>>,
    /// The drop reason for which enforcing refuses it, if shadow mode let it
    /// in all the same; else `null`.
    pub would_drop: Option<&'static str>,
    /// The control connection that negotiated it, of a data connection; else `null`.
    pub parent: Option<DataParentView>,
    /// Of `seen-reply`, `assured`, `helper-ftp`, `blind`, `related`, `seeded`,
    /// `from-inside`, `would-drop`.
    pub flags: Flags,
    /// Time of the first packet, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub started: Timestamp,
    /// Time of the last packet.
    #[serde(serialize_with = "as_rfc3339")]
    pub last_seen: Timestamp,
    /// Since the first packet.
    pub age_s: f64,
    /// Since the last packet.
    pub idle_s: f64,
    /// Until it is forgotten, if nothing comes.
    pub expires_s: f64,
    #[serde(skip)]
    now: Now,
}

pub(super) fn as_rfc3339<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(*at))
}

/// The direction of a flow's first packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OriginalView {
    /// Source address.
    pub src: IpAddr,
    /// Source port, `null` for protocols without ports.
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, `null` for protocols without ports.
    pub dport: Option<u16>,
    /// Identifier of an ICMP echo, else `null`.
    pub id: Option<u16>,
    /// Packets.
    pub packets: u32,
    /// Bytes of layer 3 upwards.
    pub bytes: u64,
}

/// The other direction of a flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplyView {
    /// Packets.
    pub packets: u32,
    /// Bytes of layer 3 upwards.
    pub bytes: u64,
}

/// The control connection of a data connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataParentView {
    /// Its ends: `client`, `cport`, `server`, `sport`.
    #[serde(flatten)]
    pub control: ParentView,
    /// The command that negotiated the data connection, `PASV` for instance.
    pub via: &'static str,
}

impl From<&DataFlow> for DataParentView {
    fn from(data: &DataFlow) -> Self {
        Self {
            control: ParentView::new(&data.parent, Heading::from_end(data.client_is_hi)),
            via: ExpectVia::try_from(data.via).map_or("unknown", ExpectVia::name),
        }
    }
}

impl fmt::Display for DataParentView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = &self.control;
        let client = endpoint(ends.client, Some(ends.cport));
        let server = endpoint(ends.server, Some(ends.sport));
        write!(f, "{client} > {server}")
    }
}

/// Names of two zones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ZonesView {
    /// Where the first packet came from.
    pub from: Rc<str>,
    /// Where it went.
    pub to: Rc<str>,
}

impl FlowView {
    /// The view of `row` at `now`.
    #[must_use]
    pub fn new(row: &FlowRow, names: &Names, now: Now) -> Self {
        let original = OriginalView::new(row);
        let flow = &row.flow;
        let would_drop = flow.would_drop();
        Self {
            family: if original.src.is_ipv4() {
                "ipv4"
            } else {
                "ipv6"
            },
            proto: protocol::name(row.key.proto()),
            state: state_name(row.state().state()),
            tier: row.tier.name(),
            original,
            reply: ReplyView {
                packets: flow.packets[1],
                bytes: flow.octets(Direction::Reply),
            },
            zone: ZonesView {
                from: names.zone(flow.from_zone()),
                to: names.zone(flow.to_zone()),
            },
            rule: match would_drop {
                Some(_) => None,
                None => names.rule(flow.rule()).cloned(),
            },
            would_drop: would_drop.map(DropReason::name),
            parent: None,
            flags: Flags(row.state().flags()),
            started: now.wall_of_tick(flow.created),
            last_seen: now.wall_of_tick(flow.seen),
            age_s: now.since_tick(flow.created),
            idle_s: now.since_tick(flow.seen),
            expires_s: now.until_tick(row.expires.0),
            now,
        }
    }

    /// The same, of the data connection that `data` ties to its control connection.
    #[must_use]
    pub fn with_parent(mut self, data: Option<&DataFlow>) -> Self {
        self.parent = data.map(DataParentView::from);
        self
    }

    fn put_tags(&self, out: &mut String) {
        if self.tier == FlowTier::HalfOpen.name() {
            out.push_str("[HALF-OPEN]");
        }
        self.put_flag_tags(out);
        if let Some(parent) = &self.parent {
            out.extend([" ", parent.via, " of "]);
            out.push_str(&parent.to_string());
        }
    }

    /// Tags of the flags that are set.
    pub(super) fn put_flag_tags(&self, out: &mut String) {
        for (flag, _, tag) in FLAGS {
            if self.flags.has(flag) {
                out.push_str(tag);
            }
        }
        if let Some(reason) = self.would_drop {
            out.extend(["[WOULD DROP ", reason, "]"]);
        }
    }

    fn paint(&self) -> Paint {
        match self.state {
            "ESTABLISHED" | "REPLIED" => Paint::Good,
            "SYN_SENT" | "SYN_RECV" | "SYN_SENT2" | "UNREPLIED" => Paint::Notice,
            _ => Paint::Dim,
        }
    }
}

impl OriginalView {
    fn new(row: &FlowRow) -> Self {
        let (src, sport, dst, dport) = row.key.endpoints(row.state().first_heading());
        let has_ports = matches!(row.key.proto(), proto::TCP | proto::UDP);
        let is_echo = matches!(row.key.proto(), proto::ICMP | proto::ICMPV6);
        Self {
            src: address(src),
            sport: has_ports.then_some(sport),
            dst: address(dst),
            dport: has_ports.then_some(dport),
            id: is_echo.then_some(sport),
            packets: row.flow.packets[0],
            bytes: row.flow.octets(Direction::Original),
        }
    }
}

impl Row for FlowView {
    const NOUN: &str = "flows";
    const COLUMNS: &[&str] = &[
        "PROTO",
        "STATE",
        "SOURCE",
        "DESTINATION",
        ">PACKETS",
        ">BYTES",
        ">STARTED",
        ">SEEN",
        ">EXPIRES",
        "ZONES",
        "RULE",
        "FLAGS",
    ];

    fn draw(&self, table: &mut Table) {
        let (out, back) = (&self.original, &self.reply);
        let mut column = 0;
        let mut cell = |paint: Paint, put: &dyn Fn(&mut String)| {
            table.cell(column, paint, put);
            column += 1;
        };
        cell(Paint::None, &|text| text.push_str(&self.proto));
        cell(self.paint(), &|text| text.push_str(self.state));
        cell(Paint::None, &|text| text.put_endpoint(out.src, out.sport));
        cell(Paint::None, &|text| {
            text.put_endpoint(out.dst, out.dport);
            if let Some(id) = out.id {
                text.push_str(" id ");
                text.put_number(id.into());
            }
        });
        cell(Paint::None, &|text| {
            text.put_number(out.packets.into());
            text.push('/');
            text.put_number(back.packets.into());
        });
        cell(Paint::None, &|text| {
            text.put_bytes(out.bytes);
            text.push('/');
            text.put_bytes(back.bytes);
        });
        cell(Paint::None, &|text| self.now.put_clock(text, self.started));
        cell(Paint::None, &|text| {
            self.now.put_clock(text, self.last_seen);
        });
        cell(Paint::None, &|text| text.put_time(self.expires_s));
        cell(Paint::None, &|text| {
            text.extend([&*self.zone.from, " > ", &*self.zone.to]);
        });
        cell(Paint::None, &|text| {
            text.push_str(self.rule.as_deref().unwrap_or("-"));
        });
        cell(Paint::Dim, &|text| self.put_tags(text));
    }
}

/// Flags of a flow; in JSON the names of those that are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// Is this flag of [`flow_flags`] set?
    #[must_use]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

impl Serialize for Flags {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let set = FLAGS.into_iter().filter(|(flag, ..)| self.has(*flag));
        to.collect_seq(set.map(|(_, name, _)| name))
    }
}

/// Flag, name in JSON, tag in the table; no tag where a column says it already.
const FLAGS: [(u32, &str, &str); 8] = [
    (flow_flags::SEEN_REPLY, "seen-reply", ""),
    (flow_flags::ASSURED, "assured", "[ASSURED]"),
    (flow_flags::HELPER_FTP, "helper-ftp", "[HELPER ftp]"),
    (flow_flags::BLIND, "blind", "[BLIND]"),
    (flow_flags::RELATED, "related", "[RELATED]"),
    (flow_flags::SEEDED, "seeded", "[SEEDED]"),
    (flow_flags::FROM_INSIDE, "from-inside", ""),
    (flow_flags::WOULD_DROP, "would-drop", ""),
];

/// As `conntrack -L` names it for TCP; else `UNREPLIED` or `REPLIED`.
pub(crate) fn state_name(state: u8) -> &'static str {
    match (state, State::try_from(state)) {
        (generic::UNREPLIED, _) => "UNREPLIED",
        (generic::REPLIED, _) => "REPLIED",
        (_, Ok(tcp)) => tcp.name(),
        (_, Err(_)) => "UNKNOWN",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytemuck::Zeroable as _;
    use firewall_common::{
        abi::{Flow, FlowKey6, FlowState, Last, RULE_NONE},
        key::map_v4,
        time::Tick,
    };
    use serde_json::json;

    use super::*;
    use crate::{bpf::flows::Parents, render::Ink};

    pub(in super::super) const NOW: Now = Now {
        monotonic_ns: 1_000_000_000_000,
        wall: Timestamp::constant(1_800_000_000, 0),
    };

    pub(in super::super) fn names() -> Names {
        Names::new(
            [(1, "outside".into())],
            vec!["ftp-out".into(), "out".into()],
        )
    }

    pub(in super::super) fn v4(last: u8) -> [u32; 4] {
        map_v4(u32::from_ne_bytes([10, 0, 0, last]))
    }

    fn ticks_before(seconds: u64) -> u32 {
        Tick::from_ns(NOW.monotonic_ns - seconds * 1_000_000_000).0
    }

    pub(in super::super) fn tcp() -> FlowRow {
        use flow_flags::{ASSURED, FIRST_DOWN, FROM_INSIDE, HELPER_FTP, SEEN_REPLY};
        let flags = FIRST_DOWN | SEEN_REPLY | ASSURED | HELPER_FTP | FROM_INSIDE;
        FlowRow {
            key: FlowKey6::from_parts(v4(1), v4(2), 21, 40_000, 6, 0),
            flow: Flow {
                state: FlowState::new(State::Established as u8, flags, 7).0,
                seen: ticks_before(10),
                created: ticks_before(100),
                bytes: [900, 20 << 20],
                packets: [12, 14_000],
                last: Last::new(0, 0, 1).0,
                ..Flow::zeroed()
            },
            tier: FlowTier::Proved,
            expires: Tick::from_ns(NOW.monotonic_ns + 431_990_000_000_000),
        }
    }

    pub(in super::super) fn ping() -> FlowRow {
        let lo: [u32; 4] = bytemuck::cast([0xfd_u8; 16]);
        let hi: [u32; 4] = bytemuck::cast([0xfe_u8; 16]);
        FlowRow {
            key: FlowKey6::from_parts(lo, hi, 77, 77, 58, 0),
            flow: Flow {
                state: FlowState::new(generic::UNREPLIED, 0, 8).0,
                seen: ticks_before(1),
                created: ticks_before(1),
                bytes: [104, 0],
                packets: [1, 0],
                last: Last::new(RULE_NONE, 1, 9).0,
                ..Flow::zeroed()
            },
            tier: FlowTier::HalfOpen,
            expires: Tick::from_ns(NOW.monotonic_ns + 29_000_000_000),
        }
    }

    #[test]
    fn the_table() {
        let mut table = Table::new(FlowView::COLUMNS);
        for row in [tcp(), ping()] {
            FlowView::new(&row, &names(), NOW).draw(&mut table);
        }
        let plain = table.render(Ink::Plain);
        let lines: Vec<Vec<&str>> = plain
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1][..6],
            [
                "tcp",
                "ESTABLISHED",
                "10.0.0.2:40000",
                "10.0.0.1:21",
                "12/14000",
                "900/20.0M",
            ]
        );
        assert_eq!(lines[1][8], "4d23h");
        assert!(
            plain.contains("host > outside    ftp-out  [ASSURED][HELPER ftp]\n"),
            "{plain}"
        );
        assert!(
            plain.contains("outside > zone-9  -        [HALF-OPEN]\n"),
            "{plain}"
        );
        assert!(plain.contains("UNREPLIED"), "{plain}");
        assert!(plain.contains(" id 77 "), "{plain}");
    }

    #[test]
    fn the_json() {
        let view = FlowView::new(&tcp(), &names(), NOW);
        let mut shown = serde_json::to_value(&view).unwrap();
        for (key, about) in [("age_s", 100.0), ("idle_s", 10.0), ("expires_s", 431_990.0)] {
            let value = shown[key].take().as_f64().unwrap();
            assert!((value - about).abs() < 0.1, "{key} {value}");
        }
        let started = shown["started"].take();
        assert!(
            started.as_str().unwrap().starts_with("2027-01-15T07:58:2"),
            "{started}"
        );
        let last_seen = shown["last_seen"].take();
        assert!(
            last_seen
                .as_str()
                .unwrap()
                .starts_with("2027-01-15T07:59:5"),
            "{last_seen}"
        );
        assert_eq!(
            shown,
            json!({
                "family": "ipv4",
                "proto": "tcp",
                "state": "ESTABLISHED",
                "tier": "proved",
                "original": {
                    "src": "10.0.0.2", "sport": 40_000, "dst": "10.0.0.1", "dport": 21,
                    "id": null, "packets": 12, "bytes": 900,
                },
                "reply": { "packets": 14_000, "bytes": 20 << 20 },
                "zone": { "from": "host", "to": "outside" },
                "rule": "ftp-out",
                "would_drop": null,
                "parent": null,
                "flags": ["seen-reply", "assured", "helper-ftp", "from-inside"],
                "started": null,
                "last_seen": null,
                "age_s": null,
                "idle_s": null,
                "expires_s": null,
            })
        );
        let ping = serde_json::to_value(FlowView::new(&ping(), &names(), NOW)).unwrap();
        assert_eq!(ping["original"]["id"], 77);
        assert_eq!(ping["original"]["sport"], json!(null));
        assert_eq!(
            (&ping["rule"], &ping["tier"]),
            (&json!(null), &json!("half-open"))
        );
    }

    #[test]
    fn a_data_connection_shows_its_control_connection() {
        let data = DataFlow {
            parent: tcp().key,
            parent_incarnation: 7,
            incarnation: 9,
            via: ExpectVia::Epsv as u8,
            client_is_hi: 1,
            reserved: 0,
        };
        let mut row = tcp();
        row.key = FlowKey6::from_parts(v4(1), v4(2), 50_000, 40_001, 6, 0);
        let related = flow_flags::RELATED | flow_flags::FIRST_DOWN;
        row.flow.state = FlowState::new(State::Established as u8, related, 9).0;
        let parents = Parents::new([(row.key, data)]);
        let view = FlowView::new(&row, &names(), NOW).with_parent(parents.of(&row));
        let parent = serde_json::to_value(&view.parent).unwrap();
        let want = json!({
            "client": "10.0.0.2", "cport": 40_000, "server": "10.0.0.1", "sport": 21, "via": "EPSV",
        });
        assert_eq!(parent, want);
        let mut table = Table::new(FlowView::COLUMNS);
        view.draw(&mut table);
        let plain = table.render(Ink::Plain);
        let shown = "[RELATED] EPSV of 10.0.0.2:40000 > 10.0.0.1:21\n";
        assert!(plain.ends_with(shown), "{plain}");
        // The key has gone to another connection since.
        row.flow.state = FlowState::new(State::Established as u8, related, 10).0;
        assert_eq!(parents.of(&row), None);
    }

    #[test]
    fn what_the_programs_miss_is_no_flow() {
        let now = Tick::from_ns(NOW.monotonic_ns);
        let mut row = tcp();
        assert!(row.is_live(now));
        row.expires = Tick(now.0.wrapping_sub(1));
        assert!(!row.is_live(now));
        let mut doomed = tcp();
        doomed.flow.state = doomed
            .state()
            .with_phase(firewall_common::abi::Phase::Doomed)
            .0;
        assert!(!doomed.is_live(now));
    }
}

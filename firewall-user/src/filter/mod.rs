//! Which flows a command is about.

mod value;

use std::{net::IpAddr, str::FromStr};

use firewall_common::{abi::flow_flags, wire::proto};

pub use value::{Net, Ports, StateName};

use crate::bpf::{
    address,
    maps::{FlowRow, FlowTier},
};

/// Conditions on a flow. All that are set must hold; none set is every flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// IPv4 (true) or IPv6.
    pub v4: Option<bool>,
    /// Protocol number.
    pub proto: Option<u8>,
    /// Source of the first packet.
    pub src: Option<Net>,
    /// Destination of the first packet.
    pub dst: Option<Net>,
    /// Either end.
    pub addr: Option<Net>,
    /// Source port of the first packet.
    pub sport: Option<Ports>,
    /// Destination port of the first packet.
    pub dport: Option<Ports>,
    /// Port of either end.
    pub port: Option<Ports>,
    /// Identifier of an ICMP echo.
    pub icmp_id: Option<u16>,
    /// Protocol state.
    pub state: Option<StateName>,
    /// Each of them must hold.
    pub status: Vec<Status>,
    /// Number of the zone of either end.
    pub zone: Option<u8>,
    /// Number of the zone that the first packet came from.
    pub from_zone: Option<u8>,
    /// Number of the zone that the first packet went to.
    pub to_zone: Option<u8>,
}

impl Filter {
    /// Does the flow meet all conditions?
    #[must_use]
    pub fn matches(&self, row: &FlowRow) -> bool {
        let (src, sport, dst, dport) = row.key.endpoints(row.state().first_heading());
        let zones = (row.flow.from_zone(), row.flow.to_zone());
        self.proto.is_none_or(|wanted| wanted == row.key.proto())
            && self.addresses(address(src), address(dst))
            && self.ports(row.key.proto(), sport, dport)
            && self
                .state
                .is_none_or(|state| state.number() == row.state().state())
            && self.status.iter().all(|status| status.holds(row))
            && self
                .zone
                .is_none_or(|zone| zone == zones.0 || zone == zones.1)
            && self.from_zone.is_none_or(|zone| zone == zones.0)
            && self.to_zone.is_none_or(|zone| zone == zones.1)
    }

    fn addresses(&self, src: IpAddr, dst: IpAddr) -> bool {
        self.v4.is_none_or(|v4| v4 == src.is_ipv4())
            && self.src.is_none_or(|net| net.contains(src))
            && self.dst.is_none_or(|net| net.contains(dst))
            && self
                .addr
                .is_none_or(|net| net.contains(src) || net.contains(dst))
    }

    fn ports(&self, protocol: u8, sport: u16, dport: u16) -> bool {
        // In the key of an echo flow, the identifier stands where ports stand.
        let is_echo = matches!(protocol, proto::ICMP | proto::ICMPV6);
        let port = |ports: Ports, port| !is_echo && ports.contains(port);
        self.sport.is_none_or(|ports| port(ports, sport))
            && self.dport.is_none_or(|ports| port(ports, dport))
            && self
                .port
                .is_none_or(|ports| port(ports, sport) || port(ports, dport))
            && self.icmp_id.is_none_or(|id| is_echo && id == sport)
    }
}

/// What can be asked of a flow beside its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not proved yet.
    HalfOpen,
    /// A flag of [`flow_flags`] is set, or any of several.
    Set(u32),
    /// A flag is not set.
    Unset(u32),
}

impl Status {
    const NAMES: [(&str, Self); 10] = [
        ("half-open", Self::HalfOpen),
        ("assured", Self::Set(flow_flags::ASSURED)),
        ("seen-reply", Self::Set(flow_flags::SEEN_REPLY)),
        ("unreplied", Self::Unset(flow_flags::SEEN_REPLY)),
        ("related", Self::Set(flow_flags::RELATED)),
        ("helper", Self::Set(flow_flags::HELPER_FTP)),
        ("blind", Self::Set(flow_flags::BLIND)),
        ("seeded", Self::Set(flow_flags::SEEDED)),
        ("from-inside", Self::Set(flow_flags::FROM_INSIDE)),
        ("would-drop", Self::Set(flow_flags::WOULD_DROP)),
    ];

    /// Of the FTP helper's flows: control connections, which it reads, and the data
    /// connections that they negotiated.
    pub const OF_FTP: Self = Self::Set(flow_flags::HELPER_FTP | flow_flags::RELATED);

    fn holds(self, row: &FlowRow) -> bool {
        match self {
            Self::HalfOpen => row.tier == FlowTier::HalfOpen,
            Self::Set(flag) => row.state().has(flag),
            Self::Unset(flag) => !row.state().has(flag),
        }
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.to_ascii_lowercase().replace('_', "-");
        // What nf_conntrack calls a related flow.
        let wanted = if wanted == "expected" {
            "related"
        } else {
            &wanted
        };
        let known = Self::NAMES.iter().find(|(name, _)| *name == wanted);
        known.map(|(_, status)| *status).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("use one of {}; several with commas", names.join(", "))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bytemuck::Zeroable as _;
    use firewall_common::{
        abi::{Flow, FlowKey6, FlowState, Last, RULE_NONE},
        key::{FlowKey as _, map_v4},
        tcp::{State, generic},
        time::Tick,
        wire::{self, Headers},
    };

    use super::*;
    use crate::bpf::words;

    /// A flow whose first packet went from `src` to `dst`.
    pub(crate) fn row(proto: u8, src: &str, sport: u16, dst: &str, dport: u16) -> FlowRow {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let headers = Headers {
            family: if src.is_ipv4() {
                wire::Family::V4
            } else {
                wire::Family::V6
            },
            proto,
            src: words(src),
            dst: words(dst),
            sport,
            dport,
            icmp_type: if src.is_ipv4() { 8 } else { 128 },
            ..Headers::ZERO
        };
        let (key, heading) = FlowKey6::of(&headers);
        let first = match heading {
            firewall_common::key::Heading::Up => 0,
            firewall_common::key::Heading::Down => flow_flags::FIRST_DOWN,
        };
        let state = if proto == proto::TCP {
            State::Established as u8
        } else {
            generic::REPLIED
        };
        FlowRow {
            key,
            flow: Flow {
                state: FlowState::new(state, first | flow_flags::ASSURED, 7).0,
                last: Last::new(RULE_NONE, 1, 2).0,
                ..Flow::zeroed()
            },
            tier: FlowTier::Proved,
            expires: Tick(0),
        }
    }

    fn ssh() -> FlowRow {
        row(6, "192.0.2.9", 40_000, "10.0.0.1", 22)
    }

    fn ping() -> FlowRow {
        row(58, "2001:db8::1", 77, "2001:db8::2", 77)
    }

    #[test]
    fn no_condition_is_every_flow() {
        assert!(Filter::default().matches(&ssh()) && Filter::default().matches(&ping()));
        assert_eq!(map_v4(1)[3], 1);
    }

    #[test]
    fn ftp_is_control_and_data() {
        let ftp = Filter {
            status: vec![Status::OF_FTP],
            ..Filter::default()
        };
        let mut row = ssh();
        assert!(!ftp.matches(&row));
        for flag in [flow_flags::HELPER_FTP, flow_flags::RELATED] {
            row.flow.state = ssh().state().with(flag).0;
            assert!(ftp.matches(&row));
        }
    }

    #[test]
    fn each_condition_picks_its_flows() {
        let net = |text: &str| Some(text.parse().unwrap());
        let ports = |text: &str| Some(text.parse().unwrap());
        let all = Filter::default;
        let state = |text: &str| Some(text.parse().unwrap());
        let status = |text: &str| vec![text.parse().unwrap()];
        // Filter, does it match the SSH flow, does it match the ping.
        let table = [
            (
                Filter {
                    v4: Some(true),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    v4: Some(false),
                    ..all()
                },
                false,
                true,
            ),
            (
                Filter {
                    proto: Some(6),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    proto: Some(58),
                    ..all()
                },
                false,
                true,
            ),
            (
                Filter {
                    src: net("192.0.2.0/24"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    src: net("10.0.0.1"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    dst: net("10.0.0.1"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    dst: net("2001:db8::/32"),
                    ..all()
                },
                false,
                true,
            ),
            (
                Filter {
                    addr: net("10.0.0.0/8"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    addr: net("192.0.2.9"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    addr: net("192.0.2.8"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    sport: ports("40000"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    sport: ports("22"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    dport: ports("20-30"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    port: ports("40000"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    port: ports("22"),
                    ..all()
                },
                true,
                false,
            ),
            // The identifier of an echo is no port.
            (
                Filter {
                    port: ports("77"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    icmp_id: Some(77),
                    ..all()
                },
                false,
                true,
            ),
            (
                Filter {
                    icmp_id: Some(78),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    state: state("established"),
                    ..all()
                },
                true,
                false,
            ),
            (
                Filter {
                    state: state("replied"),
                    ..all()
                },
                false,
                true,
            ),
            (
                Filter {
                    state: state("time_wait"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    status: status("assured"),
                    ..all()
                },
                true,
                true,
            ),
            (
                Filter {
                    status: status("unreplied"),
                    ..all()
                },
                true,
                true,
            ),
            (
                Filter {
                    status: status("seen-reply"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    status: status("half-open"),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    zone: Some(1),
                    ..all()
                },
                true,
                true,
            ),
            (
                Filter {
                    zone: Some(2),
                    ..all()
                },
                true,
                true,
            ),
            (
                Filter {
                    zone: Some(3),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    from_zone: Some(1),
                    ..all()
                },
                true,
                true,
            ),
            (
                Filter {
                    from_zone: Some(2),
                    ..all()
                },
                false,
                false,
            ),
            (
                Filter {
                    to_zone: Some(2),
                    ..all()
                },
                true,
                true,
            ),
        ];
        for (filter, wants_ssh, wants_ping) in table {
            assert_eq!(filter.matches(&ssh()), wants_ssh, "{filter:?}");
            assert_eq!(filter.matches(&ping()), wants_ping, "{filter:?}");
        }
    }

    #[test]
    fn all_conditions_must_hold() {
        let mut filter = Filter {
            proto: Some(6),
            dport: Some("22".parse().unwrap()),
            ..Filter::default()
        };
        assert!(filter.matches(&ssh()));
        filter.zone = Some(9);
        assert!(!filter.matches(&ssh()));
    }

    #[test]
    fn the_direction_is_that_of_the_first_packet() {
        // The same hosts and ports, begun at the other end: the key is the same.
        let back = row(6, "10.0.0.1", 22, "192.0.2.9", 40_000);
        assert_eq!(back.key, ssh().key);
        let filter = Filter {
            src: Some("192.0.2.9".parse().unwrap()),
            ..Filter::default()
        };
        assert!(filter.matches(&ssh()) && !filter.matches(&back));
    }

    #[test]
    fn a_status_is_told_by_its_name() {
        for good in ["assured", "ASSURED", "SEEN_REPLY", "half-open", "expected"] {
            assert!(good.parse::<Status>().is_ok(), "{good}");
        }
        for bad in ["", "open", "assured seen-reply", "half open"] {
            let error = bad.parse::<Status>().unwrap_err();
            assert!(error.contains("half-open, assured"), "{bad}: {error}");
        }
    }
}

//! Each condition, and all together.

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

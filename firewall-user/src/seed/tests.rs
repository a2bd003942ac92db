//! What becomes of sockets and of tracked connections.

use firewall_common::abi::{Rule, ZONE_ANY, action, timeout};

use super::*;

const OUTSIDE: Guarded = Guarded {
    zone: 1,
    trusted: false,
    fresh: true,
};

fn config() -> Config {
    let mut timeouts = [1; timeout::LEN];
    timeouts[State::Established as usize] = 1000;
    timeouts[timeout::UDP_STREAM] = 50;
    Config {
        timeouts,
        ..Config::zeroed()
    }
}

fn ftp_rule() -> Rule {
    Rule {
        proto: proto::TCP,
        from_zone: ZONE_HOST,
        to_zone: ZONE_ANY,
        sport: [0, u16::MAX],
        dport: [21, 21],
        flags: rule_flags::PORTS | rule_flags::HELPER_FTP,
        action: action::ACCEPT,
        ..Rule::zeroed()
    }
}

/// Seeds without asking for routes: the zones of both ends are given.
fn seeded(socket: &Connection, ends: [Guarded; 2]) -> Option<Seed> {
    let (config, rules) = (config(), [ftp_rule()]);
    let policy = Policy {
        config: &config,
        rules: &Classes::of(&rules).unwrap(),
        ifaces: HashMap::new(),
    };
    let mut places = Places {
        routes: Routes::open().unwrap(),
        known: HashMap::from([
            (socket.local.ip(), Some(ends[0])),
            (socket.remote.ip(), Some(ends[1])),
        ]),
        ifaces: &policy.ifaces,
    };
    let found = from_socket(socket)?;
    seed(&policy, &found, &mut places, Tick(5)).unwrap()
}

fn socket(local: &str, remote: &str, from_here: bool) -> Connection {
    Connection {
        protocol: proto::TCP,
        state: state::ESTABLISHED,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        from_here,
    }
}

#[test]
fn a_connection_from_here_is_a_flow_from_inside() {
    let ours = socket("192.0.2.1:40000", "198.51.100.9:443", true);
    let seed = seeded(&ours, [HOST, OUTSIDE]).unwrap();
    let state = FlowState(seed.flow.state);
    assert_eq!(state.state(), State::Established as u8);
    assert!(state.has(flow_flags::FROM_INSIDE) && !state.has(flow_flags::HELPER_FTP));
    assert_eq!(
        (seed.flow.from_zone(), seed.flow.to_zone()),
        (ZONE_HOST, OUTSIDE.zone)
    );
    let expires = seed.flow.expires(proto::TCP, &config().timeouts);
    assert_eq!(expires, Tick(1005));
    let (src, sport, ..) = seed.key.endpoints(state.first_heading());
    assert_eq!(src[3], u32::from_ne_bytes([192, 0, 2, 1]));
    assert_eq!(sport, 40000);
    assert!(seed.key.narrow().is_some());
}

#[test]
fn an_accepted_connection_is_a_flow_from_outside() {
    let theirs = socket("[2001:db8::1]:22", "[2001:db8::9]:50000", false);
    let seed = seeded(&theirs, [HOST, OUTSIDE]).unwrap();
    let state = FlowState(seed.flow.state);
    assert!(!state.has(flow_flags::FROM_INSIDE));
    let (_, sport, _, dport) = seed.key.endpoints(state.first_heading());
    assert_eq!((sport, dport), (50000, 22));
    assert_eq!(seed.tier, Tier::Tcp6);
}

#[test]
fn a_control_connection_is_blind() {
    let control = socket("192.0.2.1:40000", "198.51.100.9:21", true);
    let seed = seeded(&control, [HOST, OUTSIDE]).unwrap();
    let state = FlowState(seed.flow.state);
    assert!(state.has(flow_flags::HELPER_FTP) && state.has(flow_flags::BLIND));
}

#[test]
fn the_side_that_closed_is_marked() {
    let closing = Connection {
        state: state::FIN_WAIT2,
        ..socket("192.0.2.1:22", "198.51.100.9:50000", false)
    };
    let seed = seeded(&closing, [HOST, OUTSIDE]).unwrap();
    let state = FlowState(seed.flow.state);
    assert_eq!(state.state(), State::CloseWait as u8);
    assert!(state.has(flow_flags::FIN_REPLY) && !state.has(flow_flags::FIN_ORIGINAL));
}

#[test]
fn local_and_unroutable_connections_are_left_out() {
    let local = socket("192.0.2.1:40000", "192.0.2.2:80", true);
    assert_eq!(seeded(&local, [HOST, HOST]), None);
    let listening = Connection {
        state: state::LISTEN,
        ..local
    };
    assert_eq!(seeded(&listening, [HOST, OUTSIDE]), None);
}

#[test]
fn flows_of_interfaces_that_were_guarded_before_are_left_out() {
    let ours = socket("192.0.2.1:40000", "198.51.100.9:443", true);
    let before = Guarded {
        fresh: false,
        ..OUTSIDE
    };
    assert_eq!(seeded(&ours, [HOST, before]), None);
    assert!(seeded(&ours, [before, OUTSIDE]).is_some());
}

#[test]
fn masqueraded_connections_are_seeded_as_the_wire_shows_them() {
    // A container behind the host: 172.17.0.2 leaves as 192.0.2.1.
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let tracked = Tracked {
        protocol: proto::TCP,
        original: conntrack::Tuple {
            src: address("172.17.0.2:5000"),
            dst: address("198.51.100.9:80"),
        },
        reply: conntrack::Tuple {
            src: address("198.51.100.9:80"),
            dst: address("192.0.2.1:5000"),
        },
        tcp_state: Some(State::Established as u8),
    };
    let mut places = Places {
        routes: Routes::open().unwrap(),
        known: HashMap::from([(tracked.original.src.ip(), Some(HOST))]),
        ifaces: &HashMap::new(),
    };
    let found = from_tracked(&tracked, &mut places).unwrap().unwrap();
    assert_eq!(found.originator, address("192.0.2.1:5000"));
    assert_eq!(found.replier, address("198.51.100.9:80"));
}

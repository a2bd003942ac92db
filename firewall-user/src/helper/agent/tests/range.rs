//! Session ranges.

use std::net::SocketAddr;

use firewall_common::abi::{DataFlow, FlowState, JournalKind};

use super::{fake::key, syn::syn, *};
use crate::{ftp::SessionRange, journal::Told};

fn world(change: impl FnOnce(&mut SessionRange)) -> World {
    let mut range = SessionRange {
        clients: vec!["10.0.0.0/24".parse().unwrap()],
        servers: vec!["192.0.2.7/32".parse().unwrap()],
        ports: [50_000, 50_100],
        active: false,
        max: 2,
        per_minute: 3,
    };
    change(&mut range);
    World::with(|settings| settings.ranges = vec![range].leak())
}

fn encrypted(w: &mut World, cport: u16) -> Flow {
    let mut f = Flow::new(CLIENT, cport, SERVER);
    w.open(&f);
    w.server(&mut f, "220 hi\r\n");
    w.client(&mut f, "AUTH TLS\r\n");
    w.server(&mut f, "234 go\r\n");
    f
}

fn end(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

/// A held SYN of the client to `port`; true if it ran again.
fn connects(w: &mut World, sport: u16, port: u16) -> bool {
    comes(w, end(CLIENT, sport), end(SERVER, port))
}

fn comes(w: &mut World, src: SocketAddr, dst: SocketAddr) -> bool {
    let before = w.agent.tables.reinjected.len();
    syn(w, EventKind::SynHeld, src, dst, 0);
    let ran = w.agent.tables.reinjected.len() > before;
    if ran {
        let word = FlowState::new(State::Established as u8, 0, 77);
        w.agent.tables.states.insert(key(src, dst).0, word);
    }
    ran
}

fn last_refusal(w: &World) -> Option<&'static str> {
    let told = w
        .agent
        .tables()
        .journal
        .iter()
        .map(|e| Told::try_from(e).unwrap());
    let mut refused = told.filter(|told| told.kind == JournalKind::Refused);
    refused.next_back()?.reason_name()
}

#[test]
fn an_encrypted_session_has_its_range_and_nobody_else() {
    let mut w = world(|_| {});
    let f = encrypted(&mut w, 41822);
    assert!(connects(&mut w, 40_000, 50_000));
    assert!(w.expectations().is_empty(), "it has served at once");
    assert_eq!(w.session(&f).opened, 1);
    assert_eq!(w.session(&f).dropped, 0);
    for (src, dst) in [
        (end(CLIENT, 40_001), end(SERVER, 49_999)),
        (end(CLIENT, 40_001), end(SERVER, 50_101)),
        (end("10.0.0.3", 40_001), end(SERVER, 50_000)),
        (end(CLIENT, 40_001), end("192.0.2.8", 50_000)),
        (end(SERVER, 20), end(CLIENT, 50_000)),
    ] {
        assert!(!comes(&mut w, src, dst), "{src} {dst}");
    }
}

#[test]
fn a_session_in_clear_has_none() {
    let mut w = world(|_| {});
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    assert!(!connects(&mut w, 40_000, 50_000));
    assert_eq!(w.session(&f).dropped, 1);
}

#[test]
fn no_range_lets_nothing_in() {
    let mut w = World::new();
    encrypted(&mut w, 41822);
    assert!(!connects(&mut w, 40_000, 50_000));
}

#[test]
fn at_most_so_many_at_once_and_within_a_minute() {
    let mut w = world(|_| {});
    let f = encrypted(&mut w, 41822);
    assert!(connects(&mut w, 40_000, 50_000));
    assert!(connects(&mut w, 40_001, 50_001));
    assert!(!connects(&mut w, 40_002, 50_002));
    assert_eq!(last_refusal(&w), Some("range-full"));
    // `stats` has it, too.
    assert_eq!(w.agent.tables().refusals[&(Refusal::RangeFull as u8)], 1);
    // One ends.
    let over = key(end(CLIENT, 40_000), end(SERVER, 50_000)).0;
    let word = FlowState::new(State::TimeWait as u8, 0, 77);
    w.agent.tables.states.insert(over, word);
    assert!(connects(&mut w, 40_003, 50_003));
    // And another one: but those were three within a minute.
    w.agent.tables.states.clear();
    w.now += 10 * NS_PER_SEC;
    assert!(!connects(&mut w, 40_004, 50_004));
    assert_eq!(last_refusal(&w), Some("range-rate"));
    w.now += 51 * NS_PER_SEC;
    w.set_flow(&f, 0);
    assert!(connects(&mut w, 40_005, 50_005));
}

#[test]
fn a_syn_that_was_not_held_is_let_in_when_it_comes_again() {
    let mut w = world(|_| {});
    let f = encrypted(&mut w, 41822);
    let (src, dst) = (end(CLIENT, 40_000), end(SERVER, 50_000));
    syn(&mut w, EventKind::SynDropped, src, dst, 0);
    let (expected, expectation) = w.only_expectation();
    assert_eq!((expected.dport, address(expected.src)), (50_000, src.ip()));
    assert_eq!(
        ExpectVia::try_from(expectation.via),
        Ok(ExpectVia::RangePassive)
    );
    assert_eq!(expectation.parent, f.key());
    let life = Tick(expectation.expires).since(Tick::from_ns(w.now));
    assert_eq!(life, ticks_from_secs(5));
    w.now += 6 * NS_PER_SEC;
    w.tick();
    assert!(w.expectations().is_empty());
}

#[test]
fn the_server_may_connect_where_that_was_asked_for() {
    let mut w = world(|range| range.active = true);
    encrypted(&mut w, 41822);
    assert!(comes(&mut w, end(SERVER, 20), end(CLIENT, 50_007)));
    assert!(!comes(&mut w, end(SERVER, 20), end(CLIENT, 49_999)));
}

#[test]
fn all_of_it_ends_with_the_session() {
    let mut w = world(|_| {});
    let f = encrypted(&mut w, 41822);
    assert!(connects(&mut w, 40_000, 50_000));
    let flow = key(end(CLIENT, 40_000), end(SERVER, 50_000)).0;
    let tie = |via: ExpectVia, incarnation| DataFlow {
        parent: f.key(),
        parent_incarnation: f.incarnation,
        incarnation,
        via: via as u8,
        client_is_hi: 0,
        reserved: 0,
    };
    let negotiated = key(end(CLIENT, 40_001), end(SERVER, 50_001)).0;
    w.agent.tables.data_flows = vec![
        (flow, tie(ExpectVia::RangePassive, 77)),
        (negotiated, tie(ExpectVia::Pasv, 78)),
    ];
    // Over a restart of the agent, too.
    let mut w = w.restart(5);
    assert_eq!(w.agent.tables.data_flows.len(), 2);
    w.event(&f, EventKind::Fin, Side::Client, f.seq[0], f.seq[1], b"");
    let left: Vec<_> = w
        .agent
        .tables
        .data_flows
        .iter()
        .map(|(key, _)| *key)
        .collect();
    assert_eq!(left, [negotiated], "what was negotiated goes on");
    assert!(!connects(&mut w, 40_002, 50_002));
}

#[test]
fn without_the_range_its_connections_end_at_the_next_start() {
    let mut w = world(|_| {});
    let f = encrypted(&mut w, 41822);
    assert!(connects(&mut w, 40_000, 50_000));
    let flow = key(end(CLIENT, 40_000), end(SERVER, 50_000)).0;
    let tie = DataFlow {
        parent: f.key(),
        parent_incarnation: f.incarnation,
        incarnation: 77,
        via: ExpectVia::RangePassive as u8,
        client_is_hi: 0,
        reserved: 0,
    };
    w.agent.tables.data_flows = vec![(flow, tie)];
    w.agent.settings.ranges = &[];
    let w = w.restart(5);
    assert!(w.agent.tables.data_flows.is_empty());
}

/// The programs let a SYN through by an expectation of `parent`.
fn took(w: &mut World, parent: &Flow, sport: u16, port: u16) {
    let (src, dst) = (end(CLIENT, sport), end(SERVER, port));
    let data = key(src, dst).0;
    let word = FlowState::new(State::Established as u8, 0, u32::from(sport));
    w.agent.tables.states.insert(data, word);
    let tie = DataFlow {
        parent: parent.key(),
        parent_incarnation: parent.incarnation,
        incarnation: u32::from(sport),
        via: ExpectVia::RangePassive as u8,
        client_is_hi: 0,
        reserved: 0,
    };
    w.agent.tables.data_flows.push((data, tie));
    syn(w, EventKind::SynPassed, src, dst, event_flags::EXPECTED);
}

#[test]
fn another_source_port_does_not_get_around_the_limit() {
    let mut w = world(|range| (range.max, range.per_minute) = (1, 100));
    let f = encrypted(&mut w, 41822);
    let dropped = |w: &mut World, sport, port| {
        syn(
            w,
            EventKind::SynDropped,
            end(CLIENT, sport),
            end(SERVER, port),
            0,
        );
    };
    dropped(&mut w, 40_000, 50_000);
    assert_eq!(w.session(&f).opened, 1);
    took(&mut w, &f, 40_001, 50_000);
    // The first one has not come for so long that it counts no more.
    w.now += 10 * NS_PER_SEC;
    w.tick();
    dropped(&mut w, 40_002, 50_001);
    assert_eq!(last_refusal(&w), Some("range-full"));
    assert_eq!(w.session(&f).opened, 1);
}

#[test]
fn who_takes_a_pinhole_that_was_replaced_since_counts_too() {
    let mut w = world(|range| (range.max, range.per_minute) = (2, 100));
    let f = encrypted(&mut w, 41822);
    for (sport, port) in [(40_000, 50_000), (40_002, 50_002)] {
        syn(
            &mut w,
            EventKind::SynDropped,
            end(CLIENT, sport),
            end(SERVER, port),
            0,
        );
    }
    // Its record stood behind the second one on the ring.
    took(&mut w, &f, 40_001, 50_000);
    took(&mut w, &f, 40_003, 50_002);
    w.now += 10 * NS_PER_SEC;
    w.tick();
    syn(
        &mut w,
        EventKind::SynDropped,
        end(CLIENT, 40_004),
        end(SERVER, 50_004),
        0,
    );
    assert_eq!(last_refusal(&w), Some("range-full"));
}

#[test]
fn many_sessions_that_end_at_once_cost_one_look_at_the_ties() {
    let mut w = world(|_| {});
    let flows: Vec<_> = (0..10).map(|i| encrypted(&mut w, 41_000 + i)).collect();
    for (f, sport) in flows.iter().zip(40_000..) {
        took(&mut w, f, sport, 50_000);
    }
    let dumps = w.agent.tables.dumps;
    for f in &flows {
        w.event(f, EventKind::Rst, Side::Server, f.seq[1], 0, b"");
    }
    assert!(w.agent.tables.data_flows.is_empty(), "at once");
    w.now += NS_PER_SEC;
    w.tick();
    w.tick();
    assert!(w.agent.tables.dumps <= dumps + 1);
}

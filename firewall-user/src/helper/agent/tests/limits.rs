//! What outsiders can use up.

use super::*;
use crate::helper::reassembly::{BUDGET, SEGMENT_COST};

/// Leaves no more than `room` bytes for payload out of order of a client that has none.
fn leave(w: &mut World, room: usize) {
    let other = "203.0.113.9".parse().unwrap();
    let held = w.agent.held.held();
    w.agent.held.change(other, held, BUDGET - 8 * room);
    assert_eq!(w.agent.held.room(CLIENT.parse().unwrap()), room);
}

/// A segment one byte ahead of its turn.
fn early(w: &mut World, f: &Flow, text: &str) {
    let [seq, ack] = f.seq;
    w.payload(f, Side::Client, seq.wrapping_add(1), ack, text);
}

#[test]
fn without_memory_only_the_session_out_of_order_goes_blind() {
    let mut w = World::new();
    let mut a = Flow::new(CLIENT, 41822, SERVER);
    let mut b = Flow::new(CLIENT, 41823, SERVER);
    w.log_in(&mut a);
    w.log_in(&mut b);
    leave(&mut w, SEGMENT_COST + 3);
    early(&mut w, &a, "ORT ");
    let session = w.session(&a);
    assert_eq!(session.phase, SessionPhase::Blind as u8);
    assert_eq!(session.last_refusal, Refusal::BytesMissed as u8);
    assert_eq!(session.refused, 1);
    assert_eq!(w.agent.tables.blinded, [a.key()]);
    w.client(&mut b, "PORT 10,0,0,2,195,155\r\n");
    assert_eq!(w.only_expectation().1.parent, b.key());
    // A blind one asks for no memory any more.
    let held = w.agent.held.held();
    early(&mut w, &a, "ORT ");
    assert_eq!(w.agent.held.held(), held);
    assert_eq!(w.session(&a).refused, 1);
}

#[test]
fn memory_is_given_back() {
    let held = |w: &mut World, f: &mut Flow| {
        w.log_in(f);
        early(w, f, "OOP\r\n");
        assert_eq!(w.agent.held.held(), SEGMENT_COST + 5);
    };
    // When it is its turn, when the session ends, and when it is not read any more.
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    held(&mut w, &mut f);
    w.client(&mut f, "N");
    assert_eq!(w.agent.held.held(), 0);
    let mut f = Flow::new(CLIENT, 41823, SERVER);
    held(&mut w, &mut f);
    w.event(&f, EventKind::Rst, Side::Server, f.seq[1], 0, b"");
    assert_eq!(w.agent.held.held(), 0);
    let mut f = Flow::new(CLIENT, 41824, SERVER);
    held(&mut w, &mut f);
    w.server(&mut f, "\u{1}\u{2}\r\n");
    assert_eq!(w.session(&f).phase, SessionPhase::Poisoned as u8);
    assert_eq!(w.agent.held.held(), 0);
}

#[test]
fn one_client_cannot_have_all_sessions() {
    let mut w = World::new();
    let flows: Vec<_> = (0..17)
        .map(|i| Flow::new(CLIENT, 41_000 + i, SERVER))
        .collect();
    for flow in &flows {
        w.open(flow);
    }
    assert_eq!(w.sessions().len(), 16);
    assert_eq!(w.agent.tables.unhelped, [flows[16].key()]);
    // Nor by its payload, nor after a restart.
    let mut over = flows[16].clone();
    w.client(&mut over, "NOOP\r\n");
    let mut w = w.restart(NS_PER_SEC);
    w.open(&over);
    assert_eq!(w.sessions().len(), 16);
    // Others are helped, and it is again once one of its own has ended.
    w.log_in(&mut Flow::new("10.0.0.3", 41_000, SERVER));
    let first = &flows[0];
    w.event(first, EventKind::Rst, Side::Server, first.seq[1], 0, b"");
    w.open(&over);
    assert!(w.sessions().contains_key(&over.key()));
}

#[test]
fn one_client_cannot_have_all_expectations() {
    let mut w = World::with(|settings| settings.per_client = 2);
    let mut flows: Vec<_> = (0..3)
        .map(|i| Flow::new(CLIENT, 41_000 + i, SERVER))
        .collect();
    for flow in &mut flows {
        w.log_in(flow);
        w.client(flow, "PORT 10,0,0,2,195,155\r\n");
        w.server(flow, "200 ok\r\n");
        let last = u32::from(flow.client.port());
        w.client(flow, &format!("PORT 10,0,0,2,100,{}\r\n", last % 256));
        w.server(flow, "200 ok\r\n");
    }
    assert_eq!(w.expectations().len(), 2);
    let third = w.session(&flows[2]);
    assert_eq!((third.opened, third.refused), (0, 2));
    assert_eq!(third.last_refusal, Refusal::ClientFull as u8);
    let counts = &w.agent.tables.refusals;
    assert_eq!(*counts, HashMap::from([(Refusal::ClientFull as u8, 2)]));
    // Another client has its own, and a session that has one replaces it.
    let mut other = Flow::new("10.0.0.3", 41_000, SERVER);
    w.log_in(&mut other);
    w.client(&mut other, "PORT 10,0,0,3,195,155\r\n");
    w.client(&mut flows[0], "PORT 10,0,0,2,99,1\r\n");
    w.server(&mut flows[0], "200 ok\r\n");
    assert_eq!(w.session(&flows[0]).refused, 0);
    assert_eq!(w.expectations().len(), 3);
    // What ends gives its place back.
    let first = &flows[0];
    w.event(first, EventKind::Rst, Side::Server, first.seq[1], 0, b"");
    w.client(&mut flows[2], "PORT 10,0,0,2,99,2\r\n");
    assert_eq!(w.session(&flows[2]).opened, 1);
}

#[test]
fn one_client_cannot_have_all_memory() {
    let mut w = World::with(|settings| settings.max_sessions = 4096);
    let mut port = 1024;
    for size in [60_000, 6_000, 600, 60, 6] {
        for _ in 0..300 {
            let mut f = Flow::new(CLIENT, port, SERVER);
            port += 1;
            w.log_in(&mut f);
            early(&mut w, &f, &"x".repeat(size));
            // No room for it: the next ones are shorter.
            if w.session(&f).phase == SessionPhase::Blind as u8 {
                w.event(&f, EventKind::Rst, Side::Client, f.seq[0], 0, b"");
                break;
            }
        }
    }
    // Another one loses a packet.
    let mut f = Flow::new("10.0.0.3", 41_000, SERVER);
    w.log_in(&mut f);
    let [client, server] = f.seq;
    let rest = "10,0,0,3,195,155\r\n";
    w.payload(&f, Side::Client, client.wrapping_add(5), server, rest);
    w.payload(&f, Side::Client, client, server, "PORT ");
    assert_eq!(w.session(&f).opened, 1);
}

#[test]
fn nothing_is_left_of_sessions_that_have_ended() {
    let mut w = World::new();
    for port in 0..100 {
        let mut f = Flow::new(CLIENT, 41_000 + port, SERVER);
        w.log_in(&mut f);
        w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
        w.event(&f, EventKind::Fin, Side::Client, f.seq[0], f.seq[1], b"");
    }
    assert!(w.sessions().is_empty());
    assert_eq!(
        w.agent.next_lapse_ns(),
        None,
        "no flow of them is looked at"
    );
}

#[test]
fn one_client_cannot_have_the_whole_journal() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41_822, SERVER);
    w.log_in(&mut f);
    let before = w.agent.tables.journal.len();
    for port in 0..2000 {
        let [hi, lo] = u16::to_be_bytes(2000 + port);
        w.client(&mut f, &format!("PORT 10,0,0,2,{hi},{lo}\r\n"));
        w.server(&mut f, "200 ok\r\n");
    }
    let told = w.agent.tables.journal.len() - before;
    assert!((500..1100).contains(&told), "{told} of 3999 events");
    let mut other = Flow::new("10.0.0.3", 41_822, SERVER);
    w.log_in(&mut other);
    w.client(&mut other, "PORT 10,0,0,3,195,155\r\n");
    let opened = w.agent.tables.journal.last().unwrap();
    assert_eq!(
        (opened.kind, opened.session),
        (JournalKind::Opened as u8, other.key())
    );
    // What was left out is told of.
    w.now += NS_PER_SEC;
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    let skipped: Vec<_> = w
        .agent
        .tables
        .journal
        .iter()
        .filter(|e| e.kind == JournalKind::Skipped as u8)
        .collect();
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].lasted_ns, 3999 - told as u64);
}

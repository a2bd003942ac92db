//! Scenarios over tables in memory.

mod children;
mod fake;
mod journal;
mod limits;
mod range;
mod restart;
mod syn;

use firewall_common::{
    abi::{DroppedSyn, ExpectState, ExpectVia, Expectation, JournalKind, event_flags},
    time::ticks_from_secs,
    verdict::DropReason,
    wire::proto,
};

use super::*;
use crate::{
    bpf::{address, words},
    ftp::Side,
    helper::tables::TableError,
};
use fake::{CLIENT, Flow, NOW, SERVER, World};

#[test]
fn a_passive_negotiation_opens_exactly_one_port_from_the_client() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PASV\r\n");
    w.server(&mut f, "227 Entering Passive Mode (192,0,2,7,195,155).\r\n");

    let (key, expectation) = w.only_expectation();
    assert_eq!(
        (address(key.src), address(key.dst)),
        (f.client.ip(), f.server.ip())
    );
    assert_eq!((key.dport, key.proto), (50075, proto::TCP));
    assert_eq!(expectation.parent, f.key());
    assert_eq!(expectation.parent_incarnation, f.incarnation);
    assert_eq!(
        (expectation.from_zone, expectation.to_zone),
        (fake::OUTSIDE, fake::INSIDE)
    );
    assert_eq!(ExpectVia::try_from(expectation.via), Ok(ExpectVia::Pasv));
    assert_eq!(ExpectState::from_word(expectation.state), ExpectState::Free);
    let lifetime = Tick(expectation.expires).since(Tick::from_ns(w.now));
    assert_eq!(lifetime, ticks_from_secs(60));

    let session = w.session(&f);
    assert_eq!(
        SessionPhase::try_from(session.phase),
        Ok(SessionPhase::Ready)
    );
    assert_eq!((session.opened, session.refused), (1, 0));
    assert_eq!(session.next_seq, [f.seq[0], f.seq[1]]);
    assert_eq!(
        (session.client_zone, session.server_zone),
        (fake::OUTSIDE, fake::INSIDE)
    );
    assert_eq!(w.pair_count(&f), Some(1));
}

#[test]
fn an_active_negotiation_opens_the_other_way_round() {
    let mut w = World::new();
    let mut f = Flow::new("fd99::2", 41822, "fd99::1");
    w.log_in(&mut f);
    w.client(&mut f, "EPRT |2|fd99::2|50053|\r\n");
    let (key, expectation) = w.only_expectation();
    assert_eq!(
        (address(key.src), address(key.dst)),
        (f.server.ip(), f.client.ip())
    );
    assert_eq!(key.dport, 50053);
    assert_eq!(
        (expectation.from_zone, expectation.to_zone),
        (fake::INSIDE, fake::OUTSIDE)
    );
    // The server refuses it after all.
    w.server(&mut f, "500 no\r\n");
    assert!(w.expectations().is_empty());
}

#[test]
fn h03_order_and_segmentation_do_not_matter() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    let [seq, ack] = f.seq;
    w.payload(&f, Side::Client, seq.wrapping_add(16), ack, "155\r\n");
    w.payload(&f, Side::Client, seq.wrapping_add(5), ack, "10,0,0,2,19");
    assert!(w.expectations().is_empty());
    w.payload(&f, Side::Client, seq, ack, "PORT ");
    // "PORT 10,0,0,2,19155": five numbers, refused; and sent again, it is not read again.
    w.payload(&f, Side::Client, seq, ack, "PORT 10,0,0,2,9,155\r\n");
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).refused, 1);
    f.seq[0] = seq.wrapping_add(21);
    w.server(&mut f, "500 no\r\n");
    let [seq, ack] = f.seq;
    w.payload(&f, Side::Client, seq.wrapping_add(16), ack, "5,155\r\n");
    w.payload(&f, Side::Client, seq, ack, "PORT 10,0,0,2,19");
    assert_eq!(w.only_expectation().0.dport, 50075);
}

#[test]
fn a_silent_session_takes_its_pinhole_along() {
    const LIFE: u64 = 3600 * NS_PER_SEC;
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    assert_eq!(w.agent.next_lapse_ns(), None, "nothing is expected");
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    let at = w.agent.next_lapse_ns().unwrap();
    assert!(at > w.now + LIFE && at < w.now + LIFE + NS_PER_SEC, "{at}");
    // Its data keeps it alive, and then nothing does.
    w.now = at - NS_PER_SEC;
    w.set_flow(&f, 0);
    w.now = at;
    w.agent.lapse(at);
    let later = w.agent.next_lapse_ns().unwrap();
    assert!(later > at + LIFE - 2 * NS_PER_SEC, "{later}");
    let mut w = w.restart(0);
    assert_eq!(w.agent.next_lapse_ns(), Some(later), "the next agent knows");
    w.agent.lapse(later - 1);
    assert_eq!(w.expectations().len(), 1);
    w.agent.lapse(later);
    assert!(w.expectations().is_empty() && w.sessions().is_empty());
    assert_eq!(w.agent.next_lapse_ns(), None);
}

#[test]
fn a06_the_newest_replaces_the_oldest() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    for i in 0..500 {
        w.client(
            &mut f,
            &format!("PORT 10,0,0,2,{},{}\r\n", 100 + i / 256, i % 256),
        );
        assert_eq!(w.only_expectation().0.dport, 25_600 + i);
        w.server(&mut f, "200 ok\r\n");
    }
    assert_eq!(w.session(&f).opened, 500);
}

#[test]
fn h10_everything_closes_with_the_control_connection() {
    let opened = || {
        let mut w = World::new();
        let mut f = Flow::new(CLIENT, 41822, SERVER);
        w.log_in(&mut f);
        w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
        assert_eq!(w.expectations().len(), 1);
        (w, f)
    };
    for side in [Side::Client, Side::Server] {
        for (kind, data) in [
            (EventKind::Fin, ""),
            (EventKind::Fin, "221 bye\r\n"),
            (EventKind::Rst, ""),
        ] {
            let (mut w, f) = opened();
            let [own, other] = [f.seq[side.index()], f.seq[side.other().index()]];
            w.event(&f, kind, side, own, other, data.as_bytes());
            assert!(w.expectations().is_empty(), "{side:?} {kind:?}");
            assert!(w.sessions().is_empty());
            assert_eq!(w.pair_count(&f), None);
        }
    }
    let (mut w, mut f) = opened();
    w.client(&mut f, "QUIT\r\n");
    w.server(&mut f, "221 bye\r\n");
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Closed as u8);
}

#[test]
fn an_end_out_of_window_ends_nothing() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    for kind in [EventKind::Rst, EventKind::Fin] {
        let far = f.seq[0].wrapping_add(1 << 20);
        w.event(&f, kind, Side::Client, far, f.seq[1], b"");
        w.event(
            &f,
            kind,
            Side::Client,
            f.seq[0].wrapping_sub(9),
            f.seq[1],
            b"",
        );
    }
    assert_eq!(w.expectations().len(), 1);
}

#[test]
fn what_comes_after_the_end_begins_no_session() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.set_flow(&f, flow_flags::FIN_ORIGINAL);
    w.event(&f, EventKind::Fin, Side::Client, f.seq[0], f.seq[1], b"");
    w.server(&mut f, "226 done\r\n");
    assert!(w.sessions().is_empty());
}

#[test]
fn a_session_seen_in_mid_life_is_adopted() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.set_flow(&f, 0);
    w.server(&mut f, "d of a line\r\n");
    w.client(&mut f, "NOOP\r\n");
    assert_eq!(w.session(&f).phase, SessionPhase::Adopted as u8);
    w.server(&mut f, "227 (192,0,2,7,195,155)\r\n");
    assert!(w.expectations().is_empty());
    w.client(&mut f, "PASV\r\n");
    w.server(&mut f, "227 (192,0,2,7,195,155)\r\n");
    assert_eq!(w.only_expectation().0.dport, 50075);
}

#[test]
fn a_reused_tuple_is_a_new_session() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    f.incarnation += 1;
    w.open(&f);
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Greeting as u8);
    assert_eq!(w.pair_count(&f), Some(1));
}

#[test]
fn the_pair_counts_its_sessions() {
    let mut w = World::new();
    let mut a = Flow::new(CLIENT, 41822, SERVER);
    let mut b = Flow::new(CLIENT, 41823, SERVER);
    w.log_in(&mut a);
    w.log_in(&mut b);
    assert_eq!(w.pair_count(&a), Some(2));
    w.event(&a, EventKind::Rst, Side::Server, a.seq[1], 0, b"");
    assert_eq!(w.pair_count(&a), Some(1));
    w.event(&b, EventKind::Rst, Side::Server, b.seq[1], 0, b"");
    assert_eq!(w.pair_count(&a), None);
}

#[test]
fn a_port_negotiated_by_two_sessions_belongs_to_the_last() {
    let mut w = World::new();
    let mut a = Flow::new(CLIENT, 41822, SERVER);
    let mut b = Flow::new(CLIENT, 41823, SERVER);
    w.log_in(&mut a);
    w.log_in(&mut b);
    w.client(&mut a, "PORT 10,0,0,2,195,155\r\n");
    w.client(&mut b, "PORT 10,0,0,2,195,155\r\n");
    w.event(&a, EventKind::Rst, Side::Client, a.seq[0], 0, b"");
    assert_eq!(w.only_expectation().1.parent, b.key());
}

#[test]
fn a_full_table_refuses_and_says_so() {
    let mut w = World::with(|settings| settings.max_expectations = 1);
    let mut a = Flow::new(CLIENT, 41822, SERVER);
    let mut b = Flow::new(CLIENT, 41823, SERVER);
    w.log_in(&mut a);
    w.log_in(&mut b);
    w.client(&mut a, "PORT 10,0,0,2,195,155\r\n");
    w.client(&mut b, "PORT 10,0,0,2,195,156\r\n");
    assert_eq!(w.only_expectation().1.parent, a.key());
    assert_eq!(w.session(&b).last_refusal, Refusal::TableFull as u8);
    // Its own newest still replaces its own oldest; and what has expired makes room.
    w.client(&mut a, "PORT 10,0,0,2,195,157\r\n");
    assert_eq!(w.only_expectation().0.dport, 50077);
    w.now += 61 * NS_PER_SEC;
    w.client(&mut b, "PORT 10,0,0,2,195,158\r\n");
    assert_eq!(w.only_expectation().0.dport, 50078);
}

#[test]
fn too_many_sessions_are_not_helped() {
    let mut w = World::with(|settings| settings.max_sessions = 1);
    let mut a = Flow::new(CLIENT, 41822, SERVER);
    let b = Flow::new(CLIENT, 41823, SERVER);
    w.log_in(&mut a);
    w.open(&b);
    assert_eq!(w.sessions().len(), 1);
    assert_eq!(w.agent.tables.unhelped, [b.key()]);
}

#[test]
fn expectations_expire() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    w.now += 59 * NS_PER_SEC;
    w.tick();
    assert_eq!(w.expectations().len(), 1);
    w.now += 2 * NS_PER_SEC;
    w.tick();
    assert!(w.expectations().is_empty());
    assert_eq!(w.agent.tables.heartbeat, (w.now, std::process::id()));
}

#[test]
fn a_flow_that_vanished_is_swept() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    w.now += 11 * NS_PER_SEC;
    w.tick();
    assert_eq!(w.sessions().len(), 1);
    w.agent.tables.flows.clear();
    w.now += 11 * NS_PER_SEC;
    w.tick();
    assert!(w.sessions().is_empty() && w.expectations().is_empty());
    assert_eq!(w.pair_count(&f), None);
}

#[test]
fn a_flow_that_the_programs_made_blind_opens_nothing_more() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    w.set_flow(&f, flow_flags::BLIND);
    w.now += 11 * NS_PER_SEC;
    w.tick();
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Blind as u8);
}

#[test]
fn bytes_acknowledged_unseen_make_blind() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    // The server answers six bytes that never came by.
    f.seq[0] = f.seq[0].wrapping_add(6);
    w.server(&mut f, "200 ok\r\n");
    assert!(w.expectations().is_empty());
    let session = w.session(&f);
    assert_eq!(session.phase, SessionPhase::Blind as u8);
    assert_eq!(session.last_refusal, Refusal::BytesMissed as u8);
    assert_eq!(w.agent.tables.blinded, [f.key()]);
    // Its end still ends it, wherever its window is by now.
    w.event(
        &f,
        EventKind::Fin,
        Side::Client,
        f.seq[0].wrapping_add(1 << 20),
        0,
        b"",
    );
    assert!(w.sessions().is_empty());
}

#[test]
fn h06_a_poisoned_session_is_never_read_again() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "POST / HTTP/1.1\r\nPORT 10,0,0,2,195,155\r\n");
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Poisoned as u8);
    assert_eq!(w.agent.tables.blinded, [f.key()]);
}

#[test]
fn tls_is_noted_with_its_time() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.open(&f);
    w.server(&mut f, "220 hi\r\n");
    w.client(&mut f, "AUTH TLS\r\n");
    w.now += 5;
    w.server(&mut f, "234 go\r\n");
    assert_eq!(w.session(&f).phase, SessionPhase::Tls as u8);
    assert_eq!(w.session(&f).tls_ns, NOW + 5);
}

#[test]
fn what_a_table_refuses_does_not_stop_the_agent() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.agent.tables.fail = true;
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    w.agent.tables.fail = false;
    w.server(&mut f, "200 ok\r\n");
    assert_eq!(w.session(&f).last_refusal, Refusal::TableFull as u8);
    w.client(&mut f, "PORT 10,0,0,2,195,156\r\n");
    assert_eq!(w.only_expectation().0.dport, 50076);
}

#[test]
fn bytes_that_are_no_record_are_an_error() {
    let mut w = World::new();
    assert!(w.agent.handle(b"short", NOW).is_err());
}

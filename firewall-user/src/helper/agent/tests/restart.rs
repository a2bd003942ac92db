//! An agent that takes over from another.

use super::*;

#[test]
fn a_clear_session_goes_on_where_it_was() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "EPSV\r\n");
    let mut w = w.restart(NS_PER_SEC / 2);
    assert_eq!(w.pair_count(&f), Some(1));
    w.server(&mut f, "229 Extended (|||50053|)\r\n");
    assert_eq!(w.only_expectation().0.dport, 50053);
    let mut w = w.restart(NS_PER_SEC / 2);
    assert_eq!(w.only_expectation().0.dport, 50053);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    assert_eq!(w.only_expectation().0.dport, 50075);
    w.event(&f, EventKind::Fin, Side::Client, f.seq[0], f.seq[1], b"");
    assert!(w.expectations().is_empty() && w.sessions().is_empty());
}

#[test]
fn bytes_that_passed_meanwhile_make_blind() {
    for side in [Side::Client, Side::Server] {
        let mut w = World::new();
        let mut f = Flow::new(CLIENT, 41822, SERVER);
        w.log_in(&mut f);
        w.client(&mut f, "EPSV\r\n");
        let mut w = w.restart(NS_PER_SEC / 2);
        f.seq[side.index()] = f.seq[side.index()].wrapping_add(7);
        w.server(&mut f, "229 Extended (|||50053|)\r\n");
        w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
        assert!(w.expectations().is_empty(), "{side:?}");
        assert_eq!(w.session(&f).phase, SessionPhase::Blind as u8, "{side:?}");
        assert_eq!(w.agent.tables.blinded, [f.key()]);
    }
}

#[test]
fn half_a_line_is_not_read_as_a_line() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "STOR x");
    let mut w = w.restart(NS_PER_SEC / 2);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Blind as u8);
    // Nor the middle of a long reply as a reply.
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "STAT\r\nPASV\r\n");
    w.server(&mut f, "213-status of\r\n");
    let mut w = w.restart(NS_PER_SEC / 2);
    w.server(&mut f, "227 (192,0,2,7,195,155)\r\n");
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Blind as u8);
}

#[test]
fn a_tls_session_is_never_read_as_clear() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.open(&f);
    w.server(&mut f, "220 hi\r\n");
    w.client(&mut f, "AUTH TLS\r\n");
    w.server(&mut f, "234 go\r\n");
    let mut w = w.restart(NS_PER_SEC / 2);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    w.client(&mut f, "PASV\r\n");
    w.server(&mut f, "227 (192,0,2,7,195,155)\r\n");
    assert!(w.expectations().is_empty());
    let session = w.session(&f);
    assert_eq!(session.phase, SessionPhase::Tls as u8);
    assert_eq!(session.tls_ns, NOW);
}

#[test]
fn what_the_programs_made_blind_meanwhile_is_blind() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    w.set_flow(&f, flow_flags::BLIND);
    let w = w.restart(60 * NS_PER_SEC);
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Blind as u8);
}

#[test]
fn what_ended_meanwhile_is_gone() {
    for end in [None, Some(flow_flags::FIN_REPLY)] {
        let mut w = World::new();
        let mut f = Flow::new(CLIENT, 41822, SERVER);
        w.log_in(&mut f);
        w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
        match end {
            Some(flag) => w.set_flow(&f, flag),
            None => w.agent.tables.flows.clear(),
        }
        let w = w.restart(60 * NS_PER_SEC);
        assert!(w.expectations().is_empty() && w.sessions().is_empty());
        assert_eq!(w.pair_count(&f), None);
    }
}

#[test]
fn a_tuple_reused_meanwhile_is_not_the_old_session() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    f.incarnation += 1;
    w.set_flow(&f, 0);
    let w = w.restart(NS_PER_SEC);
    assert!(w.expectations().is_empty() && w.sessions().is_empty());
}

#[test]
fn old_records_are_not_read() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    let queued = w.now;
    let mut w = w.restart(2 * NS_PER_SEC);
    w.now = queued;
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    assert!(w.expectations().is_empty());
    assert_eq!(w.session(&f).phase, SessionPhase::Blind as u8);
    // An end is an end, however old.
    w.event(&f, EventKind::Fin, Side::Server, f.seq[1], f.seq[0], b"");
    assert!(w.sessions().is_empty());
}

#[test]
fn a_record_that_makes_no_sense_is_dropped() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    if let Some(session) = w.agent.tables.sessions.get_mut(&f.key()) {
        session.phase = 77;
    }
    let w = w.restart(NS_PER_SEC);
    assert!(w.sessions().is_empty());
    assert_eq!(w.pair_count(&f), None);
}

#[test]
fn an_adopted_session_stays_known_as_such() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.set_flow(&f, 0);
    w.client(&mut f, "e\r\nNOOP\r\n");
    w.server(&mut f, "y\r\n200 ok\r\n");
    assert_eq!(w.session(&f).phase, SessionPhase::Ready as u8);
    let mut w = w.restart(NS_PER_SEC / 2);
    assert_eq!(w.session(&f).adopted, 1);
    w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
    assert!(w.expectations().is_empty());
    w.server(&mut f, "200 ok\r\n");
    assert_eq!(w.only_expectation().0.dport, 50075);
}

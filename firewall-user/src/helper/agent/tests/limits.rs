//! What outsiders can use up.

use super::*;
use crate::helper::reassembly::SEGMENT_COST;

/// Leaves no more than `room` bytes for payload out of order.
fn leave(w: &mut World, room: usize) {
    w.agent.held = BUDGET - room;
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
    leave(&mut w, BUDGET);
    early(&mut w, &a, "ORT ");
    assert_eq!(w.agent.held, 0);
    assert_eq!(w.session(&a).refused, 1);
}

#[test]
fn memory_is_given_back() {
    let held = |w: &mut World, f: &mut Flow| {
        w.log_in(f);
        early(w, f, "OOP\r\n");
        assert_eq!(w.agent.held, SEGMENT_COST + 5);
    };
    // When it is its turn, when the session ends, and when it is not read any more.
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    held(&mut w, &mut f);
    w.client(&mut f, "N");
    assert_eq!(w.agent.held, 0);
    let mut f = Flow::new(CLIENT, 41823, SERVER);
    held(&mut w, &mut f);
    w.event(&f, EventKind::Rst, Side::Server, f.seq[1], 0, b"");
    assert_eq!(w.agent.held, 0);
    let mut f = Flow::new(CLIENT, 41824, SERVER);
    held(&mut w, &mut f);
    w.server(&mut f, "\u{1}\u{2}\r\n");
    assert_eq!(w.session(&f).phase, SessionPhase::Poisoned as u8);
    assert_eq!(w.agent.held, 0);
}

//! What somebody would try who wants a packet through.

use firewall_common::{
    abi::{ExpectKey, ExpectState, Expectation, maps},
    verdict::{DropReason, PassReason},
};

use crate::{
    control::with_pinhole,
    packets::{End, HOST, PEER, echo, segment, tcp},
    rig::{Rig, dropped, passed, tick},
};

const KNOWN: PassReason = PassReason::Established;

/// A ping with identifier 0 has the ports that other ICMP messages do not have.
#[test]
fn an_answered_ping_lets_no_other_icmp_in() {
    let (host, peer) = (End::V4(HOST, 0), End::V4(PEER, 0));
    let mut rig = Rig::new();
    assert_eq!(
        rig.egress(&echo(host, peer, false)),
        passed(PassReason::NewByRule)
    );
    let reply = echo(peer, host, true);
    assert_eq!(rig.ingress(&reply), passed(KNOWN));
    // Redirect, router advertisement, timestamp and address mask requests.
    for kind in [5, 9, 13, 17] {
        let mut message = reply.clone();
        message[14 + 20] = kind;
        assert_eq!(rig.ingress(&message), dropped(DropReason::Policy), "{kind}");
    }
    assert_eq!(rig.flow4(maps::FLOWS4).1.packets, [1, 1]);
}

/// The source port that took a pinhole cannot use it for a second connection,
/// however the first one ended.
#[test]
fn a_pinhole_that_has_served_is_closed_to_its_taker_too() {
    let (data, listener) = (End::V4(PEER, 20), End::V4(HOST, 40_100));
    let syn = tcp(data, listener, &segment("S", 1000, 0));
    let answer = tcp(listener, data, &segment("SA", 5000, 1001));
    let ends: [&dyn Fn(&mut Rig); 3] = [
        &|rig| {
            let rst = tcp(data, listener, &segment("R", 1001, 0));
            assert_eq!(rig.ingress(&rst), passed(KNOWN));
        },
        &|rig| {
            let fin = |flags, seq, ack| segment(flags, seq, ack);
            rig.ingress(&tcp(data, listener, &fin("FA", 1001, 5001)));
            rig.egress(&tcp(listener, data, &fin("FA", 5001, 1002)));
            rig.ingress(&tcp(data, listener, &fin("A", 1002, 5002)));
        },
        &|rig| {
            let flows = rig.flows4(maps::FLOWS4);
            for (key, mut flow) in flows.into_values() {
                if flow.rule == u16::MAX {
                    flow.expires = tick().0.wrapping_sub(2);
                    rig.hash(maps::FLOWS4).insert(key, flow, 0).unwrap();
                }
            }
        },
    ];
    for (case, end) in ends.into_iter().enumerate() {
        let mut rig = Rig::new();
        let key: ExpectKey = with_pinhole(&mut rig, 40_100);
        assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
        assert_eq!(rig.egress(&answer), passed(KNOWN));
        let ack = tcp(data, listener, &segment("A", 1001, 5001));
        assert_eq!(rig.ingress(&ack), passed(KNOWN));
        end(&mut rig);
        let again = rig.ingress(&syn);
        assert_eq!(again, dropped(DropReason::ExpectationTaken), "case {case}");
        let taken: Expectation = rig.hash(maps::EXPECTATIONS).get(&key, 0).unwrap();
        assert_eq!(ExpectState::from_word(taken.state), ExpectState::Taken(20));
    }
}

/// A connection that never came about leaves the pinhole to its taker.
#[test]
fn a_refused_connection_may_be_tried_again() {
    let (data, listener) = (End::V4(PEER, 20), End::V4(HOST, 40_100));
    let mut rig = Rig::new();
    with_pinhole(&mut rig, 40_100);
    let syn = tcp(data, listener, &segment("S", 1000, 0));
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
    let refusal = tcp(listener, data, &segment("RA", 0, 1001));
    assert_eq!(rig.egress(&refusal), passed(KNOWN));
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
}

//! ICMP errors, and what has neither ports nor echo.

use firewall_common::{
    abi::{essentials, maps, timeout},
    time::Tick,
    verdict::{DropReason, PassReason},
};

use crate::{
    packets::{
        End, HOST, HOST6, PEER, PEER6, THIRD, echo, error, fragments, other, segment, tcp, udp,
    },
    rig::{OUTSIDE, Rig, dropped, passed},
    tracking::handshake,
};

const NEW: PassReason = PassReason::NewByRule;
const KNOWN: PassReason = PassReason::Established;
const THIRD6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// A host, its peer, and a router between them.
struct Path {
    host: End,
    peer: End,
    router: End,
    /// Types of the errors of the family.
    errors: &'static [u8],
    /// Bytes of the IP header.
    head: usize,
}

fn paths() -> [Path; 2] {
    [
        Path {
            host: End::V4(HOST, 40_000),
            peer: End::V4(PEER, 80),
            router: End::V4(THIRD, 0),
            errors: &[3, 4, 11, 12],
            head: 20,
        },
        Path {
            host: End::V6(HOST6, 40_000),
            peer: End::V6(PEER6, 80),
            router: End::V6(THIRD6, 0),
            errors: &[1, 2, 3, 4],
            head: 40,
        },
    ]
}

fn data(from: End, to: End) -> Vec<u8> {
    tcp(from, to, &segment("A", 1001, 5001))
}

#[test]
fn an_error_about_a_flow_passes_from_its_end_and_from_any_router() {
    let related = passed(PassReason::Related);
    let unrelated = dropped(DropReason::IcmpUnrelated);
    for path in paths() {
        let (host, peer) = (path.host, path.peer);
        let mut rig = Rig::new();
        let sent = data(host, peer);
        let first = path.errors[0];
        let early = error(path.router, host, first, &sent, 1200);
        assert_eq!(rig.ingress(&early), unrelated, "before the flow");
        handshake(&mut rig, host, peer);
        for &kind in path.errors {
            for from in [path.router, peer] {
                let error = error(from, host, kind, &sent, 1200);
                assert_eq!(rig.ingress(&error), related, "{kind}");
            }
        }
        // The host itself complains of what came in.
        let received = tcp(peer, host, &segment("A", 5001, 1001));
        assert_eq!(
            rig.egress(&error(host, peer, first, &received, 1200)),
            related
        );
        // An error changes nothing in the flow.
        let on = tcp(peer, host, &segment("A", 5001, 1001));
        assert_eq!(rig.ingress(&on), passed(KNOWN));
    }
}

#[test]
fn an_error_about_udp_or_a_ping_passes() {
    for path in paths() {
        let (host, peer) = (path.host, path.peer);
        let mut rig = Rig::new();
        for sent in [udp(host, peer, b"probe"), echo(host, peer, false)] {
            let outcome = rig.egress(&sent);
            assert_eq!(outcome, passed(NEW));
            for &kind in path.errors {
                let error = error(path.router, host, kind, &sent, 1200);
                assert_eq!(rig.ingress(&error), passed(PassReason::Related), "{kind}");
            }
        }
        // The reply to a ping that nobody sent is no better for being quoted.
        let reply = echo(host, path.router, true);
        let error = error(path.router, host, path.errors[0], &reply, 1200);
        assert_eq!(rig.ingress(&error), dropped(DropReason::IcmpUnrelated));
    }
}

#[test]
fn an_error_that_nobody_asked_for_is_dropped() {
    let unrelated = dropped(DropReason::IcmpUnrelated);
    for path in paths() {
        let (host, peer, router) = (path.host, path.peer, path.router);
        let kind = path.errors[0];
        let mut rig = Rig::new();
        handshake(&mut rig, host, peer);
        let sent = data(host, peer);
        // To somebody else than the sender of what it quotes.
        assert_eq!(
            rig.ingress(&error(host, peer, kind, &sent, 1200)),
            unrelated
        );
        let received = tcp(peer, host, &segment("A", 5001, 1001));
        assert_eq!(
            rig.ingress(&error(router, host, kind, &received, 1200)),
            unrelated
        );
        // About another port.
        let elsewhere = match peer {
            End::V4(a, _) => End::V4(a, 81),
            End::V6(a, _) => End::V6(a, 81),
        };
        let error_about = error(router, host, kind, &data(host, elsewhere), 1200);
        assert_eq!(rig.ingress(&error_about), unrelated);
        // About another error.
        let inner = error(host, peer, kind, &received, 1200);
        assert_eq!(
            rig.ingress(&error(router, host, kind, &inner, 1200)),
            unrelated
        );
        // Fragmented: no error is as long as that.
        let pieces = fragments(&error(router, host, kind, &sent, 1200), 40, 1);
        assert_eq!(rig.ingress(&pieces[0]), unrelated);
        // Switched off.
        let good = error(router, host, kind, &sent, 1200);
        assert_eq!(rig.ingress(&good), passed(PassReason::Related));
        rig.configure(|config| config.essentials &= !essentials::PATH_MTU);
        assert_eq!(rig.ingress(&good), unrelated);
    }
}

/// RFC 792: the IP header and eight bytes are enough; less is not.
#[test]
fn what_an_error_quotes_may_be_short_but_not_too_short() {
    for path in paths() {
        let (host, peer) = (path.host, path.peer);
        let mut rig = Rig::new();
        handshake(&mut rig, host, peer);
        let sent = data(host, peer);
        for len in 0..path.head + 12 {
            let error = error(path.router, host, path.errors[0], &sent, len);
            let expected = if len < path.head + 8 {
                dropped(DropReason::IcmpUnrelated)
            } else {
                passed(PassReason::Related)
            };
            assert_eq!(rig.ingress(&error), expected, "{len}");
        }
    }
}

#[test]
fn what_an_error_quotes_may_be_a_first_fragment() {
    for path in paths() {
        let (host, peer) = (path.host, path.peer);
        let mut rig = Rig::new();
        let sent = fragments(&udp(host, peer, &[7; 4000]), 1480, 1);
        assert_eq!(rig.egress(&sent[0]), passed(NEW));
        let about = |n: usize| error(path.router, host, path.errors[1], &sent[n], 1200);
        assert_eq!(rig.ingress(&about(0)), passed(PassReason::Related));
        let outcome = rig.ingress(&about(1));
        assert_eq!(
            outcome,
            dropped(DropReason::IcmpUnrelated),
            "no ports in it"
        );
    }
}

#[test]
fn what_an_error_quotes_may_have_extension_headers() {
    let [_, path] = paths();
    let (host, peer) = (path.host, path.peer);
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    let mut sent = data(host, peer);
    // Hop-by-hop and destination options before TCP.
    sent.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]);
    sent[20] = 0;
    sent[19] += 16;
    let about = error(path.router, host, 2, &sent, 1200);
    assert_eq!(rig.ingress(&about), passed(PassReason::Related));
    // Cut within them.
    let cut = error(path.router, host, 2, &sent, 40 + 12);
    assert_eq!(rig.ingress(&cut), dropped(DropReason::IcmpUnrelated));
    // A chain that leads on and on.
    let mut endless = data(host, peer);
    endless.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0].repeat(12));
    endless[20] = 60;
    let about = error(path.router, host, 2, &endless, 1200);
    assert_eq!(rig.ingress(&about), dropped(DropReason::IcmpUnrelated));
}

/// An error comes from ahead of the packet that it is about.
#[test]
fn an_error_from_another_zone_is_dropped() {
    for path in paths() {
        let mut rig = Rig::new();
        handshake(&mut rig, path.host, path.peer);
        let sent = data(path.host, path.peer);
        let error = error(path.router, path.host, path.errors[0], &sent, 1200);
        rig.iface(OUTSIDE + 1);
        assert_eq!(rig.ingress(&error), dropped(DropReason::ZoneMismatch));
        rig.iface(OUTSIDE);
        assert_eq!(rig.ingress(&error), passed(PassReason::Related));
    }
}

/// GRE, ESP and SCTP have no ports that are looked at: the pair of addresses is
/// the flow.
#[test]
fn other_protocols_are_tracked_by_their_addresses() {
    for path in paths() {
        let (host, peer) = (path.host, path.peer);
        let mut rig = Rig::new();
        for protocol in [47, 50, 132] {
            let answer = other(peer, host, protocol);
            assert_eq!(rig.ingress(&answer), dropped(DropReason::Policy));
            let sent = other(host, peer, protocol);
            assert_eq!(rig.egress(&sent), passed(NEW));
            assert_eq!(rig.ingress(&answer), passed(KNOWN));
            let stranger = other(path.router, host, protocol);
            assert_eq!(rig.ingress(&stranger), dropped(DropReason::Policy));
            // Of an error about it the addresses are enough, too.
            let about = error(path.router, host, path.errors[0], &sent, path.head);
            assert_eq!(rig.ingress(&about), passed(PassReason::Related));
            let stray = other(host, path.router, protocol);
            let about = error(path.router, host, path.errors[0], &stray, 1200);
            assert_eq!(rig.ingress(&about), dropped(DropReason::IcmpUnrelated));
        }
    }
}

/// How long a flow lives depends on whether it was answered.
#[test]
fn each_protocol_has_its_time() {
    let path = &paths()[0];
    let (host, peer) = (path.host, path.peer);
    let ping = End::V4(HOST, 80);
    let cases = [
        (udp(host, peer, b"?"), udp(peer, host, b"!"), [30, 120]),
        (echo(ping, peer, false), echo(peer, ping, true), [40, 40]),
        (other(host, peer, 47), other(peer, host, 47), [600, 600]),
    ];
    for (question, answer, expected) in cases {
        let mut rig = Rig::new();
        let mut times = [0; timeout::LEN];
        times[timeout::UDP] = 30;
        times[timeout::UDP_STREAM] = 120;
        times[timeout::ICMP] = 40;
        times[timeout::OTHER] = 600;
        rig.configure(|config| config.timeouts = times);
        let mut life = |table| {
            let (key, flow) = rig_flow(&mut rig, table, &question, &answer);
            flow.expires(key, &times).since(Tick(flow.seen))
        };
        assert_eq!(life(maps::HALF_OPEN4_IN), expected[0]);
        assert_eq!(life(maps::FLOWS4), expected[1]);
    }
}

/// The question goes out, or the answer comes in; the flow that it leaves in `table`.
fn rig_flow(
    rig: &mut Rig,
    table: &str,
    question: &[u8],
    answer: &[u8],
) -> (u8, firewall_common::abi::Flow) {
    let outcome = if table == maps::FLOWS4 {
        (rig.ingress(answer), passed(KNOWN))
    } else {
        (rig.egress(question), passed(NEW))
    };
    assert_eq!(outcome.0, outcome.1);
    let (key, flow) = rig.flow4(table);
    (key.proto(), flow)
}

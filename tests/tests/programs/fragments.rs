//! Fragments: the later ones follow an accepted first one, and only so far.

use firewall_common::{
    abi::{Bucket, FRAGMENT_TICKS, FragmentKey, Fragments, maps},
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    packets::{
        End, HOST, HOST6, PEER, PEER6, THIRD, echo, fragment, fragments, segment, tcp, tcp_syn, udp,
    },
    rig::{DATAGRAMS, OUTSIDE, Rig, accept, dropped, passed, tick},
    tracking::handshake,
};

const KNOWN: PassReason = PassReason::Established;
const TAIL: PassReason = PassReason::FragmentTail;
const AHEAD: PassReason = PassReason::FragmentAhead;
const SIZE: usize = 1480;

fn ends() -> [(End, End); 2] {
    [
        (End::V4(HOST, 40_000), End::V4(PEER, 53)),
        (End::V6(HOST6, 40_000), End::V6(PEER6, 53)),
    ]
}

/// The host asks, so that long answers may come; and such an answer, in pieces.
fn asked(host: End, peer: End, len: usize, id: u32) -> (Rig, Vec<Vec<u8>>) {
    let mut rig = Rig::new();
    let question = udp(host, peer, b"?");
    assert_eq!(rig.egress(&question), passed(PassReason::NewByRule));
    let answer = udp(peer, host, &vec![7; len]);
    (rig, fragments(&answer, SIZE, id))
}

fn datagrams(rig: &mut Rig) -> usize {
    let table = rig.hash::<FragmentKey, Fragments>(maps::FRAGMENTS);
    table.keys().count()
}

#[test]
fn an_answer_in_pieces_comes_in_and_a_question_goes_out() {
    for (host, peer) in ends() {
        let (mut rig, answer) = asked(host, peer, 60_000, 9);
        assert_eq!(answer.len(), 41);
        assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
        for tail in &answer[1..] {
            assert_eq!(rig.ingress(tail), passed(TAIL));
        }
        assert_eq!(datagrams(&mut rig), 0, "forgotten when it is whole");
        let question = fragments(&udp(host, peer, &[7; 60_000]), SIZE, 10);
        assert_eq!(rig.egress(&question[0]), passed(KNOWN));
        for tail in &question[1..] {
            assert_eq!(rig.egress(tail), passed(TAIL));
        }
        assert_eq!(rig.event(Event::FragmentedDatagram), 2);
    }
}

#[test]
fn the_order_does_not_matter() {
    for (host, peer) in ends() {
        let (mut rig, mut answer) = asked(host, peer, 60_000, 9);
        answer.reverse();
        let (first, tails) = answer.split_last().unwrap();
        for tail in tails {
            assert_eq!(rig.ingress(tail), passed(AHEAD));
        }
        assert_eq!(rig.ingress(first), passed(KNOWN));
        assert_eq!(datagrams(&mut rig), 0);
        // Every other one ahead.
        let answer = fragments(&udp(peer, host, &[7; 8000]), SIZE, 10);
        let order = [1, 3, 5, 0, 2, 4].map(|n: usize| rig.ingress(&answer[n]));
        let [a, t, k] = [AHEAD, TAIL, KNOWN].map(passed);
        assert_eq!(order, [a, a, a, k, t, t]);
    }
}

#[test]
fn a_large_ping_passes_both_ways() {
    for (host, peer) in [
        (End::V4(HOST, 77), End::V4(PEER, 77)),
        (End::V6(HOST6, 77), End::V6(PEER6, 77)),
    ] {
        let mut rig = Rig::new();
        let long = |frame: Vec<u8>| fragments(&[frame, vec![0; 8000]].concat(), SIZE, 5);
        let request = long(echo(host, peer, false));
        assert_eq!(rig.egress(&request[0]), passed(PassReason::NewByRule));
        assert_eq!(rig.egress(&request[1]), passed(TAIL));
        let reply = long(echo(peer, host, true));
        assert_eq!(rig.ingress(&reply[0]), passed(KNOWN));
        assert_eq!(rig.ingress(&reply[1]), passed(TAIL));
    }
}

#[test]
fn datagrams_are_told_apart() {
    for (host, peer) in ends() {
        let (mut rig, one) = asked(host, peer, 4000, 1);
        let two = fragments(&udp(peer, host, &[8; 4000]), SIZE, 2);
        // Interleaved.
        for n in 0..one.len() {
            let outcome = passed(if n == 0 { KNOWN } else { TAIL });
            assert_eq!(rig.ingress(&one[n]), outcome);
            assert_eq!(rig.ingress(&two[n]), outcome);
        }
        // A first fragment speaks for no other identification and no other host.
        let (mut rig, one) = asked(host, peer, 4000, 1);
        assert_eq!(rig.ingress(&one[0]), passed(KNOWN));
        assert_eq!(rig.ingress(&two[1]), passed(AHEAD));
        if let End::V4(..) = peer {
            let mut other = one[1].clone();
            other[26..30].copy_from_slice(&THIRD);
            assert_eq!(rig.ingress(&other), passed(AHEAD), "another source");
            let mut other = one[1].clone();
            other[23] = 6;
            assert_eq!(rig.ingress(&other), passed(AHEAD), "another protocol");
        }
        rig.iface(OUTSIDE + 1);
        assert_eq!(rig.ingress(&one[1]), passed(AHEAD), "another zone");
    }
}

/// Every shape of overlap with the first fragment, in both orders.
#[test]
fn what_overlaps_is_dropped_and_the_rest_of_the_datagram_with_it() {
    let overlap = dropped(DropReason::FragmentOverlap);
    for (host, peer) in ends() {
        let (_, answer) = asked(host, peer, 4000, 1);
        // (first unit, bytes, more): over the end of the first, inside it and
        // beyond it, over a later one.
        for (at, len, more) in [(184, 1480, true), (100, 2000, false), (8, 3000, false)] {
            let evil = fragment(&answer[0], &vec![0; len], at, more, 1);
            let (mut rig, _) = asked(host, peer, 0, 1);
            assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
            assert_eq!(rig.ingress(&evil), overlap, "{at}");
            assert_eq!(rig.ingress(&answer[1]), overlap, "nothing more of it");
            // Ahead of the first: then that one is refused.
            let (mut rig, _) = asked(host, peer, 0, 1);
            assert_eq!(rig.ingress(&evil), passed(AHEAD));
            assert_eq!(rig.ingress(&answer[0]), overlap, "{at}");
        }
        // A second first fragment with other contents, longer or shorter.
        for len in [800, 2400] {
            let (mut rig, _) = asked(host, peer, 0, 1);
            assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
            let second = fragments(&udp(peer, host, &[9; 4000]), len, 1);
            assert_eq!(rig.ingress(&second[0]), overlap, "{len}");
        }
    }
}

#[test]
fn a_fragment_that_comes_twice_is_dropped_and_does_no_harm() {
    let (host, peer) = ends()[0];
    let (mut rig, answer) = asked(host, peer, 4000, 1);
    assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
    let again = dropped(DropReason::FragmentOverlap);
    assert_eq!(rig.ingress(&answer[0]), again);
    assert_eq!(rig.ingress(&answer[1]), passed(TAIL));
    assert_eq!(rig.ingress(&answer[1]), again);
    assert_eq!(rig.ingress(&answer[2]), passed(TAIL));
}

/// A first fragment that hides a header from the rules, or a later one that
/// would replace it.
#[test]
fn transport_headers_are_whole_and_stay_so() {
    for (host, peer) in ends() {
        let mut rig = Rig::new();
        handshake(&mut rig, host, peer);
        let data = tcp(peer, host, &segment("A", 5001, 1001));
        let payload = &data[data.len() - 20..];
        for len in [8, 16] {
            let tiny = fragment(&data, &payload[..len], 0, true, 1);
            let reason = DropReason::MalformedTcp;
            assert_eq!(rig.ingress(&tiny), dropped(reason), "{len}");
        }
        for at in 1..8 {
            let low = fragment(&data, &[0; 64], at, false, 1);
            assert_eq!(rig.ingress(&low), dropped(DropReason::Fragment), "{at}");
        }
        // Lengths that no sender makes.
        for (at, len, more) in [
            (0, 1479, true),
            (8, 63, true),
            (100, 0, true),
            (100, 0, false),
        ] {
            let odd = fragment(&data, &[payload, &[0; 1480]].concat()[..len], at, more, 1);
            let outcome = rig.ingress(&odd);
            assert_eq!(outcome, dropped(DropReason::Fragment), "{at}, {len}");
        }
        // Beyond 64 kB: the ping of death.
        let beyond = fragment(&data, &[0; 1480], 8184, false, 1);
        assert_eq!(rig.ingress(&beyond), dropped(DropReason::Fragment));
        assert_eq!(datagrams(&mut rig), 0);
    }
}

#[test]
fn a_refused_first_fragment_leaves_nothing() {
    for (host, peer) in ends() {
        let mut rig = Rig::new();
        let uninvited = fragments(&udp(peer, host, &[7; 4000]), SIZE, 1);
        assert_eq!(rig.ingress(&uninvited[0]), dropped(DropReason::Policy));
        assert_eq!(datagrams(&mut rig), 0);
        // Its tails are as good as any whose first has not come.
        assert_eq!(rig.ingress(&uninvited[1]), passed(AHEAD));
    }
}

#[test]
fn an_old_datagram_is_forgotten() {
    let (host, peer) = ends()[0];
    let (mut rig, answer) = asked(host, peer, 4000, 1);
    assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
    let mut table = rig.hash::<FragmentKey, Fragments>(maps::FRAGMENTS);
    let key = table.keys().next().unwrap().unwrap();
    let mut entry = table.get(&key, 0).unwrap();
    entry.born = tick().0.wrapping_sub(FRAGMENT_TICKS + 2);
    table.insert(key, entry, 0).unwrap();
    // So the same identification may be used again.
    assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
    assert_eq!(rig.ingress(&answer[1]), passed(TAIL));
}

/// Tails from everywhere to one host: so many pass, and no flow is any the worse.
#[test]
fn a_flood_of_later_fragments_stays_within_its_bound() {
    let (host, peer) = ends()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, End::V4(HOST, 40_001), End::V4(PEER, 80));
    let tail = fragment(&udp(peer, host, &[]), &[0; 64], 100, true, 0);
    let before = tick();
    let (mut ahead, mut orphans) = (0, 0);
    for n in 0..2000_u32 {
        let mut tail = tail.clone();
        tail[26..30].copy_from_slice(&(0x0b00_0000 + n).to_be_bytes());
        let outcome = rig.ingress(&tail);
        if outcome == passed(AHEAD) {
            ahead += 1;
        } else {
            assert_eq!(outcome, dropped(DropReason::FragmentOrphan));
            orphans += 1;
        }
    }
    let bound = Bucket::BURST + tick().since(before) * Bucket::PER_TICK;
    assert!(
        (Bucket::BURST..=bound).contains(&ahead),
        "{ahead} of {bound}"
    );
    assert_eq!(ahead + orphans, 2000);
    assert_eq!(rig.event(Event::FragmentedDatagram), u64::from(ahead));
    assert_eq!(rig.flows4(maps::FLOWS4).len(), 1);
    // What follows an accepted first fragment is not counted with them.
    let question = udp(host, peer, b"?");
    assert_eq!(rig.egress(&question), passed(PassReason::NewByRule));
    let answer = fragments(&udp(peer, host, &[7; 60_000]), SIZE, 9);
    assert_eq!(rig.ingress(&answer[0]), passed(KNOWN));
    for tail in &answer[1..] {
        assert_eq!(rig.ingress(tail), passed(TAIL));
    }
}

/// First fragments that a rule accepts, of more datagrams than are remembered.
#[test]
fn a_flood_of_first_fragments_takes_no_room_from_flows() {
    const MOST: usize = DATAGRAMS as usize;
    let (host, peer) = (End::V4(HOST, 53), End::V4(PEER, 5300));
    let mut rig = Rig::with_rules(&[accept(OUTSIDE, 0)]);
    let open = tcp_syn(peer, End::V4(HOST, 80));
    assert_eq!(rig.ingress(&open), passed(PassReason::NewByRule));
    let mut first = fragments(&udp(peer, host, &[7; 200]), 104, 0).remove(0);
    for id in 0..4 * DATAGRAMS as u16 {
        first[18..20].copy_from_slice(&id.to_be_bytes());
        assert!(rig.feed(&first), "{id}");
    }
    let all = 4 * u64::from(DATAGRAMS);
    assert_eq!(rig.event(Event::FragmentedDatagram), all);
    assert!(datagrams(&mut rig) <= MOST);
    assert_eq!(
        rig.event(Event::FlowCreated),
        2,
        "one of them all, one before"
    );
    assert_eq!(rig.flows4(maps::HALF_OPEN4_OUT).len(), 2);
}

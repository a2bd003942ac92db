//! What somebody can try who does not see the connection that he is after: guess,
//! borrow addresses, and put his own packets together.

use std::process::Command;

use firewall_common::{
    abi::{Flow, FragmentKey, Fragments, Iface, Rule, flow_flags, maps, rule_flags},
    tcp::State,
    verdict::{DropReason, Event, PassReason},
};

use crate::{
    attacks::gateway,
    packets::{
        End, HOST, HOST6, PEER, PEER6, THIRD, Tcp, error, fragment, icmpv6, segment, tcp, udp,
    },
    rig::{OUTSIDE, Rig, accept, dropped, passed, seed},
    tracking::handshake,
};

const NEW: PassReason = PassReason::NewByRule;
const KNOWN: PassReason = PassReason::Established;
const GUESTS: u8 = OUTSIDE + 1;
const THIRD6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// A host, its peer, a router between them, and the type of an error.
fn paths() -> [(End, End, End, u8); 2] {
    [
        (
            End::V4(HOST, 40_000),
            End::V4(PEER, 80),
            End::V4(THIRD, 0),
            3,
        ),
        (
            End::V6(HOST6, 40_000),
            End::V6(PEER6, 80),
            End::V6(THIRD6, 0),
            2,
        ),
    ]
}

fn data(seq: u32, ack: u32, len: usize) -> Tcp {
    segment("A", seq, ack).carrying(vec![7; len])
}

/// RFC 5927, section 4.1: who does not see a connection cannot name what it has
/// on its way.
#[test]
fn an_error_quotes_what_is_on_its_way() {
    for (host, peer, router, kind) in paths() {
        let mut rig = Rig::new();
        let about = |seq| {
            let quoted = tcp(host, peer, &segment("A", seq, 5001));
            error(router, host, kind, &quoted, 1200)
        };
        let judge = |rig: &mut Rig, good: &[u32], bad: &[u32]| {
            for &seq in good {
                let outcome = rig.ingress(&about(seq));
                assert_eq!(outcome, passed(PassReason::Related), "{seq}");
            }
            for &seq in bad {
                let outcome = rig.ingress(&about(seq));
                assert_eq!(outcome, dropped(DropReason::IcmpSequence), "{seq}");
            }
        };
        let syn = tcp(host, peer, &segment("S", 1000, 0));
        assert_eq!(rig.egress(&syn), passed(NEW));
        judge(
            &mut rig,
            &[1000],
            &[1002, 1 << 31, 1001_u32.wrapping_sub(66_002)],
        );
        let syn_ack = tcp(peer, host, &segment("SA", 5000, 1001));
        assert_eq!(rig.ingress(&syn_ack), passed(KNOWN));
        assert_eq!(
            rig.egress(&tcp(host, peer, &data(1001, 5001, 100))),
            passed(KNOWN)
        );
        judge(
            &mut rig,
            &[1000, 1001, 1050, 1101],
            &[999, 1102, 0, 1 << 31],
        );
        let ack = tcp(peer, host, &segment("A", 5001, 1101));
        assert_eq!(rig.ingress(&ack), passed(KNOWN));
        judge(&mut rig, &[1100, 1101], &[1001, 1099, 1102]);
        // The host itself complains of what came in, if it did.
        for (seq, outcome) in [
            (5001, passed(PassReason::Related)),
            (5002, dropped(DropReason::IcmpSequence)),
        ] {
            let quoted = tcp(peer, host, &segment("A", seq, 1101));
            assert_eq!(rig.egress(&error(host, peer, kind, &quoted, 1200)), outcome);
        }
    }
}

/// Where windows do not bind, neither do they bind what is quoted.
#[test]
fn an_error_about_a_liberal_flow_is_not_measured() {
    let (host, peer, router, kind) = paths()[0];
    let rule = Rule {
        flags: rule_flags::LIBERAL,
        ..accept(0, OUTSIDE)
    };
    let mut rig = Rig::with_rules(&[rule]);
    handshake(&mut rig, host, peer);
    let quoted = tcp(host, peer, &segment("A", 1 << 30, 5001));
    let about = error(router, host, kind, &quoted, 1200);
    assert_eq!(rig.ingress(&about), passed(PassReason::Related));
}

/// The kernel does not tell to which device such a route leads, so no zone is
/// known; it is not that of the host.
#[test]
fn a_route_that_encapsulates_leads_to_no_zone() {
    let mut rig = gateway();
    rig.rules(&[accept(OUTSIDE, 0)]);
    run("ip route add 10.9.0.0/16 encap ip id 5 dst 10.0.0.9 dev gw0");
    let through = udp(End::V4(PEER, 9), End::V4([10, 9, 0, 5], 9), b"?");
    assert_eq!(rig.ingress(&through), dropped(DropReason::NoRoute));
    // The control: the rule accepts what is for the gateway itself.
    let here = udp(End::V4(PEER, 9), End::V4([10, 0, 0, 1], 9), b"?");
    assert_eq!(rig.ingress(&here), passed(NEW));
}

/// Whoever sends a packet chooses its type of service, and routes may depend on it.
#[test]
fn the_route_is_looked_up_by_the_type_of_service_too() {
    let mut rig = gateway();
    run("ip link add gx0 index 78 type veth peer name gx1
        ip link set gx1 up
        ip link set gx0 up
        ip addr add 10.50.0.1/24 dev gx0
        ip addr add fd50::1/64 dev gx0 nodad
        ip route add 10.60.0.0/16 via 10.50.0.9
        ip -6 route add fd60::/64 via fd50::9
        ip rule add tos 0x10 lookup 100
        ip -6 rule add tos 0x10 lookup 100
        ip route add 10.60.0.0/16 via 10.0.0.9 table 100
        ip -6 route add fd60::/64 via fd00::9 table 100");
    let open = OUTSIDE + 2;
    let iface = Iface {
        zone: open,
        ..bytemuck::Zeroable::zeroed()
    };
    rig.hash::<u32, Iface>(maps::IFACES)
        .insert(78, iface, 0)
        .unwrap();
    rig.rules(&[accept(OUTSIDE, open)]);
    let mut beyond = [0; 16];
    (beyond[0], beyond[1], beyond[15]) = (0xfd, 0x60, 5);
    let v4 = |port| udp(End::V4(PEER, port), End::V4([10, 60, 0, 5], 9), b"?");
    let v6 = |port| udp(End::V6(PEER6, port), End::V6(beyond, 9), b"?");
    assert_eq!(rig.ingress(&v4(1)), passed(NEW));
    assert_eq!(rig.ingress(&v6(1)), passed(NEW));
    // The same, to be forwarded to another zone.
    let mut marked = v4(2);
    marked[15] = 0x10;
    assert_eq!(rig.ingress(&marked), dropped(DropReason::Policy));
    let mut marked = v6(2);
    marked[14] = 0x61;
    assert_eq!(rig.ingress(&marked), dropped(DropReason::Policy));
}

fn run(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

/// A guest sends with the address of somebody in another zone, to where both may
/// go: the flow that it makes must not stand in the owner's way.
#[test]
fn a_borrowed_address_does_not_lock_its_owner_out() {
    let (host, owner) = (End::V4(HOST, 80), End::V4(PEER, 40_000));
    let packets = [
        (
            tcp(owner, host, &segment("S", 77, 0)),
            tcp(host, owner, &segment("SA", 5000, 78)),
        ),
        (udp(owner, host, b"?"), udp(host, owner, b"!")),
    ];
    for (borrowed, answer) in packets {
        let mut rig = Rig::with_rules(&[accept(OUTSIDE, 0), accept(GUESTS, 0)]);
        rig.iface(GUESTS);
        assert_eq!(rig.ingress(&borrowed), passed(NEW));
        rig.iface(OUTSIDE);
        assert_eq!(rig.ingress(&borrowed), passed(NEW), "the owner's own");
        assert_eq!(rig.event(Event::TupleReused), 1);
        let flows = rig.flows4(maps::HALF_OPEN4_OUT);
        let (_, flow) = flows.values().next().unwrap();
        assert_eq!((flows.len(), flow.from_zone()), (1, OUTSIDE));
        // Once it is answered, nobody takes its place.
        assert_eq!(rig.egress(&answer), passed(KNOWN));
        rig.iface(GUESTS);
        let refused = dropped(DropReason::ZoneMismatch);
        assert_eq!(rig.ingress(&borrowed), refused);
    }
}

/// Who may not begin a flow ends none either.
#[test]
fn a_stranger_in_another_zone_takes_nobodys_place() {
    let (host, owner) = (End::V4(HOST, 80), End::V4(PEER, 40_000));
    let mut rig = Rig::with_rules(&[accept(OUTSIDE, 0)]);
    let syn = tcp(owner, host, &segment("S", 77, 0));
    assert_eq!(rig.ingress(&syn), passed(NEW));
    rig.iface(GUESTS);
    let other = tcp(owner, host, &segment("S", 99_000, 0));
    assert_eq!(rig.ingress(&other), dropped(DropReason::Policy));
    // Nor does one that begins nothing.
    let ack = tcp(owner, host, &segment("A", 78, 5001));
    assert_eq!(rig.ingress(&ack), dropped(DropReason::ZoneMismatch));
    rig.iface(OUTSIDE);
    let answer = tcp(host, owner, &segment("SA", 5000, 78));
    assert_eq!(rig.egress(&answer), passed(KNOWN));
    assert_eq!(rig.ingress(&ack), passed(KNOWN));
    assert_eq!(rig.event(Event::TupleReused), 0);
}

/// Without a rule that accepts them, first fragments of what a host needs would
/// take the place of datagrams that somebody waits for.
#[test]
fn what_a_host_needs_comes_whole() {
    let refused = dropped(DropReason::Policy);
    let mut rig = Rig::with_rules(&[]);
    let offer = udp(End::V4(PEER, 67), End::V4(HOST, 68), &[7; 200]);
    assert_eq!(rig.ingress(&offer), passed(PassReason::DhcpClient));
    let first = fragment(&offer, &offer[34..34 + 104], 0, true, 1);
    assert_eq!(rig.ingress(&first), refused);
    let listener = icmpv6(End::V6(PEER6, 0), End::V6(HOST6, 0), 130, 1);
    let pass = passed(PassReason::MulticastListener);
    assert_eq!(rig.ingress(&listener), pass);
    let first = fragment(&listener, &listener[54..54 + 16], 0, true, 1);
    assert_eq!(rig.ingress(&first), refused);
    // RFC 6980: not even an atomic fragment.
    let neighbour = icmpv6(End::V6(PEER6, 0), End::V6(HOST6, 0), 135, 255);
    let pass = passed(PassReason::NeighbourDiscovery);
    assert_eq!(rig.ingress(&neighbour), pass);
    let atomic = fragment(&neighbour, &neighbour[54..], 0, false, 1);
    assert_eq!(rig.ingress(&atomic), refused);
    let table = rig.hash::<FragmentKey, Fragments>(maps::FRAGMENTS);
    assert_eq!(table.keys().count(), 0);
}

/// Options that are cut short or have a length that cannot be.
#[test]
fn options_of_tcp_lead_to_their_end() {
    let (host, peer, ..) = paths()[0];
    let mut rig = Rig::new();
    handshake(&mut rig, host, peer);
    let as_is = |flags, seq, ack, options: &[u8]| Tcp {
        options: options.to_vec(),
        ..segment(flags, seq, ack)
    };
    let with = |options: &[u8]| tcp(peer, host, &as_is("A", 5001, 1001, options));
    let sack = [&[1, 1, 5, 10][..], &[0; 8], &[8, 0, 0, 0]].concat();
    let bad: [&[u8]; 6] = [
        &[8, 0, 0, 0],
        &[8, 1, 0, 0],
        &[8, 5, 0, 0],
        &[1, 1, 1, 8],
        &[254, 255, 1, 1],
        &sack,
    ];
    for (options, counted) in bad.into_iter().zip(1..) {
        let outcome = rig.ingress(&with(options));
        assert_eq!(outcome, dropped(DropReason::MalformedTcp), "{options:?}");
        assert_eq!(rig.event(Event::TcpOptions), counted);
    }
    // What is dropped closes nothing, and begins nothing.
    let reset = tcp(peer, host, &as_is("R", 5001, 0, bad[0]));
    assert_eq!(rig.ingress(&reset), dropped(DropReason::MalformedTcp));
    let other = End::V4(HOST, 40_001);
    let open = |options| tcp(other, peer, &as_is("S", 1000, 0, options));
    let before = rig.event(Event::FlowCreated);
    assert_eq!(rig.egress(&open(bad[0])), dropped(DropReason::MalformedTcp));
    assert_eq!(rig.event(Event::FlowCreated), before);
    assert_eq!(rig.egress(&open(&[1; 4])), passed(NEW));
    let mut timestamp = [0; 12];
    timestamp[..4].copy_from_slice(&[1, 1, 8, 10]);
    let good: [&[u8]; 5] = [
        &[0, 8, 0, 0],
        &[1; 40],
        &[254, 4, 9, 9],
        &timestamp,
        &[19, 18, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    ];
    for options in good {
        assert_eq!(rig.ingress(&with(options)), passed(KNOWN), "{options:?}");
    }
}

/// Who opens: the host, or its peer to a port that is open.
#[derive(Clone, Copy)]
enum Opens {
    Host,
    Peer,
}

/// First sequence numbers, far from all that the outsider tries.
const HOST_ISN: u32 = 0x1000_0000;
const PEER_ISN: u32 = 0x2000_0000;

fn connected(opens: Opens, host: End, peer: End) -> Rig {
    let mut rig = Rig::with_rules(&[accept(0, OUTSIDE), accept(OUTSIDE, 0)]);
    let out = |flags, seq, ack| tcp(host, peer, &segment(flags, seq, ack));
    let back = |flags, seq, ack| tcp(peer, host, &segment(flags, seq, ack));
    let (h, p) = (HOST_ISN, PEER_ISN);
    match opens {
        Opens::Host => {
            assert_eq!(rig.egress(&out("S", h, 0)), passed(NEW));
            assert_eq!(rig.ingress(&back("SA", p, h + 1)), passed(KNOWN));
            assert_eq!(rig.egress(&out("A", h + 1, p + 1)), passed(KNOWN));
        }
        Opens::Peer => {
            assert_eq!(rig.ingress(&back("S", p, 0)), passed(NEW));
            assert_eq!(rig.egress(&out("SA", h, p + 1)), passed(KNOWN));
            assert_eq!(rig.ingress(&back("A", p + 1, h + 1)), passed(KNOWN));
        }
    }
    rig
}

/// Somebody outside knows addresses and ports and no numbers, and answers his own
/// packets as the ends would answer them. Only one side is his: with the other's
/// address he comes from the wrong zone.
#[test]
fn no_outsider_moves_what_is_established() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut state = seed;
    let mut random = move || {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u32
    };
    let (host, peer, ..) = paths()[0];
    for opens in [Opens::Host, Opens::Peer] {
        let mut rig = connected(opens, host, peer);
        let (_, before) = rig.flow4(maps::FLOWS4);
        let mut known = vec![0_u32];
        for _ in 0..1500 {
            let mut number = || match random() % 4 {
                0 => 0x4000_0000 + random() % 0x8000_0000,
                _ => known[random() as usize % known.len()].wrapping_add(random() % 3),
            };
            let (seq, ack) = (number(), number());
            let flags = ["S", "SA", "A", "PA", "FA", "R", "RA", "SU"][random() as usize % 8];
            let frame = Tcp {
                window: random() as u16,
                payload: vec![7; (random() % 3) as usize],
                ..segment(flags, seq, ack)
            };
            known.extend([seq, ack].map(|n| n.wrapping_add(frame.payload.len() as u32)));
            if random() % 4 == 0 {
                assert!(!rig.feed(&tcp(host, peer, &frame)), "from the wrong zone");
            } else {
                rig.feed(&tcp(peer, host, &frame));
            }
            let (_, after) = rig.flow4(maps::FLOWS4);
            assert!(unmoved(&before, &after), "{flags} {seq} {ack}: {after:#?}");
        }
        // Its ends are still understood.
        let line = data(HOST_ISN + 1, PEER_ISN + 1, 100);
        assert_eq!(rig.egress(&tcp(host, peer, &line)), passed(KNOWN));
        let line = data(PEER_ISN + 1, HOST_ISN + 101, 100);
        assert_eq!(rig.ingress(&tcp(peer, host, &line)), passed(KNOWN));
    }
}

/// State, windows and the time that is left are as they were.
fn unmoved(before: &Flow, after: &Flow) -> bool {
    let word = after.state();
    word.state() == State::Established as u8
        && !word.has(flow_flags::CUT_SHORT)
        && before.tcp == after.tcp
        && before.seen == after.seen
        && before.packets == after.packets
}

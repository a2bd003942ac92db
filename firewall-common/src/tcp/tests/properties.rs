//! What holds for every sequence of segments.

use proptest::prelude::*;

use super::*;

/// A segment of somebody who knows addresses and ports, and no sequence numbers:
/// those are anything.
fn outsider() -> impl Strategy<Value = (bool, Headers)> {
    let flags = prop::sample::select(vec![SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK]);
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>());
    let rest = (any::<u16>(), 0..2000_u32, any::<bool>(), 0..16_u8);
    (any::<bool>(), flags, numbers, rest).prop_map(|(reply, flags, (seq, ack, sack), rest)| {
        let (window, len, sack_permitted, scale) = rest;
        let h = Headers {
            window,
            sack,
            sack_permitted,
            scale,
            ..segment(flags, seq, ack, len)
        };
        (reply, h)
    })
}

/// Does the segment lie in the flow's windows by chance? An outsider who tries
/// for long enough will meet them, so such a segment proves nothing.
fn is_lucky(track: &Track, from: Direction, h: &Headers) -> bool {
    const NEAR: u32 = 200_000;
    let near = |number: u32, of: u32| number.wrapping_sub(of).wrapping_add(NEAR) < 2 * NEAR;
    let (own, other) = (track.side(from), track.side(from.flip()));
    near(h.seq, own.end)
        || near(h.ack, other.end)
        || near(h.sack, other.end)
        || (h.ack == 0 || h.seq == 0)
}

/// Where an outsider's number comes from.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// A guess.
    Any(u32),
    /// One of his own packets, so many back, or what would follow it.
    Own(usize, u32),
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        // Far from `HERE` and `THERE`.
        (0x4000_0000..0xc000_0000_u32).prop_map(Number::Any),
        Just(Number::Any(0)),
        (0..6_usize, 0..3_u32).prop_map(|(back, plus)| Number::Own(back, plus)),
    ]
}

/// Where the streams of the two ends begin.
const HERE: u32 = 0x1000_0000;
const THERE: u32 = 0x2000_0000;

/// Somebody who puts packets together that answer one another.
struct Schemer {
    numbers: Vec<u32>,
}

impl Schemer {
    fn resolve(&mut self, number: Number) -> u32 {
        let resolved = match number {
            Number::Any(n) => n,
            Number::Own(back, plus) => {
                let at = self.numbers.len().saturating_sub(1 + back);
                self.numbers
                    .get(at)
                    .copied()
                    .unwrap_or(0)
                    .wrapping_add(plus)
            }
        };
        self.numbers.push(resolved);
        resolved
    }
}

fn way(reply: bool) -> Direction {
    if reply { BACK } else { OUT }
}

/// A segment that `from` could send: its numbers lie within a few of the flow's.
fn near_the_ends(track: &Track, from: Direction, h: Headers) -> Headers {
    let near = |end: u32, any: u32| end.wrapping_add(any % 8).wrapping_sub(4);
    let ack = near(track.side(from.flip()).end, h.ack);
    Headers {
        seq: near(track.side(from).end, h.seq),
        ack,
        sack: ack,
        ..h
    }
}

/// The control of the next property: for both sides he could. So it takes zones,
/// and two ends in one zone are as safe from those inside it as with nf_conntrack.
#[test]
fn who_speaks_for_both_ends_begins_anew() {
    let mut track = Track::established();
    let syn = track.step(OUT, &segment(SYN, 0x4000_0000, 0, 0));
    assert_eq!(syn.what, What::Ignored);
    let syn_ack = segment(SYN | ACK, 0x5000_0000, 0x4000_0001, 0);
    assert_eq!(track.step(BACK, &syn_ack).what, What::Resync);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_outsider_moves_an_established_flow(segments in prop::collection::vec(outsider(), 1..40)) {
        let mut track = Track::established();
        let before = track.flow();
        for (reply, h) in segments {
            prop_assume!(!is_lucky(&track, way(reply), &h));
            track.now = track.now.plus(1);
            let out = track.step(way(reply), &h);
            prop_assert!(
                matches!(out.what, What::Invalid | What::Ignored),
                "{:?} {h:?}", out.what
            );
        }
        let after = track.flow();
        prop_assert_eq!(track.state(), State::Established);
        prop_assert_eq!(before.tcp, after.tcp);
        // And its own ends are still understood.
        track.accepts(OUT, &segment(ACK, 1001, 5001, 100));
        track.accepts(BACK, &segment(ACK, 5001, 1101, 0));
    }

    /// He answers his own packets as the ends would: SYN, SYN-ACK, challenge, RST.
    /// He can do so for one side only; with the other's address he comes from the
    /// wrong zone, and gets no as far as here.
    #[test]
    fn no_outsider_who_answers_himself_moves_one(
        reply: bool,
        loose_ends in prop::collection::vec(
            (outsider(), number(), number(), number(), any::<bool>()), 1..40),
    ) {
        let mut track = Track::new(&segment(SYN, HERE - 1, 0, 0));
        track.accepts(BACK, &segment(SYN | ACK, THERE - 1, HERE, 0));
        track.accepts(OUT, &segment(ACK, HERE, THERE, 0));
        let mut schemer = Schemer { numbers: Vec::new() };
        let before = track.flow();
        for ((_, h), seq, ack, sack, challenged) in loose_ends {
            track.now = track.now.plus(1);
            let h = Headers {
                seq: schemer.resolve(seq),
                ack: schemer.resolve(ack),
                sack: schemer.resolve(sack),
                ..h
            };
            schemer.numbers.push(end(&h));
            let out = track.step(way(reply), &h);
            prop_assert!(
                matches!(out.what, What::Invalid | What::Ignored),
                "{:?} {h:?}", out.what
            );
            let after = track.flow();
            prop_assert_eq!(track.state(), State::Established);
            prop_assert_eq!(before.tcp, after.tcp);
            if challenged {
                // The end that gets it says where it stands (RFC 5961, section 4).
                let stands = if reply { [HERE, THERE] } else { [THERE, HERE] };
                track.accepts(way(!reply), &segment(ACK, stands[0], stands[1], 0));
            }
        }
        track.accepts(OUT, &segment(ACK, HERE, THERE, 100));
        track.accepts(BACK, &segment(ACK, THERE, HERE + 100, 0));
    }

    /// A connection that was picked up lives longer only when an answer fits.
    #[test]
    fn nothing_that_changes_nothing_lengthens_the_life_of_a_loose_one(
        segments in prop::collection::vec(outsider(), 1..10),
    ) {
        let begun = picked_up(&segment(ACK, HERE, THERE, 0));
        let (kind, direction, end) = begun.last;
        let mut track = Track::new(&segment(SYN, 0, 0, 0));
        let mut flow = track.flow();
        flow.state = FlowState::new(begun.state as u8, begun.flags, INCARNATION).0;
        flow.last = flow.last().with_packet(kind, direction, end).0;
        flow.tcp = begun.tcp;
        track.cells = FlowCells::new(&flow);
        for (reply, h) in segments {
            let before = track.expires();
            let out = track.step(way(reply), &h);
            if !matches!(out.what, What::Invalid | What::Ignored) {
                break;
            }
            prop_assert!(!track.expires().is_after(before), "{:?} {h:?}", out.what);
        }
    }

    #[test]
    fn an_invalid_segment_never_lengthens_a_life(
        segments in prop::collection::vec((outsider(), 0..200_u32), 1..40),
        known in any::<bool>(),
    ) {
        let mut track = Track::established();
        for ((reply, mut h), later) in segments {
            // Half of them know one number or the other.
            if known {
                h.seq = track.side(way(reply)).end.wrapping_add(h.seq % 4000);
                h.ack = track.side(way(reply).flip()).end.wrapping_sub(h.ack % 4000);
            }
            track.now = track.now.plus(later);
            let before = track.expires();
            let out = track.step(way(reply), &h);
            if matches!(out.what, What::Invalid | What::Ignored) {
                let after = track.expires();
                prop_assert!(!after.is_after(before), "{:?} {h:?}", out.what);
            }
        }
    }

    /// It is dropped, and leaves nothing but what it would leave if it did not fit.
    #[test]
    fn a_segment_with_malformed_options_never_passes(
        syn in outsider(),
        segments in prop::collection::vec((outsider(), any::<bool>()), 1..40),
    ) {
        let mut track = Track::new(&Headers { tcp_flags: SYN, ..syn.1 });
        for ((reply, h), options_malformed) in segments {
            let mut h = near_the_ends(&track, way(reply), h);
            let mut twin = Track { cells: track.cells.clone(), now: track.now };
            let before = track.flow();
            let read = twin.step(way(reply), &h);
            if !options_malformed {
                track = twin;
                continue;
            }
            h.options_malformed = true;
            let out = track.step(way(reply), &h);
            prop_assert_eq!(out.what, What::Invalid);
            let left = if read.what == What::Invalid { twin.flow() } else { before };
            prop_assert_eq!(track.flow(), left);
        }
    }

    #[test]
    fn every_segment_has_a_result(
        syn in outsider(),
        segments in prop::collection::vec(outsider(), 1..40),
        near in any::<bool>(),
    ) {
        let mut track = Track::new(&Headers { tcp_flags: SYN, ..syn.1 });
        for (reply, mut h) in segments {
            if near {
                h = near_the_ends(&track, way(reply), h);
            }
            let before = track.flow();
            let out = track.step(way(reply), &h);
            prop_assert!(!matches!(out.what, What::Contended | What::Moving | What::Gone));
            let after = track.flow();
            // What a flow is known by never changes.
            prop_assert_eq!(before.rule(), after.rule());
            prop_assert_eq!(before.from_zone(), after.from_zone());
            prop_assert_eq!(before.state().incarnation(), after.state().incarnation());
            if matches!(out.what, What::Invalid) {
                prop_assert_eq!(before.state().state(), after.state().state());
            }
            for side in after.tcp {
                prop_assert!(side.maxwin < 1 << 31, "no claim is left behind");
            }
        }
    }
}

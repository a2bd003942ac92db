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

fn way(reply: bool) -> Direction {
    if reply { BACK } else { OUT }
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

    #[test]
    fn every_segment_has_a_result(
        syn in outsider(),
        segments in prop::collection::vec(outsider(), 1..40),
        near in any::<bool>(),
    ) {
        let mut track = Track::new(&Headers { tcp_flags: SYN, ..syn.1 });
        for (reply, mut h) in segments {
            if near {
                h.seq = track.side(way(reply)).end.wrapping_add(h.seq % 8).wrapping_sub(4);
                h.ack = track.side(way(reply).flip()).end.wrapping_add(h.ack % 8).wrapping_sub(4);
                h.sack = h.ack;
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

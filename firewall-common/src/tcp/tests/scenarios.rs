//! Scenarios, clause by clause.

use super::*;
use crate::{
    verdict::{DropReason, PassReason},
    wire::Fragment,
};

#[test]
fn the_ends_of_the_windows_are_where_they_are() {
    // The replier may send up to 1001 + 1000.
    for (seq, what) in [(2001, What::Accepted), (2002, What::Ignored)] {
        let mut track = Track::established();
        let out = track.step(OUT, &segment(ACK, seq, 5001, 0));
        assert_eq!(out.what, what, "{seq}");
    }
    let mut track = Track::established();
    let out = track.step(OUT, &segment(ACK, 9000, 5001, 100));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::TcpSeqOver)
    );
    assert_eq!((out.value, out.bound), (9000, 2001));
    let out = track.step(OUT, &segment(ACK, 1001, 5002, 0));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::TcpAckOver)
    );
    assert_eq!((out.value, out.bound), (5002, 5001));
    let out = track.step(OUT, &segment(ACK, 0, 5001, 0));
    assert_eq!(
        (out.what, out.pass),
        (What::Ignored, PassReason::TcpOldData)
    );
    let out = track.step(OUT, &segment(ACK, 1001, 5001_u32.wrapping_sub(66_001), 0));
    assert_eq!((out.what, out.pass), (What::Ignored, PassReason::TcpOldAck));
}

#[test]
fn windows_are_scaled_if_both_sides_offer_it() {
    for (offer, allowed) in [(Some(3), 8000), (None, 1000)] {
        let with = |flags, seq, ack, scale: Option<u8>| Headers {
            scale: scale.unwrap_or(flow_flags::NO_SCALE),
            payload_offset: 44,
            l3_len: 44,
            ..segment(flags, seq, ack, 0)
        };
        let mut track = Track::new(&with(SYN, 1000, 0, Some(7)));
        track.accepts(BACK, &with(SYN | ACK, 5000, 1001, offer));
        track.accepts(OUT, &segment(ACK, 1001, 5001, 0));
        track.accepts(BACK, &segment(ACK, 5001, 1001, 0));
        assert_eq!(track.side(OUT).maxend, 1001 + allowed, "{offer:?}");
    }
}

#[test]
fn an_rst_closes_only_at_what_was_acknowledged_last() {
    let closes = |seq| {
        let mut track = Track::established();
        track.accepts(BACK, &segment(ACK, 5001, 1001, 100));
        track.accepts(OUT, &segment(ACK, 1001, 5101, 0));
        let out = track.step(BACK, &segment(RST, seq, 0, 0));
        (out.what, track.state())
    };
    assert_eq!(closes(5101), (What::Accepted, State::Close));
    assert_eq!(
        closes(5102),
        (What::Accepted, State::Established),
        "a challenge ACK tells"
    );
    assert_eq!(closes(5100), (What::Invalid, State::Established));
    assert_eq!(closes(90_000), (What::Invalid, State::Established));
}

#[test]
fn an_inexact_rst_leaves_time_for_a_challenge_ack() {
    let mut track = Track::established();
    track.accepts(BACK, &segment(RST, 5002, 0, 0));
    assert!(track.has(flow_flags::CUT_SHORT));
    assert_eq!(track.expires(), START.plus(300));
    track.accepts(OUT, &segment(ACK, 1001, 5001, 0));
    assert!(!track.has(flow_flags::CUT_SHORT), "it came");
}

#[test]
fn ends_out_of_window_of_both_sides_shorten_the_life_once() {
    let mut track = Track::established();
    let full = track.expires();
    let forged = segment(RST | ACK, 900_000, 1001, 0);
    assert_eq!(track.step(BACK, &forged).what, What::Invalid);
    assert_eq!(track.expires(), full, "one side alone tells nothing");
    track.now = START.plus(50);
    let fin = segment(FIN | ACK, 900_000, 5001, 0);
    assert_eq!(track.step(OUT, &fin).what, What::Invalid);
    assert_eq!(track.expires(), START.plus(350));
    track.now = START.plus(100);
    assert_eq!(track.step(BACK, &forged).what, What::Invalid);
    assert_eq!(track.step(OUT, &fin).what, What::Invalid);
    assert_eq!(track.expires(), START.plus(350), "not put off");
    track.accepts(OUT, &segment(ACK, 1001, 5001, 0));
    assert_eq!(
        track.expires(),
        track.now.plus(100_000),
        "its ends are in step after all"
    );
}

#[test]
fn unacknowledged_data_shortens_the_life() {
    let mut track = Track::established();
    track.accepts(OUT, &segment(ACK, 1001, 5001, 100));
    assert_eq!(track.expires(), START.plus(300));
    track.accepts(BACK, &segment(ACK, 5001, 1101, 0));
    assert_eq!(track.expires(), START.plus(100_000));
}

#[test]
fn a_dead_connection_is_begun_anew_by_an_answered_syn() {
    let mut track = Track::established();
    let syn = segment(SYN, 77_000, 0, 0);
    assert_eq!(track.step(OUT, &syn).what, What::Ignored);
    assert_eq!(track.state(), State::Established);
    let other = track.step(BACK, &segment(SYN | ACK, 9000, 4711, 0));
    assert_eq!(other.what, What::Ignored, "not its answer");
    assert_eq!(track.step(OUT, &syn).what, What::Ignored);
    let answer = segment(SYN | ACK, 9000, 77_001, 0);
    assert_eq!(track.step(BACK, &answer).what, What::Resync);
    let begun = resynchronised(track.flow().state(), track.flow().last(), &answer);
    assert_eq!(begun.state, State::SynRecv);
    assert_eq!((begun.tcp[0].end, begun.tcp[1].end), (77_001, 9001));
}

#[test]
fn what_an_expectation_let_in_is_not_begun_anew() {
    let mut track = Track::established();
    let word = track.flow().state().with(flow_flags::RELATED);
    (&track.cells).state().store(word.0);
    assert_eq!(
        track.step(OUT, &segment(SYN, 77_000, 0, 0)).what,
        What::Ignored
    );
    let out = track.step(BACK, &segment(SYN | ACK, 9000, 77_001, 0));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::ExpectationTaken)
    );
}

#[test]
fn a_challenge_ack_does_not_count_for_the_last_fin() {
    let mut track = Track::established();
    track.accepts(OUT, &segment(FIN | ACK, 1001, 5001, 0));
    track.accepts(BACK, &segment(FIN | ACK, 5001, 1002, 0));
    assert_eq!(track.state(), State::LastAck);
    assert_eq!(
        track.step(OUT, &segment(SYN, 77_000, 0, 0)).what,
        What::Ignored
    );
    let challenge = segment(ACK, 5002, 1002, 0);
    let out = track.step(BACK, &challenge);
    assert_eq!(
        (out.what, out.pass),
        (What::Ignored, PassReason::TcpChallenge)
    );
    assert_eq!(track.state(), State::LastAck);
    track.accepts(BACK, &challenge);
    assert_eq!(track.state(), State::TimeWait);
}

#[test]
fn the_only_answer_being_an_rst_the_flow_ends() {
    let mut track = Track::new(&segment(SYN, 1000, 0, 0));
    let out = track.step(BACK, &segment(RST | ACK, 0, 1001, 0));
    assert_eq!(out.what, What::Ended);
}

#[test]
fn a_syn_sent_again_does_not_put_the_end_off() {
    let mut track = Track::new(&segment(SYN, 1000, 0, 0));
    let before = track.expires();
    track.now = START.plus(100);
    track.accepts(OUT, &segment(SYN, 1000, 0, 0));
    assert_eq!(track.expires(), before);
}

#[test]
fn data_in_a_syn_may_be_acknowledged_or_not() {
    // RFC 7413, section 4.2.
    for (ack, what) in [
        (1000, What::Invalid),
        (1001, What::Accepted),
        (1101, What::Accepted),
        (1102, What::Invalid),
    ] {
        let mut track = Track::new(&segment(SYN, 1000, 0, 100));
        let out = track.step(BACK, &segment(SYN | ACK, 5000, ack, 0));
        assert_eq!(out.what, what, "{ack}");
    }
}

#[test]
fn the_replier_may_send_before_the_handshake_has_ended() {
    let mut track = Track::new(&segment(SYN, 1000, 0, 0));
    track.accepts(BACK, &segment(SYN | ACK, 5000, 1001, 0));
    track.accepts(BACK, &segment(ACK, 5001, 1001, 100));
    let out = track.step(OUT, &segment(ACK, 1001, 5000, 0));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::TcpHandshake)
    );
    let out = track.step(OUT, &segment(ACK, 1001, 5101, 10));
    assert!(out.opened, "{out:?}");
    assert_eq!(out.streams, [1001, 5001], "where the streams begin");
}

#[test]
fn a_picked_up_flow_is_liberal_and_proved_by_two_way_traffic() {
    let first = segment(ACK, 500, 800, 10);
    let begun = picked_up(&first);
    let mut track = Track::new(&segment(SYN, 0, 0, 0));
    let flow = Flow {
        state: FlowState::new(begun.state as u8, begun.flags, INCARNATION).0,
        tcp: begun.tcp,
        ..track.flow()
    };
    track.cells = FlowCells::new(&flow);
    assert_eq!(track.expires(), START.plus(300), "unanswered");
    track.accepts(BACK, &segment(ACK, 800, 510, 5000));
    assert!(!track.has(flow_flags::ASSURED));
    track.accepts(OUT, &segment(ACK, 510, 5800, 0));
    assert!(track.has(flow_flags::ASSURED));
    track.accepts(BACK, &segment(ACK, 4_000_000, 510, 0));
}

#[test]
fn a_segment_in_fragments_can_be_acknowledged() {
    let mut track = Track::established();
    let first = Headers {
        fragment: Fragment::First,
        ..segment(ACK, 1001, 5001, 400)
    };
    track.accepts(OUT, &first);
    track.accepts(BACK, &segment(ACK, 5001, 1801, 0));
    let out = track.step(BACK, &segment(ACK, 5001, 2002, 0));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::TcpAckOver),
        "beyond the window"
    );
    track.accepts(OUT, &segment(ACK, 1801, 5001, 100));
}

#[test]
fn a_segment_with_malformed_options_does_nothing() {
    let track = Track::established();
    for h in [
        segment(ACK, 1001, 5001, 100),
        segment(FIN | ACK, 1001, 5001, 0),
        segment(RST, 1001, 0, 0),
        segment(SYN, 9000, 0, 0),
    ] {
        let twin = || Track {
            cells: track.cells.clone(),
            now: track.now.plus(5),
        };
        let mut read = twin();
        assert_ne!(read.step(OUT, &h).what, What::Invalid);
        assert_ne!(read.flow(), track.flow(), "{h:?}");
        let mut malformed = twin();
        let out = malformed.step(OUT, &without_options(h));
        assert_eq!(
            (out.what, out.drop),
            (What::Invalid, DropReason::MalformedTcp)
        );
        assert_eq!(malformed.flow(), track.flow(), "{h:?}");
    }
}

#[test]
fn a_malformed_syn_reopens_nothing() {
    let mut track = Track::established();
    track.accepts(OUT, &segment(RST, 1001, 0, 0));
    let syn = segment(SYN, 9000, 0, 0);
    let out = track.step(OUT, &without_options(syn));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::MalformedTcp)
    );
    assert_eq!(track.step(OUT, &syn).what, What::Reopen);
}

/// As in the kernel: the first segment of a side tells where that is, even one that
/// is dropped because it does not fit.
#[test]
fn a_malformed_segment_that_does_not_fit_introduces_its_side() {
    let mut track = Track::new(&segment(SYN, 1000, 0, 0));
    let early = track.step(BACK, &segment(ACK, 0, 1001, 0));
    assert_eq!(early.what, What::Ignored);
    track.step(OUT, &segment(RST | ACK, 1001, 77, 86));
    assert_eq!(track.state(), State::Close);
    assert_eq!(track.side(BACK).maxwin, 0, "nothing is known");
    // It acknowledges what was never sent.
    let out = track.step(BACK, &without_options(segment(ACK, 300, 5000, 0)));
    assert_eq!(out.what, What::Invalid);
    assert_eq!((track.side(BACK).end, track.side(BACK).maxwin), (300, 1000));
    let out = track.step(OUT, &segment(ACK, 1001, 90_000, 0));
    assert_eq!(
        (out.what, out.drop),
        (What::Invalid, DropReason::TcpAckOver)
    );
}

/// Not all of its options could be read.
fn without_options(h: Headers) -> Headers {
    Headers {
        options_malformed: true,
        ..h
    }
}

/// RFC 7323, section 2.3: no window is wider than 2^30, so nobody can have received
/// what lies farther behind what he is waiting for.
#[test]
fn a_selective_acknowledgement_reaches_no_farther_than_a_window() {
    for (reach, fits) in [((1 << 30) - 1, true), (1 << 30, false)] {
        let mut track = Track::established();
        let before = track.flow();
        let h = Headers {
            ack: 5001_u32.wrapping_sub(reach),
            sack: 5001,
            ..segment(ACK, 1001, 0, 0)
        };
        // Both ends permit it.
        let word = before
            .state()
            .with(flow_flags::SACK_ORIGINAL | flow_flags::SACK_REPLY);
        track.cells = FlowCells::new(&Flow {
            state: word.0,
            ..before
        });
        let out = track.step(OUT, &h);
        assert_eq!(out.what == What::Accepted, fits, "{reach:#x}");
        let widest = track.side(OUT).maxwin;
        if fits {
            assert_eq!(widest, reach + 1000);
        } else {
            assert_eq!(out.drop, DropReason::TcpSackOver);
            assert_eq!(
                (out.value, out.bound),
                (5001, h.ack.wrapping_add((1 << 30) - 1))
            );
            assert_eq!(track.flow().tcp, before.tcp);
        }
    }
}

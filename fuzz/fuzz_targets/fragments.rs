//! Any sequence of fragments of one datagram: nothing ever touches its accepted
//! first fragment again, and complete means complete.
#![no_main]

use firewall_common::{
    fragment::{Datagram, Piece, Refusal},
    wire::Headers,
};
use libfuzzer_sys::fuzz_target;

/// Bytes that make one fragment.
const ROUND: usize = 4;
/// A datagram ends within 64 kB: as many units of eight bytes.
const UNITS: usize = 0x1_0000 / 8;

fuzz_target!(|data: &[u8]| {
    let mut model = Model {
        datagram: Datagram::EMPTY,
        came: vec![false; UNITS],
        head: 0,
        total: 0,
    };
    for round in data.chunks_exact(ROUND) {
        model.round(round);
    }
});

struct Model {
    datagram: Datagram,
    /// Units of all accepted pieces.
    came: Vec<bool>,
    /// End of the accepted first fragment; 0 before.
    head: u32,
    /// Where the accepted last fragment ends; 0 before. A piece that the datagram
    /// did not record may lie beyond.
    total: u32,
}

impl Model {
    fn round(&mut self, bytes: &[u8]) {
        let Some(piece) = piece(bytes) else {
            return;
        };
        assert!(piece.at < piece.end && piece.end as usize <= UNITS);
        let before = self.datagram;
        match before.with(piece) {
            Ok(after) => self.joined(before, after, piece),
            Err(Refusal::Duplicate) => assert!(self.has_all(piece), "{piece:?} is new"),
            // What the programs do.
            Err(Refusal::Overlap) => self.datagram = Datagram::REFUSED,
        }
    }

    fn joined(&mut self, before: Datagram, after: Datagram, piece: Piece) {
        assert!(!before.is_refused() && !after.is_refused());
        assert!(
            piece.at >= self.head,
            "{piece:?} touches the first fragment"
        );
        assert!(
            after.has_first() || !before.has_first(),
            "the first one is forgotten"
        );
        if piece.at == 0 {
            self.head = piece.end;
        }
        self.units(piece).fill(true);
        assert_eq!(after.has_first(), self.head != 0);
        if piece.last {
            self.total = piece.end;
        }
        if after.is_complete() {
            let whole = &self.came[..self.total as usize];
            assert!(
                !whole.is_empty() && whole.iter().all(|came| *came),
                "there is a gap"
            );
        }
        self.datagram = after;
    }

    fn has_all(&mut self, piece: Piece) -> bool {
        self.units(piece).iter().all(|came| *came)
    }

    fn units(&mut self, piece: Piece) -> &mut [bool] {
        &mut self.came[piece.at as usize..piece.end as usize]
    }
}

/// A fragment as the parser gives it: mostly small, so that pieces meet.
fn piece(bytes: &[u8]) -> Option<Piece> {
    let [at, len, how, more] = bytes else {
        return None;
    };
    let wide = if how & 1 == 0 { 1 } else { 32 };
    Piece::of(&Headers {
        fragment_at: u16::from(*at) * wide,
        fragment_len: u32::from(*len) * u32::from(wide) * 4 + u32::from(how >> 6),
        fragment_more: more & 1 == 0,
        ..Headers::ZERO
    })
}

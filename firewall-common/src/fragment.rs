//! Fragmented datagrams: which of their parts have come, and whether the next
//! one may follow.
//!
//! Only the first fragment has a transport header, so only it can be judged. A
//! later one passes because the first did, and must not touch what the first
//! one said: a receiver might let the later bytes win (RFC 1858, RFC 3128,
//! RFC 5722). What has come of a datagram is kept as two runs, the one that
//! begins at 0 and one other, in one word that a compare-and-swap advances:
//! fragments of one datagram can be on several CPUs at once.

use crate::wire::Headers;

/// Bytes in a unit of fragment offsets.
const UNIT: u32 = 8;
/// The longest datagram, in units.
const MAX_UNITS: u32 = 0x1_0000 / UNIT;

/// One fragment's place in its datagram, in units of eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First unit.
    pub at: u32,
    /// The unit after the last one.
    pub end: u32,
    /// No fragment follows.
    pub last: bool,
}

impl Piece {
    /// The place of the fragment with these headers.
    ///
    /// `None` for what no sender makes: an empty fragment, one in the middle
    /// that is no multiple of eight bytes (RFC 791, section 3.2; RFC 8200,
    /// section 4.5), or one that ends beyond 64 kB (the "ping of death").
    #[inline(always)]
    #[must_use]
    pub const fn of(h: &Headers) -> Option<Self> {
        let at = h.fragment_at as u32;
        let len = h.fragment_len;
        if len == 0 || (h.fragment_more && !len.is_multiple_of(UNIT)) {
            return None;
        }
        // A length that is no multiple of eight is rounded up: the last unit is
        // taken, whatever part of it is filled.
        let end = at + (len >> 3) + (len & (UNIT - 1) != 0) as u32;
        if at * UNIT + len > 0xffff {
            return None;
        }
        Some(Self {
            at,
            end,
            last: !h.fragment_more,
        })
    }
}

/// Why a fragment may not join its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is there already; the network sent it twice. The datagram is whole
    /// without it.
    Duplicate,
    /// It overlaps what is there, or contradicts the datagram's length: nothing
    /// of the datagram may pass any more (RFC 5722, section 3).
    Overlap,
}

/// What has come of a datagram:
/// `head_end | run_at << 14 | run_end << 28 | total << 42 | refused << 56`, all
/// in units of eight bytes.
///
/// - `head_end`: units from 0 on that have come in one run; 0 until a first
///   fragment was accepted
/// - `run_at`, `run_end`: another run, further on; empty when equal
/// - `total`: where the datagram ends; 0 until its last fragment has come
/// - `refused`: an overlap was seen
///
/// A piece that touches neither run is let through unrecorded when both are
/// there: then an overlap with it is left to the receiver. Whatever overlaps the
/// first fragment is always seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram(pub u64);

impl Datagram {
    /// Nothing has come.
    pub const EMPTY: Self = Self(0);
    /// Nothing of it may pass any more.
    pub const REFUSED: Self = Self(1 << 56);

    #[inline(always)]
    const fn field(self, shift: u32) -> u32 {
        (self.0 >> shift) as u32 & 0x3fff
    }

    #[inline(always)]
    const fn new(head_end: u32, run_at: u32, run_end: u32, total: u32) -> Self {
        Self(
            head_end as u64 | (run_at as u64) << 14 | (run_end as u64) << 28 | (total as u64) << 42,
        )
    }

    /// May nothing of it pass any more?
    #[inline(always)]
    #[must_use]
    pub const fn is_refused(self) -> bool {
        self.0 & Self::REFUSED.0 != 0
    }

    /// Was its first fragment accepted?
    #[inline(always)]
    #[must_use]
    pub const fn has_first(self) -> bool {
        self.field(0) != 0
    }

    /// Has all of it come?
    #[inline(always)]
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.field(42) != 0 && self.field(0) == self.field(42)
    }

    /// The datagram with one piece more.
    ///
    /// # Errors
    /// The piece may not pass; after an [`Refusal::Overlap`] the datagram is
    /// [`Datagram::REFUSED`].
    #[inline(always)]
    pub const fn with(self, piece: Piece) -> Result<Self, Refusal> {
        let Piece { at, end, last } = piece;
        let (head_end, run_at, run_end) = (self.field(0), self.field(14), self.field(28));
        let mut total = self.field(42);
        if self.is_refused() || at >= end || end > MAX_UNITS {
            return Err(Refusal::Overlap);
        }
        let (in_head, in_run) = (end <= head_end, at >= run_at && end <= run_end);
        // One that is there already says nothing new, unless it says that the
        // datagram ends where it does not.
        if (in_head || in_run) && (!last || total == end) {
            return Err(Refusal::Duplicate);
        }
        let overlaps = at < head_end || (at < run_end && end > run_at);
        let beyond = total != 0 && (last || end > total);
        let short = last && (end < head_end || end < run_end);
        if overlaps || beyond || short {
            return Err(Refusal::Overlap);
        }
        if last {
            total = end;
        }
        Ok(Self::grow(head_end, run_at, run_end, piece).with_total(total))
    }

    #[inline(always)]
    const fn with_total(self, total: u32) -> Self {
        Self::new(self.field(0), self.field(14), self.field(28), total)
    }

    /// Adds a piece that overlaps nothing to the run that it touches.
    #[inline(always)]
    const fn grow(head_end: u32, run_at: u32, run_end: u32, piece: Piece) -> Self {
        let Piece { at, end, .. } = piece;
        let empty = run_at == run_end;
        if at == head_end {
            // The gap between the two runs may be closed by it.
            return if !empty && end == run_at {
                Self::new(run_end, 0, 0, 0)
            } else {
                Self::new(end, run_at, run_end, 0)
            };
        }
        if empty {
            Self::new(head_end, at, end, 0)
        } else if at == run_end {
            Self::new(head_end, run_at, end, 0)
        } else if end == run_at {
            Self::new(head_end, at, run_end, 0)
        } else {
            Self::new(head_end, run_at, run_end, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(at: u32, end: u32) -> Piece {
        Piece {
            at,
            end,
            last: false,
        }
    }

    fn last(at: u32, end: u32) -> Piece {
        Piece {
            at,
            end,
            last: true,
        }
    }

    fn after(pieces: &[Piece]) -> Datagram {
        pieces
            .iter()
            .fold(Datagram::EMPTY, |d, p| d.with(*p).unwrap())
    }

    #[test]
    fn any_order_of_three_is_whole_at_the_end() {
        let all = [piece(0, 185), piece(185, 370), last(370, 400)];
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut datagram = Datagram::EMPTY;
            for at in order {
                assert!(!datagram.is_complete());
                datagram = datagram.with(all[at]).unwrap();
            }
            assert!(datagram.is_complete(), "{order:?}");
        }
    }

    #[test]
    fn what_touches_the_first_fragment_is_refused() {
        let d = after(&[piece(0, 100)]);
        assert_eq!(d.with(piece(99, 200)), Err(Refusal::Overlap));
        assert_eq!(d.with(last(8, 200)), Err(Refusal::Overlap));
        assert_eq!(d.with(piece(0, 101)), Err(Refusal::Overlap));
        // Also when the first comes last.
        let d = after(&[piece(99, 200)]);
        assert!(!d.has_first());
        assert_eq!(d.with(piece(0, 100)), Err(Refusal::Overlap));
        assert!(d.with(piece(0, 99)).unwrap().has_first());
    }

    #[test]
    fn one_that_comes_twice_does_no_harm() {
        let d = after(&[piece(0, 100), piece(100, 200), piece(300, 400)]);
        for again in [
            piece(0, 100),
            piece(100, 200),
            piece(300, 400),
            piece(0, 50),
        ] {
            assert_eq!(d.with(again), Err(Refusal::Duplicate), "{again:?}");
        }
        let d = d.with(last(200, 300));
        assert_eq!(d, Err(Refusal::Overlap), "it ends before what has come");
    }

    #[test]
    fn a_datagram_has_one_end() {
        let d = after(&[piece(0, 100), last(200, 250)]);
        assert_eq!(d.with(piece(250, 260)), Err(Refusal::Overlap));
        assert_eq!(d.with(last(300, 350)), Err(Refusal::Overlap));
        assert_eq!(d.with(last(200, 250)), Err(Refusal::Duplicate));
        assert!(d.with(piece(100, 200)).unwrap().is_complete());
    }

    #[test]
    fn a_refused_datagram_stays_refused() {
        assert_eq!(Datagram::REFUSED.with(piece(0, 100)), Err(Refusal::Overlap));
    }

    #[test]
    fn lengths_that_no_sender_makes() {
        let h = |at, len, more| Headers {
            fragment_at: at,
            fragment_len: len,
            fragment_more: more,
            ..Headers::ZERO
        };
        assert_eq!(Piece::of(&h(0, 1480, true)), Some(piece(0, 185)));
        assert_eq!(Piece::of(&h(185, 9, false)), Some(last(185, 187)));
        assert_eq!(Piece::of(&h(185, 0, false)), None);
        assert_eq!(Piece::of(&h(0, 1479, true)), None);
        assert_eq!(Piece::of(&h(8191, 8, false)), None, "beyond 64 kB");
        assert_eq!(Piece::of(&h(8191, 7, false)), Some(last(8191, 8192)));
    }

    /// What came, unit by unit.
    fn bitmap(pieces: &[Piece]) -> Vec<bool> {
        let mut units = vec![false; 64];
        for p in pieces {
            units[p.at as usize..p.end as usize].fill(true);
        }
        units
    }

    proptest! {
        /// Whatever comes, in whatever order: nothing that overlaps the run
        /// from 0, the first fragment in it, is ever accepted, and a datagram
        /// is whole only when all of it has come.
        #[test]
        fn the_first_fragment_is_never_rewritten(
            pieces in prop::collection::vec((0_u32..48, 1_u32..16, any::<bool>()), 1..40)
        ) {
            let mut datagram = Datagram::EMPTY;
            let mut came: Vec<Piece> = Vec::new();
            for (at, len, is_last) in pieces {
                let piece = Piece { at, end: at + len, last: is_last };
                let units = bitmap(&came);
                match datagram.with(piece) {
                    Ok(next) => {
                        for p in came.iter().filter(|p| p.at == 0) {
                            prop_assert!(piece.at >= p.end, "{piece:?} on {p:?}");
                        }
                        datagram = next;
                        came.push(piece);
                    }
                    Err(Refusal::Duplicate) => {
                        let there = &units[piece.at as usize..piece.end as usize];
                        prop_assert!(there.iter().all(|u| *u), "{piece:?} was new");
                    }
                    Err(Refusal::Overlap) => {}
                }
                if datagram.is_complete() {
                    let total = came.iter().find(|p| p.last).unwrap().end;
                    prop_assert!(bitmap(&came)[..total as usize].iter().all(|u| *u));
                }
            }
        }

        /// Cut into pieces and sent in order, in reverse, or with one pair
        /// swapped, a datagram passes whole.
        #[test]
        fn a_datagram_in_a_likely_order_passes(
            lens in prop::collection::vec(1_u32..200, 2..40), swap in 0_usize..40, reverse: bool
        ) {
            let mut at = 0;
            let mut pieces: Vec<Piece> = lens
                .iter()
                .map(|len| {
                    at += len;
                    piece(at - len, at)
                })
                .collect();
            pieces.last_mut().unwrap().last = true;
            if reverse {
                pieces.reverse();
            }
            let n = pieces.len();
            pieces.swap(swap % (n - 1), swap % (n - 1) + 1);
            let whole = after(&pieces).is_complete();
            // A swap amid a reversed datagram makes a third run.
            prop_assert!(whole || reverse);
        }
    }
}

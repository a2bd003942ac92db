//! One direction of a TCP stream, put in order by sequence number. Pure.
//!
//! The first bytes that are seen for a sequence number win, as they were the
//! first to be let through.
//!
//! Memory is bounded. A stream holds at most [`WINDOW`] bytes in [`MAX_SEGMENTS`]
//! segments, with [`SEGMENT_COST`] for each: 68 kB, 136 kB a session. All
//! streams together hold at most [`BUDGET`], for which the caller answers
//! through the `room` of [`Reassembler::push`]. What does not fit in a stream is
//! left to show as missed, when the receiver acknowledges what was never seen
//! here; what does not fit in the budget is [`Outcome::OverBudget`].

use std::collections::VecDeque;

/// Bytes ahead of the next one that are still in the window: more than any
/// FTP peer sends unacknowledged.
pub const WINDOW: u32 = 64 * 1024;
/// Segments kept that wait for an earlier one.
pub const MAX_SEGMENTS: usize = 32;
/// What a waiting segment costs beside its bytes: its place in the queue, which
/// grows by doubling, and what the allocator adds to it.
pub const SEGMENT_COST: usize = 128;
/// What may wait in all streams of all sessions together.
///
/// Control lines are short and seldom out of order, so this is more than honest
/// peers need by far (120 sessions with both windows full), and little enough
/// for the smallest router. Without it 4096 sessions could hold half a gigabyte.
pub const BUDGET: usize = 16 * 1024 * 1024;
/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// New bytes were delivered, and with them any that had waited for these.
    Delivered,
    /// All of it was seen before, or it is empty.
    Duplicate,
    /// It waits for an earlier one.
    Waiting,
    /// It is ahead of an earlier one, and there is no room to keep it.
    NoRoom,
    /// As [`Self::NoRoom`], because the caller has no room left for any stream.
    OverBudget,
    /// It does not belong to the stream.
    OutOfWindow,
}

#[derive(Debug)]
struct Segment {
    seq: u32,
    bytes: Vec<u8>,
}

impl Segment {
    fn end(&self) -> u32 {
        after(self.seq, &self.bytes)
    }

    const fn cost(&self) -> usize {
        self.bytes.len() + SEGMENT_COST
    }
}

/// Reassembles one direction.
#[derive(Debug)]
pub struct Reassembler {
    /// The next sequence number to deliver; `None` before the first segment of
    /// a stream whose begin is not known.
    next: Option<u32>,
    /// In order of sequence, never overlapping.
    waiting: VecDeque<Segment>,
}

/// `a - b` in serial arithmetic (RFC 1982): positive if `a` is later.
const fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// The sequence number after `bytes` that begin at `seq`.
fn after(seq: u32, bytes: &[u8]) -> u32 {
    seq.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

impl Reassembler {
    /// A stream whose next byte has sequence number `next`.
    #[must_use]
    pub const fn at(next: u32) -> Self {
        Self {
            next: Some(next),
            waiting: VecDeque::new(),
        }
    }

    /// A stream that begins with the first segment seen.
    #[must_use]
    pub const fn anywhere() -> Self {
        Self {
            next: None,
            waiting: VecDeque::new(),
        }
    }

    /// Sequence number of the next byte to deliver, if the stream has begun.
    #[must_use]
    pub const fn next(&self) -> Option<u32> {
        self.next
    }

    /// Memory of what waits, in bytes, as [`BUDGET`] counts it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.waiting.iter().map(Segment::cost).sum()
    }

    /// Gives back the memory of what waits; it will not be delivered.
    pub fn discard(&mut self) {
        self.waiting = VecDeque::new();
    }

    /// Is `seq` where a segment of this stream, or its end, can stand?
    #[must_use]
    pub fn is_in_window(&self, seq: u32) -> bool {
        self.next
            .is_none_or(|next| (0..=WINDOW.cast_signed()).contains(&distance(seq, next)))
    }

    /// Did the receiver acknowledge bytes that never came by here?
    ///
    /// A segment passes here before its receiver sees it, so this is a loss of
    /// ours and not a matter of order.
    #[must_use]
    pub fn missed(&self, acknowledged: u32) -> bool {
        let Some(mut seen) = self.next else {
            return false;
        };
        for segment in &self.waiting {
            if segment.seq != seen {
                break;
            }
            seen = segment.end();
        }
        // However far: more than WINDOW can be on its way at once, and what came
        // so far ahead was not kept. The programs let no acknowledgement pass of
        // what was not sent.
        distance(acknowledged, seen) > 0
    }

    /// Takes a segment and hands every byte that is now in order to `deliver`, once.
    /// [`Self::held`] grows by no more than `room`.
    pub fn push(
        &mut self,
        seq: u32,
        bytes: &[u8],
        room: usize,
        mut deliver: impl FnMut(&[u8]),
    ) -> Outcome {
        if bytes.is_empty() {
            return Outcome::Duplicate;
        }
        let next = *self.next.get_or_insert(seq);
        let offset = distance(seq, next);
        if offset > WINDOW.cast_signed() || offset < -WINDOW.cast_signed() {
            return Outcome::OutOfWindow;
        }
        if offset > 0 {
            return self.keep(seq, bytes, room);
        }
        let Some(fresh) = bytes.get(offset.unsigned_abs() as usize..) else {
            return Outcome::Duplicate;
        };
        if fresh.is_empty() {
            return Outcome::Duplicate;
        }
        self.deliver_from(next, fresh, &mut deliver);
        Outcome::Delivered
    }

    /// Delivers `bytes` at `next`, giving way to what was seen before them.
    fn deliver_from(&mut self, mut next: u32, mut bytes: &[u8], deliver: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let gap = self.gap(next).min(bytes.len());
            let (head, tail) = bytes.split_at_checked(gap).unwrap_or((bytes, &[]));
            if !head.is_empty() {
                deliver(head);
                next = after(next, head);
            }
            let before = next;
            next = self.release(next, deliver);
            let covered = distance(next, before).unsigned_abs() as usize;
            bytes = tail.get(covered..).unwrap_or_default();
        }
        self.next = Some(self.release(next, deliver));
    }

    /// Bytes between `next` and the first waiting segment.
    fn gap(&self, next: u32) -> usize {
        self.waiting.front().map_or(usize::MAX, |segment| {
            usize::try_from(distance(segment.seq, next)).unwrap_or(0)
        })
    }

    /// Delivers what waits for exactly `next`; returns the sequence number after it.
    fn release(&mut self, mut next: u32, deliver: &mut impl FnMut(&[u8])) -> u32 {
        while let Some(segment) = self.waiting.front() {
            if segment.seq != next {
                break;
            }
            deliver(&segment.bytes);
            next = segment.end();
            self.waiting.pop_front();
        }
        if self.waiting.is_empty() {
            self.discard();
        }
        next
    }

    /// Keeps the parts of a segment ahead of its turn that are new.
    fn keep(&mut self, mut seq: u32, mut bytes: &[u8], mut room: usize) -> Outcome {
        let next = self.next.unwrap_or(seq);
        let end = distance(after(seq, bytes), next);
        if bytes.len() > WINDOW as usize || end > WINDOW.cast_signed() {
            return Outcome::NoRoom;
        }
        let mut index = 0;
        let mut kept = false;
        while !bytes.is_empty() {
            let (gap, end) = match self.waiting.get(index) {
                Some(segment) => (distance(segment.seq, seq), segment.end()),
                None => (i32::MAX, seq),
            };
            let gap = usize::try_from(gap).unwrap_or(0).min(bytes.len());
            let (head, tail) = bytes.split_at_checked(gap).unwrap_or((bytes, &[]));
            if !head.is_empty() {
                if self.waiting.len() == MAX_SEGMENTS {
                    return Outcome::NoRoom;
                }
                let bytes = head.to_vec();
                let segment = Segment { seq, bytes };
                let Some(left) = room.checked_sub(segment.cost()) else {
                    return Outcome::OverBudget;
                };
                room = left;
                self.waiting.insert(index, segment);
                kept = true;
                index += 1;
            }
            seq = after(seq, head);
            // What follows was seen before, as far as that segment reaches.
            let covered = usize::try_from(distance(end, seq)).unwrap_or(0);
            let covered = covered.min(tail.len());
            seq = seq.wrapping_add(u32::try_from(covered).unwrap_or(0));
            bytes = tail.get(covered..).unwrap_or_default();
            index += 1;
        }
        if kept {
            Outcome::Waiting
        } else {
            Outcome::Duplicate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Stream(Reassembler, Vec<u8>);

    impl Stream {
        fn at(next: u32) -> Self {
            Self(Reassembler::at(next), Vec::new())
        }

        fn push(&mut self, seq: u32, bytes: &[u8]) -> Outcome {
            self.0
                .push(seq, bytes, BUDGET, |b| self.1.extend_from_slice(b))
        }

        fn text(&self) -> &str {
            std::str::from_utf8(&self.1).unwrap()
        }
    }

    #[test]
    fn order_is_restored_across_the_wrap() {
        let mut s = Stream::at(u32::MAX - 2);
        assert_eq!(s.push(3, b"GHI"), Outcome::Waiting);
        assert_eq!(s.push(0, b"DEF"), Outcome::Waiting);
        assert_eq!(s.push(u32::MAX - 2, b"ABC"), Outcome::Delivered);
        assert_eq!(s.text(), "ABCDEFGHI");
        assert_eq!(s.0.next(), Some(6));
    }

    #[test]
    fn retransmission_is_delivered_once_and_the_first_bytes_win() {
        let mut s = Stream::at(10);
        s.push(10, b"PASV");
        assert_eq!(s.push(10, b"PORT"), Outcome::Duplicate);
        assert_eq!(s.push(12, b"xx\r\n"), Outcome::Delivered);
        assert_eq!(s.text(), "PASV\r\n");
        // Also among those that wait, in whatever order they come.
        let mut s = Stream::at(0);
        assert_eq!(s.push(2, b"cd"), Outcome::Waiting);
        assert_eq!(s.push(6, b"gh"), Outcome::Waiting);
        assert_eq!(s.push(1, b"BCDEFGHI"), Outcome::Waiting);
        assert_eq!(s.push(2, b"XXX"), Outcome::Duplicate);
        assert_eq!(s.push(0, b"abcdefghij"), Outcome::Delivered);
        assert_eq!(s.text(), "aBcdEFghIj");
    }

    #[test]
    fn segments_out_of_window_are_not_of_this_stream() {
        let mut s = Stream::at(1000);
        assert_eq!(s.push(1001 + WINDOW, b"PORT"), Outcome::OutOfWindow);
        assert_eq!(
            s.push(999_u32.wrapping_sub(WINDOW), b"PORT"),
            Outcome::OutOfWindow
        );
        assert!(!s.0.is_in_window(999));
        assert!(s.0.is_in_window(1000));
        assert!(!s.0.is_in_window(1001 + WINDOW));
        assert_eq!(s.text(), "");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut s = Stream::at(0);
        for i in 0..100 {
            let outcome = s.push(2 + 2 * i, b"x");
            let room = i < u32::try_from(MAX_SEGMENTS).unwrap();
            assert_eq!(outcome == Outcome::Waiting, room);
        }
        assert_eq!(s.0.waiting.len(), MAX_SEGMENTS);
        assert_eq!(
            Stream::at(0).push(1, &vec![0; WINDOW as usize]),
            Outcome::NoRoom
        );
        let full = MAX_SEGMENTS * SEGMENT_COST;
        assert!(s.0.held() <= WINDOW as usize + full && s.0.held() > full);
        s.0.discard();
        assert_eq!(s.0.held(), 0);
    }

    #[test]
    fn nothing_is_kept_beyond_the_callers_room() {
        let mut s = Reassembler::at(0);
        let room = SEGMENT_COST + 4;
        assert_eq!(s.push(1, b"12345", room, |_| {}), Outcome::OverBudget);
        assert_eq!(s.held(), 0);
        assert_eq!(s.push(1, b"1234", room, |_| {}), Outcome::Waiting);
        assert_eq!(s.held(), room);
        // What was seen before, and what is in order, needs none.
        assert_eq!(s.push(2, b"23", 0, |_| {}), Outcome::Duplicate);
        assert_eq!(s.push(4, b"45", 0, |_| {}), Outcome::OverBudget);
        assert_eq!(s.push(0, b"0", 0, |_| {}), Outcome::Delivered);
        assert_eq!((s.held(), s.next()), (0, Some(5)));
    }

    #[test]
    fn what_was_acknowledged_unseen_was_missed() {
        let mut s = Stream::at(100);
        assert!(!s.0.missed(100));
        s.push(100, b"PASV");
        assert!(!s.0.missed(104));
        assert!(s.0.missed(105));
        s.push(105, b"x");
        assert!(s.0.missed(106));
        s.push(104, b"y");
        assert!(!s.0.missed(106));
        assert!(s.0.missed(107 + 10 * WINDOW));
        assert!(!s.0.missed(106_u32.wrapping_sub(10 * WINDOW)));
        assert!(!Reassembler::anywhere().missed(7));
    }

    #[test]
    fn a_stream_adopted_in_mid_life_begins_where_it_is_seen() {
        let mut s = Stream(Reassembler::anywhere(), Vec::new());
        assert_eq!(s.push(77, b"NOOP"), Outcome::Delivered);
        assert_eq!(s.0.next(), Some(81));
    }

    proptest! {
        #[test]
        fn any_arrival_gives_the_same_stream(
            start in any::<u32>(),
            parts in proptest::collection::vec((0_usize..200, 1_usize..60), 0..40),
        ) {
            let bytes: Vec<u8> = (0..200_u8).collect();
            let mut s = Stream::at(start);
            for (from, len) in parts {
                let to = (from + len).min(bytes.len());
                s.push(start.wrapping_add(from as u32), &bytes[from..to]);
                prop_assert_eq!(&s.1[..], &bytes[..s.1.len()]);
                prop_assert_eq!(s.0.next(), Some(start.wrapping_add(s.1.len() as u32)));
            }
            s.push(start, &bytes);
            prop_assert_eq!(s.1, bytes);
        }

        #[test]
        fn nothing_makes_it_panic(
            start in any::<u32>(),
            parts in proptest::collection::vec((any::<i16>(), 0_usize..400), 0..80),
        ) {
            let bytes = [7_u8; 400];
            let mut s = Stream::at(start);
            for (offset, len) in parts {
                let seq = start.wrapping_add(i32::from(offset).cast_unsigned());
                s.push(seq, &bytes[..len]);
                prop_assert!(s.0.waiting.len() <= MAX_SEGMENTS);
                let order = s.0.waiting.iter().zip(s.0.waiting.iter().skip(1));
                for (a, b) in order {
                    prop_assert!(distance(b.seq, a.end()) >= 0);
                }
                let next = s.0.next().unwrap();
                prop_assert!(s.0.waiting.front().is_none_or(|f| distance(f.seq, next) > 0));
            }
        }
    }
}

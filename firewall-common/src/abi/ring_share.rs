//! What the control connections between two hosts have of the ring.

use super::{EVENT_CLASSES, EVENTS_BYTES, EventHeader};
use crate::key::is_v4_mapped;

/// Accounts in the map `RING_SHARES`, a power of two. Behind them stands the number
/// that chooses among them.
pub const RING_SHARES: usize = 1024;

/// Element of the map `RING_SHARES` that says where the agent's last wake-up takes it.
pub const WOKEN: usize = RING_SHARES + 1;

/// Length of the map `RING_SHARES`.
pub const RING_SHARES_LEN: usize = WOKEN + 1;

/// Of what is free of the ring, an account may have one in this many.
const PART: u64 = 16;
/// Bytes in which accounts are kept.
const UNIT: u64 = 128;
/// The ring, in units.
const RING: u64 = EVENTS_BYTES as u64 / UNIT;
/// The kernel's head of a record.
const RECORD_HEAD: usize = 8;
/// A record of the smallest class, in units: every account may have one.
const SMALLEST: u64 = units(EVENT_CLASSES[0] as u32);

/// Bits of a count of units, of a distance on the ring, and of a place on it.
const COUNT_BITS: u32 = 12;
const BACK_BITS: u32 = 16;
const PLACE_BITS: u32 = 24;
const _: () = {
    assert!(2 * COUNT_BITS + BACK_BITS + PLACE_BITS == u64::BITS);
    assert!(RING / PART < 1 << COUNT_BITS);
    assert!(RING + units(EVENT_CLASSES[2] as u32) < 1 << BACK_BITS);
};

/// An account, in units: `place << 40 | back << 24 | earlier << 12 | later`.
///
/// Its records that the agent may not have read are in two groups. `earlier` is what
/// those of the first take, and `later` those of the second; the second ends at
/// `place` on the ring, modulo 2^24, and the first `back` before that. When the agent
/// has passed a group, it counts no longer, and the second becomes the first.
///
/// So an account needs nobody to give back, is never behind, and never counts more
/// than what was written while the agent came as far as twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShare(pub u64);

impl RingShare {
    /// The account with a record of `len` bytes more; `None` if it may not have one.
    /// `read` and `written` are how far the agent and the programs have come on the
    /// ring, in bytes.
    ///
    /// What it may have is a part of what is *free*: however many accounts take as much
    /// as they can, something is left for one that has nothing.
    #[inline(always)]
    #[must_use]
    pub const fn take(self, read: u64, written: u64, len: u32) -> Option<Self> {
        let size = units(len);
        let place = self.0 >> (BACK_BITS + 2 * COUNT_BITS);
        let back = low(self.0 >> (2 * COUNT_BITS), BACK_BITS);
        let (earlier, later) = (
            low(self.0 >> COUNT_BITS, COUNT_BITS),
            low(self.0, COUNT_BITS),
        );
        // It ends in either group: that of the first, its place, and that of the second.
        let end = written.div_ceil(UNIT) + size;
        let (first, first_place, second) = if read == written || is_read(place, read) {
            (0, end, 0)
        } else if is_read(place.wrapping_sub(back), read) {
            (later, place, 0)
        } else {
            (earlier, place.wrapping_sub(back), later)
        };
        let free = (EVENTS_BYTES as u64).saturating_sub(written.wrapping_sub(read));
        let part = free / (PART * UNIT);
        let limit = if part < SMALLEST { SMALLEST } else { part };
        if first + second + size > limit {
            return None;
        }
        let back = low(end.wrapping_sub(first_place), BACK_BITS);
        Some(Self(
            low(end, PLACE_BITS) << (BACK_BITS + 2 * COUNT_BITS)
                | back << (2 * COUNT_BITS)
                | first << COUNT_BITS
                | (second + size),
        ))
    }

    /// Which account two hosts have: addresses in mapped form, network byte order, in
    /// either order. Hosts of one IPv6 /64 share one, since they choose their addresses
    /// at will. Whoever does not know `secret` cannot choose an account by his address.
    #[inline(always)]
    #[must_use]
    pub fn index(a: &[u32; 4], b: &[u32; 4], secret: u32) -> u32 {
        let both = network(a, secret).wrapping_add(network(b, secret));
        both.wrapping_mul(MULTIPLIER) >> (u32::BITS - RING_SHARES.ilog2())
    }
}

#[inline(always)]
const fn low(word: u64, bits: u32) -> u64 {
    word & ((1 << bits) - 1)
}

/// Has the agent, which has come to `read`, in bytes, passed `place`, in units modulo
/// 2^24? What lies farther ahead than the ring is long lies behind.
#[inline(always)]
const fn is_read(place: u64, read: u64) -> bool {
    let ahead = low(place.wrapping_sub(read / UNIT), PLACE_BITS);
    ahead == 0 || ahead > RING + units(EVENT_CLASSES[2] as u32)
}

/// That of Knuth, volume 3, section 6.4.
const MULTIPLIER: u32 = 0x9e37_79b1;

#[inline(always)]
fn network(address: &[u32; 4], secret: u32) -> u32 {
    let (high, low) = if is_v4_mapped(address) {
        (0, address[3])
    } else {
        (address[0], address[1])
    };
    let mixed = (secret ^ high).wrapping_mul(MULTIPLIER);
    let mixed = (mixed.rotate_left(15) ^ low).wrapping_mul(MULTIPLIER);
    mixed ^ mixed >> 15
}

/// What a record with `len` bytes of payload takes.
#[inline(always)]
const fn units(len: u32) -> u64 {
    let len = len as usize;
    let class = if len == 0 {
        0
    } else if len <= EVENT_CLASSES[0] {
        EVENT_CLASSES[0]
    } else if len <= EVENT_CLASSES[1] {
        EVENT_CLASSES[1]
    } else {
        EVENT_CLASSES[2]
    };
    ((RECORD_HEAD + size_of::<EventHeader>() + class) as u64).div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::map_v4;

    const NEW: RingShare = RingShare(0);

    /// A ring that accounts take from until none may have more; how many records
    /// each has then, and what is free.
    fn crowd(accounts: usize, len: u32) -> (Vec<usize>, u64) {
        let mut all = vec![(NEW, 0); accounts];
        let mut written = 0;
        loop {
            let before = written;
            for (share, count) in &mut all {
                if let Some(more) = share.take(0, written, len) {
                    (*share, *count) = (more, *count + 1);
                    written += units(len) * UNIT;
                }
            }
            if before == written {
                let free = (EVENTS_BYTES as u64).saturating_sub(written);
                return (all.into_iter().map(|(_, count)| count).collect(), free);
            }
        }
    }

    #[test]
    fn one_account_has_a_part_of_the_ring() {
        for len in [0, 1, 256, 257, 2048, 65_000] {
            let (counts, free) = crowd(1, len);
            assert!(counts[0] >= 3, "{len}: {counts:?}");
            assert!(free >= EVENTS_BYTES as u64 * 15 / 16, "{len}: {free}");
        }
    }

    #[test]
    fn a_crowd_leaves_room_for_who_has_nothing() {
        for accounts in [16, 100, 512] {
            let (counts, free) = crowd(accounts, 1448);
            assert!(counts.iter().all(|count| *count > 0), "{accounts}");
            assert!(free > 4 * units(1448) * UNIT, "{accounts}: {free}");
            let written = EVENTS_BYTES as u64 - free;
            assert!(NEW.take(0, written, 256).is_some());
        }
    }

    #[test]
    fn what_the_agent_has_read_is_given_back() {
        let mut share = NEW;
        let mut written = 5_000_000_000;
        let read = written;
        while let Some(more) = share.take(read, written, 1448) {
            share = more;
            written += units(1448) * UNIT;
        }
        assert_eq!(share.take(read + UNIT, written, 1448), None);
        assert!(share.take(written, written, 1448).is_some());
        // Others wrote behind it, and the agent has come that far.
        assert!(share.take(written, written + 1_000_000, 1448).is_some());
        // It was counted, but there was no room: with nothing on the ring it has nothing.
        assert_eq!(share.take(read, written, 1448), None);
        assert!(share.take(read, read, 1448).is_some());
    }

    /// The agent never comes to the end of what there is, as when many others write.
    #[test]
    fn an_agent_that_lags_gives_back_what_it_has_read() {
        const LAG: u64 = 100_000;
        let (mut share, mut written) = (NEW, 7_000_000_000);
        for n in 0..100_000 {
            let taken = share.take(written - LAG, written, 256);
            assert!(taken.is_some(), "record {n}");
            share = taken.unwrap();
            // One in eight is of this account.
            written += 8 * units(256) * UNIT;
        }
    }

    proptest! {
        /// Against a ring that knows every record.
        #[test]
        fn an_account_counts_all_that_is_unread(
            began in any::<u32>(),
            turns in prop::collection::vec((any::<bool>(), 0_u32..3000, 0_u64..60_000), 1..300),
        ) {
            let began = u64::from(began) * 8;
            let (mut share, mut read, mut written) = (NEW, began, began);
            let mut mine: Vec<(u64, u64)> = Vec::new();
            for (is_mine, len, others) in turns {
                mine.retain(|(end, _)| *end > read);
                if is_mine {
                    let size = units(len);
                    let unread: u64 = mine.iter().map(|(_, size)| size).sum();
                    let free = EVENTS_BYTES as u64 - (written - read);
                    let limit = (free / (PART * UNIT)).max(SMALLEST);
                    if let Some(more) = share.take(read, written, len) {
                        prop_assert!(unread + size <= limit, "{unread} + {size} > {limit}");
                        share = more;
                        written += size * UNIT;
                        mine.push((written, size));
                    }
                } else {
                    written = (written + others / 8 * 8).min(read + EVENTS_BYTES as u64);
                    read = (read + others / 16 * 8).min(written);
                }
            }
        }
    }

    #[test]
    fn hosts_share_by_network_and_nobody_foresees_with_whom() {
        let v4 = |last: u32| map_v4(0x0a00_0000 | last);
        let v6 = |net: u32, host: u32| [0x2001_0db8, net, host, 1];
        let index = |a: [u32; 4], b: [u32; 4], secret| RingShare::index(&a, &b, secret);
        assert_eq!(index(v4(1), v4(2), 7), index(v4(2), v4(1), 7));
        assert_eq!(index(v6(1, 5), v6(2, 6), 7), index(v6(1, 8), v6(2, 9), 7));
        let of = |secret| -> Vec<u32> { (0..500).map(|n| index(v4(n), v4(9), secret)).collect() };
        let spread: std::collections::BTreeSet<u32> = of(7).into_iter().collect();
        assert!(spread.len() > 350, "{}", spread.len());
        assert!(spread.iter().all(|index| (*index as usize) < RING_SHARES));
        let victim = |secret| index(v4(3), v4(9), secret);
        let with_victim = |secret: u32| -> Vec<usize> {
            let all = of(secret).into_iter().enumerate();
            all.filter(|(n, index)| *n != 3 && *index == victim(secret))
                .map(|(n, _)| n)
                .collect()
        };
        assert_ne!(with_victim(7), with_victim(0x1234_5678));
    }
}

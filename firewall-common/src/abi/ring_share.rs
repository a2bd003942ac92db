//! What the control connections between two hosts have of the ring.

use super::{EVENT_CLASSES, EVENTS_BYTES, EventHeader};
use crate::key::is_v4_mapped;

/// Accounts in the map `RING_SHARES`, a power of two. Behind them stands the number
/// that chooses among them.
pub const RING_SHARES: usize = 1024;

/// Length of the map `RING_SHARES`.
pub const RING_SHARES_LEN: usize = RING_SHARES + 1;

/// Of what is free of the ring, an account may have one in this many.
const PART: u64 = 16;
/// Bytes in which accounts are kept.
const UNIT: u64 = 64;
/// The kernel's head of a record.
const RECORD_HEAD: usize = 8;
/// A record of the smallest class, in units: every account may have one.
const SMALLEST: u64 = units(EVENT_CLASSES[0] as u32);

/// An account: `mark << 32 | held`, both in units. `mark` is where on the ring its last record
/// ends, and `held` what its records take that the agent had not read when the first
/// of them was queued.
///
/// So it is never behind, and needs nobody to give back: what an account has had
/// counts until the agent has passed its mark.
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
        let passed = ((read / UNIT) as u32).wrapping_sub((self.0 >> 32) as u32) as i32 >= 0;
        let held = if passed || read == written {
            0
        } else {
            self.0 & u32::MAX as u64
        };
        let free = (EVENTS_BYTES as u64).saturating_sub(written.wrapping_sub(read));
        let part = free / (PART * UNIT);
        let limit = if part < SMALLEST { SMALLEST } else { part };
        if held + size > limit {
            return None;
        }
        let mark = (written / UNIT + size) as u32;
        Some(Self((mark as u64) << 32 | (held + size)))
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
        let lost = RingShare((u64::from(u32::MAX) / 4) << 32 | 60_000);
        assert_eq!(lost.take(7, 8, 1448), None);
        assert!(lost.take(8, 8, 1448).is_some());
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

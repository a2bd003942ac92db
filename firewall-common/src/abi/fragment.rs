//! Fragmented datagrams on their way, and the bound on fragments that nothing admitted.

use bytemuck::{Pod, Zeroable};

use crate::{
    pod,
    time::{Tick, ticks_from_secs},
    wire::{Family, Headers},
};

/// Ticks after its first piece for which a datagram is remembered: two seconds.
/// Fragments leave their sender together; identifications come again (RFC 4963).
pub const FRAGMENT_TICKS: u32 = ticks_from_secs(2);

/// Datagrams that are remembered at least; 256 a CPU where those are more.
pub const FRAGMENTS_LEN: usize = 4096;

/// What fragments of one datagram have in common (RFC 791, section 3.2;
/// RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address, network byte order, IPv4 in mapped form.
    pub src: [u32; 4],
    /// Destination address, as `src`.
    pub dst: [u32; 4],
    /// Identification, network byte order; 16 bits for IPv4.
    pub id: u32,
    /// Protocol of an IPv4 packet; 0 for IPv6, which leaves it out.
    pub proto: u8,
    /// Zone that the fragments come from.
    pub zone: u8,
    /// Keeps the size a multiple of four.
    pub reserved: u16,
}
pod!(FragmentKey, 40);

impl FragmentKey {
    /// Makes it the key of a fragment from `zone`. In place: a copy would be 40
    /// bytes of a program's stack.
    #[inline(always)]
    pub const fn set(&mut self, h: &Headers, zone: u8) {
        self.src = h.src;
        self.dst = h.dst;
        self.id = h.fragment_id;
        self.proto = match h.family {
            Family::V4 => h.proto,
            Family::V6 => 0,
        };
        self.zone = zone;
        self.reserved = 0;
    }

    /// Which of the [`ORPHAN_BUCKETS`] counts its orphans: by destination and zone.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(&self) -> u32 {
        let [a, b, c, d] = self.dst;
        let mixed = (a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d ^ self.zone as u32)
            .wrapping_mul(0x9e37_79b1);
        mixed >> (u32::BITS - ORPHAN_BUCKETS.ilog2())
    }
}

/// A datagram on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Fragments {
    /// A [`crate::fragment::Datagram`], changed by compare-and-swap only.
    pub word: u64,
    /// [`Tick`] of its first piece.
    pub born: u32,
    /// Keeps the size a multiple of eight.
    pub reserved: u32,
}
pod!(Fragments, 16);

/// Length of the `ORPHANS` map, a power of two.
pub const ORPHAN_BUCKETS: usize = 64;

/// A token bucket for orphans, fragments whose first one has not come:
/// `tick << 32 | tokens`. All zero is a full one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket(pub u64);

impl Bucket {
    /// Orphans that may pass at once: five datagrams of 64 kB in reverse order
    /// on Ethernet.
    pub const BURST: u32 = 256;
    /// Orphans that may pass in each further [`Tick`]: 238 in a second.
    pub const PER_TICK: u32 = 4;
    /// A clock that is so many ticks behind the bucket's is that of another CPU.
    const SKEW: u32 = 64;

    /// The bucket with one token less; `None` if it is empty.
    #[inline(always)]
    #[must_use]
    pub const fn take(self, now: Tick) -> Option<Self> {
        let elapsed = now.0.wrapping_sub((self.0 >> 32) as u32);
        let behind = elapsed > u32::MAX - Self::SKEW;
        let (elapsed, at) = match (behind, elapsed > Self::BURST) {
            (true, _) => (0, (self.0 >> 32) as u32),
            (_, true) => (Self::BURST, now.0),
            _ => (elapsed, now.0),
        };
        let tokens = self.0 as u32 + elapsed * Self::PER_TICK;
        let tokens = if tokens > Self::BURST {
            Self::BURST
        } else {
            tokens
        };
        if tokens == 0 {
            return None;
        }
        Some(Self((at as u64) << 32 | (tokens - 1) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(bucket: &mut Bucket, now: Tick) -> u32 {
        let mut taken = 0;
        while let Some(next) = bucket.take(now) {
            *bucket = next;
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_bucket_holds_its_burst_and_fills_by_the_tick() {
        for start in [1, 1_000_000, u32::MAX - 1] {
            let mut bucket = Bucket(0);
            let now = Tick(start).plus(Bucket::BURST);
            assert_eq!(drain(&mut bucket, now), Bucket::BURST, "{start}");
            assert_eq!(drain(&mut bucket, now), 0);
            assert_eq!(drain(&mut bucket, now.plus(3)), 3 * Bucket::PER_TICK);
            // The clock of another CPU lags.
            assert_eq!(drain(&mut bucket, now.plus(1)), 0);
            let later = now.plus(1_000_000);
            assert_eq!(drain(&mut bucket, later), Bucket::BURST);
        }
    }

    #[test]
    fn buckets_are_all_used() {
        let mut key: FragmentKey = Zeroable::zeroed();
        let mut used = [false; ORPHAN_BUCKETS];
        for host in 0..1024_u32 {
            key.dst[3] = (0x0a00_0000 + host).to_be();
            used[key.bucket() as usize] = true;
        }
        assert!(used.iter().all(|used| *used));
    }
}

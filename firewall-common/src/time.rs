//! Coarse time: 32-bit ticks of 2^24 ns, compared by serial arithmetic.
//!
//! One tick is 16.8 ms, so a timestamp takes four bytes in a flow entry and
//! wraps after 2.3 years of `CLOCK_MONOTONIC`. Two ticks are comparable while
//! they are less than half of that apart; the longest time-out is days.

/// Shift between nanoseconds and ticks.
pub const TICK_SHIFT: u32 = 24;
/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// A point of `CLOCK_MONOTONIC` in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick that contains `ns` nanoseconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self((ns >> TICK_SHIFT) as u32)
    }

    /// Is this point later than `other`? (RFC 1982 serial arithmetic.)
    #[inline(always)]
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }

    /// This point plus `ticks`.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, ticks: u32) -> Self {
        Self(self.0.wrapping_add(ticks))
    }

    /// Ticks from `earlier` to this point; 0 if `earlier` is later.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, earlier: Self) -> u32 {
        let d = self.0.wrapping_sub(earlier.0);
        if (d as i32) < 0 { 0 } else { d }
    }
}

/// Whole ticks in `secs` seconds, rounded up.
#[must_use]
pub const fn ticks_from_secs(secs: u64) -> u32 {
    ((secs * NS_PER_SEC + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT) as u32
}

/// Nanoseconds in `ticks`.
#[must_use]
pub const fn ns_from_ticks(ticks: u32) -> u64 {
    (ticks as u64) << TICK_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let before = Tick(u32::MAX - 1);
        let after = before.plus(5);
        assert!(after.is_after(before));
        assert!(!before.is_after(after));
        assert_eq!(after.since(before), 5);
        assert_eq!(before.since(after), 0);
    }

    #[test]
    fn the_longest_timeout_fits() {
        assert!(ticks_from_secs(432_000) < u32::MAX / 2);
        assert_eq!(ticks_from_secs(1), 60);
    }
}

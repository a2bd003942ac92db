//! What the SYNs between two hosts have had of the ring.

/// SYNs counted in a word, by kind.
const COUNT: u64 = 0xffff;
const HELD: u32 = 16;

/// `Pair::window`, decoded: what the SYNs between two hosts have had of the ring in
/// a second, `second << 32 | held << 16 | reported`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairWindow(pub u64);

impl PairWindow {
    /// The counts of the second that `now_ns` is in, of which `word` may be or not.
    ///
    /// 2^30 ns are near enough to a second, and cost no division.
    #[inline(always)]
    #[must_use]
    pub const fn at(word: u64, now_ns: u64) -> Self {
        let second = (now_ns >> 30) << 32;
        if word >> 32 == second >> 32 {
            Self(word)
        } else {
            Self(second)
        }
    }

    /// SYNs reported to the agent, without a frame.
    #[inline(always)]
    #[must_use]
    pub const fn reported(self) -> u32 {
        (self.0 & COUNT) as u32
    }

    /// SYNs held, less those whose connection was expected after all.
    #[inline(always)]
    #[must_use]
    pub const fn held(self) -> u32 {
        (self.0 >> HELD & COUNT) as u32
    }

    /// With another one reported, of which there must be fewer than 2^16.
    #[inline(always)]
    #[must_use]
    pub const fn with_report(self) -> Self {
        Self(self.0 + 1)
    }

    /// With another one held, likewise.
    #[inline(always)]
    #[must_use]
    pub const fn with_hold(self) -> Self {
        Self(self.0 + (1 << HELD))
    }

    /// With a held one given back, if there is any.
    #[inline(always)]
    #[must_use]
    pub const fn without_hold(self) -> Self {
        if self.held() == 0 {
            self
        } else {
            Self(self.0 - (1 << HELD))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1 << 30;

    #[test]
    fn each_second_begins_with_nothing() {
        let now = 7 * SECOND + 5;
        let window = PairWindow::at(0, now).with_hold().with_report().with_hold();
        assert_eq!((window.held(), window.reported()), (2, 1));
        assert_eq!(PairWindow::at(window.0, now + SECOND - 6), window);
        let next = PairWindow::at(window.0, now + SECOND);
        assert_eq!((next.held(), next.reported()), (0, 0));
        assert_eq!(next.0 >> 32, 8);
    }

    #[test]
    fn what_is_given_back_was_held() {
        let window = PairWindow::at(0, 3 * SECOND).with_report();
        assert_eq!(window.without_hold(), window);
        assert_eq!(window.with_hold().without_hold(), window);
    }
}

//! Warnings that an outsider could cause without end.

use firewall_common::time::NS_PER_SEC;

/// Time between two warnings of a kind.
const PAUSE_NS: u64 = 60 * NS_PER_SEC;

/// Counts what would be warned of each time, and says when to.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    last_ns: Option<u64>,
    count: u64,
}

impl Seldom {
    /// It happened again: how often so far, if that is to be said now.
    pub(super) fn say(&mut self, now_ns: u64) -> Option<u64> {
        self.count += 1;
        let recently = |last: u64| now_ns.saturating_sub(last) < PAUSE_NS;
        if self.last_ns.is_some_and(recently) {
            return None;
        }
        self.last_ns = Some(now_ns);
        Some(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_minute_with_the_count() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.say(5), Some(1));
        assert_eq!(seldom.say(6), None);
        assert_eq!(seldom.say(4 + PAUSE_NS), None);
        assert_eq!(seldom.say(5 + PAUSE_NS), Some(4));
        assert_eq!(seldom.say(6 + PAUSE_NS), None);
    }
}

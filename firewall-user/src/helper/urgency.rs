//! Ahead of other processes, while that costs them little.
//!
//! What a session waits for is not the work that a line makes, which is some
//! microseconds, but the turn of the thread that does it: on a busy machine that is
//! milliseconds, and the data connection's SYN comes meanwhile. A thread in a real-time
//! class has its turn at once. But who floods the helper with lines would then take a
//! CPU from everybody else, so it is in that class only as long as it needs little.
//! What it needs is what it uses there, which it has at once; in the ordinary class it is
//! what it uses and what it waits for its turn, as others leave it less than it needs.

use std::fs;

use crate::bpf::sys::{monotonic_ns, set_realtime, thread_cpu_ns};

/// Of one CPU, in parts of [`WHOLE`]: with more it goes back to the ordinary class.
const TOO_MUCH: u64 = 50;
/// With less at each of [`CALM`] looks in a row it is put ahead again.
const LITTLE: u64 = 25;
const WHOLE: u64 = 100;
const CALM: u32 = 8;
/// What the scheduler counts of the thread that reads it.
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

/// The class of the scheduler that a thread is in.
#[derive(Debug)]
pub struct Urgency {
    wanted: bool,
    ahead: bool,
    /// Looks in a row at which it needed little, in the ordinary class.
    calm: u32,
    at_ns: u64,
    used_ns: u64,
    /// As [`waited_ns`], at the last look in the ordinary class.
    waited_ns: Option<u64>,
}

impl Urgency {
    /// Of the calling thread, which is put ahead of others if `wanted`. What stands
    /// against that is logged: it works as well as others let it.
    #[must_use]
    pub fn new(wanted: bool) -> Self {
        let mut urgency = Self {
            wanted,
            ahead: false,
            calm: 0,
            at_ns: monotonic_ns(),
            used_ns: thread_cpu_ns(),
            waited_ns: None,
        };
        urgency.put(wanted);
        urgency
    }

    /// Looks at what the thread has used since the last look; for the same thread, some
    /// times a second.
    pub fn review(&mut self) {
        if !self.wanted {
            return;
        }
        // A thread that is ahead waits for nobody, and to look would cost more than the rest.
        let waited_ns = if self.ahead { None } else { waited_ns() };
        let (at_ns, used_ns) = (monotonic_ns(), thread_cpu_ns());
        let passed = at_ns.saturating_sub(self.at_ns);
        let used = used_ns.saturating_sub(self.used_ns);
        let waited = waited_ns.zip(self.waited_ns);
        let waited = waited.map(|(now, before)| now.saturating_sub(before));
        (self.at_ns, self.used_ns, self.waited_ns) = (at_ns, used_ns, waited_ns);
        let (ahead, calm) = if self.ahead {
            (stays_ahead(used, passed), 0)
        } else {
            comes_again(self.calm, used, waited, passed)
        };
        self.calm = calm;
        self.put(ahead);
    }

    fn put(&mut self, ahead: bool) {
        if self.ahead == ahead {
            return;
        }
        match set_realtime(ahead) {
            Ok(()) => self.ahead = ahead,
            Err(error) => {
                log::warn!(
                    "the FTP helper waits for its turn like any other process: {error}; give \
                     pinhole CAP_SYS_NICE, or set [ftp] scheduling = \"normal\""
                );
                self.wanted = false;
            }
        }
    }
}

/// Does a thread stay ahead that used `used` ns of `passed`?
const fn stays_ahead(used: u64, passed: u64) -> bool {
    used.saturating_mul(WHOLE) < passed.saturating_mul(TOO_MUCH)
}

/// Is a thread in the ordinary class put ahead that was `calm` so often, and in the `passed` ns
/// since used `used` and waited `waited` for its turn? And how often it was calm with that.
/// Unless it is known what it waited for, it may have needed everything.
const fn comes_again(calm: u32, used: u64, waited: Option<u64>, passed: u64) -> (bool, u32) {
    let needed = match waited {
        Some(waited) => used.saturating_add(waited),
        None => u64::MAX,
    };
    if needed.saturating_mul(WHOLE) >= passed.saturating_mul(LITTLE) {
        return (false, 0);
    }
    let calm = calm.saturating_add(1);
    (calm >= CALM, calm)
}

/// How long the calling thread has waited for its turn in all, ns; `None` from a kernel that
/// does not count it (`CONFIG_SCHED_INFO`), or without a /proc.
fn waited_ns() -> Option<u64> {
    waited(&fs::read_to_string(SCHEDSTAT).ok()?)
}

/// Time on a CPU, time waiting for one, turns (Documentation/scheduler/sched-stats.rst).
fn waited(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_half_of_a_cpu_goes_back() {
        assert_eq!(
            [0, 49, 50, 100].map(|used| stays_ahead(used, 100)),
            [true, true, false, false]
        );
    }

    /// How many looks, each with what was used and waited for in 100 ns, it takes to come again.
    fn looks(of: impl IntoIterator<Item = (u64, Option<u64>)>) -> Option<usize> {
        let mut calm = 0;
        of.into_iter().position(|(used, waited)| {
            let (ahead, now) = comes_again(calm, used, waited, 100);
            calm = now;
            ahead
        })
    }

    #[test]
    fn who_needs_little_for_a_while_comes_again() {
        let idle = (2, Some(3));
        assert_eq!(looks([idle; 20]), Some(7));
        // A busy moment, and it begins anew.
        let busy = [[idle; 7].as_slice(), &[(24, Some(1))], &[idle; 20]].concat();
        assert_eq!(looks(busy), Some(15));
    }

    #[test]
    fn who_starves_is_not_idle() {
        assert_eq!(looks([(10, Some(90)); 100]), None);
        assert_eq!(looks([(0, Some(100)); 100]), None);
        assert_eq!(looks([(0, None); 100]), None);
        assert_eq!(looks([(0, Some(u64::MAX)); 100]), None);
    }

    #[test]
    fn the_scheduler_counts_the_wait() {
        assert_eq!(waited("8166 2043 12\n"), Some(2043));
        assert_eq!(waited(""), None);
        assert!(waited_ns().is_some());
    }

    #[test]
    fn one_that_is_not_wanted_stays_where_it_is() {
        let mut urgency = Urgency::new(false);
        urgency.review();
        assert!(!urgency.ahead);
    }
}

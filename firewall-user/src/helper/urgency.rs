//! Ahead of other processes, while that costs them little.
//!
//! What a session waits for is not the work that a line makes, which is some
//! microseconds, but the turn of the thread that does it: on a busy machine that is
//! milliseconds, and the data connection's SYN comes meanwhile. A thread in a real-time
//! class has its turn at once. But who floods the helper with lines would then take a
//! CPU from everybody else, so it is in that class only as long as it needs little.

use crate::bpf::sys::{monotonic_ns, set_realtime, thread_cpu_ns};

/// Of one CPU, in parts of [`WHOLE`]: with more it goes back to the ordinary class.
const TOO_MUCH: u64 = 50;
/// With less it is put ahead again.
const LITTLE: u64 = 25;
const WHOLE: u64 = 100;

/// The class of the scheduler that a thread is in.
#[derive(Debug)]
pub struct Urgency {
    wanted: bool,
    ahead: bool,
    at_ns: u64,
    used_ns: u64,
}

impl Urgency {
    /// Of the calling thread, which is put ahead of others if `wanted`. What stands
    /// against that is logged: it works as well as others let it.
    #[must_use]
    pub fn new(wanted: bool) -> Self {
        let mut urgency = Self {
            wanted,
            ahead: false,
            at_ns: monotonic_ns(),
            used_ns: thread_cpu_ns(),
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
        let (at_ns, used_ns) = (monotonic_ns(), thread_cpu_ns());
        let passed = at_ns.saturating_sub(self.at_ns);
        let used = used_ns.saturating_sub(self.used_ns);
        (self.at_ns, self.used_ns) = (at_ns, used_ns);
        self.put(is_ahead(self.ahead, used, passed));
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

/// Is a thread to be ahead that used `used` ns of `passed`?
const fn is_ahead(ahead: bool, used: u64, passed: u64) -> bool {
    let limit = if ahead { TOO_MUCH } else { LITTLE };
    used.saturating_mul(WHOLE) < passed.saturating_mul(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_much_goes_back_and_comes_again_when_it_takes_little() {
        let mut ahead = true;
        let shares = [0, 10, 49, 51, 49, 26, 24, 49, 100, 0];
        let seen = shares.map(|share| {
            ahead = is_ahead(ahead, share, 100);
            ahead
        });
        let want = [
            true, true, true, false, false, false, true, true, false, true,
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn one_that_is_not_wanted_stays_where_it_is() {
        let mut urgency = Urgency::new(false);
        urgency.review();
        assert!(!urgency.ahead);
    }
}

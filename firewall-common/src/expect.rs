//! Taking a pinhole: the word that says whose it is.

use crate::{abi::ExpectState, tcp::Word, verdict::DropReason};

/// What became of a SYN that has an expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Taken {
    /// It took the pinhole.
    Now,
    /// It has had it: a SYN that is sent again finds its own mark.
    Before,
    /// It is not for it.
    Refused(DropReason),
}

impl Taken {
    /// Does it go through?
    #[inline(always)]
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Now | Self::Before)
    }
}

/// Takes the pinhole whose [`crate::abi::Expectation::state`] is `state` for a SYN
/// from `port`: one connection gets it.
///
/// The parent is looked at after the swap: alive then, it was alive when the pinhole
/// was taken, for what ended does not live again. A pinhole that was taken from a
/// dead parent stays taken, and is of no use to anybody.
#[inline(always)]
pub fn take<W: Word<u64>>(state: W, port: u16, parent_lives: impl FnOnce() -> bool) -> Taken {
    let mine = ExpectState::Taken(port).word();
    let taken = match state.swap(ExpectState::Free.word(), mine) {
        Ok(()) => Taken::Now,
        Err(word) if word == mine => Taken::Before,
        Err(_) => return Taken::Refused(DropReason::ExpectationTaken),
    };
    if parent_lives() {
        taken
    } else {
        Taken::Refused(DropReason::ExpectationOrphaned)
    }
}

/// The connection from `port` has come about: from now on a SYN of that port is one
/// of another connection. It fails if the port was negotiated anew meanwhile.
#[inline(always)]
pub fn serve<W: Word<u64>>(state: W, port: u16) {
    let _ = state.swap(
        ExpectState::Taken(port).word(),
        ExpectState::served_word(port),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore::{self, Cpu, Kind};

    /// The pinhole's word, and whether its parent lives.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Memory {
        state: u64,
        parent: bool,
        /// It was free, and was taken, when the parent had ended.
        taken_late: bool,
    }

    #[derive(Clone, Copy)]
    struct State<'a>(&'a Cpu<'a, Memory>);

    impl Word<u64> for State<'_> {
        fn load(self) -> u64 {
            self.0.access(0, Kind::Load, |memory| memory.state)
        }

        fn store(self, value: u64) {
            self.0.access(0, Kind::Change, |memory| {
                memory.state = value;
                0
            });
        }

        fn swap(self, old: u64, new: u64) -> Result<(), u64> {
            let seen = self.0.access(0, Kind::Change, |memory| {
                let seen = memory.state;
                if seen == old {
                    memory.state = new;
                    memory.taken_late |= seen == ExpectState::Free.word() && !memory.parent;
                }
                seen
            });
            if seen == old { Ok(()) } else { Err(seen) }
        }
    }

    const FREE: Memory = Memory {
        state: 0,
        parent: true,
        taken_late: false,
    };
    const TAKEN: Taken = Taken::Refused(DropReason::ExpectationTaken);
    const ORPHANED: Taken = Taken::Refused(DropReason::ExpectationOrphaned);

    fn syn(cpu: &Cpu<'_, Memory>, port: u16) -> Taken {
        take(State(cpu), port, || {
            cpu.access(1, Kind::Load, |m| m.parent.into()) != 0
        })
    }

    fn end_parent(cpu: &Cpu<'_, Memory>) -> Taken {
        cpu.access(1, Kind::Change, |memory| {
            memory.parent = false;
            0
        });
        ORPHANED
    }

    #[test]
    fn of_connections_at_once_one_gets_the_pinhole() {
        let [a, b, c] = [1, 2, 3].map(|port| move |cpu: &Cpu<'_, Memory>| syn(cpu, port));
        explore::all(&FREE, &[&a, &b, &c], |memory, taken, schedule| {
            let open: Vec<u16> = (1..)
                .zip(taken)
                .filter(|(_, t)| t.is_open())
                .map(|(n, _)| n)
                .collect();
            assert_eq!(open.len(), 1, "{schedule} {taken:?}");
            assert_eq!(
                memory.state,
                ExpectState::Taken(open[0]).word(),
                "{schedule}"
            );
        });
    }

    #[test]
    fn a_syn_and_its_copy_are_one_connection() {
        let one = |cpu: &Cpu<'_, Memory>| syn(cpu, 1);
        explore::all(&FREE, &[&one, &one], |_, taken, schedule| {
            let now = taken.iter().filter(|t| **t == Taken::Now).count();
            let before = taken.iter().filter(|t| **t == Taken::Before).count();
            assert_eq!((now, before), (1, 1), "{schedule}: counted once");
        });
    }

    /// A copy of the taker's SYN either came before the connection was there, or is
    /// one of another connection.
    #[test]
    fn what_is_served_is_not_taken_again() {
        let taken = Memory {
            state: ExpectState::Taken(1).word(),
            ..FREE
        };
        let is_served = |cpu: &Cpu<'_, Memory>| {
            let served = ExpectState::served_word(1);
            cpu.access(0, Kind::Load, |memory| (memory.state == served).into()) != 0
        };
        let copy = |cpu: &Cpu<'_, Memory>| {
            let before = is_served(cpu);
            let taken = syn(cpu, 1);
            (before, taken, is_served(cpu))
        };
        let served = |cpu: &Cpu<'_, Memory>| {
            serve(State(cpu), 1);
            (true, Taken::Now, true)
        };
        let other = |cpu: &Cpu<'_, Memory>| (true, syn(cpu, 2), true);
        explore::all(
            &taken,
            &[&copy, &served, &other],
            |memory, results, schedule| {
                assert_eq!(memory.state, ExpectState::served_word(1), "{schedule}");
                match results[0] {
                    (true, taken, _) => assert_eq!(taken, TAKEN, "{schedule}"),
                    (_, taken, false) => assert_eq!(taken, Taken::Before, "{schedule}"),
                    (_, taken, _) => {
                        assert!(taken == TAKEN || taken == Taken::Before, "{schedule}")
                    }
                }
                assert_eq!(results[2].1, TAKEN, "{schedule}");
            },
        );
    }

    /// Negotiated anew while its last connection is told served: the new one is free.
    #[test]
    fn a_pinhole_negotiated_anew_is_not_served_by_the_last_connection() {
        let taken = Memory {
            state: ExpectState::Taken(1).word(),
            ..FREE
        };
        let served = |cpu: &Cpu<'_, Memory>| {
            serve(State(cpu), 1);
            Taken::Now
        };
        let anew = |cpu: &Cpu<'_, Memory>| {
            State(cpu).store(ExpectState::Free.word());
            Taken::Now
        };
        explore::all(&taken, &[&served, &anew], |memory, _, schedule| {
            assert_eq!(memory.state, ExpectState::Free.word(), "{schedule}");
        });
    }

    /// Who got the pinhole got it while the control connection lived.
    #[test]
    fn a_pinhole_is_not_taken_from_a_parent_that_has_ended() {
        let one = |cpu: &Cpu<'_, Memory>| {
            let ended = cpu.access(1, Kind::Load, |memory| (!memory.parent).into()) != 0;
            (ended, syn(cpu, 1))
        };
        let end = |cpu: &Cpu<'_, Memory>| (true, end_parent(cpu));
        explore::all(&FREE, &[&one, &end, &one], |memory, results, schedule| {
            for (ended, taken) in results {
                assert!(!ended || *taken == ORPHANED, "{schedule} {results:?}");
                let late = *taken == Taken::Now && memory.taken_late;
                assert!(!late, "{schedule} {results:?}");
            }
        });
    }
}

//! Two CPUs in one flow at once, under every schedule with a bounded number of
//! switches between them.
//!
//! Each access to a word of the entry is a point at which the other CPU may go
//! on. A schedule says after how many accesses it does: all of them are tried
//! with up to three switches, which is what it takes for the races that are known
//! of this kind of code (a lost swap, a stale load, a claim met half-way).

use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};

use super::*;

/// Whose turn it is.
struct Turn {
    running: usize,
    /// Accesses left before the next switch, and those of the switches after.
    left: usize,
    next: Vec<usize>,
    done: [bool; 2],
}

struct Scheduler {
    turn: Mutex<Turn>,
    changed: Condvar,
}

impl Scheduler {
    fn new(first: usize, schedule: &[usize]) -> Self {
        let mut next: Vec<usize> = schedule.iter().rev().copied().collect();
        let left = next.pop().unwrap_or(usize::MAX);
        Self {
            turn: Mutex::new(Turn {
                running: first,
                left,
                next,
                done: [false; 2],
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits until it is the turn of `cpu` for one more access.
    fn access(&self, cpu: usize) {
        let mut turn = self.turn.lock().unwrap();
        loop {
            if turn.running != cpu {
                turn = self.changed.wait(turn).unwrap();
            } else if turn.left == 0 && !turn.done[1 - cpu] {
                turn.running = 1 - cpu;
                turn.left = turn.next.pop().unwrap_or(usize::MAX);
                self.changed.notify_all();
            } else {
                turn.left = turn.left.saturating_sub(1);
                return;
            }
        }
    }

    fn finish(&self, cpu: usize) {
        let mut turn = self.turn.lock().unwrap();
        turn.done[cpu] = true;
        if turn.running == cpu {
            turn.running = 1 - cpu;
            turn.left = turn.next.pop().unwrap_or(usize::MAX);
        }
        self.changed.notify_all();
    }
}

/// An entry that two CPUs share.
struct Shared {
    state: AtomicU64,
    last: AtomicU64,
    seen: AtomicU32,
    /// By direction: end, maxend, maxack, maxwin.
    tcp: [[AtomicU32; 4]; 2],
}

impl Shared {
    fn new(flow: &Flow) -> Self {
        let side =
            |side: &TcpSide| [side.end, side.maxend, side.maxack, side.maxwin].map(AtomicU32::new);
        Self {
            state: AtomicU64::new(flow.state),
            last: AtomicU64::new(flow.last),
            seen: AtomicU32::new(flow.seen),
            tcp: [side(&flow.tcp[0]), side(&flow.tcp[1])],
        }
    }

    fn flow(&self, was: &Flow) -> Flow {
        let side = |side: &[AtomicU32; 4]| TcpSide {
            end: side[0].load(SeqCst),
            maxend: side[1].load(SeqCst),
            maxack: side[2].load(SeqCst),
            maxwin: side[3].load(SeqCst),
        };
        Flow {
            state: self.state.load(SeqCst),
            last: self.last.load(SeqCst),
            seen: self.seen.load(SeqCst),
            tcp: [side(&self.tcp[0]), side(&self.tcp[1])],
            ..*was
        }
    }
}

/// The entry as one CPU sees it.
#[derive(Clone, Copy)]
struct Cpu<'a> {
    entry: &'a Shared,
    scheduler: &'a Scheduler,
    number: usize,
}

struct At<'a, T> {
    word: &'a T,
    scheduler: &'a Scheduler,
    cpu: usize,
}

impl<T> Clone for At<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for At<'_, T> {}

macro_rules! word {
    ($atomic:ty, $width:ty) => {
        impl Word<$width> for At<'_, $atomic> {
            fn load(self) -> $width {
                self.scheduler.access(self.cpu);
                self.word.load(SeqCst)
            }

            fn store(self, value: $width) {
                self.scheduler.access(self.cpu);
                self.word.store(value, SeqCst);
            }

            fn swap(self, old: $width, new: $width) -> Result<(), $width> {
                self.scheduler.access(self.cpu);
                let swapped = self.word.compare_exchange(old, new, SeqCst, SeqCst);
                swapped.map(|_| ())
            }
        }
    };
}
word!(AtomicU64, u64);
word!(AtomicU32, u32);

impl<'a> Cpu<'a> {
    fn at<T>(self, word: &'a T) -> At<'a, T> {
        At {
            word,
            scheduler: self.scheduler,
            cpu: self.number,
        }
    }

    fn side(self, direction: Direction, field: usize) -> At<'a, AtomicU32> {
        self.at(&self.entry.tcp[direction.index()][field])
    }
}

impl<'a> Cells for Cpu<'a> {
    type Wide = At<'a, AtomicU64>;
    type Narrow = At<'a, AtomicU32>;

    fn state(self) -> Self::Wide {
        self.at(&self.entry.state)
    }

    fn last(self) -> Self::Wide {
        self.at(&self.entry.last)
    }

    fn seen(self) -> Self::Narrow {
        self.at(&self.entry.seen)
    }

    fn end(self, direction: Direction) -> Self::Narrow {
        self.side(direction, 0)
    }

    fn maxend(self, direction: Direction) -> Self::Narrow {
        self.side(direction, 1)
    }

    fn maxack(self, direction: Direction) -> Self::Narrow {
        self.side(direction, 2)
    }

    fn maxwin(self, direction: Direction) -> Self::Narrow {
        self.side(direction, 3)
    }
}

type Packet = (Direction, Headers);

fn run<E: Cells>(cells: E, (direction, h): &Packet) -> Stepped {
    let arrived = Arrived {
        headers: h,
        segment: Segment::of(h.tcp_flags).unwrap(),
        direction: *direction,
    };
    let mut out = Stepped::NONE;
    step(cells, &arrived, INCARNATION, START, &timeouts(), &mut out);
    out
}

/// One segment on each CPU, under one schedule.
fn race(
    flow: &Flow,
    packets: &[Packet; 2],
    first: usize,
    schedule: &[usize],
) -> (Flow, [Stepped; 2]) {
    let entry = Shared::new(flow);
    let scheduler = Scheduler::new(first, schedule);
    let results = std::thread::scope(|threads| {
        let cpu = |number: usize| {
            let (entry, scheduler, packet) = (&entry, &scheduler, &packets[number]);
            threads.spawn(move || {
                let cells = Cpu {
                    entry,
                    scheduler,
                    number,
                };
                let out = run(cells, packet);
                scheduler.finish(number);
                out
            })
        };
        let both = [cpu(0), cpu(1)];
        both.map(|thread| thread.join().unwrap())
    });
    (entry.flow(flow), results)
}

/// What one order of the two leaves behind.
fn in_order(flow: &Flow, packets: &[Packet; 2], first: usize) -> (Flow, [Stepped; 2]) {
    let cells = FlowCells::new(flow);
    let mut results = [Stepped::NONE; 2];
    for number in [first, 1 - first] {
        results[number] = run(&cells, &packets[number]);
    }
    (cells.flow(), results)
}

/// The longest way through a step, in accesses.
const LONGEST: usize = 40;

/// Runs two segments under all schedules of up to two switches, and every third
/// one of three, and shows each result to `check`.
fn all(flow: &Flow, packets: &[Packet; 2], mut check: impl FnMut(&Flow, &[Stepped; 2], &str)) {
    for first in 0..2 {
        for one in 0..LONGEST {
            for two in 0..LONGEST {
                let three = (one + two) % 3 + 1;
                for schedule in [vec![one, two], vec![one, two, three]] {
                    let (flow, results) = race(flow, packets, first, &schedule);
                    check(&flow, &results, &format!("{first} {schedule:?}"));
                }
            }
        }
    }
}

/// Is what two segments leave behind under every schedule that of one order?
fn is_one_order(flow: &Flow, packets: &[Packet; 2]) {
    let orders = [0, 1].map(|first| in_order(flow, packets, first));
    all(flow, packets, |flow, results, schedule| {
        let whats = results.map(|r| r.what);
        let fits = orders.iter().any(|(after, ordered)| {
            after.state == flow.state
                && after.tcp == flow.tcp
                && ordered.iter().map(|r| r.what).eq(whats)
        });
        assert!(
            fits,
            "{schedule}: {whats:?} {flow:#x?}\nnot one of {orders:#x?}"
        );
    });
}

fn syn_received() -> Flow {
    let mut track = Track::new(&segment(SYN, 1000, 0, 0));
    track.accepts(BACK, &segment(SYN | ACK, 5000, 1001, 0));
    track.flow()
}

#[test]
fn data_of_both_sides() {
    let flow = Track::established().flow();
    let out = segment(ACK, 1001, 5001, 100);
    let back = segment(ACK, 5001, 1001, 300);
    is_one_order(&flow, &[(OUT, out), (BACK, back)]);
}

#[test]
fn data_of_one_side_out_of_order() {
    let flow = Track::established().flow();
    let (one, two) = (segment(ACK, 1001, 5001, 100), segment(ACK, 1101, 5001, 100));
    is_one_order(&flow, &[(OUT, one), (OUT, two)]);
}

#[test]
fn the_ends_of_both_sides() {
    let flow = Track::established().flow();
    let out = segment(FIN | ACK, 1001, 5001, 0);
    let back = segment(FIN | ACK, 5001, 1001, 0);
    is_one_order(&flow, &[(OUT, out), (BACK, back)]);
    all(&flow, &[(OUT, out), (BACK, back)], |flow, _, schedule| {
        assert_eq!(flow.state().state(), State::LastAck as u8, "{schedule}");
        assert!(flow.state().has(flow_flags::FIN_ORIGINAL), "{schedule}");
        assert!(flow.state().has(flow_flags::FIN_REPLY), "{schedule}");
    });
}

#[test]
fn a_reset_and_data() {
    let flow = Track::established().flow();
    let rst = segment(RST, 5001, 0, 0);
    let data = segment(ACK, 1001, 5001, 100);
    all(&flow, &[(BACK, rst), (OUT, data)], |flow, _, schedule| {
        assert_eq!(flow.state().state(), State::Close as u8, "{schedule}");
    });
}

#[test]
fn one_segment_alone_ends_the_handshake() {
    let packets = [
        (OUT, segment(ACK, 1001, 5001, 0)),
        (OUT, segment(ACK, 1001, 5001, 100)),
    ];
    all(&syn_received(), &packets, |flow, results, schedule| {
        let opened = results.iter().filter(|r| r.opened).count();
        assert_eq!(opened, 1, "{schedule}");
        assert_eq!(flow.state().state(), State::Established as u8);
        assert!(flow.state().has(flow_flags::ASSURED));
        assert_eq!(flow.tcp[0].end, 1101, "{schedule}");
        let streams = results.iter().find(|r| r.opened).map(|r| r.streams);
        assert_eq!(streams, Some([1001, 5001]), "{schedule}");
    });
}

/// The values of two SYN-ACKs that contradict one another never mix.
#[test]
fn two_answers_to_one_syn() {
    let flow = Track::new(&segment(SYN, 1000, 0, 0)).flow();
    let packets = [5000, 900_000].map(|seq| (BACK, segment(SYN | ACK, seq, 1001, 0)));
    all(&flow, &packets, |flow, results, schedule| {
        let side = flow.tcp[1];
        assert!(
            side.end == 5001 || side.end == 900_001,
            "{schedule} {side:?}"
        );
        assert_eq!(side.maxend, side.end, "{schedule}");
        assert_eq!(side.maxwin, 1000, "{schedule}");
        assert_eq!(flow.state().state(), State::SynRecv as u8, "{schedule}");
        let accepted = results.iter().filter(|r| r.what == What::Accepted).count();
        assert!(accepted >= 1, "{schedule}");
    });
}

/// The originator's acknowledgement races with the very SYN-ACK it must name: it
/// cannot be known yet, so whatever it names is a guess.
#[test]
fn a_guess_does_not_end_the_handshake() {
    let flow = Track::new(&segment(SYN, 1000, 0, 0)).flow();
    for guess in [0, 1, 4999] {
        let packets = [
            (BACK, segment(SYN | ACK, 5000, 1001, 0)),
            (OUT, segment(ACK, 1001, guess, 0)),
        ];
        all(&flow, &packets, |flow, results, schedule| {
            assert_eq!(flow.state().state(), State::SynRecv as u8, "{schedule}");
            assert_eq!(results[1].what, What::Invalid, "{schedule} {guess}");
        });
    }
}

#[test]
fn no_claim_is_left_behind() {
    let flow = Track::new(&segment(SYN, 1000, 0, 0)).flow();
    let packets = [
        (OUT, segment(SYN, 2000, 0, 0)),
        (OUT, segment(SYN, 3000, 0, 0)),
    ];
    all(&flow, &packets, |flow, _, schedule| {
        let side = flow.tcp[0];
        assert_eq!(side.maxwin, 1000, "{schedule}");
        assert!(side.end == 2001 || side.end == 3001, "{schedule} {side:?}");
        assert_eq!(
            (side.maxend, side.maxack),
            (side.end, side.end),
            "{schedule}"
        );
    });
}

//! Every interleaving of what several CPUs do to one memory.
//!
//! Each CPU runs a function that reaches the memory through [`Cpu::access`] only.
//! Between two accesses anything may happen, so a state of the whole is the memory
//! and, for each CPU, what its accesses have returned so far: the function is run
//! again from its beginning with those, makes one more access, and is stopped at
//! the next. States that were seen before are not followed again. So all schedules
//! are tried, however often they switch, while their number grows with that of the
//! states.
//!
//! A place that one CPU alone reaches, or that nobody writes, is no point at which
//! it matters who goes on. Which places matter is found out: the schedules are tried
//! anew until no place turns up that was thought not to.
//!
//! Accesses are taken as sequentially consistent. The words are swapped by fully
//! ordered instructions; where a plain store would have to be seen before a later
//! load, the code swaps as well.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// What is done to a place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Load,
    /// A store, or a load and a store at once.
    Change,
}

/// By place: who reached it, and who changed it, as bits.
#[derive(Default)]
struct Places(HashMap<usize, [u8; 2]>);

impl Places {
    fn note(&mut self, place: usize, cpu: usize, kind: Kind) {
        let [reached, changed] = self.0.entry(place).or_default();
        *reached |= 1 << cpu;
        if kind == Kind::Change {
            *changed |= 1 << cpu;
        }
    }

    /// Those that more than one CPU reaches and one at least changes.
    fn shared(&self) -> HashSet<usize> {
        let shared = |(place, [reached, changed]): (&usize, &[u8; 2])| {
            (reached.count_ones() > 1 && *changed != 0).then_some(*place)
        };
        self.0.iter().filter_map(shared).collect()
    }
}

/// One CPU on its way through its function.
pub(crate) struct Cpu<'a, M> {
    number: usize,
    memory: RefCell<M>,
    /// What its accesses have returned.
    log: RefCell<Vec<u64>>,
    /// Accesses of this run.
    made: Cell<usize>,
    /// Has this run made its one new access to a shared place?
    advanced: Cell<bool>,
    shared: &'a HashSet<usize>,
    places: &'a RefCell<Places>,
}

/// Ends a run before its next access.
struct Stopped;

impl<M> Cpu<'_, M> {
    /// One access to a place, which nothing interrupts.
    pub(crate) fn access(&self, place: usize, kind: Kind, act: impl FnOnce(&mut M) -> u64) -> u64 {
        let at = self.made.get();
        if let Some(before) = self.log.borrow().get(at) {
            self.made.set(at + 1);
            return *before;
        }
        if self.shared.contains(&place) && self.advanced.replace(true) {
            resume_unwind(Box::new(Stopped));
        }
        self.note(place, kind);
        let value = act(&mut self.memory.borrow_mut());
        self.log.borrow_mut().push(value);
        self.made.set(at + 1);
        value
    }

    /// The last access was one to this place, too.
    pub(crate) fn note(&self, place: usize, kind: Kind) {
        self.places.borrow_mut().note(place, self.number, kind);
    }
}

/// Where a CPU is: what its accesses returned, or its result.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Progress<R> {
    At(Vec<u64>),
    Done(R),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Moment<M, R> {
    memory: M,
    cpus: Vec<Progress<R>>,
}

/// What a CPU does.
pub(crate) type Task<'a, M, R> = &'a dyn Fn(&Cpu<'_, M>) -> R;

/// Shows `check` what every interleaving of `tasks` leaves behind: the memory, the
/// results, and the schedule, as the CPU of each access to a shared place.
pub(crate) fn all<M, R>(start: &M, tasks: &[Task<'_, M, R>], mut check: impl FnMut(&M, &[R], &str))
where
    M: Clone + Eq + Hash,
    R: Clone + Eq + Hash,
{
    let mut shared = HashSet::new();
    loop {
        let places = RefCell::new(Places::default());
        follow(start, tasks, &shared, &places, &mut check);
        let found = places.into_inner().shared();
        if found.is_subset(&shared) {
            return;
        }
        shared.extend(found);
    }
}

/// All interleavings, as far as `shared` places go.
fn follow<M, R>(
    start: &M,
    tasks: &[Task<'_, M, R>],
    shared: &HashSet<usize>,
    places: &RefCell<Places>,
    check: &mut impl FnMut(&M, &[R], &str),
) where
    M: Clone + Eq + Hash,
    R: Clone + Eq + Hash,
{
    let first = Moment {
        memory: start.clone(),
        cpus: vec![Progress::At(Vec::new()); tasks.len()],
    };
    let mut seen = HashSet::new();
    let mut open = vec![(first, String::new())];
    while let Some((moment, schedule)) = open.pop() {
        if seen.contains(&moment) {
            continue;
        }
        seen.insert(moment.clone());
        let mut ended = true;
        for (number, task) in tasks.iter().enumerate() {
            let Progress::At(log) = &moment.cpus[number] else {
                continue;
            };
            ended = false;
            let cpu = Cpu {
                number,
                memory: RefCell::new(moment.memory.clone()),
                log: RefCell::new(log.clone()),
                made: Cell::new(0),
                advanced: Cell::new(false),
                shared,
                places,
            };
            let progress = advance(&cpu, *task);
            let mut next = Moment {
                memory: cpu.memory.into_inner(),
                cpus: moment.cpus.clone(),
            };
            next.cpus[number] = progress;
            open.push((next, format!("{schedule}{number}")));
        }
        if ended {
            let done = |cpu| match cpu {
                Progress::Done(result) => Some(result),
                Progress::At(_) => None,
            };
            let results: Vec<R> = moment.cpus.into_iter().filter_map(done).collect();
            check(&moment.memory, &results, &schedule);
        }
    }
}

/// Lets a CPU make one more access to a shared place, and go on to its next or to
/// its end.
fn advance<M, R>(cpu: &Cpu<'_, M>, task: Task<'_, M, R>) -> Progress<R> {
    match catch_unwind(AssertUnwindSafe(|| task(cpu))) {
        Ok(result) => Progress::Done(result),
        Err(stop) if stop.is::<Stopped>() => Progress::At(cpu.log.take()),
        Err(failure) => resume_unwind(failure),
    }
}

#[test]
fn a_lost_update_is_found_and_every_order_is_seen() {
    let add = |cpu: &Cpu<'_, u64>| {
        let value = cpu.access(0, Kind::Load, |memory| *memory);
        cpu.access(0, Kind::Change, |memory| {
            *memory = value + 1;
            value
        })
    };
    let mut ends = HashSet::new();
    all(&0, &[&add, &add], |memory, results, _| {
        ends.insert((*memory, results.to_vec()));
    });
    let expected = [(1, vec![0, 0]), (2, vec![0, 1]), (2, vec![1, 0])];
    assert_eq!(ends, HashSet::from(expected));
}

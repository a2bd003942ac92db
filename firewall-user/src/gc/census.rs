//! What one pass over a table tells of what the table displaced.
//!
//! The kernel gives no sign when an LRU map displaces an entry to take another.
//! It shows all the same:
//!
//! - **How many.** The programs count every entry that they put into a table or
//!   take out of it, by counters that only grow. What was put in, was not taken
//!   out and is not there any more, the table displaced. The counts are taken so
//!   that what happens during a pass lowers the number: it is a lower bound, and
//!   exact as soon as the table is quiet for a pass.
//! - **How old.** By Little's law a displaced entry had been in the table for as
//!   long, on average, as the entries present divided by the rate of displacing.
//! - **In which state.** The collector remembers a sample of what it read. An
//!   entry of the sample that is not there in the next pass, although its time
//!   was not over and it was not moved to the proved table, was displaced; its
//!   state is the one last read. Under a flood most entries come and go between
//!   two passes, and no witness is left.

use std::collections::HashMap;

use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{CENSUS_STATES, Census, Flow, FlowKey6, FlowState, TableCounter},
    tcp::generic,
    time::Tick,
    wire::proto,
};

/// Entries of one table that are remembered from one pass to the next.
const SAMPLE: usize = 2048;
const NS_PER_MS: u64 = 1_000_000;

/// A remembered entry.
#[derive(Clone, Copy, Debug)]
struct Seen {
    state: usize,
    incarnation: u32,
    created: Tick,
    expires: Tick,
}

/// Of one table.
pub(super) struct Watch {
    /// As written to the map.
    pub(super) census: Census,
    /// Of the last whole pass.
    before: HashMap<FlowKey6, Seen>,
    /// Of the pass under way.
    sample: HashMap<FlowKey6, Seen>,
    began: TableCounter,
    read: u64,
    expired: u64,
    /// Of these, deleted by the collector.
    deleted: u64,
    /// Is it read to its end, and not counted up yet?
    done: bool,
}

impl Watch {
    /// Goes on from what an earlier agent found.
    pub(super) fn new(census: Census) -> Self {
        Self {
            census,
            before: HashMap::new(),
            sample: HashMap::new(),
            began: TableCounter::zeroed(),
            read: 0,
            expired: 0,
            deleted: 0,
            done: false,
        }
    }

    /// Entries in the table, by its counters, as far as is known what it displaced.
    pub(super) const fn held(&self, counter: TableCounter) -> u64 {
        let gone = counter.removed.saturating_add(self.census.evicted);
        counter.created.saturating_sub(gone)
    }

    /// Begins a pass; `counter` is of all CPUs.
    pub(super) fn begin(&mut self, counter: TableCounter) {
        self.began = counter;
        self.read = 0;
        self.expired = 0;
        self.deleted = 0;
        self.done = false;
        self.sample.clear();
    }

    /// An entry that the pass has read.
    pub(super) fn read(&mut self, key: &FlowKey6, flow: &Flow, expires: Tick, expired: bool) {
        self.read += 1;
        self.expired += u64::from(expired);
        self.before.remove(key);
        if !expired && self.sample.len() < SAMPLE {
            let word = FlowState(flow.state);
            let seen = Seen {
                state: state_index(key.proto(), word.state()),
                incarnation: word.incarnation(),
                created: Tick(flow.created),
                expires,
            };
            self.sample.insert(*key, seen);
        }
    }

    /// Entries of the pass that the collector had deleted.
    pub(super) const fn deleted(&mut self, count: u32) {
        self.deleted += count as u64;
    }

    /// The pass has come to the end of the table.
    pub(super) fn end(&mut self) {
        self.done = true;
    }

    /// Is a pass read, but not counted up?
    pub(super) const fn is_done(&self) -> bool {
        self.done
    }

    /// What the table took and lost from the beginning of the pass to `counter`.
    pub(super) const fn churn(&self, counter: TableCounter) -> u64 {
        counter.created.wrapping_sub(self.began.created)
            + counter.removed.wrapping_sub(self.began.removed)
    }

    /// Counts the pass up. `counter` is read some time after its end, so that no
    /// CPU is still between a deletion and its count. `incarnation` tells that of
    /// the proved flow of a key.
    pub(super) fn settle(
        &mut self,
        counter: TableCounter,
        now_ns: u64,
        incarnation: impl Fn(&FlowKey6) -> Option<u32>,
    ) {
        self.done = false;
        let before = std::mem::replace(&mut self.before, std::mem::take(&mut self.sample));
        let census = &mut self.census;
        let present = self.read.saturating_sub(self.deleted);
        let found = displaced(self.began.created, counter.removed, present);
        let more = found.saturating_sub(census.evicted);
        let interval_ms = now_ns.saturating_sub(census.at_ns) / NS_PER_MS;
        if let Some(stay_ms) = present.saturating_mul(interval_ms).checked_div(more) {
            if census.at_ns != 0 {
                census.stay_ms = stay_ms;
            }
            let now = Tick::from_ns(now_ns);
            let gone = before.iter().filter(|(key, seen)| {
                !now.is_after(seen.expires) && incarnation(key) != Some(seen.incarnation)
            });
            for (_, seen) in gone {
                witness(census, seen, now);
            }
        }
        census.evicted = census.evicted.max(found);
        census.at_ns = now_ns;
        census.present = present;
        census.expired = self.expired;
        census.created = self.began.created;
        census.removed = counter.removed;
    }
}

/// Entries that a table displaced, at least: those that were put in before a
/// pass began, not taken out until after its end, and not met on the way.
const fn displaced(created_before: u64, removed_after: u64, present: u64) -> u64 {
    created_before.saturating_sub(removed_after.saturating_add(present))
}

fn witness(census: &mut Census, seen: &Seen, now: Tick) {
    let age = now.since(seen.created);
    let first = census.witnessed.iter().all(|count| *count == 0);
    if let Some(count) = census.witnessed.get_mut(seen.state) {
        *count = count.saturating_add(1);
    }
    let [least, most] = census.ages;
    census.ages = if first {
        [age, age]
    } else {
        [least.min(age), most.max(age)]
    };
}

/// Index into [`Census::witnessed`].
fn state_index(protocol: u8, state: u8) -> usize {
    const UNREPLIED: usize = CENSUS_STATES - 2;
    match (protocol, state) {
        (proto::TCP, state) => usize::from(state).min(UNREPLIED - 1),
        (_, generic::REPLIED) => UNREPLIED + 1,
        _ => UNREPLIED,
    }
}

/// The part of a tier's `drift` (flows on record less flows read) that cannot
/// come from what happened during the pass: to be taken off the record.
pub(super) fn excess(drift: i64, churn: u64) -> i64 {
    let beyond = drift.unsigned_abs().saturating_sub(churn);
    drift.signum() * i64::try_from(beyond).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use firewall_common::{abi::FlowKey4, key::FlowKey as _, tcp::State};

    use super::*;

    fn key(n: u16) -> FlowKey6 {
        FlowKey4::from_parts(1, 2, n, 80, proto::TCP, 0).widen()
    }

    fn flow(state: State) -> Flow {
        Flow {
            state: FlowState::new(state as u8, 0, 7).0,
            ..Flow::zeroed()
        }
    }

    fn counter(created: u64, removed: u64) -> TableCounter {
        TableCounter { created, removed }
    }

    fn pass(watch: &mut Watch, began: TableCounter, ended: TableCounter, keys: &[u16], at_s: u64) {
        watch.begin(began);
        for n in keys {
            let expires = Tick::from_ns(60_000_000_000);
            watch.read(&key(*n), &flow(State::SynSent), expires, false);
        }
        watch.end();
        watch.settle(ended, at_s * 1_000_000_000, |_| None);
    }

    #[test]
    fn what_is_neither_taken_out_nor_there_was_displaced() {
        let mut watch = Watch::new(Census::zeroed());
        pass(&mut watch, counter(5, 2), counter(5, 2), &[1, 2, 3], 1);
        assert_eq!(watch.census.evicted, 0);
        pass(&mut watch, counter(9, 3), counter(9, 3), &[3, 4], 2);
        assert_eq!(watch.census.evicted, 4);
        // Two entries present, four displaced in a second.
        assert_eq!(watch.census.stay_ms, 500);
        // Keys 1 and 2 were read a second ago, and their time was not over.
        assert_eq!(watch.census.witnessed[State::SynSent as usize], 2);
        assert_eq!(watch.census.witnessed.iter().sum::<u32>(), 2);
        let second = Tick::from_ns(2_000_000_000).0;
        assert_eq!(watch.census.ages, [second, second]);
    }

    #[test]
    fn what_happens_during_a_pass_is_not_taken_for_displaced() {
        let mut watch = Watch::new(Census::zeroed());
        // Three are put in after the pass has been where they are, one is taken
        // out after it was read.
        pass(
            &mut watch,
            counter(5, 0),
            counter(8, 1),
            &[1, 2, 3, 4, 5],
            1,
        );
        assert_eq!(watch.census.evicted, 0);
        // The number never falls.
        watch.census.evicted = 10;
        pass(&mut watch, counter(8, 1), counter(8, 1), &[1, 2], 2);
        assert_eq!(watch.census.evicted, 10);
    }

    #[test]
    fn what_the_collector_deletes_itself_is_not_present() {
        let mut watch = Watch::new(Census::zeroed());
        watch.begin(counter(5, 0));
        for n in 0..3 {
            watch.read(&key(n), &flow(State::Close), Tick(1), true);
        }
        watch.deleted(2);
        watch.end();
        watch.settle(counter(5, 2), 1_000_000_000, |_| None);
        assert_eq!(watch.census.evicted, 2);
        assert_eq!((watch.census.present, watch.census.expired), (1, 3));
    }

    #[test]
    fn what_went_as_it_should_is_no_witness() {
        let mut watch = Watch::new(Census::zeroed());
        let soon = Tick::from_ns(1_500_000_000);
        watch.begin(counter(2, 0));
        watch.read(&key(1), &flow(State::SynSent), soon, false);
        let later = Tick::from_ns(60_000_000_000);
        watch.read(&key(2), &flow(State::SynRecv), later, false);
        watch.end();
        watch.settle(counter(2, 0), 1_000_000_000, |_| None);
        // One expired since, the other was promoted; a third was displaced unseen.
        watch.begin(counter(5, 2));
        watch.end();
        watch.settle(counter(5, 2), 3_000_000_000, |_| Some(7));
        assert_eq!(watch.census.evicted, 3);
        assert_eq!(watch.census.witnessed, [0; CENSUS_STATES]);
    }

    #[test]
    fn only_what_a_pass_cannot_explain_is_corrected() {
        assert_eq!(excess(40, 0), 40);
        assert_eq!(excess(-40, 0), -40);
        assert_eq!(excess(40, 30), 10);
        assert_eq!(excess(-40, 30), -10);
        assert_eq!(excess(-40, 41), 0);
    }

    #[test]
    fn states_have_their_places() {
        assert_eq!(state_index(proto::TCP, State::SynSent2 as u8), 9);
        assert_eq!(state_index(proto::UDP, generic::UNREPLIED), 10);
        assert_eq!(state_index(proto::ICMP, generic::REPLIED), 11);
    }
}

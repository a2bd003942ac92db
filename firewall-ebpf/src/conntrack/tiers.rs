//! The tables of both tiers: looking up, moving up, deleting.

use core::marker::PhantomData;

use aya_ebpf::btf_maps::LruHashMap;
use firewall_common::{
    abi::{
        Config, EndReason, Flow, FlowKey4, FlowKey6, FlowState, TableId, Tier, flow_flags,
        is_incarnation_of,
    },
    forward,
    key::{Direction, FlowKey},
    life::{self, Deletion, Place, Promotion, Refused, Tables},
    tcp::{Counter as _, What},
    time::Tick,
    verdict::Event,
    wire::proto,
};

use super::{
    entry::{Entry, is_expired, state_of, zone_of},
    step::has_proved,
};
use crate::{
    atomic::Shared,
    control, data,
    maps::{
        CONFIG, EEXIST, FLOWS, FLOWS4, FLOWS6, HALF_OPEN, HALF_OPEN4_IN, HALF_OPEN4_OUT,
        HALF_OPEN6_IN, HALF_OPEN6_OUT, MOVES, TABLE_COUNTERS, TIER_COUNTS, Table,
    },
    stats,
    watch::{self, News},
    work::{self, Work},
};

/// The tables of a family.
pub(crate) trait Family: FlowKey + 'static {
    /// The proved table's type.
    type Proved: Table<Self> + 'static;
    /// The half-open tables' type.
    type HalfOpen: Table<Self> + 'static;
    /// Added to a [`Place`], its [`TableId`].
    const TABLE: u32;
    /// Admission class of TCP.
    const TCP: Tier;
    /// Admission class of everything else.
    const OTHER: Tier;

    /// The proved table.
    fn flows() -> &'static Self::Proved;
    /// The key of the packet at hand.
    fn slot(work: &mut Work) -> &mut Self;
    /// That key, and the flow to insert under it. In place: every copy of a key
    /// is 40 bytes of a stack that has 512.
    fn to_insert(work: &Work) -> (&Self, &Flow);
    /// Copies that key to the ring record.
    fn into_event(work: &mut Work);
    /// The half-open table of flows that began inside, or outside.
    fn half_open(inside: bool) -> &'static Self::HalfOpen;
    /// Unties a data connection that ends from its control connection.
    fn untie(key: &Self, incarnation: u32);
    /// [`watch::tell`], if somebody watches.
    fn tell_watcher(key: &Self, entry: *const Flow, word: u64, news: u32);
    /// What follows the step of a half-open flow: counting, and promotion. 1 if
    /// this call moved the flow.
    fn half_open_step(entry: *mut Flow, work: &mut Work) -> u32;
}

macro_rules! family {
    ($key:ty, $slot:ident, $flows:ident, $inside:ident, $outside:ident, $table:ident, $tcp:ident, $other:ident, $tell:ident, $untie:ident, $step:ident) => {
        impl Family for $key {
            type Proved = LruHashMap<$key, Flow, FLOWS>;
            type HalfOpen = LruHashMap<$key, Flow, HALF_OPEN>;
            const TABLE: u32 = TableId::$table as u32;
            const TCP: Tier = Tier::$tcp;
            const OTHER: Tier = Tier::$other;

            #[inline(always)]
            fn flows() -> &'static Self::Proved {
                &$flows
            }

            #[inline(always)]
            fn slot(work: &mut Work) -> &mut Self {
                &mut work.$slot
            }

            #[inline(always)]
            fn to_insert(work: &Work) -> (&Self, &Flow) {
                (&work.$slot, &work.flow)
            }

            #[inline(always)]
            fn into_event(work: &mut Work) {
                work.event.key = work.$slot.widen();
            }

            #[inline(always)]
            fn half_open(inside: bool) -> &'static Self::HalfOpen {
                if inside { &$inside } else { &$outside }
            }

            #[inline(always)]
            fn untie(key: &Self, incarnation: u32) {
                data::$untie(key, incarnation);
            }

            #[inline(always)]
            fn tell_watcher(key: &Self, entry: *const Flow, word: u64, news: u32) {
                watch::$tell(key, entry, word, news);
            }

            #[inline(always)]
            fn half_open_step(entry: *mut Flow, work: &mut Work) -> u32 {
                $step(entry, work.slot)
            }
        }
    };
}
family!(
    FlowKey4,
    key4,
    FLOWS4,
    HALF_OPEN4_IN,
    HALF_OPEN4_OUT,
    Proved4,
    Tcp4,
    Other4,
    tell_watcher4,
    pinhole_data_end4,
    pinhole_half_open4
);
family!(
    FlowKey6,
    key6,
    FLOWS6,
    HALF_OPEN6_IN,
    HALF_OPEN6_OUT,
    Proved6,
    Tcp6,
    Other6,
    tell_watcher6,
    pinhole_data_end6,
    pinhole_half_open6
);

/// The tables, for the key of the packet at hand.
pub(super) struct Here<'a, K>(&'a mut Work, PhantomData<K>);

impl<'a, K> Here<'a, K> {
    #[inline(always)]
    pub(super) fn new(work: &'a mut Work) -> Self {
        Self(work, PhantomData)
    }
}

impl<K: Family> Tables for Here<'_, K> {
    type Entry = Entry;

    #[inline(always)]
    fn digest(&self) -> u32 {
        K::to_insert(self.0).0.digest()
    }

    #[inline(always)]
    fn now(&self) -> Tick {
        self.0.now
    }

    #[inline(always)]
    fn look(&self, place: Place) -> Option<Entry> {
        let key = K::to_insert(self.0).0;
        let entry = match place {
            Place::Proved => K::flows().entry(key),
            Place::Inside => K::half_open(true).entry(key),
            Place::Outside => K::half_open(false).entry(key),
        };
        entry.map(Entry)
    }

    #[inline(always)]
    fn is_expired(&self, entry: Entry, word: FlowState) -> bool {
        let protocol = protocol_of(K::to_insert(self.0).0);
        is_expired(entry.0, word, protocol, self.0.now)
    }

    #[inline(always)]
    fn note_moves(&mut self) {
        self.0.moves = moves().map_or(0, Shared::<u64>::load);
    }

    #[inline(always)]
    fn have_moved(&self) -> bool {
        moves().is_none_or(|moves| moves.load() != self.0.moves)
    }

    #[inline(always)]
    fn count_move(&mut self) {
        if let Some(moves) = moves() {
            // With the value, because only so it is a barrier on every machine.
            moves.fetch_add(1);
        }
    }

    #[inline(always)]
    fn copy(&mut self, entry: Entry) {
        // SAFETY: a map value; other CPUs stay away from it while it is promoting,
        // but for what they find out to have been too late.
        self.0.flow = unsafe { *entry.0 };
    }

    #[inline(always)]
    fn flow(&mut self) -> &mut Flow {
        &mut self.0.flow
    }

    #[inline(always)]
    fn insert(&mut self, place: Place) -> Result<(), Refused> {
        let (key, flow) = K::to_insert(self.0);
        let inserted = match place {
            Place::Proved => K::flows().create(key, flow),
            Place::Inside => K::half_open(true).create(key, flow),
            Place::Outside => K::half_open(false).create(key, flow),
        };
        match inserted {
            Ok(()) => {
                count_created::<K>(place, 1);
                Ok(())
            }
            Err(EEXIST) => Err(Refused::Exists),
            Err(_) => Err(Refused::Failed),
        }
    }

    #[inline(always)]
    fn remove(&mut self, place: Place, entry: Entry, word: FlowState, reason: EndReason) {
        let key = K::to_insert(self.0).0;
        match place {
            Place::Proved => remove(K::flows(), key, entry.0, word, place, reason),
            Place::Inside => remove(K::half_open(true), key, entry.0, word, place, reason),
            Place::Outside => remove(K::half_open(false), key, entry.0, word, place, reason),
        }
    }

    #[inline(always)]
    fn end_of(&self, word: FlowState) -> EndReason {
        EndReason::of_time_out(protocol_of(K::to_insert(self.0).0), word.state())
    }

    #[inline(always)]
    fn recycled(&self) {
        stats::event(Event::Recycled);
    }
}

/// Flows that have moved to the proved tables, of both families.
#[inline(always)]
fn moves() -> Option<Shared<u64>> {
    let word = MOVES.get_ptr_mut(0)?;
    // SAFETY: a map value is valid for the whole run: eight bytes, aligned, and changed
    // atomically only.
    Some(unsafe { Shared::new(word) })
}

/// Deletes an expired entry; true if this call did.
#[inline(always)]
pub(crate) fn delete_expired<K: Family, T: Table<K>>(
    table: &T,
    key: &K,
    entry: *mut Flow,
    now: Tick,
    place: Place,
) -> bool {
    let protocol = protocol_of(key);
    let expired = |word| is_expired(entry, word, protocol, now);
    let Some(word) = life::doom_expired(Entry(entry), key.digest(), expired) else {
        return false;
    };
    let reason = EndReason::of_time_out(protocol, word.state());
    remove(table, key, entry, word, place, reason);
    true
}

/// Deletes the entry of this incarnation, alive as it may be; true if this call did.
#[inline(always)]
pub(crate) fn delete_live<K: Family, T: Table<K>>(
    table: &T,
    key: &K,
    entry: *mut Flow,
    incarnation: u32,
    place: Place,
) -> bool {
    match life::doom_listed(Entry(entry), incarnation) {
        Deletion::Won(word) => {
            remove(table, key, entry, word, place, EndReason::Deleted);
            true
        }
        Deletion::Gone => false,
        Deletion::Contended => {
            stats::event(Event::Contention);
            false
        }
    }
}

/// Takes an entry out of its table and tells why: every deletion there is goes
/// through here, but for what the LRU displaces. Only the winner of the swap to
/// doomed or promoting may call it; `word` is the state before that.
#[inline(always)]
fn remove<K: Family, T: Table<K>>(
    table: &T,
    key: &K,
    entry: *mut Flow,
    word: FlowState,
    place: Place,
    reason: EndReason,
) {
    let proved = matches!(place, Place::Proved);
    if !matches!(reason, EndReason::Promoted) {
        watch::tell(key, entry, word, News::destroy(reason, proved));
        if word.has(flow_flags::RELATED) {
            K::untie(key, word.incarnation());
        }
    }
    // What the LRU displaced in this moment it took, not we.
    if table.delete(key) {
        count_removed::<K>(place);
    }
    if proved {
        count_tier::<K>(key, -1);
    }
    if matches!(
        reason,
        EndReason::Expired | EndReason::Closed | EndReason::Reset
    ) {
        stats::event(Event::FlowExpired);
    }
}

/// Ends the unanswered flow of another zone that has the packet's key.
#[inline(always)]
pub(super) fn displace<K: Family>(work: &mut Work) {
    let zone = work.from_zone;
    let key = &*K::slot(work);
    for inside in [true, false] {
        let Some(entry) = K::half_open(inside).entry(key) else {
            continue;
        };
        let word = FlowState(state_of(entry).load());
        let elsewhere = zone_of(entry, Direction::Original) != zone;
        let own = is_incarnation_of(word.incarnation(), key.digest());
        if own && elsewhere && !word.has(flow_flags::SEEN_REPLY) {
            end(key, entry, word, false, EndReason::Reused);
        }
    }
}

/// Counts entries put into a table.
#[inline(always)]
pub(crate) fn count_created<K: Family>(place: Place, by: u64) {
    if let Some(counter) = TABLE_COUNTERS.get_ptr_mut(K::TABLE + place as u32) {
        // SAFETY: an element of this CPU's, valid for the whole run.
        let created = unsafe { &raw mut (*counter).created };
        // SAFETY: eight bytes, aligned. Atomic, because a request of user space
        // can be interrupted by a packet on its CPU.
        unsafe { Shared::new(created) }.add(by);
    }
}

#[inline(always)]
fn count_removed<K: Family>(place: Place) {
    if let Some(counter) = TABLE_COUNTERS.get_ptr_mut(K::TABLE + place as u32) {
        // SAFETY: as in `count_created`.
        let removed = unsafe { &raw mut (*counter).removed };
        // SAFETY: as in `count_created`.
        unsafe { Shared::new(removed) }.add(1);
    }
}

#[inline(always)]
fn protocol_of<K: Family>(key: &K) -> u8 {
    key.widen().proto()
}

#[inline(always)]
fn tier_of<K: Family>(key: &K) -> Tier {
    if protocol_of(key) == proto::TCP {
        K::TCP
    } else {
        K::OTHER
    }
}

#[inline(always)]
fn count_tier<K: Family>(key: &K, by: i64) {
    count_in_tier(tier_of(key) as u32, by);
}

/// Adds to the proved flows on record, by [`Tier`].
#[inline(always)]
pub(crate) fn count_in_tier(tier: u32, by: i64) {
    if let Some(count) = TIER_COUNTS.get_ptr_mut(tier) {
        // SAFETY: an array element, eight bytes, aligned, changed atomically only.
        let count = unsafe { Shared::new(count) };
        count.add(by as u64);
    }
}

/// Is the proved tier at its limit for the class of `key`?
#[inline(always)]
pub(super) fn is_full<K: Family>(key: &K, config: &Config) -> bool {
    let tier = tier_of(key) as u32;
    let count = TIER_COUNTS.get(tier).copied().unwrap_or(0);
    count as i64 >= config.tier_limits[tier as usize & 3] as i64
}

/// Counts an accepted packet of a half-open flow, which is in `entry` and has had
/// its step, and moves the flow to the proved table if that is due; 1 if it did.
///
/// The parts of [`K::half_open_step`](Family::half_open_step), which are global
/// functions as those of a step are.
#[inline(always)]
fn half_open<K: Family>(entry: *mut Flow, slot: u32) -> u32 {
    if entry.is_null() {
        return 0;
    }
    let Some(work) = work::again(slot) else {
        return 0;
    };
    let (what, word, opened) = {
        let stepped = work.stepped();
        (stepped.what, stepped.word, stepped.opened)
    };
    // It has not proved itself before this packet.
    if matches!(work.direction(), Direction::Original) {
        work.flow_ahead |= forward::stepped::CLAIMED;
    }
    let (direction, on_wire) = (work.direction(), work.on_wire);
    let protocol = work.headers.proto;
    let here = &mut Here::<K>::new(work);
    life::account(here, Entry(entry), word.incarnation(), direction, on_wire);
    let due = matches!(what, What::Accepted) && has_proved(protocol, word);
    (due && promote::<K>(work, entry, word, opened)) as u32
}

/// [`half_open`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_half_open4(entry: *mut Flow, slot: u32) -> u32 {
    half_open::<FlowKey4>(entry, slot)
}

/// [`half_open`] for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_half_open6(entry: *mut Flow, slot: u32) -> u32 {
    half_open::<FlowKey6>(entry, slot)
}

/// Moves a flow to the proved table, unless that is at its limit; true if this
/// call did.
///
/// The helper hears of a connection that is `opened` by this very packet.
#[inline(always)]
fn promote<K: Family>(work: &mut Work, entry: *mut Flow, word: FlowState, opened: bool) -> bool {
    if CONFIG
        .get(0)
        .is_none_or(|config| is_full(&*K::slot(work), config))
    {
        stats::event(Event::TableFull);
        return false;
    }
    let promotion = life::promote(&mut Here::<K>::new(work), Entry(entry), word);
    match promotion {
        Promotion::Moved => {
            count_tier(&*K::slot(work), 1);
            stats::event(Event::FlowPromoted);
            let (key, flow) = K::to_insert(work);
            watch::tell(key, flow, FlowState(flow.state), News::update(true));
        }
        Promotion::Raced => return false,
        Promotion::Recycled => stats::event(Event::Recycled),
        Promotion::Joined => stats::event(Event::CreateRaced),
        Promotion::Refused => stats::event(Event::CreateFailed),
    }
    let stays = matches!(promotion, Promotion::Moved | Promotion::Joined);
    if opened && stays && word.has(flow_flags::HELPER_FTP) {
        control::opened::<K>(work, word);
    }
    matches!(promotion, Promotion::Moved)
}

/// Ends a flow for another reason than its age; true if this call did.
#[inline(always)]
pub(super) fn end<K: Family>(
    key: &K,
    entry: *mut Flow,
    word: FlowState,
    proved: bool,
    reason: EndReason,
) -> bool {
    if !life::doom(Entry(entry), word) {
        return false;
    }
    if matches!(reason, EndReason::Reused) {
        stats::event(Event::TupleReused);
    }
    if proved {
        remove(K::flows(), key, entry, word, Place::Proved, reason);
    } else {
        let inside = word.has(flow_flags::FROM_INSIDE);
        let place = Place::half_open(inside);
        remove(K::half_open(inside), key, entry, word, place, reason);
    }
    true
}

//! The tables of both tiers: looking up, moving up, deleting.

use aya_ebpf::btf_maps::LruHashMap;
use firewall_common::{
    abi::{
        Config, EndReason, Flow, FlowKey4, FlowKey6, FlowState, Phase, TableId, Tier, flow_flags,
        is_incarnation_of,
    },
    key::{Direction, FlowKey},
    time::Tick,
    verdict::Event,
    wire::proto,
};

use super::entry::{is_expired, seen_of, state_of, zone_of};
use crate::{
    atomic::Shared,
    control, data,
    maps::{
        CONFIG, EEXIST, FLOWS, FLOWS4, FLOWS6, HALF_OPEN, HALF_OPEN4_IN, HALF_OPEN4_OUT,
        HALF_OPEN6_IN, HALF_OPEN6_OUT, TABLE_COUNTERS, TIER_COUNTS, Table,
    },
    stats,
    watch::{self, News},
    work::Work,
};

/// Ticks for which an entry in promotion counts as present.
const PROMOTION_TICKS: u32 = 4;

/// One of a family's three tables.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Place {
    /// Flows that have proved themselves.
    Proved = 0,
    /// Others, begun inside.
    Inside = 2,
    /// Others, begun outside.
    Outside = 4,
}

impl Place {
    /// The half-open table of a flow.
    #[inline(always)]
    pub(crate) const fn half_open(inside: bool) -> Self {
        if inside { Self::Inside } else { Self::Outside }
    }
}

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
}

macro_rules! family {
    ($key:ty, $slot:ident, $flows:ident, $inside:ident, $outside:ident, $table:ident, $tcp:ident, $other:ident, $tell:ident, $untie:ident) => {
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
    pinhole_data_end4
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
    pinhole_data_end6
);

/// Where a flow was found.
pub(super) enum Found {
    /// A live entry, whether it is in the proved table, and its state word as it
    /// was when it was known to be the entry of this key.
    Flow(*mut Flow, bool, FlowState),
    /// On its way from one table to the other, on another CPU, right now.
    Moving,
    Nothing,
}

/// Looks a flow up: proved first, where an established packet is done.
#[inline(always)]
pub(super) fn find<K: Family>(key: &K, now: Tick) -> Found {
    if let Some(entry) = look(K::flows(), key, now, Place::Proved) {
        return entry;
    }
    let half = match look(K::half_open(true), key, now, Place::Inside) {
        Some(found) => Some(found),
        None => look(K::half_open(false), key, now, Place::Outside),
    };
    match half {
        // The winner may have arrived in the proved table meanwhile.
        Some(Found::Moving) => look(K::flows(), key, now, Place::Proved).unwrap_or(Found::Moving),
        Some(found) => found,
        None => Found::Nothing,
    }
}

#[inline(always)]
fn look<K: Family, T: Table<K>>(table: &T, key: &K, now: Tick, place: Place) -> Option<Found> {
    let entry = table.entry(key)?;
    let word = FlowState(state_of(entry).load());
    // The node may have gone to another key since it was looked up.
    if !is_incarnation_of(word.incarnation(), key.digest()) {
        stats::event(Event::Recycled);
        return None;
    }
    if is_expired(entry, word, protocol_of(key), now) {
        // Expired counts as absent, whether or not the collector has been here.
        delete_expired(table, key, entry, now, place);
        return None;
    }
    match word.phase() {
        Phase::Live => Some(Found::Flow(entry, matches!(place, Place::Proved), word)),
        // A left-over is a miss; a fresh one is a flow whose step another CPU
        // is taking at this moment.
        Phase::Promoting if now.since(Tick(seen_of(entry).load())) <= PROMOTION_TICKS => {
            Some(Found::Moving)
        }
        _ => None,
    }
}

/// Deletes an expired entry; true if this call did.
///
/// Only the winner of the swap to doomed deletes. A packet on another CPU may
/// have refreshed the entry between the look and the swap: then the swap is
/// taken back, so that nothing alive is deleted.
#[inline(always)]
pub(crate) fn delete_expired<K: Family, T: Table<K>>(
    table: &T,
    key: &K,
    entry: *mut Flow,
    now: Tick,
    place: Place,
) -> bool {
    let state = state_of(entry);
    let word = FlowState(state.load());
    let protocol = protocol_of(key);
    if !is_incarnation_of(word.incarnation(), key.digest())
        || !is_expired(entry, word, protocol, now)
        || word.phase() as u8 == Phase::Doomed as u8
        || !doom(state, word.0)
    {
        return false;
    }
    if !is_expired(entry, word, protocol, now) {
        let doomed = word.with_phase(Phase::Doomed).0;
        let _ = state.swap(doomed, word.0);
        return false;
    }
    let reason = EndReason::of_time_out(protocol, word.state());
    remove(table, key, entry, word, place, reason);
    true
}

/// Lost swaps after which a flow that shall be deleted is left to the next try.
const DELETE_TRIES: usize = 8;

/// Deletes the entry of this incarnation, alive as it may be; true if this call did.
#[inline(always)]
pub(crate) fn delete_live<K: Family, T: Table<K>>(
    table: &T,
    key: &K,
    entry: *mut Flow,
    incarnation: u32,
    place: Place,
) -> bool {
    let state = state_of(entry);
    for _ in 0..DELETE_TRIES {
        let word = FlowState(state.load());
        // Another flow took its place, another CPU deletes it, or is moving it.
        if word.incarnation() != incarnation || word.phase() as u8 != Phase::Live as u8 {
            return false;
        }
        if doom(state, word.0) {
            remove(table, key, entry, word, place, EndReason::Deleted);
            return true;
        }
    }
    stats::event(Event::Contention);
    false
}

#[inline(always)]
fn doom(state: Shared<u64>, word: u64) -> bool {
    let doomed = FlowState(word).with_phase(Phase::Doomed).0;
    state.swap(word, doomed).is_ok()
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

/// Puts `work.flow` into its table, where there is none, and counts it.
#[inline(always)]
pub(super) fn insert<K: Family>(work: &Work, place: Place) -> Result<(), i32> {
    let (key, flow) = K::to_insert(work);
    match place {
        Place::Proved => K::flows().create(key, flow)?,
        _ => K::half_open(matches!(place, Place::Inside)).create(key, flow)?,
    }
    count_created::<K>(place, 1);
    Ok(())
}

/// After [`insert`] into a half-open table: takes the entry out again if the flow
/// has another one.
///
/// When the first packets of both directions come at once on two CPUs, both find
/// nothing, and each makes an entry in the table of its own side. Each looks for
/// the other's when its own is there, so one of them at least sees both. The one
/// from inside stays. A flow that was proved in the meantime has its entry, too.
#[inline(always)]
pub(super) fn concedes<K: Family>(work: &mut Work) -> bool {
    let inside = work.from_inside;
    let incarnation = FlowState(work.flow.state).incarnation();
    let key = &*K::slot(work);
    let mut second = is_live(K::flows(), key);
    if inside {
        if let Some(entry) = K::half_open(false).entry(key) {
            let word = FlowState(state_of(entry).load());
            if is_live_word(key, word) && doom(state_of(entry), word.0) {
                let table = K::half_open(false);
                remove(table, key, entry, word, Place::Outside, EndReason::Reused);
            }
        }
    } else {
        second |= is_live(K::half_open(true), key);
    }
    if !second {
        return false;
    }
    let table = K::half_open(inside);
    let Some(entry) = table.entry(key) else {
        return true;
    };
    let word = FlowState(state_of(entry).load());
    if word.incarnation() == incarnation && doom(state_of(entry), word.0) {
        let place = Place::half_open(inside);
        remove(table, key, entry, word, place, EndReason::Promoted);
    }
    true
}

#[inline(always)]
fn is_live<K: Family, T: Table<K>>(table: &T, key: &K) -> bool {
    table
        .entry(key)
        .is_some_and(|entry| is_live_word(key, FlowState(state_of(entry).load())))
}

#[inline(always)]
fn is_live_word<K: Family>(key: &K, word: FlowState) -> bool {
    is_incarnation_of(word.incarnation(), key.digest()) && word.phase() as u8 == Phase::Live as u8
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
        if elsewhere && !word.has(flow_flags::SEEN_REPLY) && is_live_word(key, word) {
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

/// Moves a flow to the proved table, unless that is at its limit.
///
/// The swap to promoting elects one CPU; it inserts, then deletes the half-open
/// entry. The others meet `Found::Moving`. The helper hears of a connection that
/// is `opened` by this very packet. True if this call moved it; its new
/// entry is then in `work.flow`, too.
#[inline(always)]
pub(super) fn promote<K: Family>(
    work: &mut Work,
    entry: *mut Flow,
    word: FlowState,
    opened: bool,
) -> bool {
    if CONFIG
        .get(0)
        .is_none_or(|config| is_full(&*K::slot(work), config))
    {
        stats::event(Event::TableFull);
        return false;
    }
    let state = state_of(entry);
    let promoting = word.with_phase(Phase::Promoting);
    if state.swap(word.0, promoting.0).is_err() {
        return false;
    }
    // SAFETY: a map value; other CPUs stay away from it while it is promoting,
    // but for counters, of which the copy may miss the last packet.
    work.flow = unsafe { *entry };
    // The half-open table may have evicted it under the copy, for another flow.
    if state.load() != promoting.0 {
        stats::event(Event::Recycled);
        return false;
    }
    let proved = word.with(flow_flags::ASSURED);
    work.flow.state = proved.0;
    let moved = match insert::<K>(work, Place::Proved) {
        Ok(()) => {
            count_tier(&*K::slot(work), 1);
            stats::event(Event::FlowPromoted);
            let (key, flow) = K::to_insert(work);
            watch::tell(key, flow, proved, News::update(true));
            true
        }
        Err(EEXIST) => {
            stats::event(Event::CreateRaced);
            false
        }
        Err(_) => {
            stats::event(Event::CreateFailed);
            let _ = state.swap(promoting.0, word.0);
            return false;
        }
    };
    let inside = word.has(flow_flags::FROM_INSIDE);
    remove(
        K::half_open(inside),
        &*K::slot(work),
        entry,
        word,
        Place::half_open(inside),
        EndReason::Promoted,
    );
    if opened && proved.has(flow_flags::HELPER_FTP) {
        control::opened::<K>(work, proved);
    }
    moved
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
    if !doom(state_of(entry), word.0) {
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

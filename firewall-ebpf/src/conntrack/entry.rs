//! One entry of a flow table, through its look-up pointer.

use firewall_common::{
    abi::{Flow, FlowState, Last, RULE_NONE, TcpSide},
    key::Direction,
    life,
    tcp::Cells,
    time::Tick,
    timeout,
};

use crate::{atomic::Shared, maps::CONFIG};

/// The state word of an entry.
#[inline(always)]
pub(crate) fn state_of(entry: *mut Flow) -> Shared<u64> {
    // SAFETY: a map value is valid for the whole run.
    let word = unsafe { &raw mut (*entry).state };
    // SAFETY: eight bytes, aligned, and changed atomically only.
    unsafe { Shared::new(word) }
}

#[inline(always)]
pub(crate) fn last_of(entry: *mut Flow) -> Shared<u64> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).last };
    // SAFETY: as `state_of`.
    unsafe { Shared::new(word) }
}

/// What stands above the bytes that the entry counts: [`Flow::rule_bits`].
#[inline(always)]
pub(super) fn rule_bits_of(entry: *mut Flow) -> u64 {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw const (*entry).bytes[0] };
    // SAFETY: eight bytes, aligned; other CPUs change the bits below.
    (unsafe { word.read_volatile() }) & Flow::RULE_BITS
}

#[inline(always)]
pub(crate) fn seen_of(entry: *mut Flow) -> Shared<u32> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).seen };
    // SAFETY: as `state_of`; four bytes, aligned.
    unsafe { Shared::new(word) }
}

/// An entry as the tracker of [`firewall_common::tcp`] sees it.
#[derive(Clone, Copy)]
pub(crate) struct Entry(pub *mut Flow);

impl Entry {
    /// The windows of the side that sends in `direction`.
    #[inline(always)]
    fn side(self, direction: Direction) -> *mut TcpSide {
        // SAFETY: a map value is valid for the whole run; there are two sides.
        unsafe { &raw mut (*self.0).tcp[direction.index() & 1] }
    }
}

impl Cells for Entry {
    type Wide = Shared<u64>;
    type Narrow = Shared<u32>;

    #[inline(always)]
    fn state(self) -> Shared<u64> {
        state_of(self.0)
    }

    #[inline(always)]
    fn last(self) -> Shared<u64> {
        last_of(self.0)
    }

    #[inline(always)]
    fn seen(self) -> Shared<u32> {
        seen_of(self.0)
    }

    #[inline(always)]
    fn end(self, direction: Direction) -> Shared<u32> {
        // SAFETY: `side` is within a map value.
        let word = unsafe { &raw mut (*self.side(direction)).end };
        // SAFETY: as `seen_of`.
        unsafe { Shared::new(word) }
    }

    #[inline(always)]
    fn maxend(self, direction: Direction) -> Shared<u32> {
        // SAFETY: as in `end`.
        let word = unsafe { &raw mut (*self.side(direction)).maxend };
        // SAFETY: as `seen_of`.
        unsafe { Shared::new(word) }
    }

    #[inline(always)]
    fn maxack(self, direction: Direction) -> Shared<u32> {
        // SAFETY: as in `end`.
        let word = unsafe { &raw mut (*self.side(direction)).maxack };
        // SAFETY: as `seen_of`.
        unsafe { Shared::new(word) }
    }

    #[inline(always)]
    fn maxwin(self, direction: Direction) -> Shared<u32> {
        // SAFETY: as in `end`.
        let word = unsafe { &raw mut (*self.side(direction)).maxwin };
        // SAFETY: as `seen_of`.
        unsafe { Shared::new(word) }
    }
}

/// The zone from which packets of `direction` must come.
#[inline(always)]
pub(super) fn zone_of(entry: *mut Flow, direction: Direction) -> u8 {
    let last = Last(last_of(entry).load());
    match direction {
        Direction::Original => last.from_zone(),
        Direction::Reply => last.to_zone(),
    }
}

/// Does the entry, which has `word`, count as absent at `now`? It is one of
/// `protocol`.
#[inline(always)]
pub(crate) fn is_expired(entry: *mut Flow, word: FlowState, protocol: u8, now: Tick) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    // SAFETY: a map value; a torn read of the windows, which other CPUs change
    // meanwhile, is the read of a moment before or after.
    let flow = unsafe { &*entry.cast_const() };
    now.is_after(timeout::expires(
        protocol,
        word,
        Tick(seen_of(entry).load()),
        || flow.has_unacknowledged(),
        &config.timeouts,
    ))
}

/// Takes the rule's number away from an entry; false if other CPUs were faster
/// each time.
#[inline(always)]
pub(crate) fn forget_rule(entry: *mut Flow) -> bool {
    let last = last_of(entry);
    for _ in 0..4 {
        let word = last.load();
        if last.swap(word, Last(word).with_rule(RULE_NONE).0).is_ok() {
            return true;
        }
    }
    false
}

impl life::Entry for Entry {
    type Packets = Shared<u32>;
    type Bytes = Shared<u64>;

    #[inline(always)]
    fn packets(self, direction: Direction) -> Shared<u32> {
        let word = match direction {
            // SAFETY: a map value is valid for the whole run.
            Direction::Original => unsafe { &raw mut (*self.0).packets[0] },
            // SAFETY: as above.
            Direction::Reply => unsafe { &raw mut (*self.0).packets[1] },
        };
        // SAFETY: four bytes, aligned, changed atomically only.
        unsafe { Shared::new(word) }
    }

    #[inline(always)]
    fn bytes(self, direction: Direction) -> Shared<u64> {
        let word = match direction {
            // SAFETY: as in `packets`.
            Direction::Original => unsafe { &raw mut (*self.0).bytes[0] },
            // SAFETY: as above.
            Direction::Reply => unsafe { &raw mut (*self.0).bytes[1] },
        };
        // SAFETY: eight bytes, aligned, changed atomically only.
        unsafe { Shared::new(word) }
    }
}

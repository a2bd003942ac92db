//! The flow tables: which there are, what they take, what is known of their past.

use bytemuck::{Pod, Zeroable};

use crate::{abi::Flow, pod};

/// One of the six flow tables, an index into the `TABLE_COUNTERS` and `CENSUS` maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TableId {
    /// `FLOWS4`.
    Proved4 = 0,
    /// `FLOWS6`.
    Proved6 = 1,
    /// `HALF_OPEN4_IN`.
    Inside4 = 2,
    /// `HALF_OPEN6_IN`.
    Inside6 = 3,
    /// `HALF_OPEN4_OUT`.
    Outside4 = 4,
    /// `HALF_OPEN6_OUT`.
    Outside6 = 5,
}

/// How many flow tables there are.
pub const TABLES_LEN: usize = 6;

impl TableId {
    /// All of them, by number.
    pub const ALL: [Self; TABLES_LEN] = [
        Self::Proved4,
        Self::Proved6,
        Self::Inside4,
        Self::Inside6,
        Self::Outside4,
        Self::Outside6,
    ];

    /// Name of the map.
    #[must_use]
    pub const fn map(self) -> &'static str {
        match self {
            Self::Proved4 => super::maps::FLOWS4,
            Self::Proved6 => super::maps::FLOWS6,
            Self::Inside4 => super::maps::HALF_OPEN4_IN,
            Self::Inside6 => super::maps::HALF_OPEN6_IN,
            Self::Outside4 => super::maps::HALF_OPEN4_OUT,
            Self::Outside6 => super::maps::HALF_OPEN6_OUT,
        }
    }

    /// Are its flows proved?
    #[must_use]
    pub const fn is_proved(self) -> bool {
        matches!(self, Self::Proved4 | Self::Proved6)
    }

    /// Is it of IPv4?
    #[must_use]
    pub const fn is_v4(self) -> bool {
        matches!(self, Self::Proved4 | Self::Inside4 | Self::Outside4)
    }
}

/// What the programs did to a table, on one CPU. Both only grow, so that user
/// space never has to write them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TableCounter {
    /// Entries put in.
    pub created: u64,
    /// Entries taken out: expired, replaced, moved to the proved table, or on request.
    pub removed: u64,
}
pod!(TableCounter, 16);

impl TableCounter {
    /// Of all CPUs.
    #[must_use]
    pub fn sum<'a>(of_cpus: impl Iterator<Item = &'a Self>) -> Self {
        of_cpus.fold(Self::default(), |sum, cpu| Self {
            created: sum.created.wrapping_add(cpu.created),
            removed: sum.removed.wrapping_add(cpu.removed),
        })
    }
}

/// What a new flow meets while the proved tier has no room for its class,
/// `Config::table_full`.
pub mod table_full {
    /// It is tracked in the half-open table, where others can displace it.
    pub const TRACK: u32 = 0;
    /// It is dropped.
    pub const DROP: u32 = 1;
    /// It passes without an entry where the rules accept it: each packet, and
    /// each direction, by the rules alone.
    pub const PASS: u32 = 2;
}

/// States that [`Census::witnessed`] tells apart: those of
/// [`crate::tcp::State`] by number, then [`crate::tcp::generic`] ones.
pub const CENSUS_STATES: usize = 12;

/// What the collector found when it last read a whole table. Written by it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Census {
    /// `CLOCK_MONOTONIC` of its end, ns; 0 before the first.
    pub at_ns: u64,
    /// Entries that it left there.
    pub present: u64,
    /// Entries that it found expired.
    pub expired: u64,
    /// [`TableCounter::created`] of all CPUs, as at its beginning.
    pub created: u64,
    /// [`TableCounter::removed`] of all CPUs, as at its end.
    pub removed: u64,
    /// Entries that the table displaced since it exists, at least: `created -
    /// removed - present`, never falling.
    pub evicted: u64,
    /// Mean time for which a displaced entry had been in the table, ms, when
    /// entries were last displaced (Little's law: entries present divided by
    /// the rate at which they were displaced).
    pub stay_ms: u64,
    /// Displaced entries that the collector had seen alive before, of a sample.
    pub witnessed: [u32; CENSUS_STATES],
    /// Least and greatest age in ticks at which a witnessed one was displaced.
    pub ages: [u32; 2],
}
pod!(Census, 7 * 8 + 12 * 4 + 8);

/// What the collector does, and at what cost. Written by it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CollectorState {
    /// `CLOCK_MONOTONIC` of its last step, ns; 0 before the first.
    pub at_ns: u64,
    /// Whole passes over all tables.
    pub passes: u64,
    /// Entries read.
    pub read: u64,
    /// Expired flows that it had deleted.
    pub deleted: u64,
    /// CPU time that it took, ns.
    pub cpu_ns: u64,
    /// How long the last pass took, ns.
    pub pass_ns: u64,
    /// Entries read in the last pass.
    pub pass_read: u64,
    /// CPU time of the last pass, ns.
    pub pass_cpu_ns: u64,
    /// Its pace at present, entries a second.
    pub pace: u64,
    /// Corrections of the tiers' counts, flows in all.
    pub corrected: u64,
}
pod!(CollectorState, 80);

/// What the kernel puts before key and value of an element of a preallocated
/// hash map (`struct htab_elem` with its LRU node, 64-bit).
const ELEMENT_HEAD: u64 = 48;
/// A bucket of a hash map (`struct bucket`); there are as many as elements,
/// rounded up to a power of two.
const BUCKET: u64 = 16;

/// Kernel memory of a preallocated hash map, in bytes.
///
/// The kernel's `htab_map_mem_usage`, but for what does not grow with the map.
/// Keys and values are rounded up to eight bytes each.
#[must_use]
pub const fn hash_bytes(elements: u32, key: usize, value: usize) -> u64 {
    let element =
        ELEMENT_HEAD + (key as u64).next_multiple_of(8) + (value as u64).next_multiple_of(8);
    elements as u64 * element + (elements as u64).next_power_of_two() * BUCKET
}

/// All in, a flow takes at most this many bytes of kernel memory over IPv4.
pub const FLOW_BYTES4: u64 = 160;
/// As [`FLOW_BYTES4`], over IPv6.
pub const FLOW_BYTES6: u64 = 192;

const _: () =
    assert!(hash_bytes(1, size_of::<super::FlowKey4>(), size_of::<Flow>()) <= FLOW_BYTES4);
const _: () =
    assert!(hash_bytes(1, size_of::<super::FlowKey6>(), size_of::<Flow>()) <= FLOW_BYTES6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_knows_itself() {
        for (index, table) in TableId::ALL.iter().enumerate() {
            assert_eq!(*table as usize, index);
        }
        assert_eq!(TableId::Outside6.map(), "HALF_OPEN6_OUT");
        assert_eq!(TableId::ALL.iter().filter(|t| t.is_v4()).count(), 3);
        assert_eq!(TableId::ALL.iter().filter(|t| t.is_proved()).count(), 2);
    }

    #[test]
    fn memory_is_by_element_and_bucket() {
        assert_eq!(hash_bytes(65_536, 16, 80), 65_536 * 160);
        assert_eq!(hash_bytes(65_536, 40, 80), 65_536 * 184);
        // 3 elements in 4 buckets; 3 and 5 bytes take 8 each.
        assert_eq!(hash_bytes(3, 3, 5), 3 * 64 + 4 * 16);
    }
}

//! Reading the agent's journal.

use aya::maps::{Array, MapData};
use firewall_common::abi::{JOURNAL_LEN, JournalEntry, maps};

use super::{
    Instance,
    maps::{Error, Pinned},
};
use crate::journal::{Told, Unknown};

/// Times that a record is read again which the agent was just writing.
const TRIES: usize = 8;

/// The journal of an instance, from some record on.
pub struct Journal {
    pinned: Pinned,
    map: Array<MapData, JournalEntry>,
    /// Sequence number of the next record.
    next: u64,
}

/// What a look at the journal found.
#[derive(Debug, Default)]
pub struct Found {
    /// Records that the agent wrote over before they were read.
    pub lost: u64,
    /// Those that could be read, in order.
    pub told: Vec<Result<Told, Unknown>>,
}

impl Journal {
    /// The journal of `instance`, from the oldest record that it holds.
    ///
    /// # Errors
    /// Nothing attached, or the map cannot be read.
    pub fn open(instance: &Instance) -> Result<Self, Error> {
        let pinned = Pinned::open(instance)?;
        let map = pinned.typed(maps::JOURNAL)?;
        let mut journal = Self {
            pinned,
            map,
            next: 1,
        };
        let mut last = 0;
        for slot in 0..JOURNAL_LEN as u32 {
            last = last.max(journal.read(slot)?.map_or(0, |entry| entry.seq));
        }
        journal.next = last.saturating_sub(JOURNAL_LEN as u64 - 1).max(1);
        Ok(journal)
    }

    /// Goes past all that was written so far.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn skip(&mut self) -> Result<(), Error> {
        self.take().map(drop)
    }

    /// What was written since the last look.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn take(&mut self) -> Result<Found, Error> {
        let mut found = Found::default();
        // Bounded: the agent may write as fast as this reads.
        for _ in 0..2 * JOURNAL_LEN {
            let Some(entry) = self.read(JournalEntry::slot(self.next))? else {
                break;
            };
            if entry.seq < self.next {
                break;
            }
            if entry.seq == self.next {
                found.told.push(Told::try_from(&entry));
                self.next += 1;
            } else {
                // The agent is round once more: what is before this was written over.
                let oldest = entry.seq - (JOURNAL_LEN as u64 - 1);
                found.lost += oldest - self.next;
                self.next = oldest;
            }
        }
        Ok(found)
    }

    /// The record in a slot; `None` if there is none, or if it is being written.
    fn read(&self, slot: u32) -> Result<Option<JournalEntry>, Error> {
        for _ in 0..TRIES {
            let entry = self.map.get(&slot, 0);
            let entry = entry.map_err(|error| self.pinned.failed(maps::JOURNAL, &error))?;
            if entry.is_whole() {
                return Ok(Some(entry));
            }
            if entry.seq == 0 {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

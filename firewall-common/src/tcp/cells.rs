//! The words of a flow entry as memory that several CPUs share.
//!
//! The tracker is generic over it: in the kernel programs a word is a place in a
//! map value, in tests a plain cell, or one that lets another thread run at each
//! access.

use core::cell::Cell;

use crate::{abi::Flow, key::Direction};

/// An aligned word.
pub trait Word<T>: Copy {
    /// One load.
    fn load(self) -> T;
    /// One store.
    fn store(self, value: T);
    /// Replaces `old` by `new` in one step; `Err` carries what stood there instead.
    ///
    /// # Errors
    /// Another value than `old` stood there.
    fn swap(self, old: T, new: T) -> Result<(), T>;
}

/// A word that several CPUs count in.
pub trait Counter<T>: Word<T> {
    /// Adds.
    fn add(self, by: T);
    /// Adds, and returns what stood there before.
    fn fetch_add(self, by: T) -> T;
    /// Sets the highest bit, and returns what stood there before.
    fn seal(self) -> T;
}

/// The entry of a TCP flow. The documentation of each word is in [`Flow`].
pub trait Cells: Copy {
    /// An eight-byte word.
    type Wide: Word<u64>;
    /// A four-byte word.
    type Narrow: Word<u32>;

    /// [`Flow::state`].
    fn state(self) -> Self::Wide;
    /// [`Flow::last`].
    fn last(self) -> Self::Wide;
    /// [`Flow::seen`].
    fn seen(self) -> Self::Narrow;
    /// [`crate::abi::TcpSide::end`] of the side that sends in `direction`.
    fn end(self, direction: Direction) -> Self::Narrow;
    /// [`crate::abi::TcpSide::maxend`].
    fn maxend(self, direction: Direction) -> Self::Narrow;
    /// [`crate::abi::TcpSide::maxack`].
    fn maxack(self, direction: Direction) -> Self::Narrow;
    /// [`crate::abi::TcpSide::maxwin`].
    fn maxwin(self, direction: Direction) -> Self::Narrow;
}

impl<T: Copy + PartialEq> Word<T> for &Cell<T> {
    fn load(self) -> T {
        self.get()
    }

    fn store(self, value: T) {
        self.set(value);
    }

    fn swap(self, old: T, new: T) -> Result<(), T> {
        let seen = self.get();
        if seen == old {
            self.set(new);
            Ok(())
        } else {
            Err(seen)
        }
    }
}

/// A flow entry for one thread.
#[derive(Clone, Debug)]
pub struct FlowCells {
    state: Cell<u64>,
    last: Cell<u64>,
    seen: Cell<u32>,
    tcp: [[Cell<u32>; 4]; 2],
    rest: Flow,
}

impl FlowCells {
    /// With the words of `flow`.
    #[must_use]
    pub fn new(flow: &Flow) -> Self {
        let side = |side: &crate::abi::TcpSide| {
            [side.end, side.maxend, side.maxack, side.maxwin].map(Cell::new)
        };
        Self {
            state: Cell::new(flow.state),
            last: Cell::new(flow.last),
            seen: Cell::new(flow.seen),
            tcp: [side(&flow.tcp[0]), side(&flow.tcp[1])],
            rest: *flow,
        }
    }

    /// The entry as it stands.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let side = |side: &[Cell<u32>; 4]| crate::abi::TcpSide {
            end: side[0].get(),
            maxend: side[1].get(),
            maxack: side[2].get(),
            maxwin: side[3].get(),
        };
        Flow {
            state: self.state.get(),
            last: self.last.get(),
            seen: self.seen.get(),
            tcp: [side(&self.tcp[0]), side(&self.tcp[1])],
            ..self.rest
        }
    }
}

impl<'a> Cells for &'a FlowCells {
    type Wide = &'a Cell<u64>;
    type Narrow = &'a Cell<u32>;

    fn state(self) -> &'a Cell<u64> {
        &self.state
    }

    fn last(self) -> &'a Cell<u64> {
        &self.last
    }

    fn seen(self) -> &'a Cell<u32> {
        &self.seen
    }

    fn end(self, direction: Direction) -> &'a Cell<u32> {
        &self.tcp[direction.index()][0]
    }

    fn maxend(self, direction: Direction) -> &'a Cell<u32> {
        &self.tcp[direction.index()][1]
    }

    fn maxack(self, direction: Direction) -> &'a Cell<u32> {
        &self.tcp[direction.index()][2]
    }

    fn maxwin(self, direction: Direction) -> &'a Cell<u32> {
        &self.tcp[direction.index()][3]
    }
}

//! TCP tracking.
//!
//! - `state` is the transition table by direction and flags
//! - `options` reads the options that windows depend on
//! - `window` holds a segment against the windows of its flow
//! - `step` is the whole of it, over memory that several CPUs share (`cells`)
//! - `plain` is the whole of it for the segments that most are
//! - `first` makes the entry that a segment begins
//! - `quoted` holds a segment that an ICMP error quotes against its flow

mod cells;
mod first;
pub mod options;
mod plain;
mod quoted;
mod state;
mod step;
#[cfg(test)]
pub(crate) mod tests;
mod window;

pub use cells::{Cells, Counter, FlowCells, Word};
pub use first::{Begun, opened, picked_up, resynchronised};
pub use plain::plain;
pub use quoted::is_in_flight;
pub use state::{Segment, State, Transition, transition};
pub use step::{
    Stepped, TRIES, What, classify, commit, compare, measure, plan, record, settle, step,
};

use crate::{
    key::Direction,
    wire::{Headers, tcp_flags},
};

/// States of protocols that have none of their own, apart from those of TCP.
pub mod generic {
    /// Seen in one direction.
    pub const UNREPLIED: u8 = 12;
    /// Seen in both directions.
    pub const REPLIED: u8 = 13;
}

/// A segment on its way through a flow.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Its headers, options included.
    pub headers: &'a Headers,
    /// What it is.
    pub segment: Segment,
    /// Which way it runs.
    pub direction: Direction,
}

impl Arrived<'_> {
    #[inline(always)]
    const fn has_ack(&self) -> bool {
        self.headers.tcp_flags & tcp_flags::ACK != 0
    }

    #[inline(always)]
    const fn end(&self) -> u32 {
        end(self.headers)
    }
}

/// Sequence number after a segment: SYN and FIN count as one each.
#[inline(always)]
const fn end(h: &Headers) -> u32 {
    let syn = (h.tcp_flags & tcp_flags::SYN != 0) as u32;
    let fin = (h.tcp_flags & tcp_flags::FIN != 0) as u32;
    h.seq
        .wrapping_add(h.payload_len())
        .wrapping_add(syn)
        .wrapping_add(fin)
}

/// Is `a` later than `b`, modulo 2^32? (RFC 9293, section 3.4.)
#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// Is `a` earlier than `b`, modulo 2^32?
#[inline(always)]
const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

//! TCP tracking: states and transitions by direction and flags.

mod state;

pub use state::{Segment, State, Step, step};

/// States of protocols that have none of their own, apart from those of TCP.
pub mod generic {
    /// Seen in one direction.
    pub const UNREPLIED: u8 = 12;
    /// Seen in both directions.
    pub const REPLIED: u8 = 13;
}

//! The pure logic of pinhole, shared by the kernel programs and user space.
//!
//! Nothing in this crate does I/O, reads a clock or sees a raw pointer: bytes
//! come through [`wire::Reader`], time comes as an argument. So the very same
//! functions run inside the kernel, in unit tests and under property tests.
//!
//! - [`wire`] turns bytes into [`wire::Headers`]
//! - [`key`] turns headers into a canonical flow key and a direction
//! - [`tcp`] is the TCP state machine
//! - [`life`] finds, moves and ends the entries of flows
//! - [`expect`] takes pinholes
//! - [`timeout`] says when a flow ends
//! - [`fragment`] follows fragmented datagrams
//! - [`wake`] says what the agent is woken for
//! - [`forward`] says what a router does to a packet
//! - [`policy`] matches a new flow against compiled rules
//! - [`sabotage`] is what a test build leaves out
//! - [`verdict`] names every outcome
//! - [`abi`] holds each structure that crosses the kernel boundary
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod expect;
#[cfg(test)]
mod explore;
pub mod forward;
pub mod fragment;
pub mod key;
pub mod life;
pub mod policy;
pub mod sabotage;
pub mod tcp;
pub mod time;
pub mod timeout;
pub mod verdict;
pub mod wake;
pub mod wire;

/// Declares a plain-old-data structure that crosses the kernel boundary.
///
/// `bytemuck` proves at compile time what aya takes on trust: no padding, no
/// invalid bit patterns. The asserted size keeps the kernel and the user side
/// from drifting apart unseen.
macro_rules! pod {
    ($name:ident, $size:expr) => {
        // SAFETY: the derive of `bytemuck::Pod` on the type proves what
        // `aya::Pod` asks for: any bit pattern is valid and there is no padding.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
        const _: () = {
            const fn proven<T: bytemuck::Pod>() {}
            proven::<$name>();
            assert!(core::mem::size_of::<$name>() == $size);
            assert!(core::mem::align_of::<$name>() <= 8);
        };
    };
}
pub(crate) use pod;

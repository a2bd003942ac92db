//! What the generator sends, as the tests tell it to: shared with them.

use bytemuck::{Pod, Zeroable};

/// Bytes of a frame over IPv4: TCP without options and six bytes of payload.
pub(crate) const LEN4: usize = 60;
/// Bytes of a frame over IPv6, likewise.
pub(crate) const LEN6: usize = 80;
/// Where the last word of an address stands, of the sender's and of the receiver's.
pub(crate) const WORD4: [usize; 2] = [26, 30];
/// Likewise, over IPv6.
pub(crate) const WORD6: [usize; 2] = [34, 50];
/// Where layer 4 begins.
pub(crate) const L4_4: usize = 34;
/// Likewise, over IPv6.
pub(crate) const L4_6: usize = 54;
/// Flows of one address.
const PORTS: u32 = 16;
/// The first of their ports.
const PORT: u16 = 32768;

/// Bits of [`Plan::flags`].
pub(crate) mod flags {
    /// Over IPv6.
    pub(crate) const V6: u32 = 1;
    /// From the server's side.
    pub(crate) const REPLY: u32 = 2;
    /// TCP, not UDP.
    pub(crate) const TCP: u32 = 4;
    /// TCP goes on: each time round, the sequence number is another one.
    pub(crate) const ADVANCE: u32 = 8;
}

/// What to send. The numbers of flows go up by `stride` with each packet of a CPU,
/// within `mask`; [`flow`] says what flow n has.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Plan {
    /// Headers and payload; zero in all that differs by flow, and in the checksums.
    pub(crate) frame: [u8; LEN6],
    /// [`flags`].
    pub(crate) flags: u32,
    /// Flows less one, a power of two less one.
    pub(crate) mask: u32,
    /// CPUs that send.
    pub(crate) stride: u32,
    /// The times round, from the number of a packet: `number >> shift`.
    pub(crate) shift: u32,
    /// Last word of the address of flow 0, host byte order.
    pub(crate) word: u32,
    /// Sequence number of the first packet, host byte order.
    pub(crate) seq: u32,
    /// Sums of the 16-bit words (RFC 1071) of the IPv4 header, and of the rest with
    /// its pseudo header, in network byte order read as host's.
    pub(crate) sums: [u32; 2],
}

/// The address word and the port of a flow; `first` is the word of flow 0.
#[inline(always)]
pub(crate) const fn flow(first: u32, number: u32) -> (u32, u16) {
    let word = first.wrapping_add(number / PORTS);
    (word, PORT + (number % PORTS) as u16)
}

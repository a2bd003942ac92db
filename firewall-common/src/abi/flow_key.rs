//! The keys of flow entries.

use bytemuck::{Pod, Zeroable};

use crate::{key::Heading, pod};

/// Key of an IPv4 flow, normalised by construction ([`crate::key::FlowKey::of`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey4 {
    lo: u32,
    hi: u32,
    lo_port: u16,
    hi_port: u16,
    proto: u8,
    aux: u8,
    scope: u16,
}
pod!(FlowKey4, 16);

/// Key of an IPv6 flow, and of any flow where both families share a map: IPv4
/// then stands in its mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey6 {
    lo: [u32; 4],
    hi: [u32; 4],
    lo_port: u16,
    hi_port: u16,
    proto: u8,
    aux: u8,
    scope: u16,
}
pod!(FlowKey6, 40);

macro_rules! key_parts {
    ($name:ident, $addr:ty) => {
        impl $name {
            /// Builds a key from its parts, `lo` being the smaller endpoint.
            #[inline(always)]
            #[must_use]
            pub const fn from_parts(
                lo: $addr,
                hi: $addr,
                lo_port: u16,
                hi_port: u16,
                proto: u8,
                aux: u8,
            ) -> Self {
                Self {
                    lo,
                    hi,
                    lo_port,
                    hi_port,
                    proto,
                    aux,
                    scope: 0,
                }
            }

            /// The smaller address, network byte order.
            #[inline(always)]
            #[must_use]
            pub const fn lo(&self) -> $addr {
                self.lo
            }

            /// The larger address, network byte order.
            #[inline(always)]
            #[must_use]
            pub const fn hi(&self) -> $addr {
                self.hi
            }

            /// Port of `lo`, host byte order; the identifier for ICMP echo.
            #[inline(always)]
            #[must_use]
            pub const fn lo_port(&self) -> u16 {
                self.lo_port
            }

            /// Port of `hi`, host byte order; the identifier for ICMP echo.
            #[inline(always)]
            #[must_use]
            pub const fn hi_port(&self) -> u16 {
                self.hi_port
            }

            /// IP protocol number.
            #[inline(always)]
            #[must_use]
            pub const fn proto(&self) -> u8 {
                self.proto
            }

            /// For ICMP echo, which of two opposite pings; else 0.
            #[inline(always)]
            #[must_use]
            pub const fn aux(&self) -> u8 {
                self.aux
            }

            /// `(source address, source port, destination address, destination port)`
            /// of a packet that heads `heading`.
            #[inline(always)]
            #[must_use]
            pub const fn endpoints(&self, heading: Heading) -> ($addr, u16, $addr, u16) {
                match heading {
                    Heading::Up => (self.lo, self.lo_port, self.hi, self.hi_port),
                    Heading::Down => (self.hi, self.hi_port, self.lo, self.lo_port),
                }
            }
        }
    };
}
key_parts!(FlowKey4, u32);
key_parts!(FlowKey6, [u32; 4]);

impl FlowKey6 {
    /// The IPv4 key, if this is an IPv4 flow in its mapped form.
    #[inline(always)]
    #[must_use]
    pub fn narrow(&self) -> Option<FlowKey4> {
        if crate::key::is_v4_mapped(&self.lo) && crate::key::is_v4_mapped(&self.hi) {
            Some(FlowKey4::from_parts(
                self.lo[3],
                self.hi[3],
                self.lo_port,
                self.hi_port,
                self.proto,
                self.aux,
            ))
        } else {
            None
        }
    }
}

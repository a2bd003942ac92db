//! The fast path: packets that the ingress program forwards itself.

use bytemuck::{Pod, Zeroable};

use crate::pod;

/// Interfaces that have a counter of their own: elements of `FAST_COUNTERS`. More
/// guarded interfaces than that have no fast path.
pub const FAST_LEN: usize = 256;
/// Elements of `FAST_IFACES`, a power of two.
pub const FAST_PLACES: usize = 1024;
/// Elements of `NEIGHBOURS`, a power of two.
pub const NEIGHBOURS_LEN: usize = 4096;
/// Elements of `HOPS` on each CPU, a power of two.
pub const HOPS_LEN: usize = 2048;

/// Bits of [`FastIface::flags`].
pub mod fast_flags {
    /// What arrives here may be forwarded by the ingress program.
    pub const FROM: u32 = 1 << 0;
    /// What it forwards may leave here.
    pub const TO: u32 = 1 << 1;
    /// Routes of what arrives here depend on its addresses, its service and its protocol,
    /// and on nothing else: what a look-up found holds for the next packet like it.
    pub const STEADY: u32 = 1 << 2;
    /// They depend on the destination alone and, of IPv4, on the service: there are no
    /// routing rules but those that the kernel begins with, and no multipath routes.
    /// Only together with [`STEADY`].
    pub const PLAIN: u32 = 1 << 3;
}

/// The two elements of `FAST_IFACES` that the interface of index `ifindex` may have.
#[inline(always)]
#[must_use]
pub const fn fast_places(ifindex: u32) -> [u32; 2] {
    const MASK: u32 = FAST_PLACES as u32 - 1;
    [ifindex & MASK, ifindex.wrapping_add(1) & MASK]
}

/// What the fast path must know of a guarded interface. An element is written by
/// the agent, also while the programs run: an interface without one takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FastIface {
    /// Its index; 0 if the element is free.
    pub ifindex: u32,
    /// [`fast_flags`].
    pub flags: u32,
    /// Why a flag is not set: bits by [`Obstacle`].
    pub obstacles: u32,
    /// Hardware address: frames to another one are not for this machine.
    pub mac: [u8; 6],
    /// Its element of `FAST_COUNTERS`.
    pub number: u8,
    /// Its zone's number.
    pub zone: u8,
}
pod!(FastIface, 20);

/// Values of [`Hop::kind`]: what the route was looked up by.
pub mod hop_kind {
    /// All that stands in the element ([`fast_flags::STEADY`](super::fast_flags::STEADY)).
    pub const STEADY: u8 = 1;
    /// Destination and, of IPv4, service ([`fast_flags::PLAIN`](super::fast_flags::PLAIN)).
    pub const PLAIN: u8 = 2;
}

/// Bits of [`Hop::flags`].
pub mod hop_flags {
    /// The interface that it leads to takes no packets of the fast path.
    pub const SHUT: u8 = 1 << 0;
    /// The next packet goes through the kernel, so that the next hop stays known.
    pub const REFRESH: u8 = 1 << 1;
}

/// A route that was looked up a moment ago, by what it may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Hop {
    /// Source address, network byte order, IPv4 in mapped form.
    pub src: [u32; 4],
    /// Destination address, likewise.
    pub dst: [u32; 4],
    /// [`crate::wire::Headers::service`].
    pub service: u32,
    /// [`crate::time::Tick`] of the look-up; 0 if there was none.
    pub at: u32,
    /// Index of the interface that it leads to.
    pub out: u32,
    /// Most bytes of layer 3.
    pub mtu: u16,
    /// Protocol number.
    pub proto: u8,
    /// [`FastIface::number`] of the interface that the packet came in by.
    pub from: u8,
    /// Hardware address of the next hop.
    pub dmac: [u8; 6],
    /// Hardware address of the interface that it leads to.
    pub smac: [u8; 6],
    /// Number of that interface's zone.
    pub zone: u8,
    /// [`hop_kind`]; 0 if there was no look-up.
    pub kind: u8,
    /// [`hop_flags`].
    pub flags: u8,
    /// Keeps the size that of a cache line.
    pub reserved: u8,
}
pod!(Hop, 64);

/// Declares an enumeration whose numbers and names are stable.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $number:literal, $text:literal, $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name {
            $(#[doc = $help] $variant = $number,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => $help,)*
                }
            }
        }
    };
}

names! {
    /// Why packets that arrive at an interface, or leave it, do not take the fast
    /// path: bits of [`FastIface::obstacles`].
    Obstacle {
        KernelRules = 0, "kernel-rules", "The kernel filters or changes what it forwards (nf_tables), which would be bypassed.";
        LegacyRules = 1, "legacy-rules", "A table of legacy iptables is loaded, whose rules would be bypassed.";
        Ipsec = 2, "ipsec", "The kernel has IPsec policies, which would be bypassed.";
        MarkRouting = 3, "mark-routing", "Routing rules look at a mark that packets do not have yet.";
        Generic = 4, "generic-xdp", "XDP does not run in the driver: nothing would be gained.";
        NoEthernet = 5, "no-ethernet", "Packets have no Ethernet header.";
        Port = 6, "port", "It is part of another interface (bridge, bond, VRF).";
        PartialChecksums = 7, "partial-checksums", "The other end leaves checksums to the device, which never writes them.";
        UnknownChecksums = 8, "unknown-checksums", "Whether the other end leaves checksums to the device cannot be found out.";
        ReversePath = 9, "rp-filter", "Strict reverse path filtering, and another guarded interface is in its zone.";
        TcIngress = 10, "tc-ingress", "Filters of others at its TC ingress would be bypassed.";
        NoRedirect = 11, "no-redirect", "The device does not take packets from XDP.";
        Shaping = 12, "shaping", "Its queueing discipline would be bypassed.";
        TcEgress = 13, "tc-egress", "Filters of others at its TC egress would be bypassed.";
        Unknown = 14, "unknown", "The kernel did not say what it needs to know.";
        TooMany = 15, "too-many", "There are more guarded interfaces than the fast path has room for.";
    }
}

impl Obstacle {
    /// Obstacles to what arrives at an interface.
    pub const FROM: u32 = Self::ALL_WAYS
        | Self::PartialChecksums.bit()
        | Self::UnknownChecksums.bit()
        | Self::ReversePath.bit()
        | Self::TcIngress.bit();
    /// Obstacles to what would leave it.
    pub const TO: u32 =
        Self::ALL_WAYS | Self::NoRedirect.bit() | Self::Shaping.bit() | Self::TcEgress.bit();
    const ALL_WAYS: u32 = Self::KernelRules.bit()
        | Self::LegacyRules.bit()
        | Self::Ipsec.bit()
        | Self::MarkRouting.bit()
        | Self::Generic.bit()
        | Self::NoEthernet.bit()
        | Self::Port.bit()
        | Self::Unknown.bit()
        | Self::TooMany.bit();

    /// Its bit in [`FastIface::obstacles`].
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// [`fast_flags`] of an interface with these obstacles.
    #[must_use]
    pub const fn leave(obstacles: u32) -> u32 {
        let mut flags = 0;
        if obstacles & Self::FROM == 0 {
            flags |= fast_flags::FROM;
        }
        if obstacles & Self::TO == 0 {
            flags |= fast_flags::TO;
        }
        flags
    }
}

names! {
    /// Why a packet of a tracked flow was left to the kernel: indices of
    /// [`FastCounter::kept`].
    Kept {
        Interface = 0, "interface", "What arrives at this interface does not take the fast path, or no agent runs.";
        Unproved = 1, "unproved", "The first packets of a flow, whose sender may be another than they say, and its address is not known to lead back to where they came in: the kernel decides.";
        Helper = 2, "control", "Belongs to an FTP control connection.";
        Local = 4, "local", "Its flow leads to the host, or to an interface that is not guarded.";
        Frame = 5, "frame", "Tagged, padded beyond the minimum, or for another hardware address.";
        Header = 6, "header", "IP options, extension headers, or a fragment.";
        Ttl = 7, "ttl", "Its time to live is over: the kernel answers it.";
        Route = 8, "route", "No route forwards it, or forwarding is off.";
        NoNeighbour = 9, "no-neighbour", "The next hop is not known yet: the kernel finds it.";
        TooBig = 10, "too-big", "Longer than the way allows: the kernel answers it, or cuts it.";
        WayOut = 11, "way-out", "It would leave through an interface that takes no part, is of another zone than its flow's, or is the one that it came in by.";
        Refresh = 12, "refresh", "Once in five seconds a packet for each next hop, so that the kernel finds out if it is gone.";
    }
}

/// Length of [`FastCounter::kept`], a power of two.
pub const KEPT_LEN: usize = 16;

/// Packets of tracked flows that arrived at an interface while the fast path was on.
/// A per-CPU counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FastCounter {
    /// Packets that the program forwarded.
    pub packets: u64,
    /// Their bytes of layer 3 upwards.
    pub bytes: u64,
    /// Packets that were left to the kernel, by [`Kept`].
    pub kept: [u64; KEPT_LEN],
}
pod!(FastCounter, 144);

impl FastCounter {
    /// The sum over the CPUs.
    #[must_use]
    pub fn sum<'a>(of_cpus: impl Iterator<Item = &'a Self>) -> Self {
        of_cpus.fold(Self::default(), |mut sum, one| {
            sum.packets = sum.packets.wrapping_add(one.packets);
            sum.bytes = sum.bytes.wrapping_add(one.bytes);
            for (sum, one) in sum.kept.iter_mut().zip(one.kept) {
                *sum = sum.wrapping_add(one);
            }
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique_and_fit() {
        let mut names: Vec<_> = Obstacle::ALL.iter().map(|o| o.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Obstacle::ALL.len());
        assert!(Obstacle::ALL.len() <= 32 && Kept::ALL.len() <= KEPT_LEN);
        let mut names: Vec<_> = Kept::ALL.iter().map(|kept| kept.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kept::ALL.len());
    }

    #[test]
    fn places_are_two_elements() {
        for ifindex in [1, 1023, 1024, u32::MAX] {
            let [first, second] = fast_places(ifindex);
            assert_ne!(first, second);
            assert!(first.max(second) < FAST_PLACES as u32);
        }
    }

    #[test]
    fn every_obstacle_stands_in_a_way() {
        for obstacle in Obstacle::ALL {
            let left = Obstacle::leave(obstacle.bit());
            assert_ne!(left, fast_flags::FROM | fast_flags::TO, "{obstacle:?}");
        }
        assert_eq!(Obstacle::leave(0), fast_flags::FROM | fast_flags::TO);
        assert_eq!(Obstacle::leave(Obstacle::Shaping.bit()), fast_flags::FROM);
        assert_eq!(Obstacle::leave(Obstacle::TcIngress.bit()), fast_flags::TO);
        assert_eq!(Obstacle::leave(Obstacle::Generic.bit()), 0);
    }
}

//! What user space tells the programs.

use bytemuck::{Pod, Zeroable};

use crate::pod;

/// Zone of the host itself, and of containers and virtual machines behind it.
pub const ZONE_HOST: u8 = 0;
/// In a [`super::Rule`], any zone.
pub const ZONE_ANY: u8 = 0xff;
/// How many zones there can be beside the host's (numbers 1 to `MAX_ZONES`).
pub const MAX_ZONES: u8 = 32;

/// Time-outs in ticks, indices of [`Config::timeouts`].
pub mod timeout {
    /// `tcp::State as usize` (0 to 9) gives the time-out of that TCP state.
    pub const TCP: usize = 0;
    /// UDP seen in one direction.
    pub const UDP: usize = 10;
    /// UDP seen in both directions.
    pub const UDP_STREAM: usize = 11;
    /// ICMP and ICMPv6 echo.
    pub const ICMP: usize = 12;
    /// Any other protocol.
    pub const OTHER: usize = 13;
    /// The most that a TCP flow gets while data is unacknowledged, or while it
    /// has no reply.
    pub const TCP_UNACKNOWLEDGED: usize = 14;
    /// Length of the table.
    pub const LEN: usize = 16;
}

/// Essentials: what a host needs to have a network at all, bits of [`Config::essentials`].
pub mod essentials {
    /// ARP.
    pub const ARP: u32 = 1 << 0;
    /// ICMPv6 types 133 to 137 with hop limit 255 (RFC 4861, section 6.1 and 7.1).
    pub const NEIGHBOUR_DISCOVERY: u32 = 1 << 1;
    /// UDP 67 → 68, and 68 → 67 outwards (RFC 2131).
    pub const DHCP_CLIENT: u32 = 1 << 2;
    /// UDP 547 → 546 from a link-local address, and back (RFC 8415).
    pub const DHCPV6_CLIENT: u32 = 1 << 3;
    /// IGMP, and ICMPv6 types 130 to 132 and 143 (RFC 2710, RFC 3810).
    pub const MULTICAST_LISTENER: u32 = 1 << 4;
    /// ICMP errors about a tracked flow, "fragmentation needed" and "packet too big" among them.
    pub const PATH_MTU: u32 = 1 << 5;
    /// LLDP, 802.1X, slow protocols (LACP) and spanning tree: link control, never IP.
    pub const LINK_CONTROL: u32 = 1 << 6;
    /// All of them.
    pub const ALL: u32 = (1 << 7) - 1;
}

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// Two zones or more: the destination zone of a new flow is found by a route look-up.
    pub const GATEWAY: u32 = 1 << 0;
    /// Hold data SYNs of live FTP pairs for the agent instead of dropping them.
    pub const HOLD: u32 = 1 << 1;
    /// Shadow mode: every packet passes, and what would be dropped is counted
    /// and tracked as such ([`crate::abi::flow_flags::WOULD_DROP`]).
    pub const SHADOW: u32 = 1 << 2;
    /// A rule picks up TCP flows in mid-life ([`crate::abi::rule_flags::LOOSE`]).
    pub const LOOSE: u32 = 1 << 3;
    /// There are session ranges: whether one is for a data SYN the agent alone knows,
    /// so the SYN is held even when the agent has read all that was said before.
    pub const RANGES: u32 = 1 << 4;
    /// Packets of proved flows are forwarded by the ingress program. Never with
    /// [`SHADOW`], and on a [`GATEWAY`] only.
    pub const FAST_PATH: u32 = 1 << 5;
}

/// The configuration that the programs read. One element; replaced as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    /// A heartbeat older than this many nanoseconds means that the agent is dead.
    pub agent_stale_ns: u64,
    /// [`config_flags`].
    pub flags: u32,
    /// [`essentials`].
    pub essentials: u32,
    /// Which half of the `RULES` map is live: 0 or 1.
    pub generation: u32,
    /// Rules in each half.
    pub rule_count: [u32; 2],
    /// Admission limit of the proved tier, by [`super::Tier`]. Below the size
    /// of the map, so that a promotion never evicts while the collector lives.
    pub tier_limits: [u32; 4],
    /// Time-outs in ticks, by [`timeout`].
    pub timeouts: [u32; timeout::LEN],
    /// Bytes waiting in the ring above which no SYN is held.
    pub hold_ring_limit: u32,
    /// SYNs that may be held for one host pair within a second.
    pub hold_per_pair: u32,
    /// [`super::table_full`].
    pub table_full: u32,
}
pod!(Config, 120);

/// What `run --confirm` and `confirm` change while the programs run.
///
/// The agent's sign of life is in a map of its own, [`heartbeat`]: an element
/// is replaced as a whole, so two writers of one would undo each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// `CLOCK_MONOTONIC` after which everything passes, because nobody
    /// confirmed the attachment in time; 0 when confirmed.
    pub confirm_deadline_ns: u64,
}
pod!(Control, 8);

/// Indices of the `HEARTBEAT` map. Written by the agent alone.
pub mod heartbeat {
    /// `CLOCK_MONOTONIC` of the agent's last sign of life, ns; 0 if none ran.
    pub const AT_NS: u32 = 0;
    /// Process id of the agent, for `status`.
    pub const PID: u32 = 1;
    /// Inode number of the network namespace that the instance guards
    /// (`/proc/self/ns/net`): pins are seen from every namespace, interfaces
    /// are not.
    pub const NETNS: u32 = 2;
    /// Length of the map.
    pub const LEN: u32 = 3;
}

/// Bits of [`Iface::flags`].
pub mod iface_flags {
    /// XDP runs in the driver.
    pub const XDP_NATIVE: u32 = 1 << 0;
    /// XDP runs in the generic hook of the stack.
    pub const XDP_GENERIC: u32 = 1 << 1;
    /// The TC program is a TCX link.
    pub const TCX: u32 = 1 << 2;
    /// The TC program is a clsact filter.
    pub const CLSACT: u32 = 1 << 3;
    /// The clsact qdisc is ours: `unload` removes it.
    pub const CLSACT_ADDED: u32 = 1 << 4;
    /// Receive offload of 802.1Q tags was on before: `unload` turns it on again.
    pub const RESTORE_RXVLAN: u32 = 1 << 5;
    /// Transmit offload of 802.1Q tags was on before, at the other end of a veth.
    pub const RESTORE_TXVLAN: u32 = 1 << 6;
    /// A VLAN on top of a guarded interface, not guarded itself: no program runs
    /// on it, its frames are judged below.
    pub const VLAN_CHILD: u32 = 1 << 7;
    /// Its packets have no Ethernet header: they begin with IP.
    pub const NO_ETHERNET: u32 = 1 << 8;
    /// As [`RESTORE_RXVLAN`], of 802.1ad tags.
    pub const RESTORE_RXVLAN_STAG: u32 = 1 << 9;
    /// As [`RESTORE_TXVLAN`], of 802.1ad tags.
    pub const RESTORE_TXVLAN_STAG: u32 = 1 << 10;
    /// All that `unload` restores.
    pub const RESTORE: u32 =
        RESTORE_RXVLAN | RESTORE_TXVLAN | RESTORE_RXVLAN_STAG | RESTORE_TXVLAN_STAG;
}

/// A guarded interface, or a VLAN on top of one ([`iface_flags::VLAN_CHILD`]),
/// which has that one's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Iface {
    /// [`iface_flags`].
    pub flags: u32,
    /// Zone number, 1 to [`MAX_ZONES`].
    pub zone: u8,
    /// 1 if flows that begin in this zone count as begun inside.
    pub trusted: u8,
    /// Keeps the size a multiple of four.
    pub reserved: u16,
    /// Name at attach, NUL-terminated.
    pub name: [u8; 16],
    /// Name of the zone, NUL-terminated.
    pub zone_name: [u8; 16],
}
pod!(Iface, 40);

/// A per-CPU counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counter {
    /// Packets, or events.
    pub packets: u64,
    /// Bytes of layer 3 upwards.
    pub bytes: u64,
}
pod!(Counter, 16);

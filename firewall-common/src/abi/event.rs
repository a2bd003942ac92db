//! Records of the ring, and requests to the control program.

use bytemuck::{Pod, Zeroable};

use super::FlowKey6;
use crate::pod;

/// What a ring record is, `EventHeader::kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum EventKind {
    /// A control flow proved itself: `seq` is the originator's next sequence
    /// number, `ack` the replier's.
    Open = 1,
    /// Control payload; the bytes follow the header.
    Payload = 2,
    /// FIN on a control flow; `seq` is its sequence number. Payload of the same segment follows.
    Fin = 3,
    /// RST on a control flow.
    Rst = 4,
    /// A TCP SYN between two hosts with a live FTP session was dropped for
    /// `reason`, and only reported. `key` is that SYN's own key.
    SynDropped = 5,
    /// As `SynDropped`, but the whole frame follows: it can be run again.
    SynHeld = 6,
    /// A TCP SYN between two hosts with a live FTP session began a flow, and no
    /// control connection. `key` is that flow's.
    SynPassed = 7,
    /// A TCP SYN to a port that somebody is expected at, from a host that has no FTP
    /// session with the port's, was dropped for `reason`. `key` is that SYN's own key.
    SynStray = 8,
}

impl TryFrom<u16> for EventKind {
    type Error = u16;

    fn try_from(value: u16) -> Result<Self, u16> {
        Ok(match value {
            1 => Self::Open,
            2 => Self::Payload,
            3 => Self::Fin,
            4 => Self::Rst,
            5 => Self::SynDropped,
            6 => Self::SynHeld,
            7 => Self::SynPassed,
            8 => Self::SynStray,
            other => return Err(other),
        })
    }
}

/// Bits of [`EventHeader::flags`].
pub mod event_flags {
    /// The packet headed down in its key ([`crate::key::Heading::Down`]).
    pub const HEADING_DOWN: u16 = 1 << 0;
    /// The packet was of the reply direction of its flow.
    pub const REPLY: u16 = 1 << 1;
    /// Seen at TC egress, not at XDP ingress.
    pub const EGRESS: u16 = 1 << 2;
    /// TCP urgent flag.
    pub const URGENT: u16 = 1 << 3;
    /// The frame that follows begins with its IP header.
    pub const NO_ETHERNET: u16 = 1 << 4;
    /// The SYN was let in by an expectation, not by a rule.
    pub const EXPECTED: u16 = 1 << 5;
}

/// Head of every ring record. `len` bytes follow at once.
///
/// A record is reserved in one of a few constant size classes
/// ([`EVENT_CLASSES`]), so it can be longer than `len` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EventHeader {
    /// `CLOCK_MONOTONIC`, ns.
    pub at_ns: u64,
    /// Flow of the packet.
    pub key: FlowKey6,
    /// Incarnation of the flow's entry; 0 when it has none.
    pub incarnation: u32,
    /// Interface on which it was seen.
    pub ifindex: u32,
    /// TCP sequence number of the first byte that follows.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Bytes that follow.
    pub len: u32,
    /// [`EventKind`].
    pub kind: u16,
    /// [`event_flags`].
    pub flags: u16,
    /// Zone of origin of the flow, or of the packet where there is no flow.
    pub from_zone: u8,
    /// Zone of destination, as `from_zone`.
    pub to_zone: u8,
    /// [`crate::verdict::DropReason`] for the SYN kinds.
    pub reason: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// Keeps the size a multiple of eight.
    pub reserved: u32,
}
pod!(EventHeader, 80);

/// Payload bytes that a record of each size class holds.
///
/// The largest takes a GSO segment of 64 kB. What is longer still (BIG TCP, never
/// seen of an FTP control channel) makes the flow blind instead of stopping it.
pub const EVENT_CLASSES: [usize; 3] = [256, 2048, 65_536 + 256];

/// Size of the ring `EVENTS`.
pub const EVENTS_BYTES: usize = 4 << 20;

/// What the control program shall do, `CtlRequest::op`.
pub mod ctl_op {
    /// Delete those of the flows that are expired (invariant: nothing alive is
    /// deleted). Returns how many.
    pub const EXPIRE: u32 = 1;
    /// Mark the flows blind: the helper opens nothing more for them.
    pub const BLIND: u32 = 2;
    /// Take the helper away from the flows: their payload is not queued any more.
    pub const UNHELP: u32 = 3;
    /// Admit flows that shadow mode let in although they were refused
    /// ([`crate::abi::flow_flags::WOULD_DROP`]). Returns how many were refused.
    pub const ADMIT: u32 = 4;
    /// As [`ADMIT`], and mark them as expected by the helper
    /// ([`crate::abi::flow_flags::RELATED`]).
    pub const EXPECTED: u32 = 9;
    /// Change counts, by a [`super::CtlCounts`] in place of the keys.
    pub const COUNT: u32 = 5;
    /// Delete the flows, alive as they may be, if their entries are still of the
    /// incarnations given: what the operator asks for. Returns how many were there.
    pub const DELETE: u32 = 6;
}

/// Flows in one [`CtlRequest`].
pub const CTL_FLOWS: usize = 32;

/// A flow that a [`CtlRequest`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CtlFlow {
    /// IPv4 in mapped form.
    pub key: FlowKey6,
    /// Of the entry that was seen; only [`ctl_op::DELETE`] looks at it.
    pub incarnation: u32,
    /// Keeps the size a multiple of eight.
    pub reserved: u32,
}
pod!(CtlFlow, 48);

impl CtlFlow {
    /// Whatever entry the key has.
    #[must_use]
    pub const fn any(key: FlowKey6) -> Self {
        Self::new(key, 0)
    }

    /// The entry of this incarnation.
    #[must_use]
    pub const fn new(key: FlowKey6, incarnation: u32) -> Self {
        Self {
            key,
            incarnation,
            reserved: 0,
        }
    }
}

/// Input of the control program, passed to BPF_PROG_RUN as the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CtlRequest {
    /// [`ctl_op`].
    pub op: u32,
    /// How many of `flows` count.
    pub count: u32,
    /// Flows.
    pub flows: [CtlFlow; CTL_FLOWS],
}
pod!(CtlRequest, 8 + 48 * 32);

/// Input of the control program for [`ctl_op::COUNT`]: what user space wrote or
/// found by itself. Added by the program, atomically, so that nothing that the
/// data path counts at the same time is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CtlCounts {
    /// [`ctl_op::COUNT`].
    pub op: u32,
    /// 0.
    pub count: u32,
    /// To be added to the proved flows on record, by [`super::Tier`].
    pub tiers: [i64; super::TIER_COUNTS_LEN],
    /// Entries put in from user space: into `FLOWS4`, into `FLOWS6`.
    pub created: [u64; 2],
}
pod!(CtlCounts, 8 + 8 * 4 + 8 * 2);

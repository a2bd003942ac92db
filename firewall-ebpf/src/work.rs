//! What one run of a program works on.
//!
//! It lives in a per-CPU map element: the BPF stack has 512 bytes, and the
//! verifier follows what is on the stack through every branch, whereas of map
//! memory it asks nothing but bounds. Each hook has an element of its own, so a
//! run that interrupts another never meets its data.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::bpf_fib_lookup as FibParams, btf_maps::PerCpuArray, macros::btf_map};
use firewall_common::{
    abi::{
        DataFlow, EventHeader, ExpectKey, Explain, Flow, FlowKey4, FlowKey6, FragmentKey, Fragments,
    },
    key::Direction,
    life::Missed,
    policy::classify::Rows,
    tcp::{Arrived, Segment, Stepped, options::OPTIONS_ROOM},
    time::Tick,
    wire::{Headers, OnWire, Options},
};

use crate::policy::Decision;

/// Which element a run uses.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Slot {
    /// XDP ingress.
    Ingress = 0,
    /// TC egress.
    Egress = 1,
    /// Held packets, run from process context.
    Reinject = 2,
}

const SLOTS: usize = 3;

#[btf_map]
static WORK: PerCpuArray<Work, SLOTS> = PerCpuArray::new();

/// Guarded interfaces that are remembered, a power of two.
pub(crate) const KNOWN: usize = 8;

/// What is looked up once a jiffy, because within one it stays as it is, or may: the
/// time, and the interfaces that packets pass by.
#[repr(C)]
pub(crate) struct Moment {
    /// The jiffy that all of this is of.
    pub jiffies: u64,
    /// `CLOCK_MONOTONIC`, ns, to a few milliseconds.
    pub now_ns: u64,
    /// Guarded interfaces, each at the low bits of its index.
    pub ifaces: [KnownIface; KNOWN],
}

/// What of an interface packets depend on.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct KnownIface {
    /// Its index; 0 if none is here.
    pub ifindex: u32,
    /// [`firewall_common::abi::Iface::flags`].
    pub flags: u32,
    /// Its zone.
    pub zone: u8,
    /// Whether flows that begin in that zone count as begun inside.
    pub trusted: bool,
}

impl KnownIface {
    pub(crate) const NONE: Self = Self {
        ifindex: 0,
        flags: 0,
        zone: 0,
        trusted: false,
    };
}

/// A packet, what is known of it, and room for what is made of it. All zero is
/// a valid value.
#[repr(C)]
pub(crate) struct Work {
    /// What the packets of this moment have in common.
    pub moment: Moment,
    /// [`Moment::now_ns`] in ticks.
    pub now: Tick,
    /// `Config::flags`.
    pub flags: u32,
    /// `Config::essentials`.
    pub essentials: u32,
    /// The guarded interface's zone (at egress, where the packet goes).
    pub iface_zone: u8,
    /// Whether flows that begin in that zone count as begun inside.
    pub iface_trusted: bool,
    /// Whether its packets have an Ethernet header.
    pub ethernet: bool,
    /// Zone that the packet comes from.
    pub from_zone: u8,
    /// Zone that a new flow goes to.
    pub to_zone: u8,
    /// Whether `from_zone` counts as inside.
    pub from_inside: bool,
    /// Whether a data SYN may be held for the agent.
    pub may_hold: bool,
    /// Where the packet's flow was looked for already, and is not there.
    pub missed: Missed,
    /// How many flows had moved to the proved table before the packet's was looked for.
    pub moves: u64,
    /// Whether the new flow takes the place of an unanswered one of another zone.
    pub displaces: bool,
    /// Whether the agent may know more than the expectations: records waited for it
    /// before they were looked at, or it has session ranges.
    pub behind: bool,
    /// [`firewall_common::abi::table_full`], if the flow's class is full; else `TRACK`.
    pub full: u32,
    /// [`Hop::kind`](firewall_common::abi::Hop::kind) of the route that was learnt last;
    /// 0 if none was kept.
    pub learnt: u8,
    /// What the packet's step says of its flow: [`firewall_common::forward::stepped`].
    pub flow_ahead: u32,
    /// What becomes of the packet.
    pub outcome: Opaque,
    /// The packet's link header, packed.
    pub link: Opaque,
    /// Which way the packet heads in its key: 1 for down.
    pub heading: Opaque,
    /// The packet's headers.
    pub headers: Headers,
    /// What the packet amounts to on the wire.
    pub on_wire: OnWire,
    /// The headers of the packet that an ICMP error quotes.
    pub quoted: Headers,
    /// IPv4 key.
    pub key4: FlowKey4,
    /// IPv6 key.
    pub key6: FlowKey6,
    /// Expectation key.
    pub expect: ExpectKey,
    /// Whose data connection the packet begins.
    pub data: DataFlow,
    /// The options of an IPv4 header.
    pub options: Options,
    /// Key of the datagram that a fragment is of.
    pub datagram: FragmentKey,
    /// A datagram to insert.
    pub fragments: Fragments,
    /// A route look-up.
    pub route: FibParams,
    /// A flow entry to insert.
    pub flow: Flow,
    /// A ring record's header.
    pub event: EventHeader,
    /// The packet's [`Direction`].
    pub direction: Opaque,
    /// Which element this is: a [`Slot`].
    pub slot: u32,
    /// What the packet's step did; written before it is read.
    pub stepped: MaybeUninit<Stepped>,
    /// Where in them.
    pub cursor: Opaque,
    /// The segment's TCP options.
    pub tcp_options: [u8; OPTIONS_ROOM],
    /// What the rules say of a new flow.
    pub decision: Decision,
    /// The rules that its parts allow, each on its own.
    pub rows: Rows,
    /// Numbers go through here to be known no more.
    pub hidden: u64,
    /// Notes for `pinhole why`.
    pub explain: Explain,
}

impl Work {
    /// What the packet's step did.
    #[inline(always)]
    pub(crate) fn stepped(&self) -> &Stepped {
        // SAFETY: each step writes it first, and only what follows a step reads it.
        unsafe { self.stepped.assume_init_ref() }
    }

    /// The same, to be changed.
    #[inline(always)]
    pub(crate) fn stepped_mut(&mut self) -> &mut Stepped {
        // SAFETY: as `stepped`.
        unsafe { self.stepped.assume_init_mut() }
    }

    /// Which way the packet runs in its flow.
    #[inline(always)]
    pub(crate) fn direction(&self) -> Direction {
        if self.direction.get() & 1 == 0 {
            Direction::Original
        } else {
            Direction::Reply
        }
    }

    /// The packet as a TCP segment, and where its step is written to.
    #[inline(always)]
    pub(crate) fn arrived(&mut self) -> (Arrived<'_>, &mut Stepped) {
        let direction = self.direction();
        let arrived = Arrived {
            headers: &self.headers,
            // Others have been turned away.
            segment: Segment::of(self.headers.tcp_flags).unwrap_or(Segment::Ack),
            direction,
        };
        // SAFETY: as `stepped`.
        (arrived, unsafe { self.stepped.assume_init_mut() })
    }
}

/// A word of which the compiler and the verifier keep no knowledge.
#[repr(transparent)]
pub(crate) struct Opaque(u32);

impl Opaque {
    /// Writes the word.
    #[inline(always)]
    pub(crate) fn set(&mut self, value: u32) {
        // SAFETY: a plain field of this run's own work area.
        unsafe { (&raw mut self.0).write_volatile(value) }
    }

    /// Reads it back.
    #[inline(always)]
    pub(crate) fn get(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const self.0).read_volatile() }
    }
}

/// This run's work area.
#[inline(always)]
pub(crate) fn area(slot: Slot) -> Option<&'static mut Work> {
    let work = again(slot as u32)?;
    work.slot = slot as u32;
    Some(work)
}

/// The same, for a global function of the run, by [`Work::slot`]: the verifier of
/// 6.1 takes no key for a map from memory that a global function was handed.
#[inline(always)]
pub(crate) fn again(slot: u32) -> Option<&'static mut Work> {
    let work = WORK.get_ptr_mut(slot)?;
    // SAFETY: the element is this CPU's and this hook's own, and all zero is a
    // valid value, so it is never invalid.
    Some(unsafe { &mut *work })
}

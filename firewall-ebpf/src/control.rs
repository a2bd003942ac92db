//! What goes to the agent: control payload, and SYNs that may be data connections.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use firewall_common::{
    abi::{
        EVENT_CLASSES, EVENTS_BYTES, EventHeader, EventKind, Flow, FlowState, Last, config_flags,
        event_flags, flow_flags, heartbeat,
    },
    key::{Direction, Heading},
    tcp::Counter as _,
    verdict::{DropReason, Event, PassReason, Verdict},
    wake::{self, LOOKED_AT, word},
    wire::{Headers, tcp_flags},
};

use crate::{
    conntrack::{Family, last_of, state_of},
    maps::{CONFIG, EVENTS, HEARTBEAT},
    packet::{Packet, bounded},
    pair::{self, Share},
    share, stats,
    work::Work,
};

/// Lost swaps after which a flow is left unmarked.
const BLIND_TRIES: usize = 4;

/// Bytes that may wait on the ring for a record that wakes the agent. Less than two hosts
/// may have there, or they would have to send again what nobody reads.
const BACKLOG: u64 = EVENTS_BYTES as u64 / 64;

/// A ring record of one size class.
#[repr(C)]
struct Record<const N: usize> {
    header: EventHeader,
    bytes: [u8; N],
}

/// Does an agent live? Its heartbeat says.
#[inline(always)]
pub(crate) fn agent_lives(work: &Work) -> bool {
    let beat = HEARTBEAT.get(heartbeat::AT_NS).copied().unwrap_or(0);
    // The coarse clock here lags the agent's by some milliseconds.
    beat != 0
        && CONFIG
            .get(0)
            .is_some_and(|config| work.moment.now_ns.saturating_sub(beat) <= config.agent_stale_ns)
}

/// Queues an accepted packet of a control flow, if it says anything.
#[inline(always)]
pub(crate) fn payload<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
    entry: *mut Flow,
    word: FlowState,
) -> Verdict {
    let established = Verdict::Pass(PassReason::Established);
    let h = &work.headers;
    let len = h.payload_len();
    let kind = if h.tcp_flags & tcp_flags::RST != 0 {
        EventKind::Rst
    } else if h.tcp_flags & tcp_flags::FIN != 0 {
        EventKind::Fin
    } else if len != 0 {
        EventKind::Payload
    } else {
        return established;
    };
    if !agent_lives(work) {
        blind(entry, word.incarnation());
        return Verdict::Pass(PassReason::Blind);
    }
    // A flow that was once blind stays so, but its end still ends its pinholes.
    if word.has(flow_flags::BLIND) && matches!(kind, EventKind::Payload) {
        return Verdict::Pass(PassReason::Blind);
    }
    K::into_event(work);
    let last = Last(last_of(entry).load());
    let h = &work.headers;
    let offset = h.payload_offset as u32;
    let event = &mut work.event;
    event.at_ns = work.moment.now_ns;
    event.incarnation = word.incarnation();
    event.ifindex = packet.ifindex();
    event.seq = h.seq;
    event.ack = h.ack;
    event.len = if matches!(kind, EventKind::Rst) {
        0
    } else {
        len
    };
    event.kind = kind as u16;
    event.flags = flags_of::<P>(h, heading, Direction::of(heading, word.first_heading()));
    event.from_zone = last.from_zone();
    event.to_zone = last.to_zone();
    event.reason = 0;
    event.tcp_flags = h.tcp_flags;
    event.reserved = 0;
    let queued = if share::take(work) {
        queue(packet, &work.event, offset)
    } else {
        Queued::Full
    };
    match queued {
        Queued::Yes => {
            stats::event(Event::ControlQueued);
            established
        }
        // An RST is never sent again, and needs no answer.
        Queued::Full if matches!(kind, EventKind::Rst) => established,
        Queued::Full => {
            // In shadow mode it passes unread: nobody sends it again.
            if work.flags & config_flags::SHADOW != 0 {
                blind(entry, word.incarnation());
            }
            Verdict::Drop(DropReason::RingFull)
        }
        Queued::TooLong => {
            stats::event(Event::ControlTooLong);
            blind(entry, word.incarnation());
            Verdict::Pass(PassReason::Blind)
        }
    }
}

#[inline(always)]
fn flags_of<P: Packet>(h: &Headers, heading: Heading, direction: Direction) -> u16 {
    let mut flags = 0;
    if matches!(heading, Heading::Down) {
        flags |= event_flags::HEADING_DOWN;
    }
    if matches!(direction, Direction::Reply) {
        flags |= event_flags::REPLY;
    }
    if P::EGRESS {
        flags |= event_flags::EGRESS;
    }
    if h.tcp_flags & tcp_flags::URG != 0 {
        flags |= event_flags::URGENT;
    }
    flags
}

/// Marks a flow whose payload the agent missed: it opens nothing more.
#[inline(always)]
fn blind(entry: *mut Flow, incarnation: u32) {
    let state = state_of(entry);
    // A lost swap means that another packet stepped the flow.
    for _ in 0..BLIND_TRIES {
        let word = FlowState(state.load());
        let blind = word.with(flow_flags::BLIND);
        if word == blind || word.incarnation() != incarnation || state.swap(word.0, blind.0).is_ok()
        {
            return;
        }
    }
    // It happens again with the next payload, and until then the agent sees the gap.
    stats::event(Event::Contention);
}

/// Tells the agent that the control flow in `work.flow` has proved itself, and
/// where its streams begin.
#[inline(always)]
pub(crate) fn opened<K: Family>(work: &mut Work, word: FlowState) {
    if !agent_lives(work) {
        return;
    }
    K::into_event(work);
    let first_down = word.has(flow_flags::FIRST_DOWN);
    let streams = work.stepped().streams;
    let event = &mut work.event;
    event.at_ns = work.moment.now_ns;
    event.incarnation = word.incarnation();
    event.ifindex = 0;
    [event.seq, event.ack] = streams;
    event.len = 0;
    event.kind = EventKind::Open as u16;
    event.flags = if first_down {
        event_flags::HEADING_DOWN
    } else {
        0
    };
    event.from_zone = work.flow.from_zone();
    event.to_zone = work.flow.to_zone();
    event.reason = 0;
    event.tcp_flags = 0;
    event.reserved = 0;
    // Without this record the agent adopts the session at its first payload,
    // and is then more careful with it.
    if share::take(work) {
        let _ = submit_bare(&work.event);
    }
}

/// A SYN that the rules refuse: if its two hosts have a live FTP session, the
/// agent hears of it, and may be asked to run it again once it has caught up (in
/// shadow mode, where it passes, to say then whether it is expected). It hears of one
/// to a port that somebody else is expected at, too. Returns the reason for which it
/// is dropped.
#[inline(always)]
pub(crate) fn refused_syn<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
    reason: DropReason,
) -> DropReason {
    let frame = packet.frame_len() as u32;
    // A tag beside the frame would be lost.
    let whole = frame <= EVENT_CLASSES[0] as u32 && packet.tags_beside() == 0;
    let may_hold = work.may_hold && work.behind && whole;
    let share = pair::refused(work, may_hold);
    if matches!(share, Share::Nothing) {
        return reason;
    }
    let hold = matches!(share, Share::Hold);
    K::into_event(work);
    let h = &work.headers;
    let event = &mut work.event;
    event.at_ns = work.moment.now_ns;
    event.incarnation = 0;
    event.ifindex = packet.ifindex();
    event.seq = h.seq;
    event.ack = h.ack;
    event.len = if hold { frame } else { 0 };
    event.kind = match share {
        Share::Hold => EventKind::SynHeld,
        Share::Stray => EventKind::SynStray,
        Share::Report | Share::Nothing => EventKind::SynDropped,
    } as u16;
    event.flags = flags_of::<P>(h, heading, Direction::Original);
    if h.l3_offset == 0 {
        event.flags |= event_flags::NO_ETHERNET;
    }
    event.from_zone = work.from_zone;
    event.to_zone = work.to_zone;
    event.reason = reason as u8;
    event.tcp_flags = h.tcp_flags;
    event.reserved = 0;
    if !matches!(queue(packet, &work.event, 0), Queued::Yes) {
        return reason;
    }
    stats::event(Event::SynReported);
    if hold { DropReason::Held } else { reason }
}

/// A SYN began the flow in `work.flow`: if its two hosts have a live FTP session, the
/// agent hears of it. It says then which data connections nobody answered.
#[inline(always)]
pub(crate) fn passed_syn<P: Packet, K: Family>(work: &mut Work, heading: Heading, flags: u32) {
    let expected = flags & flow_flags::RELATED != 0;
    if !pair::passed(work, expected) {
        return;
    }
    K::into_event(work);
    let h = &work.headers;
    let event = &mut work.event;
    event.at_ns = work.moment.now_ns;
    event.incarnation = FlowState(work.flow.state).incarnation();
    event.ifindex = 0;
    event.seq = h.seq;
    event.ack = h.ack;
    event.len = 0;
    event.kind = EventKind::SynPassed as u16;
    event.flags = flags_of::<P>(h, heading, Direction::Original);
    if expected {
        event.flags |= event_flags::EXPECTED;
    }
    event.from_zone = work.from_zone;
    event.to_zone = work.to_zone;
    event.reason = 0;
    event.tcp_flags = h.tcp_flags;
    event.reserved = 0;
    // What finds no room is not told: it changes nothing.
    let _ = submit_bare(&work.event);
}

/// Does anything wait on the ring that the agent has not handled yet?
#[inline(always)]
pub(crate) fn agent_is_behind() -> bool {
    ring_fill() != 0
}

#[inline(always)]
pub(crate) fn ring_fill() -> u64 {
    const BPF_RB_AVAIL_DATA: u64 = 0;
    // SAFETY: the map is a ring buffer.
    unsafe { bpf_ringbuf_query(ring(), BPF_RB_AVAIL_DATA) }
}

/// How far the agent and the programs have come on the ring, in bytes since it was made.
#[inline(always)]
pub(crate) fn ring_positions() -> (u64, u64) {
    const BPF_RB_CONS_POS: u64 = 2;
    const BPF_RB_PROD_POS: u64 = 3;
    // SAFETY: the map is a ring buffer. The agent's first: it is never ahead.
    let read = unsafe { bpf_ringbuf_query(ring(), BPF_RB_CONS_POS) };
    // SAFETY: as above.
    let written = unsafe { bpf_ringbuf_query(ring(), BPF_RB_PROD_POS) };
    (read, written)
}

#[inline(always)]
fn ring() -> *mut core::ffi::c_void {
    (&raw const EVENTS).cast_mut().cast()
}

/// The flags to submit the record with that `header` is of, and whose bytes begin with `first`
/// ([`word`]).
///
/// Unless told, the kernel wakes the agent only if it has read all that came before, which is
/// not enough behind a record that woke nobody. But a wake-up costs as much as the whole packet,
/// so there is none while the agent is still to come to where the last one takes it: before it
/// sleeps again it reads whatever is reserved by then (`Events::drain`), and this record is.
///
/// A global function: the verifier looks at it once, and it has a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_ring_flags(header: *const EventHeader, first: u32) -> u64 {
    const BPF_RB_NO_WAKEUP: u64 = 1;
    const BPF_RB_FORCE_WAKEUP: u64 = 2;
    // SAFETY: the caller's own header, which nothing else changes.
    let Some(header) = (unsafe { header.as_ref() }) else {
        return BPF_RB_FORCE_WAKEUP;
    };
    if !wake::is_now(header, first) && ring_fill() < BACKLOG {
        return BPF_RB_NO_WAKEUP;
    }
    let Some(woken) = share::woken() else {
        return BPF_RB_FORCE_WAKEUP;
    };
    // A fully ordered instruction, as the agent has a barrier between its place and its look at
    // what is reserved: either it sees this record, or its place is seen here.
    let place = woken.fetch_add(0);
    let (read, written) = ring_positions();
    // Beyond what was written, it is not of this ring.
    if read < place && place <= written {
        return BPF_RB_NO_WAKEUP;
    }
    woken.store(written);
    BPF_RB_FORCE_WAKEUP
}

enum Queued {
    Yes,
    Full,
    TooLong,
}

/// Puts `header` and the `header.len` bytes at `offset` on the ring, in the
/// smallest size class that takes them.
#[inline(always)]
fn queue<P: Packet>(packet: &P, header: &EventHeader, offset: u32) -> Queued {
    const SMALL: usize = EVENT_CLASSES[0];
    const MEDIUM: usize = EVENT_CLASSES[1];
    const LARGE: usize = EVENT_CLASSES[2];
    let len = header.len as usize;
    let done = if len == 0 {
        submit_bare(header)
    } else if len <= SMALL {
        submit::<P, SMALL>(packet, header, offset)
    } else if len <= MEDIUM {
        submit::<P, MEDIUM>(packet, header, offset)
    } else if len <= LARGE {
        submit::<P, LARGE>(packet, header, offset)
    } else {
        return Queued::TooLong;
    };
    if done { Queued::Yes } else { Queued::Full }
}

#[inline(always)]
fn submit_bare(header: &EventHeader) -> bool {
    let Some(mut record) = EVENTS.reserve_untyped::<EventHeader>(0) else {
        return false;
    };
    record.write(*header);
    record.submit(pinhole_ring_flags(header, 0));
    true
}

#[inline(always)]
fn submit<P: Packet, const N: usize>(packet: &P, header: &EventHeader, offset: u32) -> bool {
    let Some(mut record) = EVENTS.reserve_untyped::<Record<N>>(0) else {
        return false;
    };
    let target: *mut Record<N> = MaybeUninit::as_mut_ptr(&mut record);
    // SAFETY: the reservation is as large as the record.
    let head = unsafe { &raw mut (*target).header };
    // SAFETY: as above; nobody else sees the record before it is submitted.
    unsafe { head.write(*header) };
    // SAFETY: as above.
    let bytes = unsafe { &raw mut (*target).bytes };
    let copied = bounded(N as u32, header.len).is_some_and(|len| {
        // SAFETY: `bytes` has room for N bytes, and `len` is bounded by N.
        unsafe { packet.copy(offset, bytes.cast(), len) }
    });
    if copied {
        // SAFETY: the record has more bytes than are looked at.
        let first = unsafe { bytes.cast::<[u8; LOOKED_AT]>().read() };
        record.submit(pinhole_ring_flags(header, word(first)));
    } else {
        record.discard(0);
    }
    copied
}

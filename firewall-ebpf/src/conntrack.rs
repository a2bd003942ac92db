//! Tracking: find the flow of a packet, step it, or begin a new one.
//!
//! A flow lives in one of two tiers. It begins in the half-open table of the
//! side that began it, and moves to the proved table once it has shown that
//! both ends exist. Entries are changed through their look-up pointer only, and
//! every decision between CPUs is one compare-and-swap on the state word.

use aya_ebpf::{btf_maps::LruHashMap, helpers::generated::bpf_get_prandom_u32};
use firewall_common::{
    abi::{
        Flow, FlowKey4, FlowKey6, FlowState, Phase, RULE_NONE, TcpSide, Tier, ZONE_HOST, action,
        essentials, flow_flags, rule_flags, timeout,
    },
    key::{Direction, FlowKey, Heading},
    tcp::{self, Segment, State, Step, generic},
    time::Tick,
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::{self, Headers, proto},
};

use crate::{
    atomic::Shared,
    control,
    expect::{self, Taken},
    maps::{
        CONFIG, FLOWS, FLOWS4, FLOWS6, HALF_OPEN, HALF_OPEN4_IN, HALF_OPEN4_OUT, HALF_OPEN6_IN,
        HALF_OPEN6_OUT, TIER_COUNTS, Table,
    },
    packet::Packet,
    policy, stats,
    work::Work,
};

const EEXIST: i32 = -17;
/// Lost swaps after which a packet passes without its step being recorded.
const CAS_TRIES: usize = 4;
/// Ticks for which an entry in promotion counts as present.
const PROMOTION_TICKS: u32 = 4;

/// The tables of a family.
pub(crate) trait Family: FlowKey + 'static {
    /// The proved table's type.
    type Proved: Table<Self> + 'static;
    /// The half-open tables' type.
    type HalfOpen: Table<Self> + 'static;
    /// Admission class of TCP.
    const TCP: Tier;
    /// Admission class of everything else.
    const OTHER: Tier;

    /// The proved table.
    fn flows() -> &'static Self::Proved;
    /// The key of the packet at hand.
    fn slot(work: &mut Work) -> &mut Self;
    /// That key, and the flow to insert under it. In place: every copy of a key
    /// is 40 bytes of a stack that has 512.
    fn to_insert(work: &Work) -> (&Self, &Flow);
    /// Copies that key to the ring record.
    fn into_event(work: &mut Work);
    /// The half-open table of flows that began inside, or outside.
    fn half_open(inside: bool) -> &'static Self::HalfOpen;
}

macro_rules! family {
    ($key:ty, $slot:ident, $flows:ident, $inside:ident, $outside:ident, $tcp:ident, $other:ident) => {
        impl Family for $key {
            type Proved = LruHashMap<$key, Flow, FLOWS>;
            type HalfOpen = LruHashMap<$key, Flow, HALF_OPEN>;
            const TCP: Tier = Tier::$tcp;
            const OTHER: Tier = Tier::$other;

            #[inline(always)]
            fn flows() -> &'static Self::Proved {
                &$flows
            }

            #[inline(always)]
            fn slot(work: &mut Work) -> &mut Self {
                &mut work.$slot
            }

            #[inline(always)]
            fn to_insert(work: &Work) -> (&Self, &Flow) {
                (&work.$slot, &work.flow)
            }

            #[inline(always)]
            fn into_event(work: &mut Work) {
                work.event.key = work.$slot.widen();
            }

            #[inline(always)]
            fn half_open(inside: bool) -> &'static Self::HalfOpen {
                if inside { &$inside } else { &$outside }
            }
        }
    };
}
family!(
    FlowKey4,
    key4,
    FLOWS4,
    HALF_OPEN4_IN,
    HALF_OPEN4_OUT,
    Tcp4,
    Other4
);
family!(
    FlowKey6,
    key6,
    FLOWS6,
    HALF_OPEN6_IN,
    HALF_OPEN6_OUT,
    Tcp6,
    Other6
);

/// Judges an IP packet by its flow.
#[inline(always)]
pub(crate) fn track<P: Packet, K: Family>(packet: &P, work: &mut Work) -> Verdict {
    if work.headers.is_icmp_error() {
        return related::<P, K>(packet, work);
    }
    let (key, heading) = K::of(&work.headers);
    *K::slot(work) = key;
    let now = work.now;
    // Without ports its key would be that of an echo flow with identifier 0.
    let found = if is_tracked(&work.headers) {
        find(&*K::slot(work), now)
    } else {
        Found::Nothing
    };
    let verdict = match found {
        Found::Flow(entry, proved) => step::<P, K>(packet, work, heading, entry, proved),
        Found::Moving => Some(Verdict::Pass(PassReason::Established)),
        Found::Nothing => None,
    };
    // The only call: inlined in two places, it would take more of the stack than
    // kernel 6.1 leaves to the functions that it calls.
    match verdict {
        Some(verdict) => verdict,
        None => begin::<P, K>(packet, work, heading),
    }
}

/// Where a flow was found.
enum Found {
    /// A live entry, and whether it is in the proved table.
    Flow(*mut Flow, bool),
    /// On its way from one table to the other, on another CPU, right now.
    Moving,
    Nothing,
}

/// Looks a flow up: proved first, where an established packet is done.
#[inline(always)]
fn find<K: Family>(key: &K, now: Tick) -> Found {
    if let Some(entry) = look(K::flows(), key, now, true) {
        return entry;
    }
    let half = match look(K::half_open(true), key, now, false) {
        Some(found) => Some(found),
        None => look(K::half_open(false), key, now, false),
    };
    match half {
        // The winner may have arrived in the proved table meanwhile.
        Some(Found::Moving) => look(K::flows(), key, now, true).unwrap_or(Found::Moving),
        Some(found) => found,
        None => Found::Nothing,
    }
}

#[inline(always)]
fn look<K: Family, T: Table<K>>(table: &T, key: &K, now: Tick, proved: bool) -> Option<Found> {
    let entry = table.entry(key)?;
    if now.is_after(Tick(expires_of(entry).load())) {
        // Expired counts as absent, whether or not the collector has been here.
        delete_expired(table, key, entry, now, proved);
        return None;
    }
    match FlowState(state_of(entry).load()).phase() {
        Phase::Live => Some(Found::Flow(entry, proved)),
        // A left-over is a miss; a fresh one is a flow whose step another CPU
        // is taking at this moment.
        Phase::Promoting if now.since(Tick(seen_of(entry).load())) <= PROMOTION_TICKS => {
            Some(Found::Moving)
        }
        _ => None,
    }
}

/// The state word of an entry.
#[inline(always)]
pub(crate) fn state_of(entry: *mut Flow) -> Shared<u64> {
    // SAFETY: a map value is valid for the whole run.
    let word = unsafe { &raw mut (*entry).state };
    // SAFETY: eight bytes, aligned, and changed atomically only.
    unsafe { Shared::new(word) }
}

#[inline(always)]
fn expires_of(entry: *mut Flow) -> Shared<u32> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).expires };
    // SAFETY: as `state_of`; four bytes, aligned.
    unsafe { Shared::new(word) }
}

#[inline(always)]
fn seen_of(entry: *mut Flow) -> Shared<u32> {
    // SAFETY: as `state_of`.
    let word = unsafe { &raw mut (*entry).seen };
    // SAFETY: as `expires_of`.
    unsafe { Shared::new(word) }
}

#[inline(always)]
fn end_of(entry: *mut Flow, direction: Direction) -> Shared<u32> {
    let side = match direction {
        // SAFETY: a map value is valid for the whole run.
        Direction::Original => unsafe { &raw mut (*entry).tcp[0].end },
        // SAFETY: as above.
        Direction::Reply => unsafe { &raw mut (*entry).tcp[1].end },
    };
    // SAFETY: as `expires_of`.
    unsafe { Shared::new(side) }
}

/// Deletes an expired entry; true if this call did.
///
/// Only the winner of the swap to doomed deletes. A packet on another CPU may
/// have refreshed the entry between the look and the swap: then the swap is
/// taken back, so that nothing alive is deleted.
#[inline(always)]
pub(crate) fn delete_expired<K: Family, T: Table<K>>(
    table: &T,
    key: &K,
    entry: *mut Flow,
    now: Tick,
    proved: bool,
) -> bool {
    let state = state_of(entry);
    let word = state.load();
    if !now.is_after(Tick(expires_of(entry).load()))
        || FlowState(word).phase() as u8 == Phase::Doomed as u8
        || !doom(state, word)
    {
        return false;
    }
    if !now.is_after(Tick(expires_of(entry).load())) {
        let doomed = FlowState(word).with_phase(Phase::Doomed).0;
        let _ = state.swap(doomed, word);
        return false;
    }
    remove(table, key, proved);
    true
}

#[inline(always)]
fn doom(state: Shared<u64>, word: u64) -> bool {
    let doomed = FlowState(word).with_phase(Phase::Doomed).0;
    state.swap(word, doomed).is_ok()
}

#[inline(always)]
fn remove<K: Family, T: Table<K>>(table: &T, key: &K, proved: bool) {
    table.delete(key);
    if proved {
        count_tier::<K>(key, -1);
    }
}

#[inline(always)]
fn tier_of<K: Family>(key: &K) -> Tier {
    if key.widen().proto() == proto::TCP {
        K::TCP
    } else {
        K::OTHER
    }
}

#[inline(always)]
fn count_tier<K: Family>(key: &K, by: i64) {
    if let Some(count) = TIER_COUNTS.get_ptr_mut(tier_of(key) as u32) {
        // SAFETY: an array element, eight bytes, aligned, changed atomically only.
        let count = unsafe { Shared::new(count) };
        count.add(by as u64);
    }
}

/// Steps a flow. `None` when the packet begins a new flow in its place.
#[inline(always)]
fn step<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
    entry: *mut Flow,
    proved: bool,
) -> Option<Verdict> {
    let word = FlowState(state_of(entry).load());
    let direction = Direction::of(heading, word.first_heading());
    if zone_of(entry, direction) != work.from_zone {
        return Some(Verdict::Drop(DropReason::ZoneMismatch));
    }
    let h = &work.headers;
    let protocol = h.proto;
    let stepped = if protocol == proto::TCP {
        step_tcp(h, entry, direction, word.incarnation())
    } else {
        step_generic(entry, direction, word.incarnation())
    };
    let (word, changed) = match stepped {
        Stepped::To(word, changed) => (word, changed),
        Stepped::Done(verdict) => return Some(verdict),
        Stepped::Gone => return None,
        Stepped::Reopen(word) => {
            reopen(&*K::slot(work), entry, word, proved);
            return None;
        }
    };
    refresh(work, entry, word, changed);
    account(entry, direction, work.headers.l3_len);
    // What was written just now may have gone to the node's next flow. It is
    // one packet's worth, so it is counted and left.
    if FlowState(state_of(entry).load()).incarnation() != word.incarnation() {
        stats::event(Event::Recycled);
    }
    if changed && word.has(flow_flags::RELATED) && is_there(word) {
        expect::served(work, direction);
    }
    if !proved && has_proved(protocol, word) {
        promote::<K>(work, entry, word);
    }
    if protocol == proto::TCP && word.has(flow_flags::HELPER_FTP) {
        return Some(control::payload::<P, K>(packet, work, heading, entry, word));
    }
    Some(Verdict::Pass(PassReason::Established))
}

/// The zone from which packets of `direction` must come.
#[inline(always)]
fn zone_of(entry: *mut Flow, direction: Direction) -> u8 {
    // SAFETY: a map value; the field is written at creation only.
    let flow = unsafe { &*entry.cast_const() };
    match direction {
        Direction::Original => flow.from_zone,
        Direction::Reply => flow.to_zone,
    }
}

enum Stepped {
    /// The flow has this word now, and whether its protocol state is another than before.
    To(FlowState, bool),
    /// Nothing changed; this is the verdict.
    Done(Verdict),
    /// The flow had this word, and the packet begins a new one.
    Reopen(FlowState),
    /// The flow went away since it was found: a miss.
    Gone,
}

/// What another CPU did to the entry since the flow of `incarnation` was found
/// there, if that leaves nothing to step.
///
/// A doomed or promoting word must stay as it is, or the CPU that made it so
/// could not take it back.
#[inline(always)]
fn overtaken(word: FlowState, incarnation: u32) -> Option<Stepped> {
    if word.incarnation() != incarnation {
        stats::event(Event::Recycled);
        return Some(Stepped::Gone);
    }
    match word.phase() {
        Phase::Live => None,
        // As `Found::Moving`.
        Phase::Promoting => Some(Stepped::Done(Verdict::Pass(PassReason::Established))),
        Phase::Doomed => Some(Stepped::Gone),
    }
}

#[inline(always)]
fn step_tcp(h: &Headers, entry: *mut Flow, direction: Direction, incarnation: u32) -> Stepped {
    let Some(segment) = Segment::of(h.tcp_flags) else {
        return Stepped::Done(Verdict::Drop(DropReason::TcpFlags));
    };
    for _ in 0..CAS_TRIES {
        let word = FlowState(state_of(entry).load());
        if let Some(stepped) = overtaken(word, incarnation) {
            return stepped;
        }
        let Ok(state) = State::try_from(word.state()) else {
            return Stepped::Done(Verdict::Drop(DropReason::TcpInvalid));
        };
        let next = match tcp::step(state, direction, segment) {
            Step::To(next) => next,
            Step::Ignore => return Stepped::Done(Verdict::Pass(PassReason::Ignored)),
            Step::Invalid => return Stepped::Done(Verdict::Drop(DropReason::TcpInvalid)),
            Step::Reopen => return Stepped::Reopen(word),
        };
        if !handshake_fits(h, entry, direction, state, segment) {
            return Stepped::Done(Verdict::Drop(DropReason::TcpHandshake));
        }
        if matches!(segment, Segment::Syn | Segment::SynAck) {
            end_of(entry, direction).store(h.seq.wrapping_add(1));
        }
        let new = word
            .with_state(next as u8)
            .with(marks(direction, matches!(segment, Segment::Fin)));
        if swap(entry, word, new) {
            return Stepped::To(new, new.state() != word.state());
        }
    }
    stats::event(Event::Contention);
    Stepped::Done(Verdict::Pass(PassReason::Established))
}

/// During the handshake an acknowledgement must name what it acknowledges:
/// who only spoofs an address cannot know it.
#[inline(always)]
fn handshake_fits(
    h: &Headers,
    entry: *mut Flow,
    direction: Direction,
    state: State,
    segment: Segment,
) -> bool {
    let acknowledges = match (state, segment) {
        (State::SynSent | State::SynSent2, Segment::SynAck) => true,
        (State::SynRecv, Segment::Ack | Segment::Fin) => {
            matches!(direction, Direction::Original)
        }
        _ => false,
    };
    !acknowledges || h.ack == end_of(entry, direction.flip()).load()
}

#[inline(always)]
const fn marks(direction: Direction, fin: bool) -> u32 {
    match (direction, fin) {
        (Direction::Original, false) => 0,
        (Direction::Original, true) => flow_flags::FIN_ORIGINAL,
        (Direction::Reply, false) => flow_flags::SEEN_REPLY,
        (Direction::Reply, true) => flow_flags::SEEN_REPLY | flow_flags::FIN_REPLY,
    }
}

#[inline(always)]
fn step_generic(entry: *mut Flow, direction: Direction, incarnation: u32) -> Stepped {
    for _ in 0..CAS_TRIES {
        let word = FlowState(state_of(entry).load());
        if let Some(stepped) = overtaken(word, incarnation) {
            return stepped;
        }
        let new = match direction {
            Direction::Original => word,
            Direction::Reply => word
                .with_state(generic::REPLIED)
                .with(flow_flags::SEEN_REPLY),
        };
        if swap(entry, word, new) {
            return Stepped::To(new, new.state() != word.state());
        }
    }
    stats::event(Event::Contention);
    Stepped::Done(Verdict::Pass(PassReason::Established))
}

/// Advances the state word; an unchanged one costs no atomic operation.
#[inline(always)]
fn swap(entry: *mut Flow, old: FlowState, new: FlowState) -> bool {
    old == new || state_of(entry).swap(old.0, new.0).is_ok()
}

/// Moves the expiry. Once both ends have said good-bye, later packets do not
/// lengthen the flow's life.
#[inline(always)]
fn refresh(work: &Work, entry: *mut Flow, word: FlowState, changed: bool) {
    let h = &work.headers;
    let ended = h.proto == proto::TCP
        && matches!(
            State::try_from(word.state()),
            Ok(State::LastAck | State::TimeWait | State::Close)
        );
    if changed || !ended {
        let ticks = timeout_of(h.proto, word.state());
        expires_of(entry).store(work.now.plus(ticks).0);
    }
    let seen = seen_of(entry);
    if seen.load() != work.now.0 {
        seen.store(work.now.0);
    }
}

#[inline(always)]
fn timeout_of(protocol: u8, state: u8) -> u32 {
    let index = match protocol {
        proto::TCP => timeout::TCP + state as usize,
        proto::UDP if state == generic::REPLIED => timeout::UDP_STREAM,
        proto::UDP => timeout::UDP,
        proto::ICMP | proto::ICMPV6 => timeout::ICMP,
        _ => timeout::OTHER,
    };
    // The mask is for the verifier; every index above is below it.
    CONFIG
        .get(0)
        .map_or(0, |config| config.timeouts[index & (timeout::LEN - 1)])
}

#[inline(always)]
fn account(entry: *mut Flow, direction: Direction, bytes: u32) {
    let packets = match direction {
        // SAFETY: a map value is valid for the whole run.
        Direction::Original => unsafe { &raw mut (*entry).packets[0] },
        // SAFETY: as above.
        Direction::Reply => unsafe { &raw mut (*entry).packets[1] },
    };
    let octets = match direction {
        // SAFETY: as above.
        Direction::Original => unsafe { &raw mut (*entry).bytes[0] },
        // SAFETY: as above.
        Direction::Reply => unsafe { &raw mut (*entry).bytes[1] },
    };
    // SAFETY: four bytes, aligned, changed atomically only.
    let packets = unsafe { Shared::new(packets) };
    // SAFETY: eight bytes, aligned, changed atomically only.
    let octets = unsafe { Shared::new(octets) };
    packets.add(1);
    octets.add(bytes as u64);
}

/// Has the handshake of a TCP flow ended in a connection?
#[inline(always)]
const fn is_there(word: FlowState) -> bool {
    word.state() == State::Established as u8 || word.state() == State::FinWait as u8
}

/// Has the flow shown that both of its ends exist?
///
/// For TCP that is the originator's acknowledgement of the SYN-ACK: an answer
/// alone can be provoked by a spoofed SYN to an open port.
#[inline(always)]
const fn has_proved(protocol: u8, word: FlowState) -> bool {
    if protocol == proto::TCP {
        word.state() == State::Established as u8
    } else {
        word.state() == generic::REPLIED
    }
}

/// Moves a flow to the proved table, unless that is at its limit.
///
/// The swap to promoting elects one CPU; it inserts, then deletes the half-open
/// entry. The others meet `Found::Moving`.
#[inline(always)]
fn promote<K: Family>(work: &mut Work, entry: *mut Flow, word: FlowState) {
    let tier = tier_of(&*K::slot(work)) as u32;
    let count = TIER_COUNTS.get(tier).copied().unwrap_or(0);
    let limit = CONFIG
        .get(0)
        .map_or(0, |config| config.tier_limits[tier as usize & 3]);
    if count as i64 >= limit as i64 {
        stats::event(Event::TableFull);
        return;
    }
    let state = state_of(entry);
    let promoting = word.with_phase(Phase::Promoting);
    if state.swap(word.0, promoting.0).is_err() {
        return;
    }
    // SAFETY: a map value; other CPUs stay away from it while it is promoting,
    // but for counters, of which the copy may miss the last packet.
    work.flow = unsafe { *entry };
    // The half-open table may have evicted it under the copy, for another flow.
    if state.load() != promoting.0 {
        stats::event(Event::Recycled);
        return;
    }
    let proved = word.with(flow_flags::ASSURED);
    work.flow.state = proved.0;
    let (key, flow) = K::to_insert(work);
    match K::flows().create(key, flow) {
        Ok(()) => {
            count_tier(key, 1);
            stats::event(Event::FlowPromoted);
        }
        Err(EEXIST) => stats::event(Event::CreateRaced),
        Err(_) => {
            stats::event(Event::CreateFailed);
            let _ = state.swap(promoting.0, word.0);
            return;
        }
    }
    K::half_open(word.has(flow_flags::FROM_INSIDE)).delete(key);
    if proved.has(flow_flags::HELPER_FTP) {
        control::opened::<K>(work, proved);
    }
}

/// Makes room for a new flow of the same addresses and ports.
#[inline(always)]
fn reopen<K: Family>(key: &K, entry: *mut Flow, word: FlowState, proved: bool) {
    if !doom(state_of(entry), word.0) {
        return;
    }
    stats::event(Event::TupleReused);
    if proved {
        remove(K::flows(), key, true);
    } else {
        remove(K::half_open(word.has(flow_flags::FROM_INSIDE)), key, false);
    }
}

/// Judges a packet without a flow: may it begin one?
#[inline(always)]
fn begin<P: Packet, K: Family>(packet: &P, work: &mut Work, heading: Heading) -> Verdict {
    if let Some(reason) = cannot_begin(&work.headers) {
        return Verdict::Drop(reason);
    }
    work.to_zone = if P::EGRESS {
        work.iface_zone
    } else {
        match policy::destination_zone(packet, work) {
            Ok(zone) => zone,
            Err(reason) => return Verdict::Drop(reason),
        }
    };
    let mut refusal = DropReason::Policy;
    if work.headers.proto == proto::TCP {
        match expect::take(work) {
            Taken::No => {}
            Taken::Yes => return create::<K>(work, heading, flow_flags::RELATED, RULE_NONE),
            Taken::Refused(reason) => refusal = reason,
        }
    }
    let Some(config) = CONFIG.get(0) else {
        return Verdict::Drop(DropReason::TableError);
    };
    let decision = policy::decide(config, work);
    match decision.action {
        action::ACCEPT if is_tracked(&work.headers) => {
            let flags = if decision.flags & rule_flags::HELPER_FTP != 0 {
                flow_flags::HELPER_FTP
            } else {
                0
            };
            return create::<K>(work, heading, flags, decision.id);
        }
        action::ACCEPT => return Verdict::Pass(PassReason::NewByRule),
        policy::NO_MATCH => {}
        _ => refusal = DropReason::Rule,
    }
    if work.headers.proto == proto::TCP {
        return control::refused_syn::<P, K>(packet, work, heading, refusal);
    }
    Verdict::Drop(refusal)
}

/// Why a packet can never be the first of a flow.
#[inline(always)]
const fn cannot_begin(h: &Headers) -> Option<DropReason> {
    match h.proto {
        proto::TCP => match Segment::of(h.tcp_flags) {
            Some(Segment::Syn) => None,
            Some(_) => Some(DropReason::TcpNoFlow),
            None => Some(DropReason::TcpFlags),
        },
        proto::ICMP | proto::ICMPV6 if h.is_echo_reply() => Some(DropReason::IcmpUnsolicited),
        _ => None,
    }
}

/// Does an accepted packet of this kind begin a flow? Other ICMP has no answer to wait for.
#[inline(always)]
const fn is_tracked(h: &Headers) -> bool {
    match h.proto {
        proto::ICMP | proto::ICMPV6 => h.is_echo(),
        _ => true,
    }
}

#[inline(always)]
fn create<K: Family>(work: &mut Work, heading: Heading, flags: u32, rule: u16) -> Verdict {
    let mut flags = flags;
    if matches!(heading, Heading::Down) {
        flags |= flow_flags::FIRST_DOWN;
    }
    if work.from_inside {
        flags |= flow_flags::FROM_INSIDE;
    }
    let h = &work.headers;
    let (state, end) = if h.proto == proto::TCP {
        (State::SynSent as u8, h.seq.wrapping_add(1))
    } else {
        (generic::UNREPLIED, 0)
    };
    // SAFETY: a helper without arguments.
    let incarnation = unsafe { bpf_get_prandom_u32() };
    let silent = TcpSide {
        end: 0,
        reserved: [0; 3],
    };
    work.flow = Flow {
        state: FlowState::new(state, flags, incarnation).0,
        expires: work.now.plus(timeout_of(h.proto, state)).0,
        seen: work.now.0,
        bytes: [h.l3_len as u64, 0],
        packets: [1, 0],
        created: work.now.0,
        from_zone: work.from_zone,
        to_zone: work.to_zone,
        rule,
        tcp: [TcpSide { end, ..silent }, silent],
    };
    let (key, flow) = K::to_insert(work);
    match K::half_open(work.from_inside).create(key, flow) {
        Ok(()) => stats::event(Event::FlowCreated),
        // Another CPU was faster with a packet of the same flow. That packet's
        // entry stands; this one was admitted too, and its step would be the
        // same (a TCP flow begins with a SYN only).
        Err(EEXIST) => stats::event(Event::CreateRaced),
        Err(_) => {
            stats::event(Event::CreateFailed);
            return Verdict::Drop(DropReason::TableError);
        }
    }
    Verdict::Pass(if flags & flow_flags::RELATED != 0 {
        PassReason::NewExpected
    } else {
        PassReason::NewByRule
    })
}

/// Judges an ICMP error by the packet that it quotes.
#[inline(always)]
fn related<P: Packet, K: Family>(packet: &P, work: &mut Work) -> Verdict {
    const UNRELATED: Verdict = Verdict::Drop(DropReason::IcmpUnrelated);
    let (h, quoted) = (&work.headers, &mut work.quoted);
    if wire::inner(packet, h, quoted).is_err() {
        return UNRELATED;
    }
    // The error goes to whoever sent the quoted packet.
    let to_its_sender = quoted.src[0] == h.dst[0]
        && quoted.src[1] == h.dst[1]
        && quoted.src[2] == h.dst[2]
        && quoted.src[3] == h.dst[3];
    if !to_its_sender || work.essentials & essentials::PATH_MTU == 0 {
        return UNRELATED;
    }
    let (key, heading) = K::of(quoted);
    *K::slot(work) = key;
    let now = work.now;
    let Found::Flow(entry, _) = find(&*K::slot(work), now) else {
        return UNRELATED;
    };
    let word = FlowState(state_of(entry).load());
    // It comes from where the quoted packet was going, or from this very host.
    let ahead = zone_of(entry, Direction::of(heading, word.first_heading()).flip());
    if work.from_zone != ahead && work.from_zone != ZONE_HOST {
        return Verdict::Drop(DropReason::ZoneMismatch);
    }
    Verdict::Pass(PassReason::Related)
}

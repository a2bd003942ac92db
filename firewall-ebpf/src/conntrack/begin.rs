//! The first packet of a flow: whether it may begin one, and the entry that it makes.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use firewall_common::{
    abi::{
        EndReason, Flow, FlowState, Last, RULE_NONE, TcpSide, action, config_flags, flow_flags,
        incarnation, rule_flags, table_full,
    },
    forward,
    key::Heading,
    life::{self, Place, Refused, Tables as _},
    tcp::{self, Begun, Segment, generic},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::{Headers, proto, tcp_flags},
};

use super::{
    entry::{last_of, rule_bits_of},
    tiers::{Family, Here, displace, end, is_full},
};
use crate::{
    control, data,
    expect::{self, Admission},
    explain,
    maps::CONFIG,
    packet::Packet,
    policy, stats,
    watch::{self, News},
    work::Work,
};

/// Judges a packet without a flow: may it begin one?
#[inline(always)]
pub(super) fn begin<P: Packet, K: Family>(
    packet: &P,
    work: &mut Work,
    heading: Heading,
) -> Verdict {
    // What a step says of the flow before is not of this one.
    work.flow_ahead = 0;
    let (flags, rule, refusal) = match admit::<P, K>(packet, work, heading) {
        Admitted::Flow(flags, rule) => (flags, rule, None),
        Admitted::Refused(reason) if may_shadow(work) => {
            stats::event(Event::FlowRefused);
            (flow_flags::WOULD_DROP, reason as u16, Some(reason))
        }
        Admitted::Refused(reason) => return Verdict::Drop(reason),
        Admitted::No(verdict) => return verdict,
    };
    let verdict = create::<K>(work, heading, flags, rule);
    if let Some(reason) = refusal {
        return Verdict::Drop(reason);
    }
    let began = matches!(
        verdict,
        Verdict::Pass(PassReason::NewByRule | PassReason::NewExpected)
    );
    // A connection that is picked up in mid-life has no SYN.
    let h = &work.headers;
    let syn = h.proto == proto::TCP && h.tcp_flags & tcp_flags::SYN != 0;
    if began && syn && flags & flow_flags::HELPER_FTP == 0 {
        control::passed_syn::<P, K>(work, heading, flags);
    }
    verdict
}

/// What the policy says of a packet without a flow.
enum Admitted {
    /// It begins one with these [`flow_flags`], by this rule.
    Flow(u32, u16),
    /// It could begin one, and may not.
    Refused(DropReason),
    /// It begins none.
    No(Verdict),
}

/// Is a refused flow tracked all the same?
#[inline(always)]
const fn may_shadow(work: &Work) -> bool {
    work.flags & config_flags::SHADOW != 0
        && work.full == table_full::TRACK
        && is_tracked(&work.headers)
}

#[inline(always)]
fn admit<P: Packet, K: Family>(packet: &P, work: &mut Work, heading: Heading) -> Admitted {
    let Some(config) = CONFIG.get(0) else {
        return Admitted::No(Verdict::Drop(DropReason::TableError));
    };
    work.full = if config.table_full == table_full::TRACK || !is_full(&*K::slot(work), config) {
        table_full::TRACK
    } else {
        config.table_full
    };
    let mut refusal = DropReason::Policy;
    let unfit = cannot_begin(&work.headers);
    let loose = config.flags & config_flags::LOOSE != 0;
    if let Some(reason) = unfit {
        // In shadow mode a connection that lived before is tracked, though enforcing drops it.
        let shadow = config.flags & config_flags::SHADOW != 0;
        let picks_up = (loose || shadow) && is_ack(&work.headers);
        // Of a flow that passes untracked the rules are all that knows.
        if !picks_up && (work.full != table_full::PASS || matches!(reason, DropReason::TcpFlags)) {
            return Admitted::No(Verdict::Drop(reason));
        }
        refusal = reason;
    }
    work.to_zone = if P::EGRESS {
        work.iface_zone
    } else {
        match policy::destination_zone(packet, work) {
            Ok(zone) => zone,
            Err(reason) => return Admitted::No(Verdict::Drop(reason)),
        }
    };
    explain::destination(work);
    let may_be_data = work.headers.proto == proto::TCP && unfit.is_none();
    if may_be_data {
        // In this order: if nothing waits, all that was said before is in the table.
        // With session ranges that table does not hold all: the agent is asked.
        work.behind = control::agent_is_behind() || config.flags & config_flags::RANGES != 0;
        match expect::take(work) {
            Admission::No => {}
            Admission::Yes => return Admitted::Flow(flow_flags::RELATED, RULE_NONE),
            Admission::Refused(reason) => refusal = reason,
        }
    }
    let decision = policy::decide(config, work);
    match decision.action {
        action::ACCEPT if work.full == table_full::PASS && is_tracked(&work.headers) => {
            return Admitted::No(Verdict::Pass(PassReason::Untracked));
        }
        action::ACCEPT if is_tracked(&work.headers) => {
            if let Some(reason) = unfit
                && decision.flags & rule_flags::LOOSE == 0
            {
                return refused(reason, &work.headers);
            }
            return Admitted::Flow(marks(decision.flags), decision.id);
        }
        action::ACCEPT => return Admitted::No(Verdict::Pass(PassReason::NewByRule)),
        policy::NO_MATCH => {}
        // Where no rule is loose, enforcing drops an unfit packet before the rules.
        _ if unfit.is_some() && !loose => {}
        _ => refusal = DropReason::Rule,
    }
    if may_be_data {
        refusal = control::refused_syn::<P, K>(packet, work, heading, refusal);
    }
    refused(refusal, &work.headers)
}

/// The refusal of a packet that the rules were asked about.
#[inline(always)]
const fn refused(reason: DropReason, h: &Headers) -> Admitted {
    // What could not even be picked up in mid-life was judged by the rules alone
    // (`table_full::PASS`), and has no flow that shadow mode could track.
    if cannot_begin(h).is_none() || is_ack(h) {
        Admitted::Refused(reason)
    } else {
        Admitted::No(Verdict::Drop(reason))
    }
}

/// What a rule with `flags` marks its flows with.
#[inline(always)]
const fn marks(flags: u16) -> u32 {
    let mut marks = 0;
    if flags & rule_flags::HELPER_FTP != 0 {
        marks |= flow_flags::HELPER_FTP;
    }
    if flags & rule_flags::LIBERAL != 0 {
        marks |= flow_flags::LIBERAL;
    }
    marks
}

/// Can the packet be one of a TCP connection that is picked up in mid-life?
#[inline(always)]
const fn is_ack(h: &Headers) -> bool {
    h.proto == proto::TCP && matches!(Segment::of(h.tcp_flags), Some(Segment::Ack))
}

/// Why a packet can never be the first of a flow, unless a rule picks it up.
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
pub(super) const fn is_tracked(h: &Headers) -> bool {
    match h.proto {
        proto::ICMP | proto::ICMPV6 => h.is_echo(),
        _ => true,
    }
}

#[inline(always)]
fn create<K: Family>(work: &mut Work, heading: Heading, flags: u32, rule: u16) -> Verdict {
    if work.full == table_full::DROP {
        return Verdict::Drop(DropReason::TierFull);
    }
    let mut flags = flags;
    if matches!(heading, Heading::Down) {
        flags |= flow_flags::FIRST_DOWN;
    }
    if work.from_inside {
        flags |= flow_flags::FROM_INSIDE;
    }
    let incarnation = new_incarnation::<K>(work);
    let flow = &mut work.flow;
    flow.last = Last::new(rule, work.from_zone, work.to_zone).0;
    if work.headers.proto == proto::TCP {
        pinhole_tcp_begin(work, flags, incarnation);
    } else {
        flow.state = FlowState::new(generic::UNREPLIED, flags, incarnation).0;
        flow.tcp = [TcpSide::UNKNOWN; 2];
    }
    let flow = &mut work.flow;
    flow.seen = work.now.0;
    flow.created = work.now.0;
    flow.bytes = [Flow::rule_bits(rule) | work.on_wire.bytes as u64, 0];
    flow.packets = [work.on_wire.packets, 0];
    if work.displaces && flags & flow_flags::WOULD_DROP == 0 {
        displace::<K>(work);
    }
    let inside = work.from_inside;
    let here = &mut Here::<K>::new(work);
    match here.insert(Place::half_open(inside)) {
        Ok(()) if life::concedes(here, inside, incarnation) => stats::event(Event::CreateRaced),
        Ok(()) => {
            stats::event(Event::FlowCreated);
            if flags & flow_flags::RELATED != 0 {
                data::begin::<K>(work, incarnation);
            }
            let (key, flow) = K::to_insert(work);
            watch::tell(key, flow, FlowState(flow.state), News::NEW);
        }
        // Another CPU was faster with a packet of the same flow. That packet's
        // entry stands; this one was admitted too, and its step would be the
        // same (but that of a connection which is picked up, and then liberal).
        Err(Refused::Exists) => stats::event(Event::CreateRaced),
        Err(Refused::Failed) => {
            stats::event(Event::CreateFailed);
            return Verdict::Drop(DropReason::TableError);
        }
    }
    let word = FlowState::new(0, flags, 0);
    work.flow_ahead = forward::accepted(word, true, work.to_zone);
    Verdict::Pass(if flags & flow_flags::RELATED != 0 {
        PassReason::NewExpected
    } else {
        PassReason::NewByRule
    })
}

#[inline(always)]
fn new_incarnation<K: Family>(work: &mut Work) -> u32 {
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    incarnation(K::slot(work).digest(), random)
}

/// Writes what is TCP's own in [`Work::flow`], which a segment begins that is a
/// SYN, or is picked up in mid-life. A global function, as the parts of a step are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_begin(work: *mut Work, flags: u32, incarnation: u32) -> u32 {
    // SAFETY: `create` passes this run's own work area, which nothing else refers
    // to meanwhile.
    let Some(work) = (unsafe { work.as_mut() }) else {
        return 0;
    };
    let h = &work.headers;
    let begun = if h.tcp_flags & tcp_flags::SYN != 0 {
        tcp::opened(h)
    } else {
        tcp::picked_up(h)
    };
    let last = Last(work.flow.last);
    begin_tcp(&mut work.flow, begun, flags, last, incarnation);
    0
}

#[inline(always)]
fn begin_tcp(flow: &mut Flow, begun: Begun, flags: u32, last: Last, incarnation: u32) {
    let (kind, direction, end) = begun.last;
    flow.state = FlowState::new(begun.state as u8, flags | begun.flags, incarnation).0;
    flow.last = last.with_packet(kind, direction, end).0;
    flow.tcp = begun.tcp;
}

/// Puts a new flow in place of the one in `entry`, of which `word` and the last
/// packet say that its ends have begun anew. `None` if it is gone meanwhile.
#[inline(always)]
pub(super) fn resynchronise<K: Family>(
    work: &mut Work,
    entry: *mut Flow,
    word: FlowState,
    proved: bool,
) -> Option<Verdict> {
    let last = Last(last_of(entry).load());
    let rule = rule_bits_of(entry);
    if !end(&*K::slot(work), entry, word, proved, EndReason::Reused) {
        return None;
    }
    let incarnation = new_incarnation::<K>(work);
    let h = &work.headers;
    let begun = tcp::resynchronised(word, last, h);
    let flow = &mut work.flow;
    begin_tcp(flow, begun, 0, last, incarnation);
    flow.seen = work.now.0;
    flow.created = work.now.0;
    flow.bytes = [rule, work.on_wire.bytes as u64];
    flow.packets = [0, work.on_wire.packets];
    let inside = word.has(flow_flags::FROM_INSIDE);
    Some(
        match Here::<K>::new(work).insert(Place::half_open(inside)) {
            Ok(()) => {
                stats::event(Event::FlowCreated);
                let (key, flow) = K::to_insert(work);
                watch::tell(key, flow, FlowState(flow.state), News::NEW);
                Verdict::Pass(PassReason::Established)
            }
            Err(Refused::Exists) => {
                stats::event(Event::CreateRaced);
                Verdict::Pass(PassReason::Established)
            }
            Err(Refused::Failed) => {
                stats::event(Event::CreateFailed);
                Verdict::Drop(DropReason::TableError)
            }
        },
    )
}

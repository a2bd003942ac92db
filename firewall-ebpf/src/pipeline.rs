//! From a frame to a verdict.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use firewall_common::{
    abi::{FlowKey4, FlowKey6, Iface, ZONE_HOST, config_flags, essentials, iface_flags},
    life::Missed,
    time::Tick,
    verdict::{DropReason, PassReason, Verdict},
    wire::{
        Family, Fragment, Frame, Link, Options, Parsed, check_options, options_of, parse_link,
        parse_network, proto,
    },
};

use crate::{
    conntrack, explain, fragments, log,
    maps::{CONFIG, CONTROL, IFACES},
    packet::{Packet, bounded},
    policy::{self, is_link_local},
    stats,
    work::{self, KNOWN, KnownIface, Work},
};

/// A guarded interface.
#[inline(always)]
pub(crate) fn iface(ifindex: u32) -> Option<&'static Iface> {
    // SAFETY: user space replaces whole elements while attaching; a torn read
    // of a zone number is a zone that has no rules.
    unsafe { IFACES.get(ifindex) }
}

/// What [`open`] says of a packet that [`judge`] has to judge, or to count.
pub(crate) const OPEN: u32 = u32::MAX;

/// The first part of judging a packet: what the settings say of it, and all of it for a
/// packet of a flow that just goes on. Returns [`Verdict::index`] of what was judged and
/// counted, or [`OPEN`].
#[inline(always)]
pub(crate) fn open<P: Packet>(packet: &P, work: &mut Work, may_hold: bool) -> u32 {
    const TRACKED: u32 = PassReason::Tracked.index();
    const ESTABLISHED: u32 = PassReason::Established.index();
    explain::begin(work);
    work.link.set(Link::ETHERNET.pack());
    work.flags = 0;
    work.flow_ahead = 0;
    work.missed = Missed::Nowhere;
    let known = match settings(packet, work, may_hold) {
        Some(verdict) => verdict.index(),
        None if goes_on(packet, work) => ESTABLISHED,
        None => OPEN,
    };
    // Through memory: so the verifier forgets which way the verdict came, and
    // looks at what follows once instead of once for each way.
    work.outcome.set(known);
    let known = work.outcome.get();
    if known != TRACKED && known != ESTABLISHED {
        return OPEN;
    }
    explain::outcome(work, known);
    count(packet, work, known);
    known
}

/// The rest: judges the packet, unless the settings have, and counts it once. Returns
/// [`Verdict::index`].
#[inline(always)]
pub(crate) fn judge<P: Packet>(packet: &P, slot: u32) -> u32 {
    let Some(work) = work::again(slot) else {
        return Verdict::Drop(DropReason::TableError).index();
    };
    work.headers.l3_len = 0;
    work.headers.fragment = Fragment::Whole;
    work.link.set(Link::ETHERNET.pack());
    if work.outcome.get() == OPEN {
        let verdict = judge_frame(packet, work);
        // Through memory, as above.
        work.outcome.set(verdict.index());
    }
    let fragmented = work.headers.fragment as u8 != Fragment::Whole as u8;
    if fragmented && !Verdict::is_drop(work.outcome.get()) {
        fragments::join(work);
    }
    let mut outcome = work.outcome.get();
    explain::outcome(work, outcome);
    // The one place where shadow mode turns a drop into a pass: what it counts
    // as is no drop to the entry points.
    if work.flags & config_flags::SHADOW != 0 {
        outcome = Verdict::in_shadow(outcome);
    }
    log::outcome(packet, work, outcome);
    count(packet, work, outcome);
    outcome
}

/// Reads the settings. The verdict, if they decide it.
#[inline(always)]
fn settings<P: Packet>(packet: &P, work: &mut Work, may_hold: bool) -> Option<Verdict> {
    moment(work);
    let (Some(config), Some(control)) = (CONFIG.get(0), CONTROL.get(0)) else {
        return Some(Verdict::Drop(DropReason::TableError));
    };
    work.flags = config.flags;
    let deadline = control.confirm_deadline_ns;
    if deadline != 0 && work.moment.now_ns > deadline {
        return Some(Verdict::Pass(PassReason::Unconfirmed));
    }
    let Some(guarded) = known(work, packet.ifindex()) else {
        return Some(Verdict::Drop(DropReason::UnknownInterface));
    };
    // What came in through a guarded interface was judged there.
    if P::EGRESS && packet.came_in_by() != 0 && known(work, packet.came_in_by()).is_some() {
        return Some(Verdict::Pass(PassReason::Tracked));
    }
    work.essentials = config.essentials;
    work.iface_zone = guarded.zone;
    work.iface_trusted = guarded.trusted;
    work.ethernet = guarded.flags & iface_flags::NO_ETHERNET == 0;
    work.may_hold = may_hold && config.flags & config_flags::HOLD != 0;
    from(packet, work);
    None
}

/// Takes the time, if it is another jiffy than that of the last packet.
///
/// The jiffies are a word that the program reads without a call; the coarse clock, which
/// goes on in the same steps, takes two.
#[inline(always)]
fn moment(work: &mut Work) {
    // SAFETY: a helper without arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    let moment = &mut work.moment;
    if moment.jiffies != jiffies {
        moment.jiffies = jiffies;
        // SAFETY: as above.
        moment.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
        for iface in &mut moment.ifaces {
            *iface = KnownIface::NONE;
        }
    }
    work.now = Tick::from_ns(work.moment.now_ns);
}

/// [`iface`], as it was in this jiffy. So an interface is guarded, or in another zone,
/// up to ten milliseconds longer than its element says; one that is added is found at once.
#[inline(always)]
fn known(work: &mut Work, ifindex: u32) -> Option<KnownIface> {
    let place = &mut work.moment.ifaces[ifindex as usize & (KNOWN - 1)];
    if place.ifindex != ifindex || ifindex == 0 {
        let guarded = iface(ifindex)?;
        *place = KnownIface {
            ifindex,
            flags: guarded.flags,
            zone: guarded.zone,
            trusted: guarded.trusted != 0,
        };
    }
    Some(*place)
}

/// Notes where the packet comes from.
#[inline(always)]
fn from<P: Packet>(_: &P, work: &mut Work) {
    work.from_zone = if P::EGRESS {
        ZONE_HOST
    } else {
        work.iface_zone
    };
    work.from_inside = P::EGRESS || work.iface_trusted;
}

/// Reads the headers, and does all that a packet needs whose flow just goes on.
#[inline(always)]
fn goes_on<P: Packet>(packet: &P, work: &mut Work) -> bool {
    matches!(headers(packet, work), Ok(Frame::Ip)) && conntrack::plain(packet, work)
}

#[inline(always)]
fn headers<P: Packet>(packet: &P, work: &mut Work) -> Parsed<Frame> {
    let link = parse_link(packet, work.ethernet)?;
    // Through memory: to the verifier the offset is then one number with a bound,
    // and it follows the rest once instead of once for each count of tags.
    work.link.set(link.pack());
    parse_network(packet, Link::unpack(work.link.get()), &mut work.headers)
}

/// Judges a packet that is not plain. Its headers are read once more: what the
/// compiler and the verifier knew of them is gone with [`open`], and without it they
/// follow many times as many ways.
#[inline(always)]
fn judge_frame<P: Packet>(packet: &P, work: &mut Work) -> Verdict {
    from(packet, work);
    match headers(packet, work) {
        Ok(Frame::Ip) => judge_ip(packet, work),
        Ok(Frame::Arp) => essential(work, essentials::ARP, PassReason::Arp),
        Ok(Frame::LinkControl) => {
            essential(work, essentials::LINK_CONTROL, PassReason::LinkControl)
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Counts the packet.
#[inline(always)]
fn count<P: Packet>(packet: &P, work: &mut Work, outcome: u32) {
    // Layer 2 is not counted.
    let link = Link::unpack(work.link.get());
    let bytes = (packet.frame_len() as u32).saturating_sub(link.offset as u32);
    stats::outcome(outcome, bytes);
}

#[inline(always)]
const fn essential(work: &Work, which: u32, reason: PassReason) -> Verdict {
    if work.essentials & which != 0 {
        Verdict::Pass(reason)
    } else {
        Verdict::Drop(DropReason::Policy)
    }
}

#[inline(always)]
fn judge_ip<P: Packet>(packet: &P, work: &mut Work) -> Verdict {
    if let Err(reason) = options(packet, work) {
        return Verdict::Drop(reason);
    }
    if work.headers.fragment as u8 == Fragment::Tail as u8 {
        // What has no transport header depends on its first fragment: `judge`.
        return Verdict::Pass(PassReason::FragmentTail);
    }
    // Such a segment is dropped, but its flow has to hear of it: `track`.
    work.headers.options_malformed = work.headers.proto == proto::TCP
        && work.headers.options_len() != 0
        && !conntrack::read_options(packet, work);
    if let Some(reason) = essential_packet(packet, work) {
        return Verdict::Pass(reason);
    }
    if work.headers.family as u8 == Family::V4 as u8 {
        conntrack::track::<P, FlowKey4>(packet, work)
    } else {
        conntrack::track::<P, FlowKey6>(packet, work)
    }
}

/// Judges the options of an IPv4 header, which few packets have.
#[inline(always)]
fn options<P: Packet>(packet: &P, work: &mut Work) -> Parsed<()> {
    let (offset, len) = options_of(&work.headers);
    let Some(len) = bounded(size_of::<Options>() as u32, len) else {
        return Ok(());
    };
    // SAFETY: the room has as many bytes as `bounded` allows.
    if !unsafe { packet.copy(offset, work.options.as_mut_ptr(), len) } {
        return Err(DropReason::MalformedIpv4);
    }
    match walk_options(&work.options, len) {
        0 => Ok(()),
        1 => Err(DropReason::MalformedIpv4),
        _ => Err(DropReason::SourceRoute),
    }
}

/// [`check_options`], not inlined: what the verifier knows of one way through
/// the loop does not follow it out of it.
#[inline(never)]
fn walk_options(options: &Options, len: u32) -> u32 {
    match check_options(options, len) {
        Ok(()) => 0,
        Err(DropReason::MalformedIpv4) => 1,
        Err(_) => 2,
    }
}

/// What a host needs to have a network at all passes without a flow.
#[inline(always)]
fn essential_packet<P: Packet>(packet: &P, work: &mut Work) -> Option<PassReason> {
    let h = &work.headers;
    let on = work.essentials;
    // Nobody fragments these; and whoever could would fill the table of datagrams
    // with first fragments that no rule accepts.
    if h.fragment as u8 != Fragment::Whole as u8 {
        return None;
    }
    let reason = match h.proto {
        // Hop limit 255 proves that no router forwarded it (RFC 4861, section 3.1).
        // It must not even have a fragment header (RFC 6980, section 5), of which
        // a length is left.
        proto::ICMPV6
            if h.ttl == 255 && matches!(h.icmp_type, 133..=137) && h.fragment_len == 0 =>
        {
            (on & essentials::NEIGHBOUR_DISCOVERY != 0).then_some(PassReason::NeighbourDiscovery)
        }
        // Nor will one forward these.
        proto::ICMPV6 if h.ttl == 1 && matches!(h.icmp_type, 130..=132 | 143) => {
            return (on & essentials::MULTICAST_LISTENER != 0)
                .then_some(PassReason::MulticastListener);
        }
        proto::IGMP if h.ttl == 1 => {
            return (on & essentials::MULTICAST_LISTENER != 0)
                .then_some(PassReason::MulticastListener);
        }
        proto::UDP => dhcp::<P>(work),
        _ => None,
    };
    let reason = reason?;
    // For the host itself: a gateway does not let it through to others.
    let local =
        P::EGRESS || policy::destination_zone(packet, work).is_ok_and(|zone| zone == ZONE_HOST);
    local.then_some(reason)
}

#[inline(always)]
fn dhcp<P: Packet>(work: &Work) -> Option<PassReason> {
    let h = &work.headers;
    let on = work.essentials;
    // At egress the host is the client, at ingress it gets the answers.
    let (client, server) = if P::EGRESS {
        (h.sport, h.dport)
    } else {
        (h.dport, h.sport)
    };
    if client == 68 && server == 67 && on & essentials::DHCP_CLIENT != 0 {
        return Some(PassReason::DhcpClient);
    }
    // Answers come from a link-local address (RFC 8415, section 18.2.10 and 13.1).
    let near = P::EGRESS || is_link_local(&h.src);
    (client == 546 && server == 547 && on & essentials::DHCPV6_CLIENT != 0 && near)
        .then_some(PassReason::Dhcpv6Client)
}

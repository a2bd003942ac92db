//! The way of most packets: of a proved flow that goes on as it is.
//!
//! One look-up, the bounds, the counters, and nothing that calls. A packet that turns
//! out not to be plain goes the whole way ([`super::track`]) as if it had not been here.

use firewall_common::{
    abi::{FlowKey4, FlowKey6, FlowState, flow_flags, is_incarnation_of},
    forward,
    key::Direction,
    life::{self, Tables as _},
    tcp::{self, Segment, options},
    wire::{self, Fragment, Headers, proto},
};

use super::{
    OFFSET_MASK, TCP_MIN,
    entry::{Entry, is_expired, seen_of, state_of, zone_of},
    step::{count, note_recycled},
    tiers::{Family, Here},
};
use crate::{maps::Table as _, packet::Packet, work::Work};

/// Does all that a packet of a flow needs that just goes on; false if it needs more,
/// or none is there.
#[inline(always)]
pub(crate) fn plain<P: Packet>(packet: &P, work: &mut Work) -> bool {
    if !is_plain(packet, &work.headers) {
        return false;
    }
    work.on_wire = packet.on_wire(&work.headers);
    if work.headers.family as u8 == wire::Family::V4 as u8 {
        goes_on::<FlowKey4>(work)
    } else {
        goes_on::<FlowKey6>(work)
    }
}

/// Is there nothing in its headers that has to be looked into first?
#[inline(always)]
fn is_plain<P: Packet>(packet: &P, h: &Headers) -> bool {
    if h.fragment as u8 != Fragment::Whole as u8 || wire::options_of(h).1 != 0 {
        return false;
    }
    match h.proto {
        proto::TCP => {
            let at = h.l4_offset as usize + TCP_MIN;
            matches!(Segment::of(h.tcp_flags), Some(Segment::Ack))
                && (h.options_len() == 0
                    || (h.options_len() == options::TIMESTAMP_ONLY_LEN
                        && packet.read::<4>(at & OFFSET_MASK) == Some(options::TIMESTAMP_ONLY)))
        }
        // DHCP is judged without a flow.
        proto::UDP => !matches!(h.dport, 67 | 68 | 546 | 547),
        _ => false,
    }
}

#[inline(always)]
fn goes_on<K: Family>(work: &mut Work) -> bool {
    let (key, heading) = K::of(&work.headers);
    *K::slot(work) = key;
    let digest = K::to_insert(work).0.digest();
    Here::<K>::new(work).note_moves();
    let Some(entry) = K::flows().entry(&*K::slot(work)) else {
        work.missed = life::missed(&Here::<K>::new(work));
        return false;
    };
    let word = FlowState(state_of(entry).load());
    let early = seen_of(entry).load() != work.now.0;
    // Somebody else has to hear of these.
    let shared = flow_flags::HELPER_FTP | flow_flags::WOULD_DROP;
    let tied = if early { flow_flags::RELATED } else { 0 };
    if word.has(shared | tied)
        || !is_incarnation_of(word.incarnation(), digest)
        || (early && is_expired(entry, word, work.headers.proto, work.now))
    {
        return false;
    }
    let direction = Direction::of(heading, word.first_heading());
    work.direction.set(direction as u32);
    let direction = work.direction();
    if zone_of(entry, direction) != work.from_zone || !steps(Entry(entry), work, word) {
        return false;
    }
    count(Entry(entry), work);
    note_recycled(entry, word.incarnation());
    work.flow_ahead = forward::accepted(word, false, zone_of(entry, direction.flip()));
    true
}

/// The step, if it leaves the flow's state as it is.
#[inline(always)]
fn steps(entry: Entry, work: &mut Work, word: FlowState) -> bool {
    let now = work.now;
    if work.headers.proto == proto::TCP {
        tcp::plain(entry, &work.arrived().0, word, now)
    } else {
        life::generic::plain(entry, word, now)
    }
}

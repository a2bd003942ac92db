//! Tracking: find the flow of a packet, step it, or begin a new one.
//!
//! A flow lives in one of two tiers. It begins in the half-open table of the
//! side that began it, and moves to the proved table once it has shown that
//! both ends exist. Entries are changed through their look-up pointer only, and
//! every decision between CPUs is one compare-and-swap on the state word.

mod begin;
mod entry;
mod plain;
mod refused;
mod step;
mod tiers;

use firewall_common::{
    abi::{ZONE_HOST, config_flags, essentials, flow_flags},
    key::{Direction, Heading},
    life::{self, Missed},
    tcp::{Segment, options},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::{self, Headers, proto, tcp_flags},
};

pub(crate) use entry::{forget_rule, is_expired, last_of, seen_of, state_of};
pub(crate) use plain::plain;
pub(crate) use tiers::{Family, count_created, count_in_tier, delete_expired, delete_live};

use crate::{
    explain,
    packet::{Packet, bounded},
    stats,
    work::Work,
};
use begin::{begin, is_tracked};
use entry::{Entry, zone_of};
use step::{pinhole_tcp_quoted, step};
use tiers::Here;

/// Bytes of a TCP header without options.
const TCP_MIN: usize = 20;
/// Offsets are masked with this so that the verifier sees their bound.
const OFFSET_MASK: usize = 0x3fff;

/// Judges an IP packet by its flow.
#[inline(always)]
pub(crate) fn track<P: Packet, K: Family>(packet: &P, work: &mut Work) -> Verdict {
    if work.headers.is_icmp_error() {
        return related::<P, K>(packet, work);
    }
    work.on_wire = packet.on_wire(&work.headers);
    work.displaces = false;
    let (key, heading) = K::of(&work.headers);
    *K::slot(work) = key;
    // Through memory, as the link header: else all that follows is verified for
    // each heading.
    work.heading.set(heading as u32);
    let heading = if work.heading.get() & 1 == 0 {
        Heading::Up
    } else {
        Heading::Down
    };
    // Without ports its key would be that of an echo flow with identifier 0.
    let found = if is_tracked(&work.headers) {
        let fresh = is_syn(&work.headers);
        let missed = work.missed;
        life::find(&mut Here::<K>::new(work), fresh, missed)
    } else {
        None
    };
    let verdict = match found {
        Some(found) => {
            let refused = found.word.has(flow_flags::WOULD_DROP);
            if refused && work.headers.options_malformed {
                None
            } else if refused && work.flags & config_flags::SHADOW == 0 {
                refused::judge::<K>(work, heading, found)
            } else {
                let verdict = step::<P, K>(packet, work, heading, found);
                refused::counted(verdict, refused)
            }
        }
        None => None,
    };
    // Whatever its flow made of it, and it begins none.
    if work.headers.options_malformed {
        return Verdict::Drop(DropReason::MalformedTcp);
    }
    // The only call: inlined in two places, it would take more of the stack than
    // kernel 6.1 leaves to the functions that it calls.
    match verdict {
        Some(verdict) => verdict,
        None => begin::<P, K>(packet, work, heading),
    }
}

/// Is it a segment that can only be the first of a connection?
#[inline(always)]
const fn is_syn(h: &Headers) -> bool {
    h.proto == proto::TCP && matches!(Segment::of(h.tcp_flags), Some(Segment::Syn))
}

/// Reads the options of a TCP segment into its headers, unless it has none but a
/// timestamp. False if they are none that a stack sends.
///
/// A function of its own, so that what it keeps on the stack is gone afterwards;
/// called in one place, because the verifier follows it anew in each.
#[inline(never)]
pub(crate) fn read_options<P: Packet>(packet: &P, work: &mut Work) -> bool {
    let h = &mut work.headers;
    let (at, len) = (h.l4_offset as usize + TCP_MIN, h.options_len());
    if len == options::TIMESTAMP_ONLY_LEN
        && packet.read::<4>(at & OFFSET_MASK) == Some(options::TIMESTAMP_ONLY)
    {
        return true;
    }
    let Some(len) = bounded(options::OPTIONS_MAX as u32, len as u32) else {
        return false;
    };
    // SAFETY: there is room for more than `OPTIONS_MAX` bytes.
    if !unsafe { packet.copy(at as u32, work.tcp_options.as_mut_ptr(), len) } {
        return false;
    }
    let whole = pinhole_tcp_options(work, len) != 0;
    if !whole {
        stats::event(Event::TcpOptions);
    }
    whole
}

/// [`options::parse`] of [`Work::tcp_options`]; 0 if they are none that a stack sends.
///
/// A global function: else the verifier of 6.1, when it has to know a number for certain
/// that was there before a call, wants to know all numbers before it, and so follows each
/// way through the options.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pinhole_tcp_options(work: *mut Work, len: u32) -> u32 {
    // SAFETY: `read_options` passes this run's own work area, which nothing else
    // refers to meanwhile.
    let Some(work) = (unsafe { work.as_mut() }) else {
        return 0;
    };
    let h = &mut work.headers;
    let syn = h.tcp_flags & tcp_flags::SYN != 0;
    let cursor = &mut work.cursor;
    let forget = |at: usize| {
        cursor.set(at as u32);
        // The verifier of 6.1 learns nothing from a comparison of two registers.
        cursor.get() as usize & (options::OPTIONS_ROOM - 1)
    };
    u32::from(options::parse(
        &work.tcp_options,
        len as usize,
        syn,
        h,
        forget,
    ))
}

/// Judges an ICMP error by the packet that it quotes.
#[inline(always)]
fn related<P: Packet, K: Family>(packet: &P, work: &mut Work) -> Verdict {
    const UNRELATED: Verdict = Verdict::Drop(DropReason::IcmpUnrelated);
    let (h, quoted) = (&work.headers, &mut work.quoted);
    // No error is long enough to be cut (RFC 1812, section 4.3.2.3; RFC 4443,
    // section 2.4).
    if h.fragment as u8 != wire::Fragment::Whole as u8 {
        return UNRELATED;
    }
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
    let Some(found) = life::find(&mut Here::<K>::new(work), false, Missed::Nowhere) else {
        return UNRELATED;
    };
    let (Entry(entry), word) = (found.entry, found.word);
    if word.has(flow_flags::WOULD_DROP) {
        return UNRELATED;
    }
    // It comes from where the quoted packet was going, or from this very host.
    let direction = Direction::of(heading, word.first_heading());
    let ahead = zone_of(entry, direction.flip());
    if work.from_zone != ahead && work.from_zone != ZONE_HOST {
        return Verdict::Drop(DropReason::ZoneMismatch);
    }
    if work.quoted.proto == proto::TCP {
        work.direction.set(direction as u32);
        if pinhole_tcp_quoted(entry, work) == 0 {
            explain::bounds(work);
            return Verdict::Drop(DropReason::IcmpSequence);
        }
    }
    Verdict::Pass(PassReason::Related)
}

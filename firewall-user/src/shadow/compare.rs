//! Two dumps of both tables: what is quiet in both, held against each other.
//!
//! A packet between the dumps would make any difference look like one, so only
//! entries count that are the same in both dumps of their own table. pinhole's
//! dumps are the outer ones: an entry whose counters did not move between them
//! saw no packet while the kernel's were taken.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
};

use firewall_common::{
    abi::{FlowKey6, flow_flags},
    key::{FlowKey as _, Heading},
    tcp::{State, generic},
    verdict::DropReason,
    wire::{Family, Headers, proto},
};

use crate::{
    bpf::{maps::FlowRow, words},
    netlink::conntrack::{Entry, Tuple},
    render::state_name,
};

/// What the comparison must know beside the tables.
pub trait Scope {
    /// Do the packets of this connection of the kernel's pass a guarded interface?
    ///
    /// # Errors
    /// Those of looking up routes.
    fn is_guarded(&mut self, entry: &Entry) -> io::Result<bool>;

    /// The kernel's time-out of a connection in `state`, seconds; `None` if it is not known.
    fn timeout_s(&self, protocol: u8, state: u8) -> Option<u64>;

    /// Seconds since the flow's last packet.
    fn idle_s(&self, row: &FlowRow) -> f64;
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Connections that are the same on both sides.
    pub agree: usize,
    /// Connections that changed while they were looked at.
    pub busy: usize,
    /// Connections of the kernel's that are none of pinhole's: their packets
    /// pass no guarded interface, or pass it without a flow (DHCP, IGMP, other
    /// ICMP than echo).
    pub elsewhere: usize,
    /// All others.
    pub disagreements: Vec<Disagreement>,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The protocol state.
    State,
    /// Who began.
    Direction,
    /// Only pinhole has it.
    MissingInKernel,
    /// Only the kernel has it.
    MissingInPinhole,
}

impl Kind {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Direction => "direction",
            Self::MissingInKernel => "missing-in-kernel",
            Self::MissingInPinhole => "missing-in-pinhole",
        }
    }
}

/// A connection on which the two disagree.
#[derive(Clone, Debug, PartialEq)]
pub struct Disagreement {
    /// What differs.
    pub kind: Kind,
    /// IP protocol number.
    pub protocol: u8,
    /// Originator and replier with their ports, as pinhole has them, or the
    /// kernel if pinhole has none.
    pub ends: [(IpAddr, u16); 2],
    /// State here.
    pub pinhole: Option<&'static str>,
    /// State there.
    pub kernel: Option<&'static str>,
    /// Why, as far as can be known.
    pub reason: String,
    /// Why enforcing would have refused it.
    pub would_drop: Option<DropReason>,
}

/// Compares pinhole's dumps with the kernel's, each pair in order of time.
///
/// # Errors
/// Those of [`Scope`].
pub fn compare(
    ours: [&[FlowRow]; 2],
    kernel: [&[Entry]; 2],
    scope: &mut impl Scope,
) -> io::Result<Comparison> {
    let tables = Tables::new(ours, kernel);
    let mut out = Comparison::default();
    for entry in kernel[1] {
        tables.judge_entry(entry, scope, &mut out)?;
    }
    for row in ours[1] {
        tables.judge_unmet(row, scope, &mut out);
    }
    Ok(out)
}

type Id = (u8, Tuple);

struct Tables<'a> {
    ours: [HashMap<FlowKey6, &'a FlowRow>; 2],
    kernel_before: HashMap<Id, &'a Entry>,
    /// Every key that the kernel has in one of its dumps.
    kernel_keys: HashSet<FlowKey6>,
}

impl<'a> Tables<'a> {
    fn new(ours: [&'a [FlowRow]; 2], kernel: [&'a [Entry]; 2]) -> Self {
        let by_key = |rows: &'a [FlowRow]| rows.iter().map(|row| (row.key, row)).collect();
        let all = kernel[0].iter().chain(kernel[1]);
        Self {
            ours: ours.map(by_key),
            kernel_before: kernel[0].iter().map(|entry| (id(entry), entry)).collect(),
            kernel_keys: all.flat_map(keys).map(|(key, _)| key).collect(),
        }
    }

    fn judge_entry(
        &self,
        entry: &Entry,
        scope: &mut impl Scope,
        out: &mut Comparison,
    ) -> io::Result<()> {
        let [before, after] = &self.ours;
        let mut met = keys(entry).filter_map(|(key, heading)| Some((*after.get(&key)?, heading)));
        let quiet = self.kernel_is_quiet(entry);
        if let Some((row, heading)) = met.next() {
            if quiet && self.is_quiet(row) {
                match differ(row, heading, entry) {
                    Some(disagreement) => out.disagreements.push(disagreement),
                    None => out.agree += 1,
                }
            } else {
                out.busy += 1;
            }
        } else if !is_tracked_here(entry) || !scope.is_guarded(entry)? {
            out.elsewhere += 1;
        } else if !quiet || keys(entry).any(|(key, _)| before.contains_key(&key)) {
            out.busy += 1;
        } else {
            out.disagreements.push(missing_here(entry));
        }
        Ok(())
    }

    /// A flow that the kernel does not have.
    fn judge_unmet(&self, row: &FlowRow, scope: &impl Scope, out: &mut Comparison) {
        if self.kernel_keys.contains(&row.key) {
            return;
        }
        if !self.is_quiet(row) {
            out.busy += 1;
        } else if is_forgotten_at_once(row) {
            out.agree += 1;
        } else {
            out.disagreements.push(missing_there(row, scope));
        }
    }

    fn is_quiet(&self, row: &FlowRow) -> bool {
        self.ours[0]
            .get(&row.key)
            .is_some_and(|before| before.flow == row.flow)
    }

    /// Any packet would have renewed its time-out.
    fn kernel_is_quiet(&self, entry: &Entry) -> bool {
        self.kernel_before.get(&id(entry)).is_some_and(|before| {
            before.tracked == entry.tracked
                && before.replied == entry.replied
                && entry.left_s <= before.left_s
        })
    }
}

fn id(entry: &Entry) -> Id {
    (entry.tracked.protocol, entry.tracked.original)
}

/// The keys under which pinhole can have the connection, and how its originator
/// heads: as it was sent, and as it looks behind an address translation.
fn keys(entry: &Entry) -> impl Iterator<Item = (FlowKey6, Heading)> {
    let tracked = entry.tracked;
    [tracked.original, tracked.reply.reversed()]
        .into_iter()
        .filter_map(move |tuple| Some(FlowKey6::of(&headers(tracked.protocol, tuple)?)))
}

/// Headers as those of the first packet.
fn headers(protocol: u8, Tuple { src, dst }: Tuple) -> Option<Headers> {
    let (family, echo_request) = match (src.ip(), dst.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (Family::V4, 8),
        (IpAddr::V6(_), IpAddr::V6(_)) => (Family::V6, 128),
        _ => return None,
    };
    // The kernel knows the ports of more protocols, pinhole tracks the others
    // by their addresses.
    let has_ports = matches!(
        protocol,
        proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6
    );
    let port = |port| if has_ports { port } else { 0 };
    Some(Headers {
        family,
        src: words(src.ip()),
        dst: words(dst.ip()),
        proto: protocol,
        sport: port(src.port()),
        dport: port(dst.port()),
        icmp_type: echo_request,
        ..Headers::ZERO
    })
}

/// Would pinhole make a flow of it? Essentials pass without.
fn is_tracked_here(entry: &Entry) -> bool {
    let tracked = &entry.tracked;
    let ports = [tracked.original.src.port(), tracked.original.dst.port()];
    match tracked.protocol {
        proto::ICMP => entry.icmp_type == Some(8),
        proto::ICMPV6 => entry.icmp_type == Some(128),
        proto::IGMP => false,
        proto::UDP => !matches!(ports, [67 | 68, 67 | 68] | [546 | 547, 546 | 547]),
        _ => true,
    }
}

/// A connection that was answered by an RST alone: the kernel deletes its entry
/// with that packet (`nf_conntrack_tcp_packet`), pinhole lets it time out.
fn is_forgotten_at_once(row: &FlowRow) -> bool {
    row.key.proto() == proto::TCP
        && row.state().state() == State::Close as u8
        && !row.state().has(flow_flags::ASSURED)
}

/// What pinhole calls the state of the kernel's entry.
fn state_of(entry: &Entry) -> u8 {
    match entry.tracked.tcp_state {
        // The numbers are the same (`tcp::State`).
        Some(state) => state,
        None if entry.replied => generic::REPLIED,
        None => generic::UNREPLIED,
    }
}

fn differ(row: &FlowRow, heading: Heading, entry: &Entry) -> Option<Disagreement> {
    let word = row.state();
    let (here, there) = (word.state(), state_of(entry));
    let (kind, reason) = if word.first_heading() != heading {
        let reason = "the two saw opposite sides begin: one of them met it in mid-life";
        (Kind::Direction, reason)
    } else if here == there {
        return None;
    } else if word.has(flow_flags::SEEDED) {
        let reason = "known from a dump at the start, and no packet since has told more";
        (Kind::State, reason)
    } else {
        (Kind::State, "the same packets led to different states")
    };
    Some(Disagreement {
        kernel: Some(state_name(there)),
        ..of_row(row, kind, reason.to_owned())
    })
}

fn of_row(row: &FlowRow, kind: Kind, reason: String) -> Disagreement {
    let (src, sport, dst, dport) = row.key.endpoints(row.state().first_heading());
    Disagreement {
        kind,
        protocol: row.key.proto(),
        ends: [
            (crate::bpf::address(src), sport),
            (crate::bpf::address(dst), dport),
        ],
        pinhole: Some(state_name(row.state().state())),
        kernel: None,
        reason,
        would_drop: row.flow.would_drop(),
    }
}

fn missing_there(row: &FlowRow, scope: &impl Scope) -> Disagreement {
    let state = row.state();
    let idle = scope.idle_s(row);
    let timeout = scope.timeout_s(row.key.proto(), state.state());
    let reason = match timeout {
        Some(timeout) if idle >= timeout as f64 => format!(
            "timed out there: idle for {idle:.0} s, and the kernel's time-out is {timeout} s"
        ),
        _ if state.has(flow_flags::SEEDED) => {
            "known here from a socket, and no packet since has shown it to the kernel".to_owned()
        }
        _ => "its packets were dropped or exempted by the kernel's own rules, or its entry there \
              was deleted"
            .to_owned(),
    };
    of_row(row, Kind::MissingInKernel, reason)
}

fn missing_here(entry: &Entry) -> Disagreement {
    let Tuple { src, dst } = entry.tracked.original;
    Disagreement {
        kind: Kind::MissingInPinhole,
        protocol: entry.tracked.protocol,
        ends: [(src.ip(), src.port()), (dst.ip(), dst.port())],
        pinhole: None,
        kernel: Some(state_name(state_of(entry))),
        reason: "it began before pinhole was attached, or has timed out, was evicted or deleted \
                 here"
            .to_owned(),
        would_drop: None,
    }
}

#[cfg(test)]
mod tests;

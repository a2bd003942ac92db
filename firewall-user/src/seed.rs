//! Flows that were there before pinhole: first attach must not cut them off.
//!
//! Sources are nf_conntrack, where it is loaded, and the machine's own sockets.
//! Neither tells sequence numbers, so a seeded flow is marked as such. A control
//! connection found here is blind: what was negotiated on it is not known.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use aya::maps::{MapData, MapError};
use bytemuck::Zeroable as _;
use firewall_common::{
    abi::{
        Config, CtlCounts, Flow, FlowKey4, FlowKey6, FlowState, Last, RULE_NONE, TIER_COUNTS_LEN,
        TcpSide, Tier, ZONE_HOST,
        flow_flags::{self, NO_SCALE},
        incarnation, maps, rule_flags,
    },
    key::{FlowKey, Heading},
    tcp::{State, generic},
    time::Tick,
    wire::{Family, Headers, proto},
};

use crate::{
    bpf::{
        Instance,
        loader::{Error, pinned},
        requests, words,
    },
    classes::Classes,
    netlink::{
        conntrack::{self, Tracked},
        diag::{self, Connection, state},
        route::{Route, Routes},
    },
};

/// Creates an element, never replaces one.
const BPF_NOEXIST: u64 = 1;

/// A flow to write before XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// IPv4 in mapped form.
    pub key: FlowKey6,
    /// The entry, live and proved.
    pub flow: Flow,
    /// Which admission class it counts in.
    pub tier: Tier,
}

/// A connection in the making of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    protocol: u8,
    originator: SocketAddr,
    replier: SocketAddr,
    /// [`State`] or [`generic`].
    state: u8,
    /// [`flow_flags`] that its state implies.
    flags: u32,
}

/// What decides zones and flags of the flows found.
pub struct Policy<'a> {
    /// As it goes into the `CONFIG` map.
    pub config: &'a Config,
    /// The rules.
    pub rules: &'a Classes<'a>,
    /// The guarded interfaces by index.
    pub ifaces: HashMap<u32, Guarded>,
}

/// What seeding must know of a guarded interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Number of its zone.
    pub zone: u8,
    /// Do flows that begin there count as begun inside?
    pub trusted: bool,
    /// Was it not guarded until now? Flows of others are tracked already, or
    /// were not let in.
    pub fresh: bool,
}

/// The flows of this machine that go through an interface that is guarded from
/// now on.
///
/// # Errors
///
/// What the kernel says to the dumps. There being no nf_conntrack is no error.
pub fn collect(policy: &Policy<'_>, now: Tick) -> io::Result<Vec<Seed>> {
    let mut places = Places {
        routes: Routes::open()?,
        known: HashMap::new(),
        ifaces: &policy.ifaces,
    };
    let mut seen = HashSet::new();
    let mut seeds = Vec::new();
    // nf_conntrack first: it knows who began, sockets let it be guessed.
    let tracked = conntrack::tracked()?;
    let sockets = diag::connections()?;
    let mut found = Vec::with_capacity(tracked.len() + sockets.len());
    for connection in &tracked {
        found.extend(from_tracked(connection, &mut places)?);
    }
    found.extend(sockets.iter().filter_map(from_socket));
    for connection in found {
        let seed = seed(policy, &connection, &mut places, now)?;
        seeds.extend(seed.filter(|seed| seen.insert(seed.key)));
    }
    Ok(seeds)
}

/// Writes `seeds` into the flow tables of `instance`, where the programs have none yet.
/// Returns how many were written: no tier takes more than its limit.
///
/// # Errors
///
/// A table that refuses an entry, but for one that is there already.
pub fn write(instance: &Instance, seeds: &[Seed], limits: [u32; 4]) -> Result<usize, Error> {
    let mut tables = FlowTables {
        v4: pinned(instance, maps::FLOWS4)?,
        v6: pinned(instance, maps::FLOWS6)?,
    };
    let mut written = [0_u32; TIER_COUNTS_LEN];
    for seed in seeds {
        let count = &mut written[seed.tier as usize];
        if *count < limits[seed.tier as usize] && tables.insert(seed)? {
            *count += 1;
        }
    }
    let total = written.iter().sum::<u32>() as usize;
    if total > 0 {
        requests::Control::open(instance)
            .and_then(|control| control.count(&counts(written)))
            .map_err(Error::map(maps::TIER_COUNTS))?;
    }
    Ok(total)
}

/// What the programs did not see put in, by [`Tier`].
fn counts(written: [u32; TIER_COUNTS_LEN]) -> CtlCounts {
    let of = |tier: Tier| u64::from(written[tier as usize]);
    CtlCounts {
        tiers: written.map(i64::from),
        created: [
            of(Tier::Tcp4) + of(Tier::Other4),
            of(Tier::Tcp6) + of(Tier::Other6),
        ],
        ..CtlCounts::zeroed()
    }
}

/// Where proved flows stand.
struct FlowTables {
    v4: aya::maps::HashMap<MapData, FlowKey4, Flow>,
    v6: aya::maps::HashMap<MapData, FlowKey6, Flow>,
}

impl FlowTables {
    fn insert(&mut self, seed: &Seed) -> Result<bool, Error> {
        let (table, done) = match seed.key.narrow() {
            Some(key) => (maps::FLOWS4, self.v4.insert(key, seed.flow, BPF_NOEXIST)),
            None => (
                maps::FLOWS6,
                self.v6.insert(seed.key, seed.flow, BPF_NOEXIST),
            ),
        };
        match done {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(false)
            }
            Err(e) => Err(Error::map(table)(e)),
        }
    }
}

/// Where an address lies, by route.
struct Places<'a> {
    routes: Routes,
    known: HashMap<IpAddr, Option<Guarded>>,
    ifaces: &'a HashMap<u32, Guarded>,
}

/// This machine, and its containers and virtual machines behind interfaces that
/// are not guarded.
const HOST: Guarded = Guarded {
    zone: ZONE_HOST,
    trusted: true,
    fresh: false,
};

impl Places<'_> {
    /// The interface towards `address`, or [`HOST`]. `None`: no route.
    fn of(&mut self, address: IpAddr) -> io::Result<Option<Guarded>> {
        if let Some(place) = self.known.get(&address) {
            return Ok(*place);
        }
        let place = match self.routes.to(address)? {
            Route::Local => Some(HOST),
            Route::Out(index) => Some(self.ifaces.get(&index).copied().unwrap_or(HOST)),
            Route::None => None,
        };
        self.known.insert(address, place);
        Ok(place)
    }
}

fn from_socket(socket: &Connection) -> Option<Found> {
    let (originator, replier) = if socket.from_here {
        (socket.local, socket.remote)
    } else {
        (socket.remote, socket.local)
    };
    let (ours, theirs) = if socket.from_here {
        (flow_flags::FIN_ORIGINAL, flow_flags::FIN_REPLY)
    } else {
        (flow_flags::FIN_REPLY, flow_flags::FIN_ORIGINAL)
    };
    let (state, flags) = match (socket.protocol, socket.state) {
        (proto::UDP, _) => (generic::REPLIED, 0),
        (_, state::ESTABLISHED) => (State::Established as u8, 0),
        (_, state::FIN_WAIT1) => (State::FinWait as u8, ours),
        (_, state::FIN_WAIT2) => (State::CloseWait as u8, ours),
        (_, state::CLOSE_WAIT) => (State::CloseWait as u8, theirs),
        (_, state::LAST_ACK | state::CLOSING) => (State::LastAck as u8, ours | theirs),
        _ => return None,
    };
    Some(Found {
        protocol: socket.protocol,
        originator,
        replier,
        state,
        flags,
    })
}

/// As the guarded interface sees it: what the kernel translates is translated
/// after ingress and before egress, so inside tuples never show there.
fn from_tracked(tracked: &Tracked, places: &mut Places<'_>) -> io::Result<Option<Found>> {
    let state = match tracked.tcp_state.map(State::try_from) {
        None if tracked.protocol == proto::UDP => generic::REPLIED,
        Some(Ok(
            state @ (State::Established | State::FinWait | State::CloseWait | State::LastAck),
        )) => state as u8,
        // A half-open one sends its SYN again, a closed one has nothing to lose.
        _ => return Ok(None),
    };
    let from = places.of(tracked.original.src.ip())?;
    let from_host = from.is_some_and(|place| place.zone == ZONE_HOST);
    let wire = if from_host {
        tracked.reply.reversed()
    } else {
        tracked.original
    };
    Ok(Some(Found {
        protocol: tracked.protocol,
        originator: wire.src,
        replier: wire.dst,
        state,
        flags: 0,
    }))
}

fn seed(
    policy: &Policy<'_>,
    found: &Found,
    places: &mut Places<'_>,
    now: Tick,
) -> io::Result<Option<Seed>> {
    let (Some(from), Some(to)) = (
        places.of(found.originator.ip())?,
        places.of(found.replier.ip())?,
    ) else {
        return Ok(None);
    };
    if !from.fresh && !to.fresh {
        return Ok(None);
    }
    Ok(headers(found).map(|headers| entry(policy, found, &headers, from, to, now)))
}

/// Proved as it stands. No dump tells sequence numbers: each side's are taken
/// from its first packet. Nor does it tell window scales, so its windows cannot
/// be held against it, and its acknowledgements may be selective.
const SEEDED: u32 = flow_flags::SEEDED
    | flow_flags::ASSURED
    | flow_flags::SEEN_REPLY
    | flow_flags::LIBERAL
    | flow_flags::SACK_ORIGINAL
    | flow_flags::SACK_REPLY
    | flow_flags::scales(NO_SCALE, NO_SCALE);

fn entry(
    policy: &Policy<'_>,
    found: &Found,
    headers: &Headers,
    from: Guarded,
    to: Guarded,
    now: Tick,
) -> Seed {
    let (key, heading) = FlowKey6::of(headers);
    let mut flags = found.flags | SEEDED;
    if heading == Heading::Down {
        flags |= flow_flags::FIRST_DOWN;
    }
    if from.trusted {
        flags |= flow_flags::FROM_INSIDE;
    }
    if is_control(policy.rules, headers, from.zone, to.zone) {
        flags |= flow_flags::HELPER_FTP | flow_flags::BLIND;
    }
    Seed {
        key,
        tier: Tier::of(&key),
        flow: Flow {
            state: FlowState::new(found.state, flags, tag(&key, now)).0,
            last: Last::new(RULE_NONE, from.zone, to.zone).0,
            seen: now.0,
            created: now.0,
            bytes: [0; 2],
            packets: [0; 2],
            tcp: [TcpSide::zeroed(); 2],
        },
    }
}

/// Would its first packet have been given to the helper?
fn is_control(rules: &Classes<'_>, headers: &Headers, from: u8, to: u8) -> bool {
    rules
        .find(headers, from, to)
        .is_some_and(|rule| rule.flags & rule_flags::HELPER_FTP != 0)
}

/// Headers as those of the first packet.
fn headers(found: &Found) -> Option<Headers> {
    let (src, dst) = (found.originator.ip(), found.replier.ip());
    let family = match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => Family::V4,
        (IpAddr::V6(_), IpAddr::V6(_)) => Family::V6,
        _ => return None,
    };
    Some(Headers {
        family,
        src: words(src),
        dst: words(dst),
        proto: found.protocol,
        sport: found.originator.port(),
        dport: found.replier.port(),
        ..Headers::ZERO
    })
}

/// Tells this entry from a later one in the same map node; need not be secret.
fn tag(key: &FlowKey6, now: Tick) -> u32 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    now.0.hash(&mut hasher);
    incarnation(key.digest(), hasher.finish() as u32)
}

#[cfg(test)]
mod tests;

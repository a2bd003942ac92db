//! The life of an entry on several CPUs, under every schedule there is.

mod begin;
mod deletion;
pub(crate) mod memory;
mod promotion;

use memory::{At, Memory, View};

use super::*;
use crate::{
    abi::{Last, TcpSide, flow_flags},
    explore::Cpu,
    tcp::{self, Arrived, Segment, State, Stepped, What, generic as states},
    timeout::Timeouts,
    wire::{Headers, OnWire},
};

pub(super) const OUT: Direction = Direction::Original;
pub(super) const BACK: Direction = Direction::Reply;
/// When the flows of these tests began.
pub(super) const START: Tick = Tick(1000);
/// How long they live unless they are renewed.
pub(super) const LIFE: u32 = 10;
/// Digest of the key, and the incarnations of two flows of it.
pub(super) const DIGEST: u32 = 0x7ac0_0000;
pub(super) const INCARNATION: u32 = DIGEST | 1;
pub(super) const SECOND: u32 = DIGEST | 2;
/// Bytes of each packet.
const LENGTH: u32 = 100;

/// A packet of the flow.
#[derive(Clone, Copy)]
pub(super) enum Packet {
    /// Without states of its own.
    Udp(Direction),
    Tcp(Direction, Headers),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    /// It passed, and whether it moved its flow.
    Passed { moved: bool },
    /// Dropped, because its flow was on the move.
    Moving,
    /// Dropped, because it does not fit.
    Invalid,
    /// No flow was found.
    Missed,
}

impl Fate {
    pub(super) fn passed(self) -> bool {
        matches!(self, Self::Passed { .. })
    }

    pub(super) fn moved(self) -> bool {
        matches!(self, Self::Passed { moved: true })
    }
}

pub(super) fn view<'a>(cpu: &'a Cpu<'a, Memory>, now: Tick) -> View<'a> {
    View {
        cpu,
        digest: DIGEST,
        now,
        life: LIFE,
        flow: udp(states::UNREPLIED, 0, 0),
        moves: 0,
    }
}

/// A flow without states of its own, by its packets in each direction.
pub(super) fn udp(state: u8, flags: u32, packets: u32) -> Flow {
    Flow {
        state: FlowState::new(state, flags, INCARNATION).0,
        last: Last::new(0, 0, 1).0,
        seen: START.0,
        created: START.0,
        bytes: [u64::from(packets * LENGTH), 0],
        packets: [packets, 0],
        tcp: [TcpSide::UNKNOWN; 2],
    }
}

fn timeouts() -> Timeouts {
    [LIFE; crate::abi::timeout::LEN]
}

/// Looks the flow up: as the programs do, which look into the proved table first, and
/// at the others only if it is not there.
fn looked_up<'a>(tables: &mut View<'a>) -> Option<Found<At<'a>>> {
    tables.note_moves();
    let missed = match tables.look(Place::Proved) {
        Some(_) => Missed::Nowhere,
        None => missed(tables),
    };
    find(tables, false, missed)
}

/// Looks the flow up, steps it, counts, moves it up: as the programs do.
pub(super) fn judge(tables: &mut View<'_>, packet: &Packet) -> Fate {
    let Some(found) = looked_up(tables) else {
        return Fate::Missed;
    };
    judge_found(tables, packet, found)
}

pub(super) fn judge_found<'a>(
    tables: &mut View<'a>,
    packet: &Packet,
    found: Found<At<'a>>,
) -> Fate {
    let incarnation = found.word.incarnation();
    let mut out = Stepped::NONE;
    let Found { entry, proved, .. } = found;
    step(entry, packet, incarnation, tables.now, &mut out);
    if !proved && follow(entry, incarnation) == Followed::Lost {
        if matches!(packet, Packet::Tcp(..)) {
            return Fate::Moving;
        }
        out.what = What::Accepted;
    }
    match out.what {
        What::Accepted => {}
        What::Invalid => return Fate::Invalid,
        What::Ignored => return Fate::Passed { moved: false },
        _ => return Fate::Missed,
    }
    let (direction, due) = match packet {
        Packet::Udp(direction) => (*direction, out.word.state() == states::REPLIED),
        Packet::Tcp(direction, _) => {
            let established = out.word.state() == State::Established as u8;
            (*direction, established && out.word.has(flow_flags::ASSURED))
        }
    };
    let wire = OnWire {
        packets: 1,
        bytes: LENGTH,
    };
    if proved {
        entry.packets(direction).add(wire.packets);
        entry.bytes(direction).add(u64::from(wire.bytes));
        return Fate::Passed { moved: false };
    }
    account(tables, entry, incarnation, direction, wire);
    let moved = due && promote(tables, entry, out.word) == Promotion::Moved;
    Fate::Passed { moved }
}

fn step(entry: At<'_>, packet: &Packet, incarnation: u32, now: Tick, out: &mut Stepped) {
    match packet {
        Packet::Udp(direction) => generic::step(entry, *direction, incarnation, now, out),
        Packet::Tcp(direction, headers) => {
            let arrived = Arrived {
                headers,
                segment: Segment::of(headers.tcp_flags).unwrap(),
                direction: *direction,
            };
            tcp::step(entry, &arrived, incarnation, now, &timeouts(), out);
        }
    }
}

/// The only entry, which must be a live one.
pub(super) fn only(memory: &Memory, schedule: &str) -> (Place, Flow) {
    let entries = memory.entries();
    assert_eq!(entries.len(), 1, "{schedule}: {entries:#x?}");
    let (place, flow) = entries[0];
    assert_eq!(flow.state().phase(), Phase::Live, "{schedule}");
    (place, flow)
}

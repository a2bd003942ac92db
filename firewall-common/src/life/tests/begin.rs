//! First packets of one flow at once, from both sides.

use super::*;
use crate::explore;

/// A packet that may begin the flow: from inside it heads up.
fn packet(cpu: &Cpu<'_, Memory>, inside: bool, incarnation: u32) -> Fate {
    let mut tables = view(cpu, START);
    if let Some(found) = looked_up(&mut tables) {
        let word = found.word;
        let direction = if word.has(flow_flags::FROM_INSIDE) == inside {
            OUT
        } else {
            BACK
        };
        return judge_found(&mut tables, &Packet::Udp(direction), found);
    }
    let flags = if inside { flow_flags::FROM_INSIDE } else { 0 };
    tables.flow = Flow {
        state: FlowState::new(states::UNREPLIED, flags, incarnation).0,
        ..udp(0, 0, 1)
    };
    if tables.insert(Place::half_open(inside)).is_ok() {
        concedes(&mut tables, inside, incarnation);
    }
    Fate::Passed { moved: false }
}

#[test]
fn both_sides_at_once_leave_one_flow() {
    let inside = |cpu: &Cpu<'_, Memory>| packet(cpu, true, INCARNATION);
    let outside = |cpu: &Cpu<'_, Memory>| packet(cpu, false, SECOND);
    explore::all(
        &Memory::default(),
        &[&inside, &outside],
        |memory, _, schedule| {
            only(memory, schedule);
        },
    );
}

#[test]
fn one_side_twice_leaves_one_flow() {
    let one = |cpu: &Cpu<'_, Memory>| packet(cpu, false, INCARNATION);
    let two = |cpu: &Cpu<'_, Memory>| packet(cpu, false, SECOND);
    explore::all(&Memory::default(), &[&one, &two], |memory, _, schedule| {
        only(memory, schedule);
    });
}

/// A third CPU has a packet that is an answer to whichever entry it finds, and
/// moves it up at once.
#[test]
fn nor_does_an_answer_in_between_leave_two() {
    let inside = |cpu: &Cpu<'_, Memory>| packet(cpu, true, INCARNATION);
    let outside = |cpu: &Cpu<'_, Memory>| packet(cpu, false, SECOND);
    for answer_inside in [true, false] {
        let answer = |cpu: &Cpu<'_, Memory>| packet(cpu, answer_inside, DIGEST | 3);
        explore::all(
            &Memory::default(),
            &[&inside, &outside, &answer],
            |memory, _, schedule| {
                only(memory, schedule);
            },
        );
    }
}

//! Deletion of what is expired, against the packet that renews it.

use super::*;
use crate::explore;

/// The last moment of a flow that was last renewed at [`START`].
const LAST: Tick = START.plus(LIFE);

fn collect(cpu: &Cpu<'_, Memory>, place: Place) -> bool {
    let mut tables = view(cpu, LAST.plus(1));
    let Some(entry) = tables.look(place) else {
        return false;
    };
    let expired = |word| tables.is_expired(entry, word);
    let Some(word) = doom_expired(entry, DIGEST, expired) else {
        return false;
    };
    tables.remove(place, entry, word, EndReason::Expired);
    true
}

/// A packet in the flow's last moment, and collectors that come one later: if it
/// passed, the flow lives on; if the flow was deleted, the packet found none.
fn survives_or_is_missed(place: Place, flow: &Flow, collectors: usize) {
    let packet = |cpu: &Cpu<'_, Memory>| judge(&mut view(cpu, LAST), &Packet::Udp(BACK)).passed();
    let collector = |cpu: &Cpu<'_, Memory>| collect(cpu, place);
    let mut tasks: Vec<explore::Task<'_, Memory, bool>> = vec![&packet];
    tasks.extend((0..collectors).map(|_| &collector as explore::Task<'_, _, _>));
    let mut outcomes = [0; 2];
    explore::all(
        &Memory::with(place, flow),
        &tasks,
        |memory, results, schedule| {
            let passed = results[0];
            let deleted = results[1..].iter().filter(|won| **won).count();
            assert!(deleted <= 1, "{schedule}");
            assert!(!(passed && deleted > 0), "{schedule}: renewed and deleted");
            if deleted > 0 {
                assert_eq!(memory.entries(), [], "{schedule}");
            } else {
                only(memory, schedule);
            }
            outcomes[usize::from(passed)] += 1;
        },
    );
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

#[test]
fn a_packet_that_passes_has_renewed_its_flow() {
    let proved = udp(states::REPLIED, flow_flags::ASSURED, 1);
    survives_or_is_missed(Place::Proved, &proved, 1);
    survives_or_is_missed(Place::Proved, &proved, 2);
}

#[test]
fn promotion_in_the_last_moment_is_not_undone() {
    let half = udp(states::UNREPLIED, flow_flags::FROM_INSIDE, 1);
    survives_or_is_missed(Place::Inside, &half, 1);
}

/// Two that delete the same expired flow: one does.
#[test]
fn one_of_two_collectors_deletes() {
    let flow = udp(states::REPLIED, flow_flags::ASSURED, 1);
    let collector = |cpu: &Cpu<'_, Memory>| collect(cpu, Place::Proved);
    let start = Memory::with(Place::Proved, &flow);
    explore::all(
        &start,
        &[&collector, &collector],
        |memory, won, schedule| {
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "{schedule}");
            assert_eq!(
                (memory.entries().len(), memory.removed),
                (0, 1),
                "{schedule}"
            );
        },
    );
}

/// A flow that is expired when its packet comes, and reopened by it: a collector
/// that looked before does not delete the new one.
#[test]
fn a_flow_reopened_under_the_collector_stays() {
    let now = LAST.plus(1);
    let reopen = |cpu: &Cpu<'_, Memory>| {
        let mut tables = view(cpu, now);
        if find(&mut tables, true, Missed::Nowhere).is_some() {
            return false;
        }
        tables.flow = Flow {
            state: FlowState::new(states::UNREPLIED, flow_flags::FROM_INSIDE, SECOND).0,
            seen: now.0,
            ..udp(0, 0, 1)
        };
        tables.insert(Place::Inside).is_ok()
    };
    let old = udp(states::UNREPLIED, flow_flags::FROM_INSIDE, 1);
    let collector = |cpu: &Cpu<'_, Memory>| collect(cpu, Place::Inside);
    let start = Memory::with(Place::Inside, &old);
    explore::all(
        &start,
        &[&reopen, &collector],
        |memory, results, schedule| {
            if results[0] {
                let (_, flow) = only(memory, schedule);
                assert_eq!(flow.state().incarnation(), SECOND, "{schedule}");
            }
        },
    );
}

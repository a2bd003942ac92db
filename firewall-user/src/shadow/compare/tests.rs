use std::net::SocketAddr;

use firewall_common::abi::FlowState;

use super::*;
use crate::{filter::tests::row, netlink::conntrack::Tracked};

/// Everything passes a guarded interface but what 10.9.0.0/16 does; any flow has
/// been idle for 40 seconds.
struct Fixed;

impl Scope for Fixed {
    fn is_guarded(&mut self, entry: &Entry) -> io::Result<bool> {
        let here = |ip: IpAddr| !ip.to_string().starts_with("10.9.");
        Ok(here(entry.tracked.original.src.ip()))
    }

    fn timeout_s(&self, protocol: u8, _: u8) -> Option<u64> {
        (protocol == proto::UDP).then_some(30)
    }

    fn idle_s(&self, _: &FlowRow) -> f64 {
        40.0
    }
}

fn entry(protocol: u8, src: &str, dst: &str) -> Entry {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let original = Tuple { src, dst };
    Entry {
        tracked: Tracked {
            protocol,
            original,
            reply: original.reversed(),
            tcp_state: (protocol == proto::TCP).then_some(State::Established as u8),
        },
        replied: true,
        icmp_type: match protocol {
            proto::ICMP => Some(8),
            proto::ICMPV6 => Some(128),
            _ => None,
        },
        left_s: 100,
    }
}

fn ssh_row() -> FlowRow {
    row(6, "192.0.2.9", 40_000, "10.0.0.1", 22)
}

fn ssh_entry() -> Entry {
    entry(6, "192.0.2.9:40000", "10.0.0.1:22")
}

fn in_state(mut row: FlowRow, state: State) -> FlowRow {
    row.flow.state = row.state().with_state(state as u8).0;
    row
}

/// Two dumps of each side, the same both times.
fn quiet(ours: &[FlowRow], kernel: &[Entry]) -> Comparison {
    compare([ours; 2], [kernel; 2], &mut Fixed).unwrap()
}

fn only(found: Comparison) -> Disagreement {
    let [one] = &found.disagreements[..] else {
        panic!("one disagreement, not {found:?}");
    };
    one.clone()
}

#[test]
fn the_same_on_both_sides_agrees() {
    let ours = [
        ssh_row(),
        row(58, "2001:db8::1", 77, "2001:db8::2", 77),
        row(17, "10.0.0.1", 53, "192.0.2.9", 53),
        // Two of the kernel's SCTP associations are one pair of addresses here.
        row(132, "10.0.0.1", 0, "192.0.2.9", 0),
    ];
    let kernel = [
        ssh_entry(),
        entry(58, "[2001:db8::1]:77", "[2001:db8::2]:77"),
        entry(17, "10.0.0.1:53", "192.0.2.9:53"),
        entry(132, "10.0.0.1:5", "192.0.2.9:6"),
        entry(132, "10.0.0.1:7", "192.0.2.9:8"),
    ];
    let found = quiet(&ours, &kernel);
    assert_eq!(
        (found.agree, found.busy, found.elsewhere),
        (5, 0, 0),
        "{found:?}"
    );
    assert_eq!(found.disagreements, []);
}

#[test]
fn a_translated_connection_is_found_by_what_the_wire_shows() {
    let mut kernel = entry(6, "10.9.0.5:40000", "192.0.2.9:443");
    kernel.tracked.reply.dst = "203.0.113.1:61000".parse().unwrap();
    let ours = row(6, "203.0.113.1", 61_000, "192.0.2.9", 443);
    assert_eq!(quiet(&[ours], &[kernel]).agree, 1);
}

#[test]
fn states_and_directions_that_differ_are_told() {
    let one = only(quiet(
        &[in_state(ssh_row(), State::CloseWait)],
        &[ssh_entry()],
    ));
    assert_eq!(
        (one.kind, one.pinhole, one.kernel),
        (Kind::State, Some("CLOSE_WAIT"), Some("ESTABLISHED"))
    );
    assert_eq!(one.ends[1], ("10.0.0.1".parse().unwrap(), 22));
    let backwards = row(6, "10.0.0.1", 22, "192.0.2.9", 40_000);
    let one = only(quiet(&[backwards], &[ssh_entry()]));
    assert_eq!(one.kind, Kind::Direction);
}

#[test]
fn what_one_side_lacks_is_told_with_a_reason() {
    let one = only(quiet(&[ssh_row()], &[]));
    assert_eq!((one.kind, one.kernel), (Kind::MissingInKernel, None));
    assert!(one.reason.contains("deleted"), "{}", one.reason);
    let one = only(quiet(&[row(17, "10.0.0.1", 5, "192.0.2.9", 53)], &[]));
    assert!(one.reason.contains("time-out is 30 s"), "{}", one.reason);
    let one = only(quiet(&[], &[ssh_entry()]));
    assert_eq!((one.kind, one.pinhole), (Kind::MissingInPinhole, None));
    let mut refused = ssh_row();
    refused.flow.state = FlowState(refused.flow.state).with(flow_flags::SEEDED).0;
    let one = only(quiet(&[refused], &[]));
    assert!(one.reason.contains("socket"), "{}", one.reason);
}

#[test]
fn a_refused_connection_may_be_forgotten_by_the_kernel() {
    let mut refused = in_state(ssh_row(), State::Close);
    assert_eq!(
        quiet(&[refused], &[]).disagreements.len(),
        1,
        "was established"
    );
    refused.flow.state = refused.state().without(flow_flags::ASSURED).0;
    assert_eq!(quiet(&[refused], &[]).agree, 1);
}

#[test]
fn what_moved_meanwhile_is_left_out() {
    let mut moved = ssh_row();
    moved.flow.packets[0] += 1;
    let closing = in_state(ssh_row(), State::FinWait);
    let mut renewed = ssh_entry();
    renewed.left_s += 1;
    let (before, entry) = ([ssh_row()], [ssh_entry()]);
    for (ours, kernel) in [
        ([&before[..], &[moved][..]], [&entry[..]; 2]),
        ([&before, &[closing]], [&entry; 2]),
        ([&before, &[moved]], [&[], &[]]),
        ([&[], &before], [&[], &[]]),
        ([&before, &before], [&[renewed][..], &[]]),
        ([&before, &before], [&[], &entry]),
        ([&before, &[]], [&entry, &entry]),
        ([&[], &[]], [&[], &entry]),
    ] {
        let found = compare(ours, kernel, &mut Fixed).unwrap();
        assert!(
            found.disagreements.is_empty() && found.agree == 0,
            "{found:?}"
        );
    }
    let found = compare([&before; 2], [&entry, &[renewed]], &mut Fixed).unwrap();
    assert_eq!((found.busy, found.agree), (1, 0));
}

#[test]
fn what_passes_without_a_flow_is_no_disagreement() {
    let mut timestamp = entry(1, "10.0.0.1:7", "192.0.2.9:7");
    timestamp.icmp_type = Some(13);
    let kernel = [
        entry(6, "10.9.0.1:5", "10.9.0.2:6"),
        entry(17, "0.0.0.0:68", "255.255.255.255:67"),
        entry(17, "[fe80::1]:546", "[ff02::1:2]:547"),
        entry(2, "10.0.0.1:0", "224.0.0.22:0"),
        timestamp,
    ];
    let found = quiet(&[], &kernel);
    assert_eq!(
        (found.elsewhere, found.disagreements.len()),
        (5, 0),
        "{found:?}"
    );
}

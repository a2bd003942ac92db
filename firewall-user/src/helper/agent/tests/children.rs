//! Data connections that are up when their session ends.

use firewall_common::abi::DataFlow;

use super::*;

const GRACE: u64 = 10 * NS_PER_SEC;

/// Two sessions, each with a data connection, and a data connection of a session
/// with the same addresses that was there before.
fn two_sessions(cut_after_ns: Option<u64>) -> (World, [Flow; 2]) {
    let mut w = World::with(|settings| settings.cut_after_ns = cut_after_ns);
    let mut flows = [41_822, 41_823].map(|port| Flow::new(CLIENT, port, SERVER));
    for (flow, port) in flows.iter_mut().zip(50_000..) {
        w.log_in(flow);
        w.client(flow, &format!("PORT 10,0,0,2,195,{}\r\n", port % 256));
        tie(&mut w, flow, port, flow.incarnation);
    }
    let [first, _] = &flows;
    tie(&mut w, first, 60_000, first.incarnation + 100);
    (w, flows)
}

fn tie(w: &mut World, flow: &Flow, port: u16, parent_incarnation: u32) {
    let data = Flow::new(CLIENT, port, SERVER);
    let tie = DataFlow {
        parent: flow.key(),
        parent_incarnation,
        incarnation: u32::from(port),
        via: ExpectVia::Pasv as u8,
        client_is_hi: 0,
        reserved: 0,
    };
    w.agent.tables.data_flows.push((data.key(), tie));
}

fn ports(w: &World) -> Vec<u32> {
    let ties = w.agent.tables.data_flows.iter();
    ties.map(|(_, data)| data.incarnation).collect()
}

fn hang_up(w: &mut World, flow: &Flow) {
    w.event(flow, EventKind::Rst, Side::Server, flow.seq[1], 0, b"");
}

fn pass(w: &mut World, ns: u64) {
    w.now += ns;
    w.tick();
}

#[test]
fn data_connections_are_kept_unless_the_operator_says_otherwise() {
    let (mut w, [first, _]) = two_sessions(None);
    hang_up(&mut w, &first);
    pass(&mut w, 100 * NS_PER_SEC);
    assert_eq!(ports(&w).len(), 3);
}

#[test]
fn data_connections_are_cut_after_the_grace() {
    let (mut w, [first, _]) = two_sessions(Some(GRACE));
    hang_up(&mut w, &first);
    pass(&mut w, 0);
    pass(&mut w, GRACE - 1);
    assert_eq!(ports(&w).len(), 3);
    pass(&mut w, 1);
    assert_eq!(ports(&w), [50_001, 60_000], "only those of this session");
}

#[test]
fn data_connections_of_a_session_can_be_cut_at_once() {
    let (mut w, [_, second]) = two_sessions(None);
    let session = (second.key(), second.incarnation);
    assert_eq!(w.agent.cut_data(session).unwrap(), 1);
    assert_eq!(ports(&w), [50_000, 60_000]);
    assert_eq!(w.agent.cut_data(session).unwrap(), 0);
}

#[test]
fn what_ended_while_no_agent_ran_is_cut_too() {
    let (mut w, [first, _]) = two_sessions(Some(GRACE));
    w.agent.tables.flows.remove(&first.key());
    let mut w = w.restart(NS_PER_SEC);
    pass(&mut w, 0);
    pass(&mut w, GRACE);
    assert_eq!(ports(&w), [50_001]);
}

#[test]
fn many_sessions_that_end_cost_one_look_at_the_ties() {
    let mut w = World::with(|settings| settings.cut_after_ns = Some(GRACE));
    for (cport, port) in (41_000..).zip(50_000..50_010) {
        let mut f = Flow::new(CLIENT, cport, SERVER);
        w.log_in(&mut f);
        w.client(&mut f, "PORT 10,0,0,2,195,155\r\n");
        tie(&mut w, &f, port, f.incarnation);
        hang_up(&mut w, &f);
    }
    let dumps = w.agent.tables.dumps;
    pass(&mut w, 0);
    pass(&mut w, GRACE);
    assert!(ports(&w).is_empty());
    assert_eq!(w.agent.tables.dumps, dumps + 1);
}

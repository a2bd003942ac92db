//! What the operator is told.

use std::net::SocketAddr;

use firewall_common::abi::{FlowState, JournalKind, flow_flags};

use super::{
    syn::{data_port, passive, passive_in, syn},
    *,
};
use crate::{helper::agent::tests::fake::key, journal::Told};

fn told(w: &World) -> Vec<Told> {
    let journal = &w.agent.tables().journal;
    let told = journal.iter().map(|entry| {
        assert!(entry.is_whole());
        Told::try_from(entry).unwrap()
    });
    told.collect()
}

fn texts(w: &World) -> Vec<String> {
    told(w).iter().map(Told::text).collect()
}

fn last(w: &World) -> Told {
    told(w).pop().unwrap()
}

fn pass(w: &mut World, src: SocketAddr, dst: SocketAddr, flags: u16) -> FlowKey6 {
    syn(w, EventKind::SynPassed, src, dst, flags);
    key(src, dst).0
}

fn set_state(w: &mut World, flow: FlowKey6, state: State, flags: u32) {
    let word = FlowState::new(state as u8, flags, 1);
    w.agent.tables.states.insert(flow, word);
}

#[test]
fn a_transfer_is_told_from_its_line_to_its_end() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    w.now += 2_000_000;
    let flow = pass(&mut w, src, dst, event_flags::EXPECTED);
    set_state(&mut w, flow, State::SynSent, 0);
    w.tick();
    set_state(&mut w, flow, State::Established, flow_flags::ASSURED);
    w.now += 5_000_000;
    w.tick();
    w.tick();
    w.event(&f, EventKind::Rst, Side::Client, f.seq[0], f.seq[1], b"");
    assert_eq!(
        texts(&w),
        [
            "session begins",
            "the session is ready: \"230 in\"",
            "PASV opens 10.0.0.2 -> 192.0.2.7:50075: \"227 (192,0,2,7,195,155)\"",
            "10.0.0.2:40000 -> 192.0.2.7:50075 takes its pinhole, 2.0 ms after it was opened",
            "10.0.0.2:40000 -> 192.0.2.7:50075 is connected, 5.0 ms after its SYN",
            "port 50075 closes after 7.0 ms (session)",
            "session ends after 7.0 ms (RST)",
        ]
    );
    let numbers: Vec<_> = told(&w).iter().map(|told| told.seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    assert!(told(&w).iter().all(|told| told.client == f.client));
    // The next agent goes on where this one ended.
    let mut w = w.restart(5);
    let mut f = Flow::new(CLIENT, 41823, SERVER);
    w.log_in(&mut f);
    assert_eq!(last(&w).seq, 9);
}

#[test]
fn a_syn_of_another_host_is_told_of_the_session_whose_port_it_tries() {
    let (mut w, f) = passive();
    let (_, port) = data_port(&f);
    let third: SocketAddr = "198.51.100.9:40000".parse().unwrap();
    syn(&mut w, EventKind::SynStray, third, port, 0);
    let stray = last(&w);
    assert_eq!(stray.kind, JournalKind::Dropped);
    assert_eq!((stray.client, stray.server), (f.client, f.server));
    assert_eq!(stray.connection, Some((third, port)));
    assert!(stray.text().contains("of another host"), "{}", stray.text());
    // It took nothing, and is none of the drops between the session's hosts.
    assert_eq!(w.expectations().len(), 1);
    assert_eq!(w.session(&f).dropped, 0);
    let count = told(&w).len();
    let elsewhere = SocketAddr::new(port.ip(), port.port() + 1);
    syn(&mut w, EventKind::SynStray, third, elsewhere, 0);
    w.now += 61 * NS_PER_SEC;
    w.tick();
    assert!(w.expectations().is_empty(), "its time is over");
    let closed = told(&w).len();
    assert_eq!(closed, count + 1);
    syn(&mut w, EventKind::SynStray, third, port, 0);
    assert_eq!(told(&w).len(), closed);
}

#[test]
fn nobody_answers_a_connection_that_passed_here() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    let flow = pass(&mut w, src, dst, 0);
    assert_eq!(last(&w).kind, JournalKind::Passed);
    set_state(&mut w, flow, State::SynSent, 0);
    w.now += 2_900_000_000;
    w.tick();
    assert_eq!(last(&w).kind, JournalKind::Passed);
    w.now += 200_000_000;
    w.tick();
    w.tick();
    let silent = last(&w);
    assert_eq!(silent.kind, JournalKind::Unanswered);
    assert!(
        silent.text().ends_with("no reply for 3.1 s"),
        "{}",
        silent.text()
    );
    let count = told(&w).len();
    // Late, but it comes.
    set_state(&mut w, flow, State::Established, flow_flags::ASSURED);
    w.tick();
    assert_eq!(last(&w).kind, JournalKind::Connected);
    assert_eq!(told(&w).len(), count + 1);
}

#[test]
fn an_end_that_resets_is_told_apart_from_silence() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    pass(&mut w, src, dst, event_flags::EXPECTED);
    w.tick();
    let reset = last(&w);
    assert_eq!(reset.kind, JournalKind::Unanswered);
    assert_eq!(reset.reason_name(), Some("reset"));
    w.tick();
    assert_eq!(last(&w).seq, reset.seq);
}

#[test]
fn a_session_that_ends_tells_of_what_was_still_waiting() {
    let (mut w, f) = passive();
    let (src, dst) = data_port(&f);
    let flow = pass(&mut w, src, dst, 0);
    set_state(&mut w, flow, State::SynSent, 0);
    w.now += 1_000_000_000;
    w.event(&f, EventKind::Rst, Side::Client, f.seq[0], f.seq[1], b"");
    let kinds: Vec<_> = told(&w)
        .iter()
        .rev()
        .map(|told| told.kind)
        .take(2)
        .collect();
    assert_eq!(kinds, [JournalKind::Ended, JournalKind::Unanswered]);
}

#[test]
fn what_goes_to_a_service_is_no_data_connection() {
    let (mut w, f) = passive();
    let before = told(&w).len();
    let ssh = SocketAddr::new(f.server.ip(), 22);
    pass(&mut w, SocketAddr::new(f.client.ip(), 40_000), ssh, 0);
    let third = SocketAddr::new("10.9.9.9".parse().unwrap(), 40_000);
    pass(&mut w, third, SocketAddr::new(f.server.ip(), 50_000), 0);
    assert_eq!(told(&w).len(), before);
}

#[test]
fn lines_are_told_with_the_reason_and_without_secrets() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.log_in(&mut f);
    w.client(&mut f, "PORT 10,9,9,9,200,0\x07\r\nPORT 10,9,9,9,200,0\r\n");
    let refused = last(&w);
    assert_eq!(refused.reason_name(), Some("foreign-address"));
    assert!(refused.text().ends_with(": \"PORT 10,9,9,9,200,0\""));
    let long = format!("PASS {}\r\n", "s".repeat(5000));
    w.client(&mut f, &long);
    assert_eq!(last(&w).reason_name(), Some("line-too-long"));
    assert!(last(&w).text().ends_with(": \"PASS ***\""));
    w.server(&mut f, "425 no way\r\n");
    assert_eq!(last(&w).kind, JournalKind::Failed);
    assert!(last(&w).text().ends_with(": \"425 no way\""));
}

#[test]
fn features_and_encryption_are_told() {
    let mut w = World::new();
    let mut f = Flow::new(CLIENT, 41822, SERVER);
    w.open(&f);
    w.server(&mut f, "220 hi\r\n");
    w.client(&mut f, "FEAT\r\n");
    w.server(&mut f, "211-Features:\r\n CCC\r\n211 End\r\n");
    assert_eq!(last(&w).reason_name(), Some("ccc"));
    w.client(&mut f, "AUTH TLS\r\n");
    w.server(&mut f, "234 go\r\n");
    let tls = told(&w)
        .into_iter()
        .rev()
        .find(|told| told.kind == JournalKind::Phase);
    let tls = tls.unwrap();
    assert_eq!(tls.entered(), Some(SessionPhase::Tls));
    assert!(tls.text().ends_with(": \"234 go\""), "{}", tls.text());
}

#[test]
fn in_shadow_mode_a_connection_that_was_admitted_is_told_as_used() {
    let (mut w, f) = passive_in(World::with(|settings| settings.shadow = true));
    let (src, dst) = data_port(&f);
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    let dropped = last(&w);
    assert_eq!(dropped.kind, JournalKind::WouldDrop, "no such flow");
    w.agent.tables.refused.push(key(src, dst).0);
    syn(&mut w, EventKind::SynHeld, src, dst, 0);
    assert_eq!(last(&w).kind, JournalKind::Used);
}

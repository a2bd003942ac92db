//! Data connections: whose they are, and that they keep their control connection.

use firewall_common::{
    abi::{DataFlow, Flow, FlowKey4, FlowKey6, FlowState, maps},
    key::{FlowKey as _, Heading},
    verdict::PassReason,
};

use crate::{
    control::with_pinhole,
    packets::{End, HOST, PEER, segment, tcp},
    rig::{Rig, long_ago, passed, tick},
};

const CONTROL: End = End::V4(HOST, 40_000);
const FTP: End = End::V4(PEER, 21);
const PORT: u16 = 40_100;
const SERVER: End = End::V4(PEER, 20);
const CLIENT: End = End::V4(HOST, PORT);
const KNOWN: PassReason = PassReason::Established;

fn ties(rig: &mut Rig) -> Vec<(FlowKey6, DataFlow)> {
    let map = rig.hash::<FlowKey6, DataFlow>(maps::DATA_FLOWS);
    map.iter().map(Result::unwrap).collect()
}

/// The data connection of [`with_pinhole`], up to its established state.
fn connected() -> Rig {
    let mut rig = Rig::new();
    with_pinhole(&mut rig, PORT);
    let syn = tcp(SERVER, CLIENT, &segment("S", 7000, 0));
    assert_eq!(rig.ingress(&syn), passed(PassReason::NewExpected));
    let syn_ack = tcp(CLIENT, SERVER, &segment("SA", 9000, 7001));
    assert_eq!(rig.egress(&syn_ack), passed(KNOWN));
    let ack = tcp(SERVER, CLIENT, &segment("A", 7001, 9001));
    assert_eq!(rig.ingress(&ack), passed(KNOWN));
    rig
}

fn is_control(key: &FlowKey4) -> bool {
    [key.lo_port(), key.hi_port()].contains(&21)
}

/// Sets when packets of the control or of the data connection last came.
fn set_seen(rig: &mut Rig, control: bool, seen: u32) {
    let flows = rig.flows4(maps::FLOWS4);
    for (key, mut flow) in flows.into_values() {
        if is_control(&key) == control {
            flow.seen = seen;
            rig.hash(maps::FLOWS4).insert(key, flow, 0).unwrap();
        }
    }
}

fn control_seen(rig: &mut Rig) -> u32 {
    let flows = rig.flows4(maps::FLOWS4);
    let mut control = flows.into_values().filter(|(key, _)| is_control(key));
    control.next().unwrap().1.seen
}

/// The control connection was last renewed at `control`, the data connection a while
/// ago; data comes, and passes.
fn data_comes(rig: &mut Rig, control: u32) {
    set_seen(rig, true, control);
    set_seen(rig, false, tick().0.wrapping_sub(2));
    let data = segment("PA", 7001, 9001).carrying([7; 100]);
    assert_eq!(rig.ingress(&tcp(SERVER, CLIENT, &data)), passed(KNOWN));
}

#[test]
fn a_data_connection_knows_its_parent_as_long_as_it_lives() {
    let mut rig = connected();
    let flows = rig.flows4(maps::FLOWS4);
    let (parent, data): (Vec<_>, Vec<_>) =
        flows.into_values().partition(|(key, _)| is_control(key));
    let [(key, tie)] = ties(&mut rig)[..] else {
        panic!("one connection was expected");
    };
    assert_eq!(key, data[0].0.widen());
    assert_eq!(tie.parent, parent[0].0.widen());
    let incarnation = |flow: &Flow| FlowState(flow.state).incarnation();
    assert_eq!(tie.incarnation, incarnation(&data[0].1));
    assert_eq!(tie.parent_incarnation, incarnation(&parent[0].1));
    assert_eq!(tie.via, 1);
    let heading = match tie.client_is_hi {
        0 => Heading::Up,
        _ => Heading::Down,
    };
    let (client, port, ..) = tie.parent.endpoints(heading);
    assert_eq!((client, port), (CONTROL.mapped(), 40_000));
    // It is shown with it until it is forgotten.
    let rst = tcp(SERVER, CLIENT, &segment("R", 7001, 0));
    assert_eq!(rig.ingress(&rst), passed(KNOWN));
    assert_eq!(ties(&mut rig).len(), 1);
}

/// Ends the data connection of this key.
type Ending = dyn Fn(&mut Rig, FlowKey6);

#[test]
fn the_tie_goes_however_the_connection_ends() {
    let ends: [&Ending; 2] = [
        &|rig, key| {
            set_seen(rig, false, long_ago());
            assert_eq!(rig.expire(&[key]), 1);
        },
        &|rig, _| {
            let flows = rig.flows4(maps::FLOWS4);
            let seen: Vec<_> = flows
                .into_values()
                .filter(|(key, _)| !is_control(key))
                .collect();
            assert_eq!(rig.delete(&seen), 1);
        },
    ];
    for end in ends {
        let mut rig = connected();
        let key = ties(&mut rig)[0].0;
        end(&mut rig, key);
        assert!(ties(&mut rig).is_empty());
    }
}

#[test]
fn data_keeps_a_silent_control_connection() {
    let mut rig = connected();
    // Old, but not too old.
    let old = tick().0.wrapping_sub(30_000);
    data_comes(&mut rig, old);
    let seen = control_seen(&mut rig);
    assert!(tick().0.wrapping_sub(seen) < 1000, "{seen}");
    // The answers to it do as well.
    set_seen(&mut rig, true, old);
    set_seen(&mut rig, false, tick().0.wrapping_sub(2));
    let ack = tcp(CLIENT, SERVER, &segment("A", 9001, 7101));
    assert_eq!(rig.egress(&ack), passed(KNOWN));
    assert_ne!(control_seen(&mut rig), old);
}

#[test]
fn data_revives_nothing() {
    // What is over for its age.
    let mut rig = connected();
    let ended = long_ago();
    data_comes(&mut rig, ended);
    assert_eq!(control_seen(&mut rig), ended);
    // The next one takes over its programs.
    drop(rig);
    // What one side has ended.
    let mut rig = connected();
    let fin = tcp(FTP, CONTROL, &segment("FA", 5001, 1001));
    assert_eq!(rig.ingress(&fin), passed(KNOWN));
    let old = tick().0.wrapping_sub(100);
    data_comes(&mut rig, old);
    assert_eq!(control_seen(&mut rig), old);
    drop(rig);
    // What is another connection by now.
    let mut rig = connected();
    let (key, mut tie) = ties(&mut rig)[0];
    tie.parent_incarnation ^= 1;
    rig.hash(maps::DATA_FLOWS).insert(key, tie, 0).unwrap();
    data_comes(&mut rig, old);
    assert_eq!(control_seen(&mut rig), old);
}

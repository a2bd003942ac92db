//! What somebody would try who wants a packet through.

use firewall_common::{
    abi::maps,
    verdict::{DropReason, PassReason},
};

use crate::{
    packets::{End, HOST, PEER, echo},
    rig::{Rig, dropped, passed},
};

const KNOWN: PassReason = PassReason::Established;

/// A ping with identifier 0 has the ports that other ICMP messages do not have.
#[test]
fn an_answered_ping_lets_no_other_icmp_in() {
    let (host, peer) = (End::V4(HOST, 0), End::V4(PEER, 0));
    let mut rig = Rig::new();
    assert_eq!(
        rig.egress(&echo(host, peer, false)),
        passed(PassReason::NewByRule)
    );
    let reply = echo(peer, host, true);
    assert_eq!(rig.ingress(&reply), passed(KNOWN));
    // Redirect, router advertisement, timestamp and address mask requests.
    for kind in [5, 9, 13, 17] {
        let mut message = reply.clone();
        message[14 + 20] = kind;
        assert_eq!(rig.ingress(&message), dropped(DropReason::Policy), "{kind}");
    }
    assert_eq!(rig.flow4(maps::FLOWS4).1.packets, [1, 1]);
}

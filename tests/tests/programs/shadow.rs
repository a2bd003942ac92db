//! Shadow mode: everything passes, and what enforcing would drop is counted apart.

use firewall_common::{
    abi::{Rule, config_flags},
    verdict::{DropReason, PassReason},
};

use crate::{
    packets::{End, HOST, PEER, ethertype, segment, tcp, udp},
    rig::{Rig, dropped, passed, would_drop},
};

const HOST_END: End = End::V4(HOST, 40_000);
const PEER_END: End = End::V4(PEER, 80);
const NOTHING: &[Rule] = &[];

fn set_shadow(rig: &mut Rig, on: bool) {
    rig.configure(|config| {
        if on {
            config.flags |= config_flags::SHADOW;
        } else {
            config.flags &= !config_flags::SHADOW;
        }
    });
}

#[test]
fn what_cannot_be_tracked_passes_and_is_counted_as_would_drop() {
    let mut rig = Rig::with_rules(NOTHING);
    let mpls = ethertype(0x8847);
    let mut cut = udp(PEER_END, HOST_END, b"x");
    cut.truncate(36);
    let stray = tcp(PEER_END, HOST_END, &segment("A", 1, 1));
    let flags = tcp(PEER_END, HOST_END, &segment("SF", 1, 1));
    let cases = [
        (mpls, DropReason::UnsupportedEthertype),
        (cut, DropReason::MalformedIpv4),
        (flags, DropReason::TcpFlags),
        (stray, DropReason::TcpNoFlow),
    ];
    for (frame, reason) in &cases {
        assert_eq!(rig.ingress(frame), dropped(*reason));
        assert_eq!(rig.egress(frame), dropped(*reason));
    }
    set_shadow(&mut rig, true);
    for (frame, reason) in &cases {
        assert_eq!(rig.ingress(frame), would_drop(*reason));
        assert_eq!(rig.egress(frame), would_drop(*reason));
    }
    assert_eq!(rig.ingress(&ethertype(0x0806)), passed(PassReason::Arp));
}

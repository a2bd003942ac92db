//! `unload` leaves nothing: no link, no filter, no queueing discipline, no pin, no program.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    pinhole::{Attach, Firewall, TcKind, XdpMode, config},
    process,
    remains::{self, Remains},
};

const TRY: Duration = Duration::from_secs(2);

#[test]
fn after_native_xdp_and_tcx() -> Result<()> {
    leaves_nothing(
        Attach {
            xdp: XdpMode::Native,
            tc: TcKind::Tcx,
        },
        Firewall::unload,
    )
}

#[test]
fn after_generic_xdp_and_clsact() -> Result<()> {
    leaves_nothing(
        Attach {
            xdp: XdpMode::Generic,
            tc: TcKind::Clsact,
        },
        Firewall::unload,
    )
}

/// clsact filters are kept when the agent dies, and are found again.
#[test]
fn after_the_agent_was_killed() -> Result<()> {
    leaves_nothing(
        Attach {
            xdp: XdpMode::Native,
            tc: TcKind::Clsact,
        },
        |firewall| {
            firewall.kill_agent();
            firewall.unload()
        },
    )
}

fn leaves_nothing(attach: Attach, unload: impl Fn(&mut Firewall) -> Result<()>) -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::FwB);
    let text = config::gateway(Node::FwB, true);
    let mut firewall = Firewall::start(&lab, Node::FwB, Some(&text), attach)?;
    let pins = firewall.pins();

    let said = firewall.said().to_lowercase();
    for interface in ["in0", "out0"] {
        ensure!(
            said.lines().any(|line| tells(line, interface, attach)),
            "{interface}: which modes it got is not said: {said}"
        );
    }

    // The control: all of it is there, and it guards.
    let loaded = Remains::find(ns, &pins)?;
    ensure!(loaded.attached.len() == 4, "two hooks a NIC: {loaded:?}");
    ensure!(
        loaded.qdiscs.is_empty() == (attach.tc == TcKind::Tcx),
        "{loaded:?}"
    );
    ensure!(loaded.pins.iter().any(|p| p == "FLOWS4"), "{loaded:?}");
    let programs = remains::program_ids_at(ns)?;
    ensure!(!programs.is_empty());
    ensure!(attempt(&lab)? == ErrorKind::TimedOut, "it does not guard");

    unload(&mut firewall)?;
    let left = Remains::find(ns, &pins)?;
    ensure!(left == Remains::default(), "{left:?}");
    ensure!(!pins.exists(), "{} is still there", pins.display());
    // The kernel frees programs a moment after their last user.
    process::await_some("the programs go", Duration::from_secs(3), || {
        let all = remains::program_ids().ok()?;
        programs.iter().all(|id| !all.contains(id)).then_some(())
    })?;
    ensure!(
        attempt(&lab)? == ErrorKind::ConnectionRefused,
        "it still guards"
    );
    Ok(())
}

/// Does a line say that an interface got what was asked for?
fn tells(line: &str, interface: &str, attach: Attach) -> bool {
    let xdp = match attach.xdp {
        XdpMode::Generic => "xdp generic",
        _ => "xdp native",
    };
    let tc = match attach.tc {
        TcKind::Clsact => "clsact",
        _ => "tcx",
    };
    line.starts_with(interface) && line.contains(xdp) && line.contains(tc)
}

/// How a connection to a port that nobody listens at, and no policy opens, ends.
fn attempt(lab: &Lab) -> Result<ErrorKind> {
    let at = SocketAddr::new(lab.server_ip(Family::V4), 2222);
    let tried = lab.ns(Node::Client).connect(at, TRY)?;
    Ok(tried.err().map_or(ErrorKind::Other, |e| e.kind()))
}

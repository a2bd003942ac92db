//! The first packet of a data connection is never lost to the race with the helper:
//! transfers right after one another, counted on the wire. `cargo xtask race` runs
//! ten thousand of each kind and measures them.

use anyhow::{Result, ensure};
use firewall_tests::lab::{
    Family, Guard,
    pinhole::{Attach, XdpMode},
    race::{
        Field, Way,
        fleet::{Load, Mode},
    },
};

/// Transfers of one kind.
const TRANSFERS: usize = 100;
const AT_ONCE: usize = 50;

fn generic() -> Attach {
    Attach {
        xdp: XdpMode::Generic,
        ..Attach::default()
    }
}

/// Every data connection comes about with one SYN, which arrives once.
fn raced(way: Way, family: Family, at_once: usize) -> Result<()> {
    let field = Field::new(way, family)?;
    for mode in Mode::BOTH {
        let load = Load {
            mode,
            transfers: TRANSFERS,
            at_once,
        };
        let raced = field.race(load)?;
        let (sent, arrived, slow) = (raced.sent(), raced.arrived(), raced.slow());
        println!("{way:?} {family:?} {load:?}: sent {sent:?}, arrived {arrived:?}");
        for firewall in field.firewalls() {
            let stats = firewall.stats()?;
            println!(
                "  held {}, run again {}",
                stats.dropped("held"),
                stats.happened("reinjected")
            );
        }
        ensure!(
            raced.opened.len() == TRANSFERS,
            "{} transfers",
            raced.opened.len()
        );
        for syns in [sent, arrived] {
            ensure!(
                syns.connections == TRANSFERS && syns.again == 0,
                "{way:?} {family:?} {load:?}: sent {sent:?}, arrived {arrived:?}"
            );
        }
        ensure!(
            slow == 0,
            "{way:?} {family:?} {load:?}: {slow} took a second"
        );
    }
    Ok(())
}

#[test]
fn through_routers_one_after_another() -> Result<()> {
    raced(
        Way::Routers(Guard::Pinhole(Attach::default())),
        Family::V4,
        1,
    )
}

#[test]
fn through_routers_fifty_at_once() -> Result<()> {
    raced(
        Way::Routers(Guard::Pinhole(Attach::default())),
        Family::V4,
        AT_ONCE,
    )
}

#[test]
fn through_routers_in_generic_mode() -> Result<()> {
    raced(Way::Routers(Guard::Pinhole(generic())), Family::V6, AT_ONCE)
}

#[test]
fn on_the_nics_of_both_hosts() -> Result<()> {
    raced(Way::Hosts(Attach::default()), Family::V4, AT_ONCE)
}

#[test]
fn on_the_nics_of_both_hosts_in_generic_mode() -> Result<()> {
    raced(Way::Hosts(generic()), Family::V4, 1)
}

#[test]
fn on_a_device_without_ethernet() -> Result<()> {
    raced(Way::Tun, Family::V4, AT_ONCE)
}

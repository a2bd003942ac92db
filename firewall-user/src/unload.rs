//! Removing an instance: agent, programs, filters, offload settings, pins.

use std::{
    fs::File,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::programs::loaded_programs;
use firewall_common::abi::{Iface, heartbeat, iface_flags};

use crate::{
    bpf::{
        Instance, claim,
        detach::{self, tcx_pin, xdp_pin},
        maps::{self, Pinned},
        sys, text,
    },
    lock,
    netlink::route::{self, Link},
};

/// How long an agent may take to end before it is killed.
const AGENT_ENDS: Duration = Duration::from_secs(5);
/// How long the kernel may take to free the programs.
const PROGRAMS_GO: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Why something may be left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is attached, or its maps cannot be read.
    #[error(transparent)]
    Maps(#[from] maps::Error),
    /// The agent does not end.
    #[error(
        "the agent (pid {pid}) does not end: {cause}; end it (`kill -9 {pid}`), then unload again"
    )]
    Agent {
        /// Its process id.
        pid: u32,
        /// What the kernel says.
        cause: io::Error,
    },
    /// An interface keeps something.
    #[error(
        "interface {interface}: {cause}; the rest is removed, see what is left with \
         `ip link show {interface}` and `tc filter show dev {interface} egress`"
    )]
    Interface {
        /// The interface.
        interface: String,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The kernel does not answer, or the pins cannot be locked.
    #[error("cannot look at {what}: {cause}; try again as root")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
}

/// Keeps `confirm` and everything that unloads apart, so that a confirmation is
/// either in time or refused.
///
/// # Errors
///
/// If the instance is not there (any more).
pub fn guard(instance: &Instance) -> io::Result<File> {
    let dir = File::open(instance.pin_dir())?;
    dir.lock()?;
    // Whoever had the lock may have removed the directory meanwhile.
    instance.pin_dir().metadata()?;
    Ok(dir)
}

/// Who asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The agent itself.
    Agent,
    /// Another process: the agent is to be stopped first.
    Other,
    /// The watchdog of the attachment with this deadline (`CLOCK_MONOTONIC` ns).
    Watchdog(u64),
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names of the interfaces that are free again.
    pub interfaces: Vec<String>,
    /// Process id of the agent that was stopped.
    pub agent: Option<u32>,
    /// Interfaces of another network namespace on which a clsact filter may be left.
    pub unreachable: Vec<String>,
}

/// Removes all of `instance`. An interface that fails does not keep the others.
///
/// # Errors
///
/// [`Error`]: the first that happened.
pub fn unload(instance: &Instance, by: By) -> Result<Removed, Error> {
    let here = is_here(instance)?;
    let mut removed = Removed::default();
    if by != By::Agent && here {
        removed.agent = stop_agent(instance)?;
    }
    let _guard = match guard(instance) {
        Ok(guard) => guard,
        // The agent was in its confirmation time, and unloaded as it ended.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(cause) => {
            return Err(Error::Io {
                what: "the pin directory",
                cause,
            });
        }
    };
    // While its agent ended, another may have taken the instance over.
    if let By::Watchdog(deadline) = by
        && Pinned::open(instance)?.control()?.confirm_deadline_ns != deadline
    {
        return Ok(removed);
    }
    // Before anything is taken off: what cannot be looked at is not half removed.
    let links = links(here)?;
    let ifaces = ifaces(instance)?;
    let programs = programs(instance, &ifaces);
    let result = detach_all(instance, here, &ifaces, &links, &mut removed);
    claim::remove_pins(instance);
    if by != By::Agent {
        await_gone(&programs);
    }
    result.map(|()| removed)
}

/// Does the instance guard this network namespace? What an aborted start left
/// counts as here.
fn is_here(instance: &Instance) -> Result<bool, Error> {
    let pinned = match Pinned::open(instance) {
        Ok(pinned) => pinned,
        Err(maps::Error::Unfinished { .. }) => return Ok(true),
        Err(e) => return Err(e.into()),
    };
    let guarded = pinned.heartbeat()?[heartbeat::NETNS as usize];
    Ok(claim::netns_inode().is_ok_and(|netns| netns == guarded))
}

/// Ends the agent and waits for it.
fn stop_agent(instance: &Instance) -> Result<Option<u32>, Error> {
    let Some(pid) = lock::holder(instance) else {
        return Ok(None);
    };
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        match sys::kill(pid, signal) {
            Err(cause) if cause.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Error::Agent { pid, cause });
            }
            _ => {}
        }
        let until = Instant::now() + AGENT_ENDS;
        while Instant::now() < until {
            if lock::holder(instance) != Some(pid) {
                return Ok(Some(pid));
            }
            std::thread::sleep(POLL);
        }
    }
    let cause = io::ErrorKind::TimedOut.into();
    Err(Error::Agent { pid, cause })
}

/// The links of this network namespace, if the instance guards it.
fn links(here: bool) -> Result<Vec<Link>, Error> {
    if !here {
        return Ok(Vec::new());
    }
    route::links().map_err(|cause| Error::Io {
        what: "interfaces",
        cause,
    })
}

/// The interfaces that the instance recorded; none in what an aborted start left.
fn ifaces(instance: &Instance) -> Result<Vec<(u32, Iface)>, Error> {
    match Pinned::open(instance) {
        Ok(pinned) => Ok(pinned.ifaces()?),
        Err(maps::Error::Unfinished { .. }) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

fn detach_all(
    instance: &Instance,
    here: bool,
    ifaces: &[(u32, Iface)],
    links: &[Link],
    removed: &mut Removed,
) -> Result<(), Error> {
    let mut result = Ok(());
    for (index, iface) in ifaces {
        let interface = text(&iface.name);
        if !here && iface.flags & iface_flags::CLSACT != 0 {
            removed.unreachable.push(interface.clone());
        }
        match detach::interface(instance, *index, iface, links) {
            Ok(()) => removed.interfaces.push(interface),
            Err(cause) => result = result.and(Err(Error::Interface { interface, cause })),
        }
    }
    result
}

/// Ids of the programs that links and filters of `instance` hold on `ifaces`.
fn programs(instance: &Instance, ifaces: &[(u32, Iface)]) -> Vec<u32> {
    let mut ids = Vec::new();
    for (index, iface) in ifaces {
        let name = text(&iface.name);
        let pins: [PathBuf; 2] = [instance.pin(&xdp_pin(&name)), instance.pin(&tcx_pin(&name))];
        ids.extend(
            pins.iter()
                .filter_map(|pin| detach::pinned_program(pin).ok()?),
        );
        if iface.flags & iface_flags::CLSACT != 0 {
            ids.extend(detach::filter_program(*index).ok().flatten());
        }
    }
    ids
}

/// The kernel frees a program a grace period after its last user.
fn await_gone(ids: &[u32]) {
    let until = Instant::now() + PROGRAMS_GO;
    while Instant::now() < until
        && loaded_programs()
            .flatten()
            .any(|info| ids.contains(&info.id()))
    {
        std::thread::sleep(POLL);
    }
}

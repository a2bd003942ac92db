//! A process of its own that undoes an attachment which nobody confirms.
//!
//! The programs let everything pass after the deadline anyway; this one also
//! takes them off, whatever became of the agent, its shell and its terminal.

use std::{
    io::{self, Read as _, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    bpf::{Instance, maps::Pinned, sys},
    unload::{self, By},
};

/// Name of the hidden subcommand.
pub const SUBCOMMAND: &str = "watchdog";
/// Its option: the deadline, `CLOCK_MONOTONIC` ns.
pub const DEADLINE: &str = "--deadline-ns";
const POLL: Duration = Duration::from_millis(200);

/// Starts the watchdog, and returns once it has left the terminal.
///
/// # Errors
///
/// If it cannot be started, or ends at once.
pub fn spawn(instance: &Instance, deadline_ns: u64) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--instance", instance.name(), SUBCOMMAND])
        .args([DEADLINE, &deadline_ns.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut ready = [0];
    child
        .stdout
        .take()
        .ok_or(io::ErrorKind::BrokenPipe)?
        .read_exact(&mut ready)
        .map_err(|e| io::Error::new(e.kind(), "the watchdog ended at once"))
}

/// Waits for the deadline, and unloads the instance unless it was confirmed.
///
/// # Errors
///
/// What unloading says; nobody may be there to read it.
pub fn watch(instance: &Instance, deadline_ns: u64) -> Result<(), unload::Error> {
    leave();
    while sys::monotonic_ns() < deadline_ns {
        if !is_pending(instance, deadline_ns) {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    if is_pending(instance, deadline_ns) {
        unload::unload(instance, By::Watchdog(deadline_ns))?;
    }
    Ok(())
}

/// Leaves the terminal, and tells the parent.
fn leave() {
    if let Err(error) = sys::leave_terminal() {
        log::warn!("watchdog: {error}");
    }
    let mut out = io::stdout();
    // The parent may have gone already; it is not needed.
    let _ = out.write_all(b"!").and_then(|()| out.flush());
}

/// Is the attachment with this very deadline still unconfirmed? Also before the
/// instance is attached: the watchdog starts first.
fn is_pending(instance: &Instance, deadline_ns: u64) -> bool {
    Pinned::open(instance)
        .and_then(|pinned| pinned.control())
        .is_ok_and(|control| control.confirm_deadline_ns == deadline_ns)
}

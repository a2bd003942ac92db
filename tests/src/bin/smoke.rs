//! Loads every program of the embedded object into the running kernel, with the
//! code that pinhole itself uses.
//!
//! Made to be process 1 of a virtual machine that boots an old kernel
//! (`cargo xtask vm smoke`), where the console is all that gets out: each line
//! of it begins with `smoke: `, the last is [`PASSED`] or [`FAILED`]. Run by hand
//! as root it does the same to this machine's kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    process::{self, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use firewall_common::verdict::DropReason;
use firewall_user::{
    bpf::{
        BPFFS, Instance,
        loader::{Loaded, ProgramLog},
        private::{Hook, Private},
    },
    config,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::reboot::{RebootMode, reboot},
};

/// The loopback interface.
const LO: u32 = 1;

const NONE: Option<&str> = None;

/// The last line of a run in which every program was accepted.
const PASSED: &str = "passed";
/// The last line of any other run that came to its end.
const FAILED: &str = "failed";

fn main() -> ExitCode {
    let init = process::id() == 1;
    let passed = match prepare(init).and_then(|()| load_all()) {
        Ok(()) => true,
        Err(error) => {
            say(&format!("error: {error:#}"));
            false
        }
    };
    say(if passed { PASSED } else { FAILED });
    if init {
        power_off();
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A text of several lines, each marked.
fn say(text: &str) {
    for line in text.lines() {
        println!("smoke: {line}");
    }
}

/// Mounts what a kernel without a user space has not; the loader mounts the bpffs.
/// Elsewhere the bpffs is one of its own, and the pins go with the process, however
/// that ends.
fn prepare(init: bool) -> Result<()> {
    if init {
        mount_at("proc", "/proc")?;
        mount_at("sysfs", "/sys")?;
    } else {
        unshare(CloneFlags::CLONE_NEWNS).context("leaving the mount namespace; run as root")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(NONE, "/", NONE, private, NONE).context("making mounts private")?;
        mount_at("bpf", BPFFS)?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("kernel {}", release.trim()));
    Ok(())
}

fn mount_at(kind: &str, at: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), NONE)
        .with_context(|| format!("mounting {kind} at {at}"))
}

/// Loads the object as `pinhole run`, `pinhole run -v` and `pinhole why` would: to
/// the verifier these are different programs.
fn load_all() -> Result<()> {
    load(ProgramLog::Off, "without their log")?;
    load(ProgramLog::On, "with their log")?;
    explain()
}

/// Loads the object with notes on how a packet was judged, and has one judged:
/// without an interface of its own, it is dropped for that.
fn explain() -> Result<()> {
    let begun = Instant::now();
    let hooks = BTreeSet::from([Hook::Ingress, Hook::Egress]);
    let mut private = Private::load(None, 1, &hooks)?;
    let took = begun.elapsed().as_secs_f64();
    say(&format!(
        "{} programs loaded with notes in {took:.1} s",
        hooks.len()
    ));
    for hook in hooks {
        let notes = private.run(hook, LO, 0, &[0; 60])?;
        let wanted = DropReason::UnknownInterface.index();
        ensure!(notes.outcome == wanted, "{}: {notes:?}", hook.name());
    }
    Ok(())
}

/// Loads the object with the built-in policy's tables, and tells what each
/// program cost the verifier. The pins go with `loaded`.
fn load(log: ProgramLog, how: &str) -> Result<()> {
    let policy = config::prepare(None, &["lo".into()], None)?;
    let instance = format!("smoke-{}", process::id());
    let instance: Instance = instance.parse().map_err(anyhow::Error::msg)?;
    let begun = Instant::now();
    let loaded = Loaded::load(&instance, &policy.tables, log)?;
    let took = begun.elapsed().as_secs_f64();
    let programs: BTreeMap<_, _> = loaded.ebpf.programs().collect();
    for (name, program) in &programs {
        let info = program.info().with_context(|| format!("program {name}"))?;
        let insns = info.verified_instruction_count().unwrap_or(0);
        say(&format!("{name:<16} {insns:>7} instructions verified"));
    }
    // At once, so no program has a time of its own.
    say(&format!(
        "{} programs loaded {how} in {took:.1} s",
        programs.len()
    ));
    Ok(())
}

/// Ends the machine: a process 1 must not return.
fn power_off() {
    let Err(error): nix::Result<Infallible> = reboot(RebootMode::RB_POWER_OFF);
    say(&format!("cannot power off: {error}"));
}

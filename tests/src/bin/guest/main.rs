//! What runs inside a virtual machine that boots an old kernel (`cargo xtask vm`).
//!
//! Made to be process 1, where the console is all that gets out: each line of it
//! begins with `guest: `, the last is [`PASSED`] or [`FAILED`]. Run by hand as
//! root it does the same to this machine's kernel, as far as that is meant for it.

mod bench;
mod pktgen;
mod smoke;
mod suite;
mod verify;

use std::{
    convert::Infallible,
    fs::{self, File},
    process::{self, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use firewall_user::bpf::BPFFS;
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::reboot::{RebootMode, reboot},
};

const NONE: Option<&str> = None;
/// Where `cargo xtask vm` puts the kernel modules that a job needs.
const MODULES: &str = "/modules";

/// The last line of a run in which all was well.
const PASSED: &str = "passed";
/// The last line of any other run that came to its end.
const FAILED: &str = "failed";

#[derive(Parser)]
struct Cli {
    /// What to do.
    #[arg(value_enum)]
    job: Job,
}

#[derive(Clone, Copy, ValueEnum)]
enum Job {
    /// Load every eBPF program as pinhole does.
    Smoke,
    /// Load every eBPF program and tell what each costs the verifier.
    Verify,
    /// Run the core of the test suite.
    Test,
    /// Measure pinhole against the kernel's flow table.
    Bench,
    /// Hold what pktgen sends from one NIC against what pinhole counts on another.
    Pktgen,
}

impl Job {
    fn run(self) -> Result<()> {
        let init = process::id() == 1;
        let release = prepare(init)?;
        match self {
            Self::Smoke => smoke::load_all(),
            Self::Verify => verify::all(init),
            Self::Test | Self::Bench | Self::Pktgen if !init => bail!("made for a virtual machine"),
            Self::Test => suite::core(&release),
            Self::Bench => bench::flow_table(),
            Self::Pktgen => pktgen::all(),
        }
    }
}

fn main() -> ExitCode {
    let done = Cli::try_parse().map_err(anyhow::Error::from);
    let passed = match done.and_then(|cli| cli.job.run()) {
        Ok(()) => true,
        Err(error) => {
            say(&format!("error: {error:#}"));
            false
        }
    };
    say(if passed { PASSED } else { FAILED });
    if process::id() == 1 {
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
        println!("guest: {line}");
    }
}

/// Mounts what a kernel without a user space has not, inserts the modules that came
/// along, and gives the kernel's release. Elsewhere the bpffs is one of its own, and
/// the pins go with the process, however that ends.
fn prepare(init: bool) -> Result<String> {
    if init {
        mount_at("proc", "/proc")?;
        mount_at("sysfs", "/sys")?;
        mount_at("devtmpfs", "/dev")?;
        insert_modules()?;
    } else {
        unshare(CloneFlags::CLONE_NEWNS).context("leaving the mount namespace; run as root")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(NONE, "/", NONE, private, NONE).context("making mounts private")?;
    }
    mount_at("bpf", BPFFS)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    say(&format!("kernel {release}"));
    Ok(release.to_owned())
}

/// Each of [`MODULES`], in the order of their names, which is that of their needs.
fn insert_modules() -> Result<()> {
    let found = fs::read_dir(MODULES).into_iter().flatten().flatten();
    let mut modules: Vec<_> = found.map(|entry| entry.path()).collect();
    modules.sort();
    for path in modules {
        let module = File::open(&path)?;
        finit_module(&module, c"", ModuleInitFlags::empty())
            .with_context(|| format!("inserting {}", path.display()))?;
    }
    Ok(())
}

fn mount_at(kind: &str, at: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), NONE)
        .with_context(|| format!("mounting {kind} at {at}"))
}

/// Ends the machine: a process 1 must not return.
fn power_off() {
    let Err(error): nix::Result<Infallible> = reboot(RebootMode::RB_POWER_OFF);
    say(&format!("cannot power off: {error}"));
}

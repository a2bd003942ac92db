//! One boot of a virtual machine, seen through its serial console.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::job::{self, Job};
use crate::ctx::{Ctx, show};

/// A kernel that gets real hardware help starts its process 1 within this; one that does not
/// come so far under KVM may spin for ever.
const KVM_BOOT: Duration = Duration::from_secs(10);
const MEMORY: &str = "1G";
/// A panic ends the machine, because QEMU is told not to reboot. The kernel's check
/// that the timer ticks in time, which panics, fails on a busy machine.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check";

/// Two NICs on one wire. The driver takes no XDP program while the device may merge packets
/// or leave their checksums out (`virtnet_xdp_set` of drivers/net/virtio_net.c).
const NICS: [&str; 8] = [
    "-netdev",
    "hubport,id=n0,hubid=0",
    "-device",
    "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,guest_csum=off,guest_tso4=off,guest_tso6=off,\
     guest_ecn=off,guest_ufo=off",
    "-netdev",
    "hubport,id=n1,hubid=0",
    "-device",
    "virtio-net-pci,netdev=n1,mac=52:54:00:00:00:02",
];

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator: an order of magnitude slower, but works everywhere.
    Tcg,
}

impl Accel {
    const fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "emulation (TCG)",
        }
    }
}

pub(super) struct Machine<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) job: Job,
    /// What every line of process 1 begins with.
    pub(super) mark: &'a str,
}

/// What a machine said before it ended.
#[derive(Default)]
pub(super) struct Console {
    /// All lines, the firmware's and the kernel's too.
    pub(super) all: Vec<String>,
    /// Those of process 1, without their mark.
    pub(super) init: Vec<String>,
    /// It was stopped because it took too long.
    pub(super) stopped: bool,
}

impl Machine<'_> {
    /// Boots with KVM where that works, else with TCG. `told` gets every line of process 1
    /// when it comes.
    pub(super) fn run(&self, limit: Duration, told: impl Fn(&str)) -> Result<(Accel, Console)> {
        // Whether a kernel boots under KVM is a matter of both kernels and of what is between
        // them, and does not change while this machine runs.
        let refused = self.ctx.vm().join("no-kvm");
        let here = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let known = fs::read_to_string(&refused).is_ok_and(|boot| boot == here);
        if !known && Path::new("/dev/kvm").exists() {
            let console = self.boot(Accel::Kvm, KVM_BOOT, limit, &told)?;
            if !console.init.is_empty() {
                return Ok((Accel::Kvm, console));
            }
            self.ctx.write(&refused, &here)?;
            self.ctx.status("", "… does not boot under KVM here");
        }
        let console = self.boot(Accel::Tcg, limit, limit, &told)?;
        Ok((Accel::Tcg, console))
    }

    /// Runs until the machine ends, says nothing of process 1 for `boot`, or takes `limit`.
    fn boot(
        &self,
        accel: Accel,
        boot: Duration,
        limit: Duration,
        told: &impl Fn(&str),
    ) -> Result<Console> {
        let mut qemu = self.qemu(accel);
        let child = qemu.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = Qemu(child.with_context(|| format!("cannot run `{}`", show(&qemu)))?);
        let lines = child.lines();
        let begun = Instant::now();
        let mut console = Console::default();
        loop {
            let limit = if console.init.is_empty() { boot } else { limit };
            match lines.recv_timeout(limit.saturating_sub(begun.elapsed())) {
                Ok(line) => {
                    if let Some((_, text)) = line.split_once(self.mark) {
                        told(text);
                        console.init.push(text.to_owned());
                    }
                    console.all.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    console.stopped = true;
                    break;
                }
            }
        }
        Ok(console)
    }

    fn qemu(&self, accel: Accel) -> Command {
        let mut qemu = self.ctx.user("qemu-system-x86_64");
        qemu.args(accel.arguments())
            .args(["-m", MEMORY, "-smp", &processors().to_string()])
            .args(["-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &self.command_line()]);
        if self.job.has_nics() {
            qemu.args(NICS);
        }
        qemu
    }

    /// What the kernel does not know is environment of process 1; what follows the dashes
    /// are its arguments.
    fn command_line(&self) -> String {
        let (path, job) = (job::PATH, self.job.name());
        format!("{COMMAND_LINE} PATH={path} PINHOLE_BIN=/usr/bin/pinhole -- {job}")
    }
}

/// As many as are here, within reason: the verifier takes one for each program.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(4))
}

/// A running QEMU, killed when nobody waits for it any more.
struct Qemu(Child);

impl Qemu {
    /// What it writes, line by line, until it ends.
    fn lines(&mut self) -> mpsc::Receiver<String> {
        let (sender, lines) = mpsc::channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            self.0.stdout.take().map(|s| Box::new(s) as _),
            self.0.stderr.take().map(|s| Box::new(s) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if sender.send(text).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
        lines
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the last boot's console was written.
pub(super) fn keep(ctx: &Ctx, name: &str, console: &Console) -> Result<PathBuf> {
    let directory = ctx.target().join("log");
    ctx.create_dir(&directory)?;
    let log = directory.join(format!("vm-{name}.log"));
    ctx.write(&log, console.all.join("\n") + "\n")?;
    Ok(log)
}

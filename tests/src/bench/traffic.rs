//! Packets of numbered flows, from one end of a wire: the user side of
//! `firewall-ebpf/generator/replay.rs`.

use std::{
    fs,
    path::PathBuf,
    sync::{Barrier, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, PerCpuArray, PerCpuValues},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use firewall_user::bpf::sys::thread_cpu_ns;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    plan::{LEN4, LEN6, Plan, flags},
    wire::Wire,
};
use crate::lab::{Family, Netns};

/// Frames that the kernel makes before it passes them on.
const BATCH: u32 = 64;
/// Frames in one system call. It makes and frees a pool of pages, which is no work of
/// whom they meet.
const CHUNK: u64 = 1 << 14;
/// Packets that are worth a thread on every CPU.
const MANY: u64 = 1 << 15;

/// What carries the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proto {
    /// Datagrams of 18 bytes.
    Udp,
    /// Segments of six bytes.
    Tcp,
}

impl Proto {
    /// `udp` or `tcp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Bits of the TCP header's flags.
pub mod flag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// A packet of a conversation, the same for each of its flows.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// From the server's side.
    pub reply: bool,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// With payload; UDP always has some.
    pub data: bool,
    /// Each time round the flows, TCP goes six bytes further (within 64 rounds).
    pub advance: bool,
}

/// Which flows send, in turns: `count` of them, a power of two, or ever new ones.
#[derive(Clone, Copy, Debug)]
pub enum Flows {
    /// The first so many.
    Of(u32),
    /// From this number on.
    From(u64),
}

/// A packet as all flows send it, on `wire`, from so many CPUs.
pub(super) fn plan(
    wire: &Wire,
    (family, proto): (Family, Proto),
    packet: &Packet,
    flows: Flows,
    cpus: u32,
) -> Plan {
    let (frame, sums) = wire.template(family, proto, packet);
    let count = match flows {
        Flows::Of(count) => count,
        Flows::From(_) => 0,
    };
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    Plan {
        frame,
        flags: bit(family == Family::V6, flags::V6)
            | bit(packet.reply, flags::REPLY)
            | bit(proto == Proto::Tcp, flags::TCP)
            | bit(packet.advance, flags::ADVANCE),
        mask: count.wrapping_sub(1),
        stride: cpus,
        shift: count.max(1).trailing_zeros(),
        word: wire.first_word(family),
        seq: packet.seq,
        sums,
    }
}

fn frame(plan: &Plan) -> &[u8] {
    let length = if plan.flags & flags::V6 == 0 {
        LEN4
    } else {
        LEN6
    };
    &plan.frame[..length]
}

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// So many packets: from the first CPU if they are few.
    Packets(u64),
    /// For so long, from this many CPUs at once, each with flows of its own.
    For(Duration, u32),
}

impl Amount {
    /// How many CPUs send.
    #[must_use]
    pub fn cpus(self) -> u32 {
        match self {
            Self::Packets(count) if count < MANY => 1,
            Self::Packets(_) => cpus(),
            Self::For(_, cpus) => cpus,
        }
    }

    /// Of each of `cpus`.
    fn shares(self, cpus: u32) -> Vec<Self> {
        let among = u64::from(cpus.max(1));
        (0..among)
            .map(|cpu| match self {
                Self::Packets(count) => {
                    Self::Packets(count / among + u64::from(cpu < count % among))
                }
                time => time,
            })
            .collect()
    }
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Packets that were sent.
    pub packets: u64,
    /// CPU time of all threads that sent, and of the kernel's threads that took
    /// work over from them, ns.
    pub cpu_ns: u64,
}

impl Sent {
    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            cpu_ns: self.cpu_ns + other.cpu_ns,
        }
    }
}

/// One end of a wire: sends out of it, and counts and drops what arrives there.
#[derive(Debug)]
pub struct End {
    ebpf: Ebpf,
    ifindex: u32,
}

/// The object of the generator's programs.
///
/// # Errors
/// It is not built.
pub fn object() -> Result<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/generator.o");
    fs::read(&path).with_context(|| format!("{}; `cargo xtask build` makes it", path.display()))
}

/// An XDP program of the generator's object.
///
/// # Errors
/// The object has no such program.
pub fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    Ok(program.with_context(|| name.to_owned())?.try_into()?)
}

/// How many CPUs send.
#[must_use]
pub fn cpus() -> u32 {
    thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

impl End {
    /// Loads the programs and attaches the sink to `interface`, in the driver.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn new(ns: &Netns, interface: &str, ifindex: u32) -> Result<Self> {
        let mut ebpf = Ebpf::load(&object()?)?;
        xdp(&mut ebpf, "replay")?.load()?;
        let count = xdp(&mut ebpf, "count")?;
        count.load()?;
        ns.within(|| count.attach(interface, aya::programs::xdp::XdpMode::Driver))??;
        Ok(Self { ebpf, ifindex })
    }

    /// Packets that arrived so far: TCP SYNs over IPv4, and all others.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn seen(&self) -> Result<[u64; 2]> {
        let map = self.ebpf.map("SEEN").context("SEEN")?;
        let seen: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        let of = |class: u32| Ok::<u64, anyhow::Error>(seen.get(&class, 0)?.iter().sum());
        Ok([of(0)?, of(1)?])
    }

    /// Sends packets of `flows` as `plan` has them.
    ///
    /// # Errors
    /// The kernel refuses to run the program.
    pub(super) fn send(
        &mut self,
        ns: &Netns,
        plan: &Plan,
        flows: Flows,
        amount: Amount,
    ) -> Result<Sent> {
        let first = match flows {
            Flows::Of(_) => 0,
            Flows::From(first) => first,
        };
        let map = self.ebpf.map_mut("PLAN").context("PLAN")?;
        Array::<_, [u8; 112]>::try_from(map)?.set(0, bytemuck::cast::<_, [u8; 112]>(*plan), 0)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)? as u64;
        let starts = (0..cpus).map(|cpu| first + cpu).collect::<Vec<_>>();
        let map = self.ebpf.map_mut("NEXT").context("NEXT")?;
        let mut next: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        next.set(0, PerCpuValues::try_from(starts)?, 0)?;
        // Not by the threads, which see no other CPU than the one that they are pinned to.
        let shares = amount.shares(amount.cpus());
        let (this, ready) = (&*self, &Barrier::new(shares.len()));
        let helpers = softirq_ns();
        let sent = thread::scope(|scope| {
            let running: Vec<_> = shares
                .into_iter()
                .enumerate()
                .map(|(cpu, share)| {
                    scope.spawn(move || {
                        ns.within(|| {
                            let pinned = pin(cpu);
                            ready.wait();
                            pinned.and_then(|()| this.run(plan, share))
                        })
                    })
                })
                .collect();
            let mut sum = Sent::default();
            for thread in running {
                let sent = thread
                    .join()
                    .map_err(|_| anyhow!("a sender panicked"))???;
                sum = sum.and(sent);
            }
            Ok::<_, anyhow::Error>(sum)
        })?;
        Ok(Sent {
            cpu_ns: sent.cpu_ns + softirq_ns() - helpers,
            ..sent
        })
    }

    fn run(&self, plan: &Plan, amount: Amount) -> Result<Sent> {
        let program = self.ebpf.program("replay").context("replay")?;
        let program: &Xdp = program.try_into()?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame(plan).len() as u32, 0, self.ifindex, 0, 0];
        let (began, cpu) = (Instant::now(), thread_cpu_ns());
        let mut packets = 0;
        loop {
            let chunk = match amount {
                Amount::Packets(count) => (count - packets).min(CHUNK),
                Amount::For(time, _) if began.elapsed() < time => CHUNK,
                Amount::For(..) => 0,
            };
            if chunk == 0 {
                break;
            }
            program.test_run(TestRunOptions {
                data_in: Some(frame(plan)),
                ctx_in: Some(bytemuck::cast_slice(&context)),
                repeat: chunk as u32,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })?;
            packets += chunk;
        }
        Ok(Sent {
            packets,
            cpu_ns: thread_cpu_ns() - cpu,
        })
    }
}

/// The calling thread runs on `cpu` only.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("choose a CPU")
}

/// CPU time of the threads that do what a system call leaves over (ksoftirqd), ns.
fn softirq_ns() -> u64 {
    static PATHS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.map(|entry| entry.path())
            .filter(|path| {
                fs::read_to_string(path.join("comm"))
                    .is_ok_and(|name| name.starts_with("ksoftirqd"))
            })
            .map(|path| path.join("schedstat"))
            .collect()
    });
    let times = paths.iter().filter_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(amount: Amount) -> u64 {
        match amount {
            Amount::Packets(count) => count,
            Amount::For(..) => 0,
        }
    }

    #[test]
    fn shares_add_up() {
        let shares = |count| {
            let shares = Amount::Packets(count).shares(3);
            shares.into_iter().map(packets).collect::<Vec<_>>()
        };
        assert_eq!(shares(11), [4, 4, 3]);
        assert_eq!(shares(1), [1, 0, 0]);
        assert_eq!(shares(3 * MANY), [MANY; 3]);
    }
}

//! Packets from addresses that nobody has seen before, as many as one core makes.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::Array,
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use firewall_user::bpf::requests::XdpMd;

use super::Netns;

/// Frames that the kernel makes before it passes them on.
const BATCH: u32 = 64;
/// Frames in one system call, which no signal interrupts.
const CHUNK: u64 = 1 << 16;
/// Where generated packets come from. They must not be routed back to anyone.
pub const SOURCES: &str = "16.0.0.0/4";

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP SYNs.
    Syn,
    /// UDP datagrams.
    Udp,
}

/// Where to, from where.
#[derive(Clone, Copy, Debug)]
pub struct Aim<'a> {
    /// The sender's namespace and interface, one end of a veth pair. The other
    /// end must run XDP in the driver, or every frame is lost without an error.
    pub from: (&'a Netns, &'a str),
    /// The receiver's namespace and interface, the other end.
    pub to: (&'a Netns, &'a str),
    /// The receiver's address.
    pub address: Ipv4Addr,
    /// The receiver's ports, in turns; 0 for any from 1024 on.
    pub ports: [u16; 2],
    /// Whom all packets claim to come from; `None` for a new source each.
    pub source: Option<Ipv4Addr>,
}

/// A loaded generator program.
#[derive(Debug)]
pub struct Generator<'a> {
    ebpf: Ebpf,
    from: &'a Netns,
    ifindex: u32,
    frame: [u8; 64],
}

impl<'a> Generator<'a> {
    /// Loads the program. The packets follow from `seed` alone.
    ///
    /// # Errors
    /// The object is not built, or the kernel refuses it.
    pub fn new(aim: &Aim<'a>, kind: Kind, seed: u64) -> Result<Self> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/generator.o");
        let object = std::fs::read(&path)
            .with_context(|| format!("{}; `cargo xtask build` makes it", path.display()))?;
        let mut ebpf = Ebpf::load(&object)?;
        let (from, to) = (aim.from.0.ether(aim.from.1)?, aim.to.0.ether(aim.to.1)?);
        let frame = template(aim, kind, from.mac, to.mac);
        let map = ebpf.map_mut("TEMPLATE").context("TEMPLATE")?;
        Array::<_, [u8; 64]>::try_from(map)?.set(0, frame, 0)?;
        let map = ebpf.map_mut("STATE").context("STATE")?;
        Array::<_, u64>::try_from(map)?.set(0, seed << 32, 0)?;
        let program: &mut Xdp = ebpf
            .program_mut("generate")
            .context("generate")?
            .try_into()?;
        program.load()?;
        Ok(Self {
            ebpf,
            from: aim.from.0,
            ifindex: from.index,
            frame,
        })
    }

    /// Sends packets; returns how long that took.
    ///
    /// # Errors
    /// The kernel refuses to run the program.
    pub fn send(&self, packets: u64) -> Result<Duration> {
        let program: &Xdp = self
            .ebpf
            .program("generate")
            .context("generate")?
            .try_into()?;
        let context = XdpMd::arriving(self.ifindex, self.frame.len());
        let frame = self.frame;
        self.from.within(|| {
            let began = Instant::now();
            let mut left = packets;
            while left > 0 {
                let chunk = left.min(CHUNK);
                program.test_run(TestRunOptions {
                    data_in: Some(&frame),
                    ctx_in: Some(bytemuck::bytes_of(&context)),
                    repeat: chunk as u32,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::new()
                })?;
                left -= chunk;
            }
            Ok(began.elapsed())
        })?
    }
}

/// The frame that the program starts from: headers with zero checksums, then
/// both ports.
fn template(aim: &Aim<'_>, kind: Kind, from: [u8; 6], to: [u8; 6]) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12] = 0x08;
    let (proto, length) = match kind {
        Kind::Syn => (6, 40),
        // Room for what a TCP header has more is payload.
        Kind::Udp => (17, 40),
    };
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[3] = length;
    ip[8] = 64;
    ip[9] = proto;
    ip[16..20].copy_from_slice(&aim.address.octets());
    match kind {
        Kind::Syn => {
            frame[46] = 5 << 4;
            frame[47] = 0x02;
            frame[48..50].copy_from_slice(&8192_u16.to_be_bytes());
        }
        Kind::Udp => frame[38..40].copy_from_slice(&20_u16.to_be_bytes()),
    }
    for (at, port) in [54, 56].into_iter().zip(aim.ports) {
        frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }
    if let Some(source) = aim.source {
        frame[58..62].copy_from_slice(&source.octets());
    }
    frame
}

/// Makes both ends of an aim know each other for good, and the sender's node
/// swallow the answers to packets that it never sent.
///
/// # Errors
/// `ip` cannot be run.
pub fn prepare(aim: &Aim<'_>, sender: Ipv4Addr) -> Result<()> {
    let ((from_ns, from_if), (to_ns, to_if)) = (aim.from, aim.to);
    let (from, to) = (aim.from.0.ether(aim.from.1)?, aim.to.0.ether(aim.to.1)?);
    from_ns.ip(&format!(
        "neigh replace {} lladdr {} dev {from_if} nud permanent\nroute add blackhole {SOURCES}\n",
        aim.address,
        to.mac_text()
    ))?;
    to_ns.ip(&format!(
        "neigh replace {sender} lladdr {} dev {to_if} nud permanent\n",
        from.mac_text()
    ))
}

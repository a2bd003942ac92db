//! nf_conntrack, one packet at a time.
//!
//! Two tun devices in a network namespace that forwards between them: a packet
//! written to the one goes through connection tracking before the write
//! returns, and a rule writes what tracking said into its DSCP field before it
//! comes out of the other.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};

use super::{
    ctnetlink::Ctnetlink,
    segment::{ETHERNET, Ends, Side, ip_header},
};
use crate::lab::{Family, process, tun::Tun};

const DEVICES: [&str; 2] = ["inside", "outside"];
/// Prefixes beyond each device; see [`super::conversation`] for what is used of them.
const ROUTES: [&[&str]; 2] = [
    &[
        "10.0.0.0/8",
        "203.0.112.0/20",
        "fd00::/16",
        "2001:db8:a::/48",
    ],
    &[
        "198.18.0.0/15",
        "172.16.0.0/12",
        "fd01::/16",
        "2001:db8:b::/48",
    ],
];
const RULES: &str = "table inet verdict {
    chain forward {
        type filter hook forward priority 0
        meta nfproto ipv4 ct state invalid ip dscp set 1
        meta nfproto ipv4 ct state new ip dscp set 2
        meta nfproto ipv4 ct state established ip dscp set 3
        meta nfproto ipv6 ct state invalid ip6 dscp set 1
        meta nfproto ipv6 ct state new ip6 dscp set 2
        meta nfproto ipv6 ct state established ip6 dscp set 3
    }
}";
const DSCP_INVALID: u8 = 1;
const DSCP_NEW: u8 = 2;
const DSCP_ESTABLISHED: u8 = 3;
/// Of conversations that last milliseconds none may run out.
const TIMEOUT_SECS: &str = "3600";

/// What nf_conntrack says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelVerdict {
    /// `ct state new`.
    New,
    /// `ct state established`.
    Established,
    /// `ct state invalid`: a firewall drops it.
    Invalid,
    /// It did not come out at all.
    Lost,
}

impl KernelVerdict {
    /// Would a firewall that drops what is invalid let it through?
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::New | Self::Established)
    }
}

/// A connection tracker of its own, in the network namespace of the calling thread.
pub struct Kernel {
    devices: [Tun; 2],
    table: Ctnetlink,
    buffer: Vec<u8>,
}

impl Kernel {
    /// Moves the calling thread into a network namespace of its own, which ends
    /// with the thread, and sets the tracker up there.
    ///
    /// # Errors
    /// The caller is not root, or `ip` or `nft` fails.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (as root)")?;
        ip(&["link", "set", "lo", "up"])?;
        let devices = [Tun::create(DEVICES[0])?, Tun::create(DEVICES[1])?];
        for name in DEVICES {
            // Else the kernel sends messages of its own out of the device.
            ip(&["link", "set", name, "addrgenmode", "none"])?;
            sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
            ip(&["link", "set", name, "up"])?;
        }
        sysctl("ipv4/conf/all/rp_filter", "0")?;
        sysctl("ipv4/ip_forward", "1")?;
        sysctl("ipv6/conf/all/forwarding", "1")?;
        for (name, routes) in DEVICES.iter().zip(ROUTES) {
            for route in routes {
                ip(&["route", "add", route, "dev", name])?;
            }
        }
        nft(RULES)?;
        tracker_settings()?;
        Ok(Self {
            devices,
            table: Ctnetlink::open()?,
            buffer: vec![0; 2048],
        })
    }

    /// What tracking says of the packet in `frame`, an Ethernet frame.
    ///
    /// # Errors
    /// The packet cannot be sent, or its mark is not one of ours.
    pub fn judge(&mut self, family: Family, from: Side, frame: &[u8]) -> Result<KernelVerdict> {
        let packet = &frame[ETHERNET..];
        self.devices[from as usize]
            .send(packet)
            .context("write to a tun device")?;
        let out = &self.devices[from.other() as usize];
        while let Some(came) = out.receive(&mut self.buffer)? {
            let at = ip_header(family);
            // Not one of the kernel's own.
            if came.len() != packet.len() || came[at..] != packet[at..] {
                continue;
            }
            return verdict(family, came);
        }
        Ok(KernelVerdict::Lost)
    }

    /// The table of connections.
    pub fn table(&mut self) -> &mut Ctnetlink {
        &mut self.table
    }

    /// Forgets the connection between `ends`, if there is one.
    ///
    /// # Errors
    /// What ctnetlink says.
    pub fn forget(&mut self, ends: &Ends) -> Result<()> {
        self.table.delete(ends)
    }
}

fn verdict(family: Family, packet: &[u8]) -> Result<KernelVerdict> {
    let dscp = match family {
        Family::V4 => packet[1] >> 2,
        Family::V6 => (packet[0] << 2 | packet[1] >> 6) & 0x3f,
    };
    Ok(match dscp {
        DSCP_INVALID => KernelVerdict::Invalid,
        DSCP_NEW => KernelVerdict::New,
        DSCP_ESTABLISHED => KernelVerdict::Established,
        other => bail!("a forwarded packet carries the mark {other}"),
    })
}

/// As they default, but for mid-stream pick-up, which pinhole does only by a
/// rule that says so, and for time-outs.
fn tracker_settings() -> Result<()> {
    for (name, value) in [
        ("tcp_loose", "0"),
        ("tcp_be_liberal", "0"),
        ("tcp_ignore_invalid_rst", "0"),
        ("tcp_max_retrans", "3"),
        ("checksum", "1"),
    ] {
        sysctl(&format!("netfilter/nf_conntrack_{name}"), value)?;
    }
    for state in [
        "syn_sent",
        "syn_recv",
        "established",
        "fin_wait",
        "close_wait",
        "last_ack",
        "time_wait",
        "close",
        "max_retrans",
        "unacknowledged",
    ] {
        sysctl(
            &format!("netfilter/nf_conntrack_tcp_timeout_{state}"),
            TIMEOUT_SECS,
        )?;
    }
    Ok(())
}

/// `/proc/sys/net` is that of the thread's namespace.
fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::check(Command::new("ip").args(arguments)).map(drop)
}

fn nft(rules: &str) -> Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("start nft")?;
    nft.stdin
        .take()
        .context("nft has no standard input")?
        .write_all(rules.as_bytes())?;
    let status = nft.wait()?;
    ensure!(status.success(), "nft refuses the rules ({status})");
    Ok(())
}

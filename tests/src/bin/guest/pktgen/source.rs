//! Packets by the kernel's pktgen (Documentation/networking/pktgen.rst), which
//! makes UDP alone, and TCP SYNs by a raw socket.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firewall_common::checksum;
use firewall_tests::lab::process;
use socket2::{Domain, Protocol, Socket, Type};

use super::SENDER;

/// Whom scenarios of many flows claim to come from: addresses for tests of
/// devices (RFC 2544) and for documentation.
pub(super) const SOURCES4: &str = "198.18.0.0/15";
pub(super) const SOURCES6: &str = "2001:db8:5::/48";
const FIRST_SOURCE: u32 = u32::from_be_bytes([198, 18, 0, 1]);
const TARGET: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// pktgen's files. One thread makes all packets: their order is known then.
const CONTROL: &str = "/proc/net/pktgen/pgctrl";
const THREAD: &str = "/proc/net/pktgen/kpktgend_0";

/// Packets a second. QEMU's wire holds 10,000 packets and drops what comes beyond while
/// the machine that emulates has no time for the receiver.
const RATE: u32 = 5_000;

/// How long pktgen may take beyond what it is told to: emulated, and on a busy machine.
const LATE: Duration = Duration::from_secs(60);

/// What pktgen sends to the guarded NIC.
#[derive(Clone, Debug)]
pub(super) struct Datagrams {
    settings: Vec<String>,
}

impl Datagrams {
    /// From the sender's own address, unless told otherwise.
    pub(super) fn v4(mac: &str) -> Self {
        Self::to(mac, 60)
            .set(format!("dst {TARGET}"))
            .set("src_min 192.0.2.2")
            .set("src_max 192.0.2.2")
    }

    pub(super) fn v6(mac: &str) -> Self {
        Self::to(mac, 100)
            .set("dst6 2001:db8::1")
            .set("src6 2001:db8:5::2")
    }

    fn to(mac: &str, size: u32) -> Self {
        let settings = vec![
            "clone_skb 0".to_owned(),
            format!("pkt_size {size}"),
            format!("ratep {RATE}"),
            format!("dst_mac {mac}"),
        ];
        Self { settings }
    }

    /// From so many addresses, in turns.
    pub(super) fn sources(self, count: u16) -> Self {
        let last = Ipv4Addr::from(FIRST_SOURCE + u32::from(count) - 1);
        let first = Ipv4Addr::from(FIRST_SOURCE);
        self.set(format!("src_min {first}"))
            .set(format!("src_max {last}"))
    }

    /// From each port of a range, in turns, the end excluded; to one.
    pub(super) fn ports(self, [first, end]: [u16; 2], to: u16) -> Self {
        // pktgen keeps to one port only if both ends of a range are the same.
        let end = if end - first == 1 { first } else { end };
        self.set(format!("udp_src_min {first}"))
            .set(format!("udp_src_max {end}"))
            .set(format!("udp_dst_min {to}"))
            .set(format!("udp_dst_max {to}"))
    }

    fn set(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Sends so many, and says how many pktgen says that it sent.
    pub(super) fn send(&self, packets: u64) -> Result<u64> {
        write(CONTROL, "reset")?;
        // The thread gives the device of the last run back when it comes to it.
        process::await_some("a device without a run", process::SHORT, || {
            write(THREAD, &format!("add_device {SENDER}")).ok()
        })?;
        let device = format!("/proc/net/pktgen/{SENDER}");
        write(&device, &format!("count {packets}"))?;
        for setting in &self.settings {
            write(&device, setting)?;
        }
        // Returns when all are sent; on a busy machine also when its thread has not begun.
        write(CONTROL, "start")?;
        let begun = Instant::now();
        loop {
            let told = fs::read_to_string(&device)?;
            let sent = sofar(&told).with_context(|| format!("pktgen told no count: {told}"))?;
            let is_done = told.contains("Result: OK");
            if is_done && sent >= packets {
                return Ok(sent);
            }
            ensure!(begun.elapsed() < LATE, "pktgen failed: {told}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// pktgen takes one command a write.
fn write(file: &str, command: &str) -> Result<()> {
    fs::write(file, format!("{command}\n")).with_context(|| format!("`{command}` to {file}"))
}

/// From `     pkts-sofar: 20000  errors: 0`.
fn sofar(told: &str) -> Option<u64> {
    let (_, rest) = told.split_once("pkts-sofar: ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// SYNs, each from an address of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syns {
    port: u16,
}

impl Syns {
    pub(super) const fn to(port: u16) -> Self {
        Self { port }
    }

    /// Sends so many; a packet that the socket does not take is an error.
    pub(super) fn send(self, packets: u64) -> Result<u64> {
        // IPPROTO_RAW: the IP header is ours.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let to = SocketAddrV4::new(TARGET, 0).into();
        for n in 0..u32::try_from(packets)? {
            let packet = self.packet(Ipv4Addr::from(FIRST_SOURCE + n));
            socket.send_to(&packet, &to).context("send a SYN")?;
        }
        Ok(packets)
    }

    /// IPv4 and TCP headers; the kernel fills in the former's checksum.
    fn packet(self, source: Ipv4Addr) -> [u8; 40] {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[3] = 40;
        packet[8] = 64;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&TARGET.octets());
        packet[20..22].copy_from_slice(&40_000_u16.to_be_bytes());
        packet[22..24].copy_from_slice(&self.port.to_be_bytes());
        packet[24..28].copy_from_slice(&source.octets());
        packet[32] = 5 << 4;
        packet[33] = 0x02;
        packet[34..36].copy_from_slice(&8192_u16.to_be_bytes());
        let pseudo = checksum::pseudo_header(&source.octets(), &TARGET.octets(), 6, 20);
        let sum = !checksum::fold(checksum::add(pseudo, &packet[20..]));
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pktgens_count_is_read() {
        let told = "Current:\n     pkts-sofar: 20000  errors: 0\nResult: OK: 1(c1+d0) usec\n";
        assert_eq!(sofar(told), Some(20_000));
        assert_eq!(sofar("Result: Idle"), None);
    }

    #[test]
    fn a_range_of_one_port_is_no_range() {
        let one = Datagrams::v4("m").ports([9, 10], 5000).settings;
        assert!(one.contains(&"udp_src_max 9".to_owned()), "{one:?}");
        let many = Datagrams::v4("m").sources(4000).ports([1, 5], 9);
        assert!(many.settings.contains(&"src_max 198.18.15.160".to_owned()));
        assert!(many.settings.contains(&"udp_src_max 5".to_owned()));
    }
}

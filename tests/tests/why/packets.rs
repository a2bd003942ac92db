//! Packets to ask about, and captures of them.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use firewall_tests::lab::{Family, Lab, live::LiveConnection, pinhole::Firewall};

use super::{WEB, why};

/// A pcap file of Ethernet frames.
pub(super) fn pcap<'a>(frames: impl Iterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let word = |value: usize| (value as u32).to_le_bytes();
    let header = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1];
    let mut file = header.map(word).concat();
    for frame in frames {
        file.extend([1, 0, frame.len(), frame.len()].map(word).concat());
        file.extend(frame);
    }
    file
}

/// A pcap file without its first packets.
pub(super) fn without_first(file: &[u8], count: usize) -> Result<Vec<u8>> {
    let mut at = 24;
    for _ in 0..count {
        let len = file.get(at + 8..at + 12).context("a packet")?;
        at += 16 + u32::from_le_bytes(len.try_into()?) as usize;
    }
    Ok([&file[..24], &file[at..]].concat())
}

/// The client's end of a live connection, as the firewall sees it.
pub(super) struct Question {
    sport: u16,
    seq: u32,
    ack: u32,
}

impl Question {
    pub(super) fn of(live: &LiveConnection, firewall: &Firewall) -> Result<Self> {
        let listed = firewall.flows()?;
        let flow = listed.iter().find(|flow| flow.is_established());
        let (client, server) = flow.context("no flow")?.ends().context("no ports")?;
        let next = why(
            firewall,
            "tcp",
            (client.ip(), client.port()),
            (server.ip(), server.port()),
            &[],
        )?;
        let number = |name: &str| next["headers"][name].as_u64().context("no number");
        ensure!(client.port() == live.port()?);
        Ok(Self {
            sport: client.port(),
            seq: number("seq")?.try_into()?,
            ack: number("ack")?.try_into()?,
        })
    }

    pub(super) fn segment(&self, lab: &Lab, flags: &str) -> Result<Vec<u8>> {
        self.moved(lab, flags, 0, 0)
    }

    /// With its numbers off by so much.
    pub(super) fn moved(&self, lab: &Lab, flags: &str, seq: i32, ack: i32) -> Result<Vec<u8>> {
        let seq = self.seq.wrapping_add_signed(seq);
        segment(
            lab,
            self.sport,
            WEB,
            flags,
            seq,
            self.ack.wrapping_add_signed(ack),
        )
    }
}

/// A segment from the client to the server, to nobody's Ethernet address: no
/// stack answers it.
pub(super) fn segment(
    lab: &Lab,
    sport: u16,
    dport: u16,
    flags: &str,
    seq: u32,
    ack: u32,
) -> Result<Vec<u8>> {
    let mut tcp = ethernet(lab).tcp(sport, dport, seq, 1000);
    for flag in flags.chars() {
        tcp = match flag {
            'S' => tcp.syn(),
            'A' => tcp.ack(ack),
            'F' => tcp.fin(),
            'R' => tcp.rst(),
            other => unreachable!("flag {other}"),
        };
    }
    let mut frame = Vec::new();
    tcp.write(&mut frame, &[])?;
    Ok(frame)
}

pub(super) fn datagram(lab: &Lab, sport: u16, dport: u16) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let udp = ethernet(lab).udp(sport, dport);
    udp.write(&mut frame, b"hello")?;
    Ok(frame)
}

pub(super) fn ethernet(lab: &Lab) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let (client, server) = (lab.client_ip(Family::V4), lab.server_ip(Family::V4));
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
        octets(client),
        octets(server),
        60,
    )
}

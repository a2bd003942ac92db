//! Loads of several kinds of packets: whole connections, and a flood beside live flows.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    field::{Field, Rate, data, opening},
    traffic::{
        Amount, Flows, Packet, Proto, Sent,
        flag::{ACK, FIN, PSH},
    },
};
use crate::lab::Family;

/// Flows that live through a flood.
pub const LIVE: u32 = 1024;
/// Connections that are begun, carried on and ended together.
const BATCH: u64 = 2048;
/// Segments each way.
const SEGMENTS: u32 = 4;
/// SYNs to each packet of a flow that lives.
const SYNS: u64 = 5;
const TCP4: (Family, Proto) = (Family::V4, Proto::Tcp);
const UDP4: (Family, Proto) = (Family::V4, Proto::Udp);

/// SYN, SYN-ACK, ACK: packets per CPU.
///
/// # Errors
/// The kernel refuses to run the program.
pub fn handshakes(field: &mut Field, time: Duration) -> Result<Rate> {
    converse(field, &opening(Proto::Tcp), time)
}

/// From the SYN to the last ACK: packets per CPU.
///
/// # Errors
/// As [`handshakes`].
pub fn connections(field: &mut Field, time: Duration) -> Result<Rate> {
    converse(field, &connection(), time)
}

fn connection() -> Vec<Packet> {
    let packet = |reply, flags, seq, ack, data| Packet {
        reply,
        flags,
        seq,
        ack,
        data,
        advance: false,
    };
    let mut packets = opening(Proto::Tcp).to_vec();
    for at in (0..SEGMENTS).map(|n| 6 * n) {
        packets.push(packet(false, PSH | ACK, 1000 + at, 5000 + at, true));
        packets.push(packet(true, PSH | ACK, 5000 + at, 1006 + at, true));
    }
    let (near, far) = (1000 + 6 * SEGMENTS, 5000 + 6 * SEGMENTS);
    packets.push(packet(false, FIN | ACK, near, far, false));
    packets.push(packet(true, FIN | ACK, far, near + 1, false));
    packets.push(packet(false, ACK, near + 1, far + 1, false));
    packets
}

/// New connections, batch by batch, until the time is over.
fn converse(field: &mut Field, packets: &[Packet], time: Duration) -> Result<Rate> {
    let seen = |field: &Field| -> Result<u64> {
        let both = [field.seen(false)?, field.seen(true)?];
        Ok(both.iter().flatten().sum())
    };
    let (before, began) = (seen(field)?, Instant::now());
    let mut sent = Sent::default();
    while began.elapsed() < time {
        let flows = Flows::From(field.take_fresh(BATCH));
        for packet in packets {
            sent = sent.and(field.send(TCP4, packet, flows, Amount::Packets(BATCH))?);
        }
    }
    Ok(Rate::new(seen(field)? - before, &sent))
}

/// A flood of SYNs beside flows that live. What is judged per CPU is every packet that was
/// sent; the share is that of the live flows' packets that came out.
///
/// # Errors
/// As [`handshakes`].
pub fn flood(field: &mut Field, time: Duration) -> Result<Rate> {
    let syn = opening(Proto::Tcp)[0];
    let (before, began) = (field.seen(false)?, Instant::now());
    let (mut live, mut all) = (0, Sent::default());
    while began.elapsed() < time {
        let fresh = SYNS * u64::from(LIVE);
        let flows = Flows::From(field.take_fresh(fresh));
        all = all.and(field.send(TCP4, &syn, flows, Amount::Packets(fresh))?);
        let amount = Amount::Packets(LIVE.into());
        all = all.and(field.send(UDP4, &data(), Flows::Of(LIVE), amount)?);
        live += u64::from(LIVE);
    }
    let out = field.seen(false)?[1] - before[1];
    Ok(Rate {
        out: [live, out],
        ..Rate::new(all.packets, &all)
    })
}

//! Echo requests, from a raw socket: a test needs no `ping` of the machine's.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr},
    process,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use firewall_common::checksum;
use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;

const HEADER: usize = 8;

/// Sends an echo request with `size` bytes of payload; true if its reply comes
/// back whole within `limit`.
///
/// # Errors
/// The socket cannot be used.
pub fn once(from: &Netns, to: IpAddr, size: usize, limit: Duration) -> Result<bool> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = from.within(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
    let id = (process::id() as u16).to_be_bytes();
    let mut message = vec![request, 0, 0, 0, id[0], id[1], 0, 1];
    message.extend((0..size).map(|i| i as u8));
    if to.is_ipv4() {
        // Of ICMPv6 the kernel fills the checksum in.
        let sum = checksum::fold(checksum::add(0, &message));
        message[2..4].copy_from_slice(&(!sum).to_be_bytes());
    }
    socket
        .send_to(&message, &SocketAddr::new(to, 0).into())
        .context("send an echo request")?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = vec![0; 65_536];
        match (&socket).read(&mut buffer) {
            Ok(len) => {
                // Of IPv4 the socket gives the IP header, too.
                let skip = if to.is_ipv4() { 20 } else { 0 };
                let got = buffer.get(skip..len).unwrap_or_default();
                if got.first() == Some(&reply)
                    && got.get(4..6) == Some(&id)
                    && got.get(HEADER..) == message.get(HEADER..)
                {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("wait for an echo reply"),
        }
    }
}

//! A connection that is kept open, as an SSH session is.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Family, Lab, Netns};

const LIMIT: Duration = Duration::from_secs(3);

/// Both ends of an established TCP connection.
#[derive(Debug)]
pub struct LiveConnection {
    ends: [TcpStream; 2],
}

impl LiveConnection {
    /// From the lab's client to a port of its server.
    ///
    /// # Errors
    /// The port is taken, or the connection does not come about.
    pub fn to_server(lab: &Lab, family: Family, port: u16) -> Result<Self> {
        let at = SocketAddr::new(lab.server_ip(family), port);
        Self::between(lab.ns(super::Node::Client), lab.ns(super::Node::Server), at)
    }

    /// From `from` to the address `at` of `to`.
    ///
    /// # Errors
    /// As [`LiveConnection::to_server`].
    pub fn between(from: &Netns, to: &Netns, at: SocketAddr) -> Result<Self> {
        let listener = to.listen(at)?;
        let near = from.connect(at, LIMIT)?.context("connect")?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(LIMIT))?;
            end.set_nodelay(true)?;
        }
        Ok(Self { ends: [near, far] })
    }

    /// The originator's port.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn port(&self) -> Result<u16> {
        Ok(self.ends[0].local_addr()?.port())
    }

    /// Sends a line in each direction and waits for it at the other end, as
    /// key strokes and their echo do.
    pub fn is_alive(&mut self) -> bool {
        let [near, far] = &mut self.ends;
        passes(near, far) && passes(far, near)
    }
}

fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    const LINE: &[u8] = b"still there?\n";
    let mut got = [0; LINE.len()];
    from.write_all(LINE).is_ok() && to.read_exact(&mut got).is_ok() && got == LINE
}

//! An FTP server whose every byte the test chooses.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Family, Lab, Node};

const LIMIT: Duration = Duration::from_secs(5);

/// Both ends of a control connection to port 21, played by the test.
#[derive(Debug)]
pub struct Dialogue {
    client: TcpStream,
    server: TcpStream,
    lab_server: SocketAddr,
}

impl Dialogue {
    /// Connects, and lets the server greet and log the client in.
    ///
    /// # Errors
    /// Port 21 is taken, or the connection does not come about.
    pub fn begin(lab: &Lab, family: Family) -> Result<Self> {
        let mut dialogue = Self::silent(lab, lab.client_ip(family), lab.ftp(family))?;
        dialogue.server_says(b"220 ready\r\n")?;
        Ok(dialogue)
    }

    /// Connects from an address of the client's node to one of the server's;
    /// nobody has said a word yet.
    ///
    /// # Errors
    /// As [`Dialogue::begin`].
    pub fn silent(lab: &Lab, client: IpAddr, server: SocketAddr) -> Result<Self> {
        let listener = lab.ns(Node::Server).listen(server)?;
        let client = lab.ns(Node::Client).connect_from(client, server, LIMIT)??;
        let (accepted, _) = listener.accept()?;
        for end in [&client, &accepted] {
            end.set_read_timeout(Some(LIMIT))?;
            end.set_nodelay(true)?;
        }
        Ok(Self {
            client,
            server: accepted,
            lab_server: server,
        })
    }

    /// USER and PASS.
    ///
    /// # Errors
    /// The bytes do not arrive.
    pub fn login(&mut self) -> Result<()> {
        self.client_says(b"USER u\r\n")?;
        self.server_says(b"331 password\r\n")?;
        self.client_says(b"PASS p\r\n")?;
        self.server_says(b"230 welcome\r\n")
    }

    /// The client sends bytes; returns once the server has them. So two calls
    /// are two segments at least, on either side of every firewall.
    ///
    /// # Errors
    /// They do not arrive: nothing for five seconds.
    pub fn client_says(&mut self, bytes: &[u8]) -> Result<()> {
        carry(&mut self.client, &mut self.server, bytes).context("from the client")
    }

    /// The server sends bytes; returns once the client has them.
    ///
    /// # Errors
    /// As [`Dialogue::client_says`].
    pub fn server_says(&mut self, bytes: &[u8]) -> Result<()> {
        carry(&mut self.server, &mut self.client, bytes).context("from the server")
    }

    /// The client says PASV, and the server where it listens; gives that socket.
    ///
    /// # Errors
    /// Those of [`Dialogue::passive`] and of [`Dialogue::client_says`].
    pub fn negotiate(&mut self, lab: &Lab) -> Result<TcpListener> {
        let (listener, reply) = self.passive(lab)?;
        self.client_says(b"PASV\r\n")?;
        self.server_says(reply.as_bytes())?;
        Ok(listener)
    }

    /// Both sockets: the client's, the server's.
    #[must_use]
    pub fn into_ends(self) -> [TcpStream; 2] {
        [self.client, self.server]
    }

    /// Closes both ends, the client's first. Each has heard of the other's end when
    /// this returns, so every firewall on the way has.
    ///
    /// # Errors
    /// An end does not arrive: nothing for five seconds.
    pub fn close(self) -> Result<()> {
        for (closes, hears) in [(&self.client, &self.server), (&self.server, &self.client)] {
            closes.shutdown(Shutdown::Write)?;
            hears_the_end(hears)?;
        }
        Ok(())
    }

    /// The client's socket.
    #[must_use]
    pub const fn client(&self) -> &TcpStream {
        &self.client
    }

    /// Listens on the server at a port of its own, and gives the socket with
    /// the 227 that announces it.
    ///
    /// # Errors
    /// The server's address is not IPv4, or has no free port.
    pub fn passive(&self, lab: &Lab) -> Result<(TcpListener, String)> {
        let listener = lab
            .ns(Node::Server)
            .listen(SocketAddr::new(self.lab_server.ip(), 0))?;
        let at = listener.local_addr()?;
        ensure!(at.is_ipv4(), "227 has no IPv6 form");
        let (address, port) = (at.ip().to_string().replace('.', ","), at.port());
        let reply = format!(
            "227 Entering Passive Mode ({address},{},{}).\r\n",
            port >> 8,
            port & 0xff
        );
        Ok((listener, reply))
    }
}

/// Reads until the other end has closed or reset the connection: what it sent for
/// that has then come through every firewall on the way. A segment that is sent
/// meanwhile on another connection may still overtake it.
///
/// # Errors
/// Nothing arrives within the socket's time-out.
pub fn hears_the_end(mut stream: &TcpStream) -> Result<()> {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the connection's end does not arrive"),
        }
    }
}

/// A TLS record of application data (RFC 8446, section 5.1) with these bytes
/// as its ciphertext.
#[must_use]
pub fn tls_record(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut record = vec![23, 3, 3, len[0], len[1]];
    record.extend(bytes);
    record
}

/// Writes at one end while it reads at the other: more may be on its way than
/// sockets hold.
fn carry(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let mut got = vec![0; bytes.len()];
    thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(bytes));
        let read = to.read_exact(&mut got);
        let written = writer.join().map_err(|_| anyhow!("the writer panicked"))?;
        Ok::<(), anyhow::Error>(read.and(written)?)
    })?;
    ensure!(got == bytes, "other bytes arrived");
    Ok(())
}

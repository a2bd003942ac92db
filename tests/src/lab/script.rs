//! An FTP session played line by line, for what no client does by itself:
//! pausing between the negotiation and its use.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Family, Lab, Node,
    server::{PASSWORD, USER},
};

const LIMIT: Duration = Duration::from_secs(5);

/// A reply of the server, as one text with its lines.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Three digits.
    pub code: u16,
    /// All of it.
    pub text: String,
}

/// The control connection of a logged-in user, from a lab's client to its server.
#[derive(Debug)]
pub struct Session {
    control: BufReader<TcpStream>,
    server: IpAddr,
}

impl Session {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The server is not reached, or refuses.
    pub fn login(lab: &Lab, family: Family) -> Result<Self> {
        let mut session = Self::connect(lab, family)?;
        session.authenticate()?;
        Ok(session)
    }

    /// Connects and reads the greeting.
    ///
    /// # Errors
    /// The server is not reached, or does not greet.
    pub fn connect(lab: &Lab, family: Family) -> Result<Self> {
        let stream = lab
            .ns(Node::Client)
            .connect(lab.ftp(family), LIMIT)?
            .context("connect to the FTP server")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let mut session = Self {
            control: BufReader::new(stream),
            server: lab.server_ip(family),
        };
        session.expect_reply(220)?;
        Ok(session)
    }

    /// USER and PASS.
    ///
    /// # Errors
    /// The server refuses them.
    pub fn authenticate(&mut self) -> Result<()> {
        let reply = self.command(&format!("USER {USER}"))?;
        if reply.code == 331 {
            self.command(&format!("PASS {PASSWORD}"))?.be(230)?;
        } else {
            reply.be(230)?;
        }
        self.command("TYPE I")?.be(200)
    }

    /// Sends a command and reads its reply.
    ///
    /// # Errors
    /// The connection is gone, or no reply comes in five seconds.
    pub fn command(&mut self, line: &str) -> Result<Reply> {
        self.send(line)?;
        self.reply()
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let bytes = format!("{line}\r\n");
        self.control
            .get_mut()
            .write_all(bytes.as_bytes())
            .with_context(|| format!("send {line}"))
    }

    /// Reads a reply, of several lines perhaps (RFC 959, section 4.2).
    ///
    /// # Errors
    /// As [`Session::command`].
    pub fn reply(&mut self) -> Result<Reply> {
        let mut text = String::new();
        loop {
            let from = text.len();
            ensure!(
                self.control.read_line(&mut text).context("await a reply")? > 0,
                "the server closed the control connection"
            );
            let line = &text[from..];
            let code = line.get(..3).and_then(|c| c.parse::<u16>().ok());
            if let (Some(code), Some(b' ')) = (code, line.as_bytes().get(3)) {
                return Ok(Reply { code, text });
            }
        }
    }

    /// EPSV; gives the address that the server listens at.
    ///
    /// # Errors
    /// The server refuses.
    pub fn epsv(&mut self) -> Result<SocketAddr> {
        let reply = self.command("EPSV")?;
        let port = reply
            .text
            .split("(|||")
            .nth(1)
            .and_then(|rest| rest.split('|').next())
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("EPSV was answered {:?}", reply.text))?;
        Ok(SocketAddr::new(self.server, port))
    }

    /// EPRT with a socket that listens on the client; gives the socket.
    ///
    /// # Errors
    /// The server refuses.
    pub fn eprt(&mut self, lab: &Lab) -> Result<TcpListener> {
        let own = self.control.get_ref().local_addr()?.ip();
        let listener = lab.ns(Node::Client).listen(SocketAddr::new(own, 0))?;
        let port = listener.local_addr()?.port();
        let family = if own.is_ipv4() { 1 } else { 2 };
        self.command(&format!("EPRT |{family}|{own}|{port}|"))?
            .be(200)?;
        Ok(listener)
    }

    /// Is the session alive? NOOP within five seconds.
    pub fn is_alive(&mut self) -> bool {
        self.command("NOOP").is_ok_and(|reply| reply.code == 200)
    }

    /// Port of the client's end.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn port(&self) -> Result<u16> {
        Ok(self.control.get_ref().local_addr()?.port())
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.control.get_mut()
    }

    fn expect_reply(&mut self, code: u16) -> Result<()> {
        self.reply()?.be(code)
    }
}

impl Reply {
    /// Is it this code?
    ///
    /// # Errors
    /// It is another.
    pub fn be(self, code: u16) -> Result<()> {
        if self.code != code {
            bail!("{code} was expected of the server, not {:?}", self.text);
        }
        Ok(())
    }
}

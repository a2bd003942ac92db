//! One crafted session between two addresses of its own.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Node,
    fake_server::Dialogue,
    pinhole::{Firewall, view},
    process,
};

use crate::world::World;

/// For what must come about, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// For a SYN that must not be answered: longer than any held one waits.
const TRY: Duration = Duration::from_millis(700);

/// A control connection of which the test says every byte.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) world: Arc<World>,
    pub(crate) client: IpAddr,
    pub(crate) server: IpAddr,
    talk: Dialogue,
    /// Refusals that were seen so far, at each firewall.
    refused: Vec<u32>,
}

/// Who waits for a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Passive mode.
    Server,
    /// Active mode.
    Client,
}

impl Case {
    /// Connected, and nobody has said a word.
    pub(crate) fn silent() -> Result<Self> {
        Self::over(World::shared()?, Family::V4)
    }

    /// Logged in, over IPv4.
    pub(crate) fn ready() -> Result<Self> {
        Self::ready_over(World::shared()?, Family::V4)
    }

    /// Logged in, over IPv6.
    pub(crate) fn ready_v6() -> Result<Self> {
        Self::ready_over(World::shared()?, Family::V6)
    }

    /// Logged in, behind [`World::strict`].
    pub(crate) fn strict() -> Result<Self> {
        Self::ready_over(World::strict()?, Family::V4)
    }

    pub(crate) fn ready_over(world: Arc<World>, family: Family) -> Result<Self> {
        Self::over(world, family)?.greeted()
    }

    pub(crate) fn over(world: Arc<World>, family: Family) -> Result<Self> {
        let (client, server) = world.pair(family)?;
        Self::between(world, client, server)
    }

    fn between(world: Arc<World>, client: IpAddr, server: IpAddr) -> Result<Self> {
        let talk = Dialogue::silent(&world.lab, client, SocketAddr::new(server, 21))?;
        let refused = vec![0; world.firewalls().len()];
        Ok(Self {
            world,
            client,
            server,
            talk,
            refused,
        })
    }

    /// Hangs up and connects again, between the same addresses.
    pub(crate) fn again(self) -> Result<Self> {
        let Ended {
            world,
            client,
            server,
        } = self.hang_up()?;
        Self::between(world, client, server)?.greeted()
    }

    /// Another session between the same hosts, logged in.
    pub(crate) fn beside(&self) -> Result<Self> {
        Self::between(Arc::clone(&self.world), self.client, self.server)?.greeted()
    }

    fn greeted(mut self) -> Result<Self> {
        self.s("220 ready\r\n")?;
        self.login()?;
        Ok(self)
    }

    pub(crate) fn login(&mut self) -> Result<()> {
        self.talk.login()
    }

    pub(crate) fn talk(&self) -> &Dialogue {
        &self.talk
    }

    /// Ends the dialogue, both ends; what it negotiated can be tried after that.
    pub(crate) fn hang_up(self) -> Result<Ended> {
        let ended = ends(&self);
        self.talk.close()?;
        Ok(ended)
    }

    /// Gives both ends of the control connection out of hand: the client's, the server's.
    pub(crate) fn part(self) -> (Ended, [TcpStream; 2]) {
        let ended = ends(&self);
        (ended, self.talk.into_ends())
    }

    /// The client says a text in one segment, and it arrives.
    pub(crate) fn c(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        self.talk.client_says(text.as_ref())
    }

    /// The server does.
    pub(crate) fn s(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        self.talk.server_says(text.as_ref())
    }

    /// `10,0,0,2`, as PORT and 227 have it.
    pub(crate) fn commas(&self, listener: Listener) -> String {
        commas(self.host(listener))
    }

    pub(crate) fn host(&self, listener: Listener) -> IpAddr {
        match listener {
            Listener::Server => self.server,
            Listener::Client => self.client,
        }
    }

    /// PORT with the client's own address.
    pub(crate) fn port(&self, port: u16) -> String {
        let host = self.commas(Listener::Client);
        format!("PORT {host},{},{}\r\n", port >> 8, port & 0xff)
    }

    /// 227 with the server's own address.
    pub(crate) fn pasv_reply(&self, port: u16) -> String {
        let host = self.commas(Listener::Server);
        let (hi, lo) = (port >> 8, port & 0xff);
        format!("227 Entering Passive Mode ({host},{hi},{lo}).\r\n")
    }

    /// The session negotiates as everybody does, and it works: nothing that went
    /// before has hung or poisoned it.
    pub(crate) fn still_works(&mut self, port: u16) -> Result<()> {
        self.c("PASV\r\n")?;
        self.s(self.pasv_reply(port))?;
        self.opens(Listener::Server, port)
    }

    /// A data connection to the port comes about, one and no second.
    pub(crate) fn opens(&self, listener: Listener, port: u16) -> Result<()> {
        ends(self).opens(listener, port)
    }

    /// No data connection to the port comes about.
    pub(crate) fn stays_shut(&self, listener: Listener, port: u16) -> Result<()> {
        ends(self).stays_shut(listener, port)
    }

    /// As [`Ended::connects`].
    pub(crate) fn connects(&self, listener: Listener, port: u16) -> Result<Data> {
        ends(self).connects(listener, port)
    }

    /// Both firewalls have refused something more, the last for this reason, and say so.
    pub(crate) fn refused(&mut self, reason: &str) -> Result<()> {
        for (index, firewall) in self.world.firewalls().iter().enumerate() {
            let seen = self.refused[index];
            let mut last = None;
            let session = process::await_some("the refusal is told", SOON, || {
                last = Some(self.session(firewall));
                let session = last.as_ref()?.as_ref().ok()?;
                let told = session.last_refusal.as_deref() == Some(reason);
                (session.refused > seen && told).then_some(session.refused)
            });
            let refused =
                session.with_context(|| format!("{reason} was expected, not {last:?}"))?;
            self.refused[index] = refused;
        }
        Ok(())
    }

    /// Every firewall lists the pinhole.
    pub(crate) fn is_open(&self, port: u16) -> Result<()> {
        for firewall in self.world.firewalls() {
            process::await_some("the pinhole is listed", SOON, || {
                self.pinholes(firewall).ok()?.contains(&port).then_some(())
            })?;
        }
        Ok(())
    }

    /// Both firewalls list the session in this phase.
    pub(crate) fn is_in_phase(&self, phase: &str) -> Result<()> {
        for firewall in self.world.firewalls() {
            let mut last = None;
            process::await_some("the phase is told", SOON, || {
                last = Some(self.session(firewall));
                (last.as_ref()?.as_ref().ok()?.phase == phase).then_some(())
            })
            .with_context(|| format!("{phase} was expected, not {last:?}"))?;
        }
        Ok(())
    }

    /// Nothing more was refused at either firewall, and nothing opened.
    pub(crate) fn nothing_happened(&self, opened: u32) -> Result<()> {
        for (index, firewall) in self.world.firewalls().iter().enumerate() {
            let session = self.session(firewall)?;
            ensure!(session.refused == self.refused[index], "{session:?}");
            ensure!(session.opened == opened, "{session:?}");
        }
        Ok(())
    }

    /// The session as a firewall lists it.
    pub(crate) fn session(&self, firewall: &Firewall) -> Result<view::Session> {
        let port = self.talk.client().local_addr()?.port();
        let sessions = firewall.sessions()?;
        let mut own = sessions
            .into_iter()
            .filter(|s| s.client == self.client && s.cport == port);
        own.next().context("the session is not listed")
    }

    /// Live pinholes between its hosts at a firewall, by port.
    pub(crate) fn pinholes(&self, firewall: &Firewall) -> Result<Vec<u16>> {
        ends(self).pinholes(firewall)
    }
}
pub(crate) fn commas(host: IpAddr) -> String {
    host.to_string().replace('.', ",")
}

fn ends(case: &Case) -> Ended {
    Ended {
        world: Arc::clone(&case.world),
        client: case.client,
        server: case.server,
    }
}

/// A data connection that stays. It outlives its session, and whoever else holds the
/// world: without wires and firewalls nothing would go through it.
#[derive(Debug)]
pub(crate) struct Data {
    world: Arc<World>,
    /// Who connected.
    near: TcpStream,
    /// Who accepted.
    far: TcpStream,
}

impl Data {
    /// Bytes go both ways through it.
    pub(crate) fn carries(&self) -> Result<()> {
        const SAID: &[u8; 11] = b"all is well";
        let mut got = [0; SAID.len()];
        for (mut from, mut to) in [(&self.near, &self.far), (&self.far, &self.near)] {
            from.write_all(SAID)?;
            to.read_exact(&mut got)?;
            ensure!(&got == SAID, "other bytes arrived");
        }
        Ok(())
    }

    /// No byte goes through it: it is waited for one for a second.
    pub(crate) fn is_dead(&self) -> Result<()> {
        self.far.set_read_timeout(Some(Duration::from_secs(1)))?;
        let kind = self.carries().err().and_then(|error| {
            let error = error.downcast::<io::Error>().ok()?;
            Some(error.kind())
        });
        ensure!(
            kind == Some(ErrorKind::WouldBlock),
            "it carries on: {kind:?}"
        );
        Ok(())
    }

    /// Does any firewall still track it?
    pub(crate) fn is_tracked(&self) -> Result<bool> {
        let ends = (self.near.local_addr()?, self.near.peer_addr()?);
        for firewall in self.world.firewalls() {
            if firewall.flows()?.iter().any(|f| f.ends() == Some(ends)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Two hosts that have had a session, or have one.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) world: Arc<World>,
    client: IpAddr,
    server: IpAddr,
}

impl Ended {
    fn opens(&self, listener: Listener, port: u16) -> Result<()> {
        let (open, first) = self.attempt(listener, port, SOON)?;
        let near = first.with_context(|| format!("data connection to port {port}"))?;
        let (_far, from) = open.accept()?;
        ensure!(
            from == near.local_addr()?,
            "somebody else connected: {from}"
        );
        drop(open);
        // The negative control of every opening.
        self.stays_shut(listener, port)
            .context("a second connection")
    }

    /// As [`Case::stays_shut`].
    pub(crate) fn stays_shut(&self, listener: Listener, port: u16) -> Result<()> {
        let (_open, tried) = self.attempt(listener, port, TRY)?;
        let dropped = matches!(&tried, Err(e) if e.kind() == ErrorKind::TimedOut);
        ensure!(dropped, "port {port} was not shut: {tried:?}");
        Ok(())
    }

    /// As [`Case::pinholes`].
    pub(crate) fn pinholes(&self, firewall: &Firewall) -> Result<Vec<u16>> {
        let hosts = [self.client, self.server];
        let own = |e: &view::Expectation| hosts.contains(&e.src) && hosts.contains(&e.dst);
        let mut all = firewall.expectations()?;
        all.retain(own);
        Ok(all.iter().map(|e| e.dport).collect())
    }

    /// A data connection that stays.
    pub(crate) fn connects(&self, listener: Listener, port: u16) -> Result<Data> {
        let (open, near) = self.attempt(listener, port, SOON)?;
        let near = near.with_context(|| format!("data connection to port {port}"))?;
        let (far, _) = open.accept()?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(SOON))?;
        }
        let world = Arc::clone(&self.world);
        Ok(Data { world, near, far })
    }

    /// Tries the port of a socket that listens.
    fn attempt(
        &self,
        listener: Listener,
        port: u16,
        limit: Duration,
    ) -> Result<(TcpListener, io::Result<TcpStream>)> {
        let lab = &self.world.lab;
        let ((near, from), (far, to)) = match listener {
            Listener::Server => ((Node::Client, self.client), (Node::Server, self.server)),
            Listener::Client => ((Node::Server, self.server), (Node::Client, self.client)),
        };
        let at = SocketAddr::new(to, port);
        let open = lab.ns(far).listen(at)?;
        let tried = lab.ns(near).connect_from(from, at, limit)?;
        Ok((open, tried))
    }
}

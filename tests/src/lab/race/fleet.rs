//! FTP clients and a server that lose no time: a data connection is opened the
//! moment its address is known, which is when the race with the helper is closest.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use firewall_user::bpf::sys::monotonic_ns;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::CONTROL;
use crate::lab::{Mode, Netns};

/// Far more than a SYN needs that is sent again, and again.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a transfer.
const LEN: usize = 1024;

/// Where both ends are.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The client's namespace and address.
    pub client: (&'a Netns, IpAddr),
    /// The server's.
    pub server: (&'a Netns, IpAddr),
}

/// How many transfers, and which.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Who opens the data connections.
    pub mode: Mode,
    /// In all, each right after the one before it in its session.
    pub transfers: usize,
    /// Sessions that do them, at once.
    pub at_once: usize,
}

/// A data connection, as its opener saw it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// To which port.
    pub port: u16,
    /// When it was there, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// From the call to the connection, ns.
    pub took_ns: u64,
    /// When the pinhole for it was written, likewise, at each firewall that has one.
    pub written_ns: [Option<u64>; 2],
}

/// What a load came to.
#[derive(Debug)]
pub struct Ran {
    /// All data connections.
    pub opened: Vec<Opened>,
    /// From everybody logged in to the end of the last transfer.
    pub took: Duration,
}

/// Says when the pinholes for a connection were written.
pub type Written<'a> = dyn Fn(IpAddr, SocketAddr) -> [Option<u64>; 2] + Sync + 'a;

/// Runs the load, the server's threads on the first CPU and the clients' on the
/// last, so that both directions are handled on different ones. All sessions are
/// logged in before the first transfer begins.
///
/// # Errors
/// A transfer fails, or does not end in half a minute.
pub fn run(ends: Ends<'_>, load: Load, written: &Written<'_>) -> Result<Ran> {
    let at = SocketAddr::new(ends.server.1, CONTROL);
    let listener = ends.server.0.listen(at)?;
    let left = AtomicUsize::new(load.transfers);
    let ready = Barrier::new(load.at_once);
    let (began, ended) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    let job = Job {
        mode: load.mode,
        left: &left,
        ready: &ready,
        began: &began,
        ended: &ended,
        written,
    };
    let opened = thread::scope(|scope| {
        let server = scope.spawn(|| {
            ends.server
                .0
                .within(|| serve(&listener, load.at_once, job))?
        });
        let clients = ends.client.0.within(|| clients(at, load.at_once, job))?;
        let server = server.join().map_err(|_| anyhow!("the server panicked"));
        // What the server says is often the cause of what the clients say.
        let (clients, server) = match (clients, server?) {
            (Ok(clients), Ok(server)) => (clients, server),
            (Err(client), Err(server)) => bail!("{client:#}; the server: {server:#}"),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        Ok(match load.mode {
            Mode::Passive => clients,
            Mode::Active => server,
        })
    })?;
    let took = ended.into_inner().saturating_sub(began.into_inner());
    Ok(Ran {
        opened,
        took: Duration::from_nanos(took),
    })
}

/// What every session has to do.
#[derive(Clone, Copy)]
struct Job<'a> {
    mode: Mode,
    left: &'a AtomicUsize,
    ready: &'a Barrier,
    /// When the first transfer began, and when the last one ended, `CLOCK_MONOTONIC` ns.
    began: &'a AtomicU64,
    ended: &'a AtomicU64,
    written: &'a Written<'a>,
}

impl Job<'_> {
    /// Is there another transfer to do?
    fn another(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    fn connect(&self, from: IpAddr, to: SocketAddr) -> Result<(TcpStream, Opened)> {
        let began = monotonic_ns();
        let stream = TcpStream::connect_timeout(&to, LIMIT)
            .with_context(|| format!("data connection to {to}"))?;
        let at_ns = monotonic_ns();
        let opened = Opened {
            port: to.port(),
            at_ns,
            took_ns: at_ns - began,
            written_ns: (self.written)(from, to),
        };
        Ok((stream, opened))
    }
}

/// Runs as many threads as there are sessions, on one CPU.
fn all<T: Send>(
    cpu: usize,
    sessions: impl Iterator<Item = Result<T>>,
    work: impl Fn(T) -> Result<Vec<Opened>> + Sync,
) -> Result<Vec<Opened>> {
    pin(cpu)?;
    let work = &work;
    thread::scope(|scope| {
        let running = sessions
            .map(|session| session.map(|session| scope.spawn(move || work(session))))
            .collect::<Result<Vec<_>>>()?;
        let mut opened = Vec::new();
        for thread in running {
            opened.extend(thread.join().map_err(|_| anyhow!("a session panicked"))??);
        }
        Ok(opened)
    })
}

/// The calling thread, and those that it starts, run on `cpu` only.
fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("choose a CPU")
}

fn last_cpu() -> usize {
    thread::available_parallelism().map_or(1, usize::from) - 1
}

fn clients(server: SocketAddr, count: usize, job: Job<'_>) -> Result<Vec<Opened>> {
    all(last_cpu(), (0..count).map(Ok), |_| {
        let stream = TcpStream::connect_timeout(&server, LIMIT).context("control connection")?;
        client(&mut Control::new(stream)?, job)
    })
}

fn client(control: &mut Control, job: Job<'_>) -> Result<Vec<Opened>> {
    control.reply(220)?;
    control.say("USER lab")?;
    control.reply(331)?;
    control.say("PASS lab")?;
    control.reply(230)?;
    job.ready.wait();
    job.began.fetch_min(monotonic_ns(), Ordering::Relaxed);
    let mut opened = Vec::new();
    while job.another() {
        let data = match job.mode {
            Mode::Passive => {
                let at = control.passive()?;
                let (data, seen) = job.connect(control.own, at)?;
                opened.push(seen);
                control.say("RETR file")?;
                control.reply(150)?;
                data
            }
            Mode::Active => {
                let listener = control.active()?;
                control.reply(200)?;
                control.say("RETR file")?;
                control.reply(150)?;
                listener.accept()?.0
            }
        };
        receive(data)?;
        control.reply(226)?;
    }
    job.ended.fetch_max(monotonic_ns(), Ordering::Relaxed);
    control.say("QUIT")?;
    control.reply(221)?;
    Ok(opened)
}

fn receive(mut data: TcpStream) -> Result<()> {
    data.set_read_timeout(Some(LIMIT))?;
    let mut bytes = Vec::with_capacity(LEN);
    data.read_to_end(&mut bytes).context("data")?;
    ensure!(bytes == [b'x'; LEN], "{} other bytes arrived", bytes.len());
    Ok(())
}

fn serve(listener: &TcpListener, count: usize, job: Job<'_>) -> Result<Vec<Opened>> {
    let sessions = (0..count).map(|_| {
        let (stream, _) = listener.accept()?;
        Control::new(stream)
    });
    all(0, sessions, |mut control| session(&mut control, job))
}

fn session(control: &mut Control, job: Job<'_>) -> Result<Vec<Opened>> {
    control.say("220 ready")?;
    let mut opened = Vec::new();
    let mut listener = None;
    let mut data = None;
    loop {
        let line = control.line()?;
        match line.split_whitespace().next().unwrap_or_default() {
            "USER" => control.say("331 password")?,
            "PASS" => control.say("230 welcome")?,
            "PASV" | "EPSV" => listener = Some(control.listen_and_say()?),
            "PORT" | "EPRT" => {
                let (stream, seen) = job.connect(control.own, control.address_in(&line)?)?;
                opened.push(seen);
                data = Some(stream);
                control.say("200 well")?;
            }
            "RETR" => {
                control.say("150 here it comes")?;
                if let Some(listener) = listener.take() {
                    data = Some(TcpListener::accept(&listener)?.0);
                }
                let mut data = data.take().context("RETR without a data connection")?;
                data.write_all(&[b'x'; LEN])?;
                drop(data);
                control.say("226 done")?;
            }
            "QUIT" => {
                control.say("221 bye")?;
                return Ok(opened);
            }
            _ => bail!("the client said {line:?}"),
        }
    }
}

/// One end of a control connection.
struct Control {
    stream: BufReader<TcpStream>,
    own: IpAddr,
    peer: IpAddr,
}

impl Control {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self {
            own: stream.local_addr()?.ip(),
            peer: stream.peer_addr()?.ip(),
            stream: BufReader::new(stream),
        })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\r\n");
        Ok(self.stream.get_mut().write_all(line.as_bytes())?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let got = self.stream.read_line(&mut line);
        ensure!(
            got.context("control connection")? > 0,
            "control connection closed"
        );
        Ok(line)
    }

    fn reply(&mut self, code: u16) -> Result<String> {
        let line = self.line()?;
        ensure!(
            line.starts_with(&code.to_string()),
            "{code} was expected, not {line:?}"
        );
        Ok(line)
    }

    /// Has the server listen; gives its address.
    fn passive(&mut self) -> Result<SocketAddr> {
        let line = if self.own.is_ipv4() {
            self.say("PASV")?;
            self.reply(227)?
        } else {
            self.say("EPSV")?;
            self.reply(229)?
        };
        self.address_in(&line)
    }

    /// Listens, and says where.
    fn active(&mut self) -> Result<TcpListener> {
        let (listener, port) = self.listen()?;
        let line = match self.own {
            IpAddr::V4(own) => format!("PORT {}", numbers(own, port)),
            IpAddr::V6(own) => format!("EPRT |2|{own}|{port}|"),
        };
        self.say(&line)?;
        Ok(listener)
    }

    fn listen_and_say(&mut self) -> Result<TcpListener> {
        let (listener, port) = self.listen()?;
        let line = match self.own {
            IpAddr::V4(own) => format!("227 Entering Passive Mode ({}).", numbers(own, port)),
            IpAddr::V6(_) => format!("229 Entering Extended Passive Mode (|||{port}|)"),
        };
        self.say(&line)?;
        Ok(listener)
    }

    fn listen(&self) -> Result<(TcpListener, u16)> {
        let listener = TcpListener::bind(SocketAddr::new(self.own, 0))?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    }

    /// The other end's address in a line of its.
    fn address_in(&self, line: &str) -> Result<SocketAddr> {
        let port = super::port_of(line.as_bytes());
        let port = port.with_context(|| format!("no address in {line:?}"))?;
        Ok(SocketAddr::new(self.peer, port))
    }
}

fn numbers(address: std::net::Ipv4Addr, port: u16) -> String {
    let [a, b, c, d] = address.octets();
    format!("{a},{b},{c},{d},{},{}", port >> 8, port & 0xff)
}

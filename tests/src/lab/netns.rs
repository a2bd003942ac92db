//! One network namespace.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use socket2::{Domain, Socket, Type};

use super::process;

/// Where named namespaces are mounted.
pub const DIR: &str = "/run/netns";

/// How long a closed socket of this process may live on in one that it forks.
const FORKED: Duration = Duration::from_secs(2);

/// What interfaces inherit that are made in a namespace.
const DEFAULTS: [(&str, &str); 3] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

/// A named network namespace; gone, with every process in it, when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with loopback up and duplicate address detection off,
    /// so that IPv6 addresses are usable at once.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn new(name: String) -> Result<Self> {
        process::check(Command::new("ip").args(["netns", "add", &name]))?;
        let ns = Self { name };
        for (key, value) in DEFAULTS {
            ns.sysctl(key, value)?;
        }
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in the namespace.
    ///
    /// Not by `ip netns exec`, which would hide `/sys/fs/bpf`. The command
    /// takes nsenter's place, so its process id is the child's.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={DIR}/{}", self.name));
        command.arg("--").arg(program);
        command
    }

    /// Runs lines of `ip` commands, without the leading `ip`.
    ///
    /// # Errors
    /// One of them fails; those before it have taken effect.
    pub fn ip(&self, lines: &str) -> Result<()> {
        process::check_with_input(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            lines,
        )
    }

    /// Writes `/proc/sys/<key>`, which is per network namespace below `net`.
    ///
    /// # Errors
    /// There is no such key, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.within(|| fs::write(&path, value))?
            .with_context(|| format!("set {key} to {value}"))
    }

    /// Lets it forward packets of both families.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Runs `f` on a thread that has entered the namespace. A socket that it
    /// makes stays in the namespace wherever it is used later.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `f` panics.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("{DIR}/{}", self.name);
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET)?;
                    Ok::<T, nix::Error>(f())
                })
                .join()
                .map_err(|_| anyhow!("a thread in {} panicked", self.name))?
                .with_context(|| format!("enter {}", self.name))
        })
    }

    /// Connects from the namespace.
    ///
    /// # Errors
    /// The connection is not there within `limit` (kind `TimedOut`) or is
    /// refused; the outer error if the namespace cannot be entered.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<io::Result<TcpStream>> {
        self.within(|| TcpStream::connect_timeout(&to, limit))
    }

    /// As [`Netns::connect`], from one of the namespace's addresses.
    ///
    /// # Errors
    /// As [`Netns::connect`].
    pub fn connect_from(
        &self,
        from: IpAddr,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<io::Result<TcpStream>> {
        self.within(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            socket.connect_timeout(&to.into(), limit)?;
            Ok(socket.into())
        })
    }

    /// Listens in the namespace; port 0 for any.
    ///
    /// A socket that listened there and was closed may be open a moment longer: a process
    /// that another thread has just forked has it until it becomes its program.
    ///
    /// # Errors
    /// The address is not free.
    pub fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        let end = Instant::now() + FORKED;
        loop {
            match self.within(|| TcpListener::bind(at))? {
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(5));
                }
                done => return done.with_context(|| format!("listen at {at} in {}", self.name)),
            }
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends every process in a namespace of the lab's, and removes it.
pub(super) fn remove(name: &str) {
    let pids = process::run(
        Command::new("ip").args(["netns", "pids", name]),
        process::SHORT,
    );
    for pid in pids.iter().flat_map(|o| o.stdout.split_whitespace()) {
        if let Ok(pid) = pid.parse::<i32>() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = process::run(
        Command::new("ip").args(["netns", "del", name]),
        process::SHORT,
    );
}

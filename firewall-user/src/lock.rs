//! One agent an instance. Two locks, which go with the process, however that ends:
//!
//! - An abstract Unix socket, scoped to the network namespace. It is there before
//!   anything is pinned, and names its process; but anybody can take its name.
//! - A directory among the pins, which only root can open. It decides.

use std::{
    fs::{self, File},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::fs::DirBuilderExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    time::{Duration, Instant},
};

use firewall_common::abi::heartbeat;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::bpf::{Instance, maps::Pinned, sys};

/// Name of the directory among the pins that the agent locks.
pub const DIRECTORY: &str = "agent";
/// Whoever asks for the agent has the lock for an instant too.
const ASKED: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);

/// Why the lock is not had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has it.
    #[error(
        "another agent (pid {pid}) runs instance {instance} in this network namespace: \
         stop it (`kill {pid}`), or name another instance with --instance"
    )]
    Taken {
        /// The instance.
        instance: String,
        /// Process id of the agent.
        pid: u32,
    },
    /// The directory fails.
    #[error(
        "the agent's lock of instance {instance} among its pins cannot be had: {cause}; \
         run as root, or `pinhole unload` and run again"
    )]
    Directory {
        /// The instance.
        instance: String,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The socket fails.
    #[error(
        "the agent's lock of instance {instance}, an abstract Unix socket, cannot be had: {cause}; \
         if a sandbox of the service forbids such sockets, allow them"
    )]
    Socket {
        /// The instance.
        instance: String,
        /// What the kernel says.
        cause: io::Error,
    },
}

/// The socket, held as long as it lives; none if somebody who is no agent has it.
#[derive(Debug)]
pub struct AgentLock(Option<UnixListener>);

impl AgentLock {
    /// Takes the socket of `instance`.
    ///
    /// # Errors
    ///
    /// [`Error`]; [`Error::Taken`] names the process that has it.
    pub fn take(instance: &Instance) -> Result<Self, Error> {
        let failed = |cause| Error::Socket {
            instance: instance.to_string(),
            cause,
        };
        let address = address(instance).map_err(failed)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self(Some(listener)))
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => match holder(instance) {
                Some(pid) => Err(taken_by(instance, pid)),
                None => {
                    log::warn!(
                        "the abstract socket pinhole-{instance} is held by a process that is no \
                         agent: find it with `ss -xlp`; pinhole goes on without that socket"
                    );
                    Ok(Self(None))
                }
            },
            Err(e) => Err(failed(e)),
        }
    }
}

impl AgentLock {
    /// Hangs up on everybody who asked who has the lock: their connections fill
    /// the queue otherwise, and then nobody is told.
    pub fn drain(&self) {
        while self
            .0
            .as_ref()
            .is_some_and(|socket| socket.accept().is_ok())
        {}
    }
}

/// That the agent which the maps of `instance` name has its directory.
pub(crate) fn taken(instance: &Instance) -> Error {
    taken_by(instance, recorded(instance).unwrap_or(0))
}

fn taken_by(instance: &Instance, pid: u32) -> Error {
    Error::Taken {
        instance: instance.to_string(),
        pid,
    }
}

/// Has nobody the directory of `instance`, not even for an instant? The caller
/// keeps others from taking it meanwhile.
///
/// # Errors
///
/// [`Error::Directory`].
pub(crate) fn is_free(instance: &Instance) -> Result<bool, Error> {
    let tried = match open(instance) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(failed(instance, e)),
        Ok(directory) => directory.try_lock(),
    };
    match tried {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(e)) => Err(failed(instance, e)),
    }
}

/// Makes and takes the directory of `instance`.
///
/// # Errors
///
/// [`Error::Taken`], [`Error::Directory`].
pub(crate) fn hold(instance: &Instance) -> Result<File, Error> {
    let made = fs::DirBuilder::new()
        .mode(0o700)
        .create(instance.pin(DIRECTORY));
    match made {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(instance, e)),
        _ => {}
    }
    let directory = open(instance).map_err(|e| failed(instance, e))?;
    lock(instance, &directory)?;
    Ok(directory)
}

fn open(instance: &Instance) -> io::Result<File> {
    File::open(instance.pin(DIRECTORY))
}

fn failed(instance: &Instance, cause: io::Error) -> Error {
    Error::Directory {
        instance: instance.to_string(),
        cause,
    }
}

fn lock(instance: &Instance, directory: &File) -> Result<(), Error> {
    let until = Instant::now() + ASKED;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::Error(e)) => return Err(failed(instance, e)),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(POLL);
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(taken(instance));
            }
        }
    }
}

/// The process that the maps name as the last agent.
fn recorded(instance: &Instance) -> Option<u32> {
    let beat = Pinned::open(instance).and_then(|pinned| pinned.heartbeat());
    let pid = beat.ok()?[heartbeat::PID as usize];
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// Process id of the agent of `instance`, if one runs.
#[must_use]
pub fn holder(instance: &Instance) -> Option<u32> {
    listener(instance).or_else(|| {
        let directory = open(instance).ok()?;
        let held = matches!(
            directory.try_lock_shared(),
            Err(fs::TryLockError::WouldBlock)
        );
        held.then(|| recorded(instance)).flatten()
    })
}

/// The agent that has the socket.
fn listener(instance: &Instance) -> Option<u32> {
    // Anybody can fill the queue of an abstract socket; waiting for room in it
    // could take for ever.
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    stream.set_nonblocking(true).ok()?;
    let address = SockAddr::unix(format!("\0{}", name(instance))).ok()?;
    stream.connect(&address).ok()?;
    // The kernel keeps the credentials of the process that called listen(2).
    let peer = sys::peer(&stream).ok()?;
    // Anybody can listen under any abstract name. Whoever is not of this user is
    // no agent of ours, and the number that it left may be another process's.
    is_trusted(peer.uid).then_some(peer.pid)
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == sys::effective_user()
}

fn address(instance: &Instance) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name(instance))
}

fn name(instance: &Instance) -> String {
    format!("pinhole-{instance}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_keeps_nobody_waiting() {
        let name = format!("lock-flood-{}", std::process::id());
        let instance: Instance = name.parse().unwrap();
        let lock = AgentLock::take(&instance).unwrap();
        let address = SockAddr::unix(format!("\0pinhole-{instance}")).unwrap();
        let mut flood = Vec::new();
        loop {
            let one = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            one.set_nonblocking(true).unwrap();
            if one.connect(&address).is_err() {
                break;
            }
            // A queued connection stays there when its sender hangs up.
            flood.push(());
        }
        assert!(!flood.is_empty());
        assert_eq!(listener(&instance), None, "at once");
        lock.drain();
        assert_eq!(holder(&instance), Some(std::process::id()));
    }

    #[test]
    fn only_root_and_this_user_are_believed() {
        assert!(is_trusted(0));
        assert!(is_trusted(sys::effective_user()));
        assert!(!is_trusted(sys::effective_user().wrapping_add(1)));
    }

    #[test]
    fn only_one_has_the_lock_and_is_named() {
        let instance: Instance = format!("lock-test-{}", std::process::id()).parse().unwrap();
        assert_eq!(holder(&instance), None);
        let lock = AgentLock::take(&instance).unwrap();
        assert_eq!(holder(&instance), Some(std::process::id()));
        let error = AgentLock::take(&instance).unwrap_err().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        lock.drain();
        assert_eq!(holder(&instance), Some(std::process::id()));
        drop(lock);
        AgentLock::take(&instance).unwrap();
    }
}

//! One agent an instance, by an abstract Unix socket: it goes with the process,
//! however that ends, and is scoped to the network namespace.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::bpf::{Instance, sys};

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
    /// Somebody has it who is no agent.
    #[error(
        "the agent's lock of instance {instance} (abstract socket pinhole-{instance}) is held by a \
         process that is no agent: find it with `ss -xlp`, and stop it, or name another instance \
         with --instance"
    )]
    Squatted {
        /// The instance.
        instance: String,
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

/// The lock, held as long as it lives.
#[derive(Debug)]
pub struct AgentLock(UnixListener);

impl AgentLock {
    /// Takes the lock of `instance`.
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
                Ok(Self(listener))
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(match holder(instance) {
                Some(pid) => Error::Taken {
                    instance: instance.to_string(),
                    pid,
                },
                None => Error::Squatted {
                    instance: instance.to_string(),
                },
            }),
            Err(e) => Err(failed(e)),
        }
    }
}

impl AgentLock {
    /// Hangs up on everybody who asked who has the lock: their connections fill
    /// the queue otherwise, and then nobody is told.
    pub fn drain(&self) {
        while self.0.accept().is_ok() {}
    }
}

/// Process id of the agent that has the lock of `instance`, if one has.
#[must_use]
pub fn holder(instance: &Instance) -> Option<u32> {
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
        assert_eq!(holder(&instance), None, "at once");
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

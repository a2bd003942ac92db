//! One agent an instance, by an abstract Unix socket: it goes with the process,
//! however that ends, and is scoped to the network namespace.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

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
pub struct AgentLock(#[expect(dead_code, reason = "held, not used")] UnixListener);

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
            Ok(listener) => Ok(Self(listener)),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(Error::Taken {
                instance: instance.to_string(),
                pid: holder(instance).unwrap_or(0),
            }),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Process id of the agent that has the lock of `instance`, if one has.
#[must_use]
pub fn holder(instance: &Instance) -> Option<u32> {
    let stream = UnixStream::connect_addr(&address(instance).ok()?).ok()?;
    // The kernel keeps the credentials of the process that called listen(2).
    sys::peer_pid(&stream).ok()
}

fn address(instance: &Instance) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("pinhole-{instance}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        drop(lock);
        AgentLock::take(&instance).unwrap();
    }
}

//! The SSH connection through which the operator is logged in.

use std::{fs, net::SocketAddr, os::unix::ffi::OsStrExt as _};

use firewall_common::wire::proto;

use crate::bpf::{ends, maps::FlowRow};

/// What sshd puts into the environment of a session.
const VARIABLE: &str = "SSH_CONNECTION";
/// Processes between this one and the session: shells, sudo, a terminal multiplexer.
const ANCESTORS: usize = 32;

/// Two ends of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
}

impl Connection {
    /// That of this session. sudo takes the variable away, so the processes
    /// above are asked too.
    pub(super) fn find() -> Option<Self> {
        if let Some(value) = std::env::var_os(VARIABLE) {
            return Self::parse(&String::from_utf8_lossy(value.as_bytes()));
        }
        let mut pid = std::os::unix::process::parent_id();
        for _ in 0..ANCESTORS {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let value = environment
                .split(|byte| *byte == 0)
                .find_map(|line| line.strip_prefix(b"SSH_CONNECTION="));
            if let Some(value) = value {
                return Self::parse(&String::from_utf8_lossy(value));
            }
            pid = parent(pid)?;
        }
        None
    }

    /// `192.0.2.9 40000 10.0.0.1 22`; an IPv6 address may carry its zone.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mut end = || {
            let (addr, port) = (words.next()?, words.next()?);
            let addr = addr.split('%').next()?;
            Some(SocketAddr::new(addr.parse().ok()?, port.parse().ok()?))
        };
        Some(Self {
            client: end()?,
            server: end()?,
        })
    }

    /// Is `row` its flow?
    pub(super) fn is_of(self, row: &FlowRow) -> bool {
        let ends = ends(&row.key, row.state().first_heading());
        // A flow that was seeded may stand the other way round.
        row.key.proto() == proto::TCP
            && (ends == (self.client, self.server) || ends == (self.server, self.client))
    }
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::row;

    #[test]
    fn what_sshd_writes_is_read() {
        let v4 = Connection::parse("192.0.2.9 40000 10.0.0.1 22").unwrap();
        assert_eq!(v4.client, "192.0.2.9:40000".parse().unwrap());
        assert_eq!(v4.server, "10.0.0.1:22".parse().unwrap());
        let v6 = Connection::parse("fe80::1%eth0 40000 fe80::2%eth0 22").unwrap();
        assert_eq!(v6.client, "[fe80::1]:40000".parse().unwrap());
        for bad in [
            "",
            "192.0.2.9 40000",
            "a b c d",
            "192.0.2.9 40000 10.0.0.1 x",
        ] {
            assert_eq!(Connection::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn its_flow_is_known_from_others() {
        let own = Connection::parse("192.0.2.9 40000 10.0.0.1 22").unwrap();
        assert!(own.is_of(&row(6, "192.0.2.9", 40_000, "10.0.0.1", 22)));
        assert!(own.is_of(&row(6, "10.0.0.1", 22, "192.0.2.9", 40_000)));
        assert!(!own.is_of(&row(6, "192.0.2.9", 40_001, "10.0.0.1", 22)));
        assert!(!own.is_of(&row(17, "192.0.2.9", 40_000, "10.0.0.1", 22)));
    }

    #[test]
    fn parents_end_at_the_first_process() {
        let mut pid = std::process::id();
        let mut steps = 0;
        while let Some(up) = parent(pid) {
            pid = up;
            steps += 1;
        }
        assert!(steps > 0);
    }
}

//! One benchmark at a time: two at once would measure each other.

use std::{
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use anyhow::{Context as _, Result, bail};
use firewall_user::bpf::sys;

/// An abstract address: it goes with its owner, however that ends.
const NAME: &str = "pinhole-bench";

/// While it lives, no other benchmark runs on this machine.
#[derive(Debug)]
pub struct Alone {
    _listener: UnixListener,
}

impl Alone {
    /// Claims the machine.
    ///
    /// # Errors
    /// Another benchmark runs; its process is named.
    pub fn claim() -> Result<Self> {
        Self::claim_as(NAME)
    }

    fn claim_as(name: &str) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(name)?;
        match UnixListener::bind_addr(&address) {
            Ok(_listener) => Ok(Self { _listener }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let other = UnixStream::connect_addr(&address).and_then(sys::peer);
                let other = other.map_or(String::new(), |peer| format!(" (pid {})", peer.pid));
                bail!(
                    "another benchmark{other} is running: each would spoil the other's figures. \
                     Wait for its end, or end it"
                )
            }
            Err(error) => Err(error).context("claim the machine for a benchmark"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_of_the_first() {
        let own = std::process::id();
        let name = format!("pinhole-bench-test-{own}");
        let first = Alone::claim_as(&name).unwrap();
        let refused = Alone::claim_as(&name).unwrap_err().to_string();
        assert!(refused.contains(&format!("(pid {own})")), "{refused}");
        drop(first);
        Alone::claim_as(&name).unwrap();
    }
}

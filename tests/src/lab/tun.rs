//! A tun device: a wire whose one end is this process.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use anyhow::{Context, Result, ensure};
use nix::libc;

/// An `IFF_TUN` device of the calling thread's network namespace; gone when dropped.
///
/// Without `IFF_NAPI` a write is taken through the stack before it returns.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Makes the device `name`.
    ///
    /// # Errors
    /// The kernel refuses, or the name is too long.
    pub fn create(name: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
            },
        };
        ensure!(
            name.len() < libc::IFNAMSIZ,
            "{name} is too long for a device"
        );
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `request` is.
        let ret = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if ret < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("make tun {name}"));
        }
        Ok(Self(file))
    }

    /// A packet, from its IP header on, arrives on the device.
    ///
    /// # Errors
    /// The kernel refuses it: the device is down, or it is no IP packet.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write_all(packet)
    }

    /// The next packet that was sent out of the device, copied to the front of
    /// `buffer`; `None` if there is none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match (&self.0).read(buffer) {
            Ok(len) => Ok(Some(&buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

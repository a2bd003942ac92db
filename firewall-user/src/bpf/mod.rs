//! The kernel side as user space sees it: instances, pins and maps.

pub mod attach;
pub mod claim;
pub mod detach;
pub mod fill;
pub mod flows;
mod hooks;
pub mod journal;
pub mod loader;
pub mod lookup;
pub mod maps;
pub mod memory;
pub mod pins;
pub mod policy;
pub mod private;
pub mod queues;
pub mod refusal;
pub mod requests;
mod rows;
pub mod sys;
pub mod vlan;
pub mod vlan_children;
pub mod watch;

use std::{
    error::Error,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use firewall_common::{
    abi::FlowKey6,
    key::{Heading, is_v4_mapped, map_v4},
};

/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// One running firewall, by name. Two on one machine (two network namespaces,
/// say) differ in their pin directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

impl Instance {
    /// The name used when none is given.
    pub const DEFAULT: &str = "default";

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of its pins, whether it exists or not.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        root().join(&self.name)
    }

    /// The pin of a map (a name of [`firewall_common::abi::maps`]) or a link.
    #[must_use]
    pub fn pin(&self, name: &str) -> PathBuf {
        self.pin_dir().join(name)
    }

    /// The command line of a subcommand on this instance, for messages.
    #[must_use]
    pub fn command(&self, subcommand: &str) -> String {
        if self.name == Self::DEFAULT {
            format!("pinhole {subcommand}")
        } else {
            format!("pinhole --instance {} {subcommand}", self.name)
        }
    }

    /// The names of all instances that have pins. Empty without a bpffs.
    ///
    /// # Errors
    /// Those of reading the directory, mostly missing permission.
    pub fn all() -> io::Result<Vec<String>> {
        list(&root())
    }
}

impl FromStr for Instance {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // bpffs reserves dots in names.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
            return Err("use 1 to 32 letters, digits, `-` or `_`".into());
        }
        Ok(Self { name: name.into() })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn root() -> PathBuf {
    Path::new(BPFFS).join("pinhole")
}

fn list(root: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

/// `name` padded with NULs; cut so that at least one NUL remains.
#[must_use]
pub fn fixed<const N: usize>(name: &str) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().take(N.saturating_sub(1)).zip(name.bytes()) {
        *to = from;
    }
    out
}

/// The text before the first NUL.
#[must_use]
pub fn text(fixed: &[u8]) -> String {
    let end = fixed.iter().position(|&b| b == 0).unwrap_or(fixed.len());
    String::from_utf8_lossy(fixed.get(..end).unwrap_or_default()).into_owned()
}

/// An address of the maps (network byte order, IPv4 in mapped form) in its own form.
#[must_use]
pub fn address(words: [u32; 4]) -> IpAddr {
    if is_v4_mapped(&words) {
        let [_, _, _, v4] = words;
        IpAddr::V4(Ipv4Addr::from(v4.to_ne_bytes()))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(words)))
    }
}

/// The reverse of [`address`].
#[must_use]
pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => map_v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => bytemuck::cast(v6.octets()),
    }
}

/// Who sends what runs this way through `key`, and to whom.
#[must_use]
pub fn ends(key: &FlowKey6, heading: Heading) -> (SocketAddr, SocketAddr) {
    let (src, sport, dst, dport) = key.endpoints(heading);
    (
        SocketAddr::new(address(src), sport),
        SocketAddr::new(address(dst), dport),
    )
}

/// An error of aya's with its causes, in one line. Most say their cause
/// themselves; what is said already is left out.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// The kernel's own error inside aya's.
pub(crate) fn errno<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        let found = inner.downcast_ref::<io::Error>();
        if let Some(found) = found.filter(|found| found.raw_os_error().is_some()) {
            return Some(found);
        }
        cause = inner.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_map() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            let parsed: IpAddr = text.parse().unwrap();
            assert_eq!(address(words(parsed)), parsed);
        }
        let mapped = map_v4(u32::from_ne_bytes([192, 0, 2, 1]));
        assert_eq!(address(mapped).to_string(), "192.0.2.1");
    }

    #[test]
    fn causes_are_told_once() {
        let inner = io::Error::from_raw_os_error(libc::EPERM);
        let outer = loader::Error::Netns(inner);
        assert_eq!(causes(&outer).matches("os error 1").count(), 1);
    }

    #[test]
    fn the_errno_is_found_under_other_errors() {
        let outer = aya::maps::MapError::from(aya::sys::SyscallError {
            call: "bpf_obj_get",
            io_error: io::Error::from_raw_os_error(libc::EPERM),
        });
        let found = errno(&outer).and_then(io::Error::raw_os_error);
        assert_eq!(found, Some(libc::EPERM));
        assert!(errno(&io::Error::other("no number")).is_none());
    }

    #[test]
    fn instance_names_are_safe_as_pins() {
        assert!("fw-a_1".parse::<Instance>().is_ok());
        for bad in ["", "a.b", "../x", "a/b", &"x".repeat(33)] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_survive_the_map() {
        assert_eq!(text(&fixed::<16>("outside")), "outside");
        assert_eq!(text(&fixed::<4>("outside")), "out");
    }
}

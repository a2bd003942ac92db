//! What must hold before anything is loaded or attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use crate::{
    bpf::vlan_children,
    netlink::{
        nftables::{self, NatChain},
        route::{self, Link, LinkHeader},
    },
};

/// The oldest kernel: BPF_PROG_RUN with live frames came with it.
const KERNEL: Version = Version(5, 18);
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Why pinhole cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not privileged.
    #[error("missing {missing}: run with sudo, or grant the capabilities")]
    Privileges {
        /// Names of the capabilities.
        missing: String,
    },
    /// The kernel is too old.
    #[error(
        "kernel {found} is too old: pinhole needs {KERNEL} or newer (live frames in BPF_PROG_RUN)"
    )]
    Kernel {
        /// Release of the running kernel.
        found: String,
    },
    /// The kernel carries no type information.
    #[error("{BTF} is missing: pinhole needs a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    Btf,
    /// No such interface.
    #[error("no interface {name:?} in this network namespace; there are: {}", found.join(", "))]
    UnknownInterface {
        /// Name asked for.
        name: String,
        /// Names that exist.
        found: Vec<String>,
    },
    /// Neither Ethernet nor plain IP.
    #[error(
        "interface {name} (link type {hardware}{}) carries neither Ethernet frames nor plain IP \
         packets where XDP sees them: guard the interface that its packets arrive on, or name \
         another",
        kind.as_ref().map(|kind| format!(", {kind}")).unwrap_or_default()
    )]
    LinkType {
        /// Its name.
        name: String,
        /// Its `ARPHRD_*` number.
        hardware: u16,
        /// Its kind, if it is a virtual one.
        kind: Option<String>,
    },
    /// Native mode was asked for where only the generic hook is known to give IP.
    #[error(
        "interface {name} has no Ethernet header: what a driver shows a native XDP program \
         of its packets is not defined; use --mode auto or generic"
    )]
    NoNative {
        /// Its name.
        name: String,
    },
    /// Two zones for the frames of one VLAN.
    #[error(
        "interface {vlan} is a VLAN on {on}, which is guarded in another zone: each of its frames \
         would be judged in both; put both in one zone, or guard the VLANs of {on} and not {on}"
    )]
    VlanZones {
        /// The VLAN.
        vlan: String,
        /// What it is on.
        on: String,
    },
    /// The kernel translates addresses on the way between the hooks.
    #[error(
        "the kernel translates addresses on this gateway: {}; a tuple that changes between \
         ingress and egress cannot be tracked: move the translation to another machine, or \
         delete it ({})",
        chains(found),
        remedy(found)
    )]
    Nat {
        /// The chains that do it.
        found: Vec<NatChain>,
    },
    /// The kernel refuses to answer.
    #[error("cannot ask the kernel about {what}: {cause}")]
    Ask {
        /// About what.
        what: &'static str,
        /// What it says.
        cause: io::Error,
    },
}

impl Error {
    fn ask(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Ask { what, cause }
    }
}

fn chains(found: &[NatChain]) -> String {
    let one = |c: &NatChain| {
        format!(
            "table {} {} chain {} ({} rules)",
            c.family, c.table, c.chain, c.rules
        )
    };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn remedy(found: &[NatChain]) -> String {
    let one = |c: &NatChain| format!("nft flush chain {} {} {}", c.family, c.table, c.chain);
    found.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Checks privileges, kernel and BTF. Returns the kernel's release.
///
/// # Errors
///
/// [`Error`] with the remedy.
pub fn system() -> Result<String, Error> {
    let status = fs::read_to_string("/proc/self/status").map_err(Error::ask("privileges"))?;
    let missing = missing_capabilities(effective_capabilities(&status).unwrap_or(0));
    if !missing.is_empty() {
        return Err(Error::Privileges {
            missing: missing.join(" and "),
        });
    }
    let release = kernel_release()?;
    if Version::parse(&release).is_none_or(|found| found < KERNEL) {
        return Err(Error::Kernel { found: release });
    }
    if !Path::new(BTF).exists() {
        return Err(Error::Btf);
    }
    Ok(release)
}

/// The release of the running kernel.
///
/// # Errors
///
/// If /proc cannot be read.
pub fn kernel_release() -> Result<String, Error> {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .map_err(Error::ask("its release"))
}

/// The interfaces with these names, in this order.
///
/// # Errors
///
/// [`Error::UnknownInterface`] or [`Error::LinkType`].
pub fn interfaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Link>, Error> {
    let links = route::links().map_err(Error::ask("its interfaces"))?;
    let one =
        |name: &str| {
            let link = links.iter().find(|link| link.name == name).ok_or_else(|| {
                Error::UnknownInterface {
                    name: name.to_owned(),
                    found: links.iter().map(|link| link.name.clone()).collect(),
                }
            })?;
            if link.header().is_none() {
                return Err(Error::LinkType {
                    name: link.name.clone(),
                    hardware: link.hardware,
                    kind: link.kind.clone(),
                });
            }
            Ok(link.clone())
        };
    names.into_iter().map(one).collect()
}

/// Refuses native mode where packets have no Ethernet header.
///
/// # Errors
///
/// [`Error::NoNative`].
pub fn native(links: &[Link]) -> Result<(), Error> {
    let bare = |link: &&Link| link.header() != Some(LinkHeader::Ethernet);
    match links.iter().find(bare) {
        Some(link) => Err(Error::NoNative {
            name: link.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Refuses a VLAN in another zone than the guarded interface that it is on. `zones`
/// are those of the guarded interfaces, by index.
///
/// # Errors
///
/// [`Error::VlanZones`].
pub fn vlan_zones(zones: &BTreeMap<u32, u8>) -> Result<(), Error> {
    let links = route::links().map_err(Error::ask("its interfaces"))?;
    match vlan_children::crossing(&links, zones) {
        Some((vlan, on)) => Err(Error::VlanZones {
            vlan: vlan.name.clone(),
            on: on.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Refuses address translation by the kernel: on a gateway it changes tuples
/// between the two hooks. (A host's own translation happens before egress and
/// after ingress, so that both hooks see the same.)
///
/// # Errors
///
/// [`Error::Nat`], naming every chain.
pub fn no_nat() -> Result<(), Error> {
    let found = nftables::nat_chains().map_err(Error::ask("NAT chains"))?;
    if !found.is_empty() {
        return Err(Error::Nat { found });
    }
    for table in legacy_nat() {
        log::warn!(
            "{table} knows a nat table: if it holds rules (`{table}-legacy -t nat -S`), flows \
             through this gateway that they translate are dropped"
        );
    }
    Ok(())
}

/// Which legacy iptables have a nat table in this namespace.
fn legacy_nat() -> BTreeSet<&'static str> {
    [
        ("/proc/self/net/ip_tables_names", "iptables"),
        ("/proc/self/net/ip6_tables_names", "ip6tables"),
    ]
    .into_iter()
    .filter(|(path, _)| {
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == "nat"))
    })
    .map(|(_, name)| name)
    .collect()
}

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `CAP_SYS_ADMIN` stands for the two that were split from it in kernel 5.8.
fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let admin = effective & CAP_SYS_ADMIN != 0;
    [
        (CAP_NET_ADMIN, false, "CAP_NET_ADMIN"),
        (CAP_BPF, admin, "CAP_BPF"),
        (CAP_PERFMON, admin, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter(|(bit, implied, _)| effective & bit == 0 && !implied)
    .map(|(_, _, name)| name)
    .collect()
}

/// Major and minor number of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Reads the front of a release such as `6.1.0-13-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
        ))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_ordered_by_number() {
        assert_eq!(Version::parse("6.1.0-13-amd64"), Some(Version(6, 1)));
        assert_eq!(Version::parse("6.18-rc1"), Some(Version(6, 18)));
        assert!(Version(5, 4) < KERNEL && Version(6, 1) > KERNEL && Version(5, 18) >= KERNEL);
        assert_eq!(Version::parse("linux"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let none = "Name:\tx\nCapEff:\t0000000000000000\n";
        assert_eq!(
            missing_capabilities(effective_capabilities(none).unwrap()),
            ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]
        );
        let all = "CapEff:\t000001ffffffffff\n";
        assert!(missing_capabilities(effective_capabilities(all).unwrap()).is_empty());
        assert!(missing_capabilities(CAP_NET_ADMIN | CAP_SYS_ADMIN).is_empty());
        assert_eq!(missing_capabilities(CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn an_unknown_interface_is_named_with_those_that_exist() {
        let error = interfaces(["nic-x"]).unwrap_err().to_string();
        assert!(
            error.contains("\"nic-x\"") && error.contains("lo"),
            "{error}"
        );
    }

    #[test]
    fn the_loopback_interface_is_refused() {
        assert!(matches!(interfaces(["lo"]), Err(Error::LinkType { .. })));
    }

    #[test]
    fn nat_is_refused_with_table_and_chain() {
        let found = vec![NatChain {
            family: "ip",
            table: "web".into(),
            chain: "post".into(),
            rules: 2,
        }];
        let error = Error::Nat { found }.to_string();
        assert!(
            error.contains("table ip web chain post (2 rules)"),
            "{error}"
        );
        assert!(error.contains("nft flush chain ip web post"), "{error}");
    }
}

//! What stands in the way of the fast path, and what to do about it.

use std::{collections::BTreeMap, fmt::Display, fs, io};

use aya::programs::{SchedClassifier, TcAttachType};
use firewall_common::abi::{FAST_LEN, FAST_PLACES, Iface, Obstacle, fast_flags, iface_flags};

use super::peer::{Checksums, Peers};
use crate::{
    bpf::{
        Instance,
        detach::{self, HANDLE, PRIORITY, tcx_pin},
        sys, text, vlan_children,
    },
    netlink::{
        bypass::{self, Device, Rules, XdpFeatures},
        nftables,
        route::{self, Link},
    },
};

/// Queueing disciplines that keep nothing back and drop nothing on purpose: what the
/// kernel gives a device by itself.
const PLAIN_QDISCS: [&str; 9] = [
    "noqueue",
    "mq",
    "pfifo_fast",
    "pfifo",
    "bfifo",
    "fq",
    "fq_codel",
    "clsact",
    "ingress",
];
/// Drivers that send what is redirected to them while an XDP program is attached, for
/// kernels that do not say which do (before 6.3).
const DRIVERS: [&str; 12] = [
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "mlx5_core",
    "mvneta",
    "stmmac",
    "virtio_net",
];

/// Something that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of which kind.
    pub obstacle: Obstacle,
    /// What it is, by name.
    pub what: String,
    /// What the operator can do.
    pub remedy: String,
}

impl Finding {
    fn new(obstacle: Obstacle, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            obstacle,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// There is no room for it.
    pub(super) fn too_many() -> Self {
        Self::new(
            Obstacle::TooMany,
            format!(
                "there is no room for it: {FAST_LEN} interfaces have some, and three whose indices \
                 are the same modulo {FAST_PLACES}, or next to it, do not all fit"
            ),
            "guard fewer, or make the interface anew",
        )
    }

    fn unknown(about: &str, error: &impl Display) -> Self {
        Self::new(
            Obstacle::Unknown,
            format!("the kernel does not answer about {about} ({error})"),
            "it is asked again",
        )
    }
}

/// An interface, and what stands in its way.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) zone: u8,
    /// What routes of what arrives there depend on: [`fast_flags::STEADY`] and
    /// [`fast_flags::PLAIN`].
    pub(super) routing: u32,
    /// What concerns it, with what concerns all.
    pub(super) findings: Vec<Finding>,
}

impl Surveyed {
    /// Bits by [`Obstacle`].
    pub(super) fn obstacles(&self) -> u32 {
        let found = self.findings.iter();
        found.fold(0, |bits, finding| bits | finding.obstacle.bit())
    }
}

/// Everything that stands in the way.
#[derive(Debug)]
pub(super) struct Survey {
    /// What concerns all interfaces.
    pub(super) everywhere: Vec<Finding>,
    pub(super) interfaces: Vec<Surveyed>,
}

/// What routes of packets depend on that arrive at an interface which forwards them or
/// not, of IPv4 and of IPv6; `all` tells so of all guarded ones.
///
/// A look-up refuses where that very interface does not forward. So a route that was looked
/// up for another one is no answer for it, unless all are of one mind.
fn routing_at(routing: u32, forwards: [bool; 2], all: &[[bool; 2]]) -> u32 {
    let mut families = forwards.iter().enumerate();
    if families.all(|(family, here)| all.iter().all(|there| there[family] == *here)) {
        routing
    } else {
        routing & !fast_flags::PLAIN
    }
}

/// Does the kernel forward what arrives at an interface, of IPv4 and of IPv6?
fn forwards(name: &str) -> [bool; 2] {
    ["ipv4", "ipv6"].map(|family| {
        let path = format!("/proc/sys/net/{family}/conf/{name}/forwarding");
        fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    })
}

/// Asks the kernel.
pub(super) struct Surveyor {
    instance: Instance,
    /// Interfaces that the operator vouches for.
    complete: Vec<String>,
    peers: Peers,
}

impl Surveyor {
    pub(super) fn new(instance: &Instance, complete: &[String]) -> Self {
        Self {
            instance: instance.clone(),
            complete: complete.to_vec(),
            peers: Peers::default(),
        }
    }

    /// Of the guarded interfaces among those that are known, by index.
    pub(super) fn survey(&mut self, known: &BTreeMap<u32, Iface>) -> Survey {
        let rules = bypass::rules();
        let routing = routing(&rules);
        let mut everywhere = everywhere(&rules);
        let lists = route::links().and_then(|links| Ok((links, bypass::devices()?)));
        let (links, devices) = lists.unwrap_or_else(|error| {
            everywhere.push(Finding::unknown("its interfaces", &error));
            (Vec::new(), Vec::new())
        });
        let mut features = XdpFeatures::open().unwrap_or_default();
        let mut interfaces = Vec::new();
        let guarded = known.iter();
        for (index, iface) in guarded.filter(|(_, iface)| vlan_children::is_guarded(iface)) {
            let mut found = Surveyed {
                index: *index,
                name: text(&iface.name),
                mac: [0; 6],
                zone: iface.zone,
                routing: 0,
                findings: everywhere.clone(),
            };
            let link = links.iter().find(|link| link.index == *index);
            let device = devices.iter().find(|device| device.index == *index);
            match link.zip(device) {
                Some((link, device)) => {
                    // A VLAN on it is another interface, to the kernel.
                    let alone = known.values().filter(|i| i.zone == iface.zone).count() == 1;
                    found.mac = device.mac.unwrap_or_default();
                    let about = About {
                        iface,
                        link,
                        device,
                        alone,
                    };
                    found
                        .findings
                        .extend(self.interface(&about, &links, &mut features));
                }
                None => found
                    .findings
                    .push(Finding::unknown("the interface", &"it is gone")),
            }
            interfaces.push(found);
        }
        let forwarding: Vec<[bool; 2]> = interfaces.iter().map(|i| forwards(&i.name)).collect();
        for (found, here) in interfaces.iter_mut().zip(&forwarding) {
            found.routing = routing_at(routing, *here, &forwarding);
        }
        Survey {
            everywhere,
            interfaces,
        }
    }

    fn interface(
        &mut self,
        about: &About<'_>,
        links: &[Link],
        features: &mut Option<XdpFeatures>,
    ) -> Vec<Finding> {
        let name = &about.link.name;
        let mut found = about.kind();
        if found.is_empty() {
            found.extend(self.checksums(about, links));
            found.extend(about.reverse_path());
            found.extend(self.filters(about).unwrap_or_else(|error| {
                vec![Finding::unknown(&format!("the filters of {name}"), &error)]
            }));
            found.extend(about.redirects(features).unwrap_or_else(|error| {
                Some(Finding::unknown(&format!("the device {name}"), &error))
            }));
            found.extend(about.shaping().unwrap_or_else(|error| {
                Some(Finding::unknown(&format!("the queues of {name}"), &error))
            }));
        }
        found
    }

    fn checksums(&mut self, about: &About<'_>, links: &[Link]) -> Option<Finding> {
        let name = &about.link.name;
        if self.complete.contains(name) {
            return None;
        }
        match self.peers.checksums(about.link, about.device, links) {
            Checksums::Complete => None,
            Checksums::Partial(peer) => Some(Finding::new(
                Obstacle::PartialChecksums,
                format!(
                    "{peer}, its other end, leaves checksums to a device that never writes them"
                ),
                format!("`ethtool -K {peer} tx off` there"),
            )),
            Checksums::Guest => Some(Finding::new(
                Obstacle::PartialChecksums,
                "it is a tap device whose guest may leave checksums to it (vnet_hdr)",
                format!(
                    "turn that off in the guest and name {name} in `complete-checksums` of [fast-path]"
                ),
            )),
            Checksums::Unknown(why) => Some(Finding::new(
                Obstacle::UnknownChecksums,
                format!("whether its other end writes checksums cannot be found out ({why})"),
                format!(
                    "`ethtool -K PEER tx off` there, and name {name} in `complete-checksums` of [fast-path]"
                ),
            )),
        }
    }

    /// Programs and filters of others at TC.
    fn filters(&self, about: &About<'_>) -> io::Result<Vec<Finding>> {
        let name = &about.link.name;
        let ours = detach::pinned_program(&self.instance.pin(&tcx_pin(name)))?;
        let mut found = Vec::new();
        for (egress, obstacle, which) in [
            (false, Obstacle::TcIngress, "ingress"),
            (true, Obstacle::TcEgress, "egress"),
        ] {
            let kind = if egress {
                TcAttachType::Egress
            } else {
                TcAttachType::Ingress
            };
            // Before TCX there are none of its kind.
            let programs = SchedClassifier::query_tcx(name, kind)
                .map(|(_, programs)| programs)
                .unwrap_or_default();
            let foreign = programs.iter().any(|info| Some(info.id()) != ours);
            let filters = route::filters(about.link.index, egress)?;
            // The head of a list of filters has the handle 0.
            let is_ours = |(priority, handle): &(u16, u32)| {
                egress && *priority == PRIORITY && (*handle == 0 || *handle == u32::from(HANDLE))
            };
            if foreign || !filters.iter().all(is_ours) {
                found.push(Finding::new(
                    obstacle,
                    format!("there are other filters at its TC {which}"),
                    format!("remove them (`tc filter show dev {name} {which}`)"),
                ));
            }
        }
        Ok(found)
    }
}

/// One interface.
struct About<'a> {
    iface: &'a Iface,
    link: &'a Link,
    device: &'a Device,
    /// In its zone.
    alone: bool,
}

impl About<'_> {
    /// What it is, and where XDP runs on it.
    fn kind(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.iface.flags & iface_flags::NO_ETHERNET != 0 || self.device.mac.is_none() {
            found.push(Finding::new(
                Obstacle::NoEthernet,
                "its packets have no Ethernet header",
                "nothing to be done",
            ));
        } else if self.iface.flags & iface_flags::XDP_NATIVE == 0 {
            found.push(Finding::new(
                Obstacle::Generic,
                "XDP runs in the generic hook, where nothing would be gained",
                "use --mode native, if the driver has it",
            ));
        }
        if self.device.port {
            found.push(Finding::new(
                Obstacle::Port,
                "it is part of another interface (a bridge, a bond or a VRF)",
                "nothing to be done",
            ));
        }
        found
    }

    /// What a look-up does not check: that the source is routed back the same way. If
    /// its zone has no other interface, the flow's zone says the same.
    fn reverse_path(&self) -> Option<Finding> {
        let strict = ["all", self.link.name.as_str()].into_iter().map(|conf| {
            let path = format!("/proc/sys/net/ipv4/conf/{conf}/rp_filter");
            fs::read_to_string(path)
                .ok()
                .and_then(|text| text.trim().parse::<u8>().ok())
                .unwrap_or(0)
        });
        let strict = strict.max() == Some(1);
        (strict && !self.alone).then(|| {
            Finding::new(
                Obstacle::ReversePath,
                "strict reverse path filtering is on, and its zone has another interface",
                format!(
                    "give it a zone of its own, or `sysctl -w net.ipv4.conf.{}.rp_filter=2`",
                    self.link.name
                ),
            )
        })
    }

    fn redirects(&self, features: &mut Option<XdpFeatures>) -> io::Result<Option<Finding>> {
        let name = &self.link.name;
        let takes = match features {
            Some(features) => features.takes_redirects(self.link.index)?,
            None => sys::driver(name).is_ok_and(|driver| DRIVERS.contains(&driver.as_str())),
        };
        let veth = self.link.kind.as_deref() == Some("veth");
        Ok((!takes).then(|| {
            if veth {
                Finding::new(
                    Obstacle::NoRedirect,
                    "its other end does not take packets from XDP",
                    "`ethtool -K PEER gro on` there (kernel 6.3 or newer)",
                )
            } else {
                Finding::new(
                    Obstacle::NoRedirect,
                    "the device does not take packets from XDP",
                    "a newer kernel or driver may",
                )
            }
        }))
    }

    fn shaping(&self) -> io::Result<Option<Finding>> {
        let name = &self.link.name;
        let kinds = bypass::qdiscs(self.link.index)?;
        let found = kinds
            .iter()
            .find(|kind| !PLAIN_QDISCS.contains(&kind.as_str()));
        Ok(found.map(|kind| {
            Finding::new(
                Obstacle::Shaping,
                format!("its queueing discipline {kind} would be bypassed"),
                format!("if that is not wanted, `tc qdisc del dev {name} root`"),
            )
        }))
    }
}

/// What routes depend on, as flags.
fn routing(rules: &io::Result<Rules>) -> u32 {
    let Ok(rules) = rules else {
        return 0;
    };
    let plain = !rules.marks
        && !rules.ports
        && !rules.others
        && bypass::routes_are_plain().unwrap_or(false);
    if plain {
        return fast_flags::STEADY | fast_flags::PLAIN;
    }
    if !rules.ports && hashes_addresses() {
        return fast_flags::STEADY;
    }
    0
}

/// Are the paths of a multipath route chosen by addresses, not by ports?
fn hashes_addresses() -> bool {
    ["ipv4", "ipv6"].iter().all(|family| {
        let path = format!("/proc/sys/net/{family}/fib_multipath_hash_policy");
        // A kernel without the switch, or without the family, has but one path.
        fs::read_to_string(path).map_or(true, |text| text.trim() == "0")
    })
}

/// What concerns all interfaces.
fn everywhere(rules: &io::Result<Rules>) -> Vec<Finding> {
    let mut found = Vec::new();
    match nftables::forward_chains() {
        Ok(chains) => found.extend(chains.iter().map(|c| {
            let holds = match c.rules {
                0 => "which drops".to_owned(),
                1 => "with 1 rule".to_owned(),
                rules => format!("with {rules} rules"),
            };
            Finding::new(
                Obstacle::KernelRules,
                format!(
                    "chain {} of table {} {} ({}), {holds}, would be bypassed",
                    c.chain, c.family, c.table, c.hook
                ),
                format!(
                    "if pinhole's policy does its work, `nft delete chain {} {} {}`",
                    c.family, c.table, c.chain
                ),
            )
        })),
        Err(error) => found.push(Finding::unknown("nf_tables", &error)),
    }
    found.extend(legacy_tables().map(|(program, table)| {
        Finding::new(
            Obstacle::LegacyRules,
            format!(
                "the legacy {program} table {table} is loaded, and its rules would be bypassed"
            ),
            format!("if it is not needed, unload it (`modprobe -r {program}_{table}`)")
                .replace("iptables_", "iptable_")
                .replace("ip6tables_", "ip6table_"),
        )
    }));
    match bypass::has_ipsec() {
        Ok(false) => {}
        Ok(true) => found.push(Finding::new(
            Obstacle::Ipsec,
            "there are IPsec policies, which would be bypassed",
            "`ip xfrm policy` lists them",
        )),
        Err(error) => found.push(Finding::unknown("IPsec policies", &error)),
    }
    match rules {
        Ok(rules) if rules.marks => found.push(Finding::new(
            Obstacle::MarkRouting,
            "a routing rule looks at a mark that packets do not have yet",
            "`ip rule` and `ip -6 rule` list it",
        )),
        Ok(_) => {}
        Err(error) => found.push(Finding::unknown("routing rules", error)),
    }
    found
}

/// The tables of legacy iptables in this namespace. Whether there are rules in them
/// is not looked at: a table is there once somebody has used it.
fn legacy_tables() -> impl Iterator<Item = (&'static str, String)> {
    [
        ("/proc/thread-self/net/ip_tables_names", "iptables"),
        ("/proc/thread-self/net/ip6_tables_names", "ip6tables"),
    ]
    .into_iter()
    .flat_map(|(path, program)| {
        let names = fs::read_to_string(path).unwrap_or_default();
        let names: Vec<String> = names.lines().map(ToOwned::to_owned).collect();
        names.into_iter().map(move |name| (program, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_shared_only_where_all_forward_alike() {
        const ALL: u32 = fast_flags::STEADY | fast_flags::PLAIN;
        let (both, v4) = ([true, true], [true, false]);
        assert_eq!(routing_at(ALL, both, &[both, both]), ALL);
        assert_eq!(routing_at(ALL, v4, &[v4, v4]), ALL, "none forwards IPv6");
        for here in [both, v4] {
            let routing = routing_at(ALL, here, &[both, v4]);
            assert_eq!(routing, fast_flags::STEADY);
        }
        assert_eq!(routing_at(0, both, &[both]), 0);
    }
}

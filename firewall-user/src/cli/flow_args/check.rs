//! What the arguments of `flows` ask for, held against each other and the instance.

use firewall_common::{
    abi::{MAX_ZONES, ZONE_HOST},
    wire::proto,
};

use super::{Family, FilterArgs, GetArgs, Helper};
use crate::{
    bpf::{
        maps::{Names, Pinned},
        text,
    },
    error::Usage,
    filter::{Filter, Status},
    protocol,
};

impl FilterArgs {
    /// Without any condition?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The filter, zones and interfaces looked up in the instance.
    ///
    /// # Errors
    /// [`Usage`] for conditions that no flow can meet and for names that are
    /// not there; maps that cannot be read.
    pub fn resolve(&self, pinned: &Pinned) -> anyhow::Result<Filter> {
        self.check()?;
        let zone = match &self.iface {
            Some(name) => Some(zone_of_iface(pinned, name)?),
            None => zone_named(pinned, "--zone", self.zone.as_deref())?,
        };
        let mut status = self.status.clone();
        status.extend(self.helper.map(|Helper::Ftp| Status::OF_FTP));
        Ok(Filter {
            v4: self.v4(),
            proto: self.proto,
            src: self.src,
            dst: self.dst,
            addr: self.addr,
            sport: self.sport,
            dport: self.dport,
            port: self.port,
            icmp_id: self.icmp_id,
            state: self.state,
            status,
            zone,
            from_zone: zone_named(pinned, "--from-zone", self.from_zone.as_deref())?,
            to_zone: zone_named(pinned, "--to-zone", self.to_zone.as_deref())?,
        })
    }

    const fn v4(&self) -> Option<bool> {
        match self.family {
            Some(Family::Ipv4) => Some(true),
            Some(Family::Ipv6) => Some(false),
            None if self.ipv4 => Some(true),
            None if self.ipv6 => Some(false),
            None => None,
        }
    }

    /// Conditions that contradict each other match nothing, and would look as if
    /// there were no such flow.
    pub(super) fn check(&self) -> Result<(), Usage> {
        self.check_families()?;
        let Some(number) = self.proto else {
            return Ok(());
        };
        let name = protocol::name(number);
        let ports = self.sport.or(self.dport).or(self.port);
        if ports.is_some() && !has_ports(number) {
            return Err(Usage::new(format!(
                "{name} has no ports: leave them out, or use `--proto tcp` or `--proto udp`{}",
                if is_icmp(number) {
                    "; an echo has an identifier, `--icmp-id 77`"
                } else {
                    ""
                }
            )));
        }
        if self.icmp_id.is_some() && !is_icmp(number) {
            return Err(Usage::new(format!(
                "--icmp-id is of icmp and icmpv6, not of {name}: use `--proto icmp --icmp-id 77`"
            )));
        }
        match self.state {
            Some(state) if state.is_tcp() != (number == proto::TCP) => Err(Usage::new(format!(
                "{name} has no such state: use {}",
                if number == proto::TCP {
                    "a TCP state, `--state established`, or `--status unreplied`"
                } else {
                    "`--state unreplied` or `--state replied`"
                }
            ))),
            _ => Ok(()),
        }
    }

    fn check_families(&self) -> Result<(), Usage> {
        let nets = [
            ("--src", self.src),
            ("--dst", self.dst),
            ("--addr", self.addr),
        ];
        let given = nets
            .iter()
            .filter_map(|(name, net)| Some((*name, (*net)?.is_v4())));
        let by_proto = match self.proto {
            Some(proto::ICMP) => Some(("--proto icmp", true)),
            Some(proto::ICMPV6) => Some(("--proto icmpv6", false)),
            _ => None,
        };
        let by_family = self.v4().map(|v4| ("the address family", v4));
        let mut said = given.chain(by_proto).chain(by_family);
        let Some((first, v4)) = said.next() else {
            return Ok(());
        };
        match said.find(|(_, other)| *other != v4) {
            Some((other, _)) => {
                let [a, b] = if v4 {
                    ["IPv4", "IPv6"]
                } else {
                    ["IPv6", "IPv4"]
                };
                Err(Usage::new(format!(
                    "no flow is of both families: {first} is {a}, {other} is {b}; use one family"
                )))
            }
            None => Ok(()),
        }
    }
}

impl GetArgs {
    /// The two ports of the key (the identifier twice for an echo).
    ///
    /// # Errors
    /// [`Usage`] where something is missing, too much, or of two families.
    pub fn ports(&self) -> Result<(u16, u16), Usage> {
        let name = protocol::name(self.proto);
        if self.src.is_ipv4() != self.dst.is_ipv4() {
            return Err(Usage::new(format!(
                "{} and {} are of two families: no flow has both",
                self.src, self.dst
            )));
        }
        match (self.sport, self.dport, self.icmp_id) {
            (Some(sport), Some(dport), None) if has_ports(self.proto) => Ok((sport, dport)),
            (None, None, Some(id)) if is_icmp(self.proto) => Ok((id, id)),
            (None, None, None) if !has_ports(self.proto) && !is_icmp(self.proto) => Ok((0, 0)),
            _ if has_ports(self.proto) => Err(Usage::new(format!(
                "a {name} flow is named by both ports: \
                 `flows get -p {name} -s {} --sport 40000 -d {} --dport 22`",
                self.src, self.dst
            ))),
            _ if is_icmp(self.proto) => Err(Usage::new(format!(
                "an echo flow is named by its identifier: \
                 `flows get -p {name} -s {} -d {} --icmp-id 77`",
                self.src, self.dst
            ))),
            _ => Err(Usage::new(format!(
                "{name} has neither ports nor identifiers: `flows get -p {name} -s {} -d {}`",
                self.src, self.dst
            ))),
        }
    }
}

fn zone_named(pinned: &Pinned, option: &str, name: Option<&str>) -> anyhow::Result<Option<u8>> {
    let Some(name) = name else {
        return Ok(None);
    };
    if name == Names::HOST {
        return Ok(Some(ZONE_HOST));
    }
    let ifaces = pinned.ifaces()?;
    let found = ifaces
        .iter()
        .find(|(_, iface)| text(&iface.zone_name) == name);
    if let Some((_, iface)) = found {
        return Ok(Some(iface.zone));
    }
    // What lists print for a zone whose last interface has gone.
    let number = name.strip_prefix("zone-").and_then(|n| n.parse().ok());
    if let Some(number) = number.filter(|n| (1..=MAX_ZONES).contains(n)) {
        return Ok(Some(number));
    }
    let mut known: Vec<_> = ifaces.iter().map(|(_, i)| text(&i.zone_name)).collect();
    known.push(Names::HOST.into());
    known.sort_unstable();
    known.dedup();
    Err(Usage::new(format!(
        "{option} {name}: no such zone; there are {}",
        known.join(", ")
    ))
    .into())
}

fn zone_of_iface(pinned: &Pinned, name: &str) -> anyhow::Result<u8> {
    let ifaces = pinned.ifaces()?;
    let found = ifaces.iter().find(|(_, iface)| text(&iface.name) == name);
    found.map(|(_, iface)| iface.zone).ok_or_else(|| {
        let known: Vec<_> = ifaces.iter().map(|(_, i)| text(&i.name)).collect();
        Usage::new(format!(
            "--iface {name}: it is not guarded; guarded are {}",
            known.join(", ")
        ))
        .into()
    })
}

const fn has_ports(number: u8) -> bool {
    matches!(number, proto::TCP | proto::UDP)
}

const fn is_icmp(number: u8) -> bool {
    matches!(number, proto::ICMP | proto::ICMPV6)
}

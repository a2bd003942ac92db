//! Which flows a command is about.

mod value;

use std::{net::IpAddr, str::FromStr};

use firewall_common::{abi::flow_flags, wire::proto};

pub use value::{Net, Ports, StateName};

use crate::bpf::{
    address,
    maps::{FlowRow, FlowTier},
};

/// Conditions on a flow. All that are set must hold; none set is every flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// IPv4 (true) or IPv6.
    pub v4: Option<bool>,
    /// Protocol number.
    pub proto: Option<u8>,
    /// Source of the first packet.
    pub src: Option<Net>,
    /// Destination of the first packet.
    pub dst: Option<Net>,
    /// Either end.
    pub addr: Option<Net>,
    /// Source port of the first packet.
    pub sport: Option<Ports>,
    /// Destination port of the first packet.
    pub dport: Option<Ports>,
    /// Port of either end.
    pub port: Option<Ports>,
    /// Identifier of an ICMP echo.
    pub icmp_id: Option<u16>,
    /// Protocol state.
    pub state: Option<StateName>,
    /// Each of them must hold.
    pub status: Vec<Status>,
    /// Number of the zone of either end.
    pub zone: Option<u8>,
    /// Number of the zone that the first packet came from.
    pub from_zone: Option<u8>,
    /// Number of the zone that the first packet went to.
    pub to_zone: Option<u8>,
}

impl Filter {
    /// Does the flow meet all conditions?
    #[must_use]
    pub fn matches(&self, row: &FlowRow) -> bool {
        let (src, sport, dst, dport) = row.key.endpoints(row.state().first_heading());
        let zones = (row.flow.from_zone(), row.flow.to_zone());
        self.proto.is_none_or(|wanted| wanted == row.key.proto())
            && self.addresses(address(src), address(dst))
            && self.ports(row.key.proto(), sport, dport)
            && self
                .state
                .is_none_or(|state| state.number() == row.state().state())
            && self.status.iter().all(|status| status.holds(row))
            && self
                .zone
                .is_none_or(|zone| zone == zones.0 || zone == zones.1)
            && self.from_zone.is_none_or(|zone| zone == zones.0)
            && self.to_zone.is_none_or(|zone| zone == zones.1)
    }

    fn addresses(&self, src: IpAddr, dst: IpAddr) -> bool {
        self.v4.is_none_or(|v4| v4 == src.is_ipv4())
            && self.src.is_none_or(|net| net.contains(src))
            && self.dst.is_none_or(|net| net.contains(dst))
            && self
                .addr
                .is_none_or(|net| net.contains(src) || net.contains(dst))
    }

    fn ports(&self, protocol: u8, sport: u16, dport: u16) -> bool {
        // In the key of an echo flow, the identifier stands where ports stand.
        let is_echo = matches!(protocol, proto::ICMP | proto::ICMPV6);
        let port = |ports: Ports, port| !is_echo && ports.contains(port);
        self.sport.is_none_or(|ports| port(ports, sport))
            && self.dport.is_none_or(|ports| port(ports, dport))
            && self
                .port
                .is_none_or(|ports| port(ports, sport) || port(ports, dport))
            && self.icmp_id.is_none_or(|id| is_echo && id == sport)
    }
}

/// What can be asked of a flow beside its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not proved yet.
    HalfOpen,
    /// A flag of [`flow_flags`] is set, or any of several.
    Set(u32),
    /// A flag is not set.
    Unset(u32),
}

impl Status {
    const NAMES: [(&str, Self); 10] = [
        ("half-open", Self::HalfOpen),
        ("assured", Self::Set(flow_flags::ASSURED)),
        ("seen-reply", Self::Set(flow_flags::SEEN_REPLY)),
        ("unreplied", Self::Unset(flow_flags::SEEN_REPLY)),
        ("related", Self::Set(flow_flags::RELATED)),
        ("helper", Self::Set(flow_flags::HELPER_FTP)),
        ("blind", Self::Set(flow_flags::BLIND)),
        ("seeded", Self::Set(flow_flags::SEEDED)),
        ("from-inside", Self::Set(flow_flags::FROM_INSIDE)),
        ("would-drop", Self::Set(flow_flags::WOULD_DROP)),
    ];

    /// Of the FTP helper's flows: control connections, which it reads, and the data
    /// connections that they negotiated.
    pub const OF_FTP: Self = Self::Set(flow_flags::HELPER_FTP | flow_flags::RELATED);

    fn holds(self, row: &FlowRow) -> bool {
        match self {
            Self::HalfOpen => row.tier == FlowTier::HalfOpen,
            Self::Set(flag) => row.state().has(flag),
            Self::Unset(flag) => !row.state().has(flag),
        }
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.to_ascii_lowercase().replace('_', "-");
        // What nf_conntrack calls a related flow.
        let wanted = if wanted == "expected" {
            "related"
        } else {
            &wanted
        };
        let known = Self::NAMES.iter().find(|(name, _)| *name == wanted);
        known.map(|(_, status)| *status).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("use one of {}; several with commas", names.join(", "))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;

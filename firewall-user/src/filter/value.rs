//! What stands behind an option of a filter. Errors say what can be written.

use std::{net::IpAddr, str::FromStr};

use firewall_common::tcp::{State, generic};
use ipnet::IpNet;

/// Ports from the first to the second, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    low: u16,
    high: u16,
}

impl Ports {
    /// Is `port` one of them?
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "use a port, `22`, or a range, `1024-65535`";
        let (low, high) = text.split_once(['-', ':']).unwrap_or((text, text));
        let number = |part: &str| part.parse::<u16>().map_err(|_| form.to_owned());
        let (low, high) = (number(low)?, number(high)?);
        if low > high {
            return Err(format!("the range is reversed: use `{high}-{low}`"));
        }
        Ok(Self { low, high })
    }
}

/// A network, or one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net(IpNet);

impl Net {
    /// Is `address` in it?
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Is it of IPv4?
    #[must_use]
    pub const fn is_v4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "use an address, `192.0.2.1` or `2001:db8::1`, or a network, `192.0.2.0/24`";
        let host = text.parse::<IpAddr>().ok().map(IpNet::from);
        let net: IpNet = host
            .or_else(|| text.parse().ok())
            .ok_or_else(|| form.to_owned())?;
        if net != net.trunc() {
            return Err(format!(
                "bits are set beyond the prefix: use `{}` for the network, or `{}` for the host",
                net.trunc(),
                net.addr()
            ));
        }
        if matches!(net.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err("no packet carries an IPv4-mapped address: write it as IPv4".into());
        }
        Ok(Self(net))
    }
}

/// A protocol state by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateName(u8);

impl StateName {
    /// As in the flow's state word.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Is it one of TCP?
    #[must_use]
    pub fn is_tcp(self) -> bool {
        State::try_from(self.0).is_ok()
    }
}

impl FromStr for StateName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.to_ascii_uppercase().replace('-', "_");
        let tcp = tcp_states().find(|state| state.name() == wanted);
        match (tcp, wanted.as_str()) {
            (Some(state), _) => Ok(Self(state as u8)),
            (None, "UNREPLIED") => Ok(Self(generic::UNREPLIED)),
            (None, "REPLIED") => Ok(Self(generic::REPLIED)),
            (None, _) => Err(format!(
                "use {} for TCP, or unreplied or replied for anything else",
                tcp_states()
                    .map(|state| state.name().to_ascii_lowercase())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }
}

fn tcp_states() -> impl Iterator<Item = State> {
    (1..generic::UNREPLIED).filter_map(|number| State::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_a_range() {
        for (text, inside, outside) in [
            ("22", 22, 23),
            ("1024-65535", 1024, 1023),
            ("6000:6001", 6001, 6002),
            ("0", 0, 1),
        ] {
            let ports: Ports = text.parse().unwrap();
            assert!(ports.contains(inside) && !ports.contains(outside), "{text}");
        }
        for bad in ["", "-", "ssh", "65536", "1-", "-1", "1-2-3", "1,2", " 22"] {
            let error = bad.parse::<Ports>().unwrap_err();
            assert!(error.contains("`1024-65535`"), "{bad}: {error}");
        }
        let reversed = "20-10".parse::<Ports>().unwrap_err();
        assert!(reversed.contains("`10-20`"), "{reversed}");
    }

    #[test]
    fn networks_and_hosts() {
        let net: Net = "192.0.2.0/24".parse().unwrap();
        assert!(net.contains("192.0.2.255".parse().unwrap()));
        assert!(!net.contains("192.0.3.0".parse().unwrap()));
        assert!(!net.contains("2001:db8::1".parse().unwrap()));
        let host: Net = "2001:db8::1".parse().unwrap();
        assert!(host.contains("2001:db8::1".parse().unwrap()) && !host.is_v4());
        for bad in [
            "",
            "host",
            "192.0.2",
            "192.0.2.0/33",
            "192.0.2.0/255.255.255.0",
            "::1/129",
        ] {
            let error = bad.parse::<Net>().unwrap_err();
            assert!(error.contains("`192.0.2.0/24`"), "{bad}: {error}");
        }
        let beyond = "192.0.2.1/24".parse::<Net>().unwrap_err();
        assert!(
            beyond.contains("`192.0.2.0/24`") && beyond.contains("`192.0.2.1`"),
            "{beyond}"
        );
        assert!("::ffff:192.0.2.1".parse::<Net>().is_err());
    }

    #[test]
    fn states_go_by_the_names_of_conntrack() {
        for (text, wanted) in [
            ("established", State::Established as u8),
            ("TIME_WAIT", State::TimeWait as u8),
            ("syn-sent", State::SynSent as u8),
            ("unreplied", generic::UNREPLIED),
            ("replied", generic::REPLIED),
        ] {
            assert_eq!(text.parse(), Ok(StateName(wanted)), "{text}");
        }
        for bad in ["", "none", "open", "3", "established,close"] {
            let error = bad.parse::<StateName>().unwrap_err();
            let both = error.contains("established") && error.contains("unreplied");
            assert!(both, "{bad}: {error}");
        }
    }
}

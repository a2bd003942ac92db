//! Values of the configuration that are right by construction.

use std::{fmt, marker::PhantomData, net::IpAddr};

use firewall_common::{time, wire::proto};
use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use super::error::complaint;

/// A type that stands in the file as a number or a text. Errors are [`complaint`]s.
trait Scalar: Sized {
    const EXPECTING: &str;

    fn from_number(number: i64) -> Result<Self, String>;

    fn from_text(text: &str) -> Result<Self, String>;
}

/// Ports from the first to the second, both included; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    low: u16,
    high: u16,
}

impl PortRange {
    /// Every port a packet can have, 0 too.
    pub(super) const ANY: Self = Self {
        low: 0,
        high: u16::MAX,
    };

    /// One port.
    #[must_use]
    pub const fn single(port: std::num::NonZeroU16) -> Self {
        Self {
            low: port.get(),
            high: port.get(),
        }
    }

    /// Lowest and highest.
    #[must_use]
    pub const fn bounds(self) -> [u16; 2] {
        [self.low, self.high]
    }

    fn port(number: i64) -> Result<u16, String> {
        u16::try_from(number)
            .ok()
            .filter(|&port| port > 0)
            .ok_or_else(|| complaint(format_args!("{number} is not a port"), "use 1 to 65535"))
    }
}

impl Scalar for PortRange {
    const EXPECTING: &str = "a port or a range like \"8000-8100\"";

    fn from_number(number: i64) -> Result<Self, String> {
        let port = Self::port(number)?;
        Ok(Self {
            low: port,
            high: port,
        })
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let number = part.trim().parse::<i64>().map_err(|_| {
                complaint(
                    format_args!("`{text}` is not a port or a range"),
                    "write a number, or a range like \"8000-8100\"",
                )
            })?;
            Self::port(number)
        };
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let (low, high) = (number(low)?, number(high)?);
        if low > high {
            let turned = format!("write \"{high}-{low}\"");
            return Err(complaint(
                format_args!("the range {text} is reversed"),
                turned,
            ));
        }
        Ok(Self { low, high })
    }
}

/// A network or a host, no bits set beyond the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix(IpNet);

impl Prefix {
    /// The network.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }
}

impl Scalar for Prefix {
    const EXPECTING: &str = "an address or a network like \"10.0.0.0/8\"";

    fn from_number(number: i64) -> Result<Self, String> {
        Err(complaint(
            format_args!("{number} is not an address"),
            "write text like \"10.0.0.0/8\" or \"2001:db8::1\"",
        ))
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let host = text.parse::<IpAddr>().ok().map(IpNet::from);
        let net: IpNet = host.or_else(|| text.parse().ok()).ok_or_else(|| {
            complaint(
                format_args!("`{text}` is not an address or a network"),
                "write text like \"10.0.0.0/8\" or \"2001:db8::1\"",
            )
        })?;
        if net != net.trunc() {
            let help = format!(
                "write \"{}\" for the network, or \"{}\" for that one host",
                net.trunc(),
                net.addr()
            );
            return Err(complaint(
                format_args!("{text} has bits set beyond its prefix"),
                help,
            ));
        }
        match net {
            IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(complaint(
                format_args!("{text} is an IPv4-mapped address, which no packet carries"),
                "write it as IPv4",
            )),
            _ => Ok(Self(net)),
        }
    }
}

/// An IP protocol, or any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proto(u8);

impl Proto {
    /// TCP.
    pub const TCP: Self = Self(proto::TCP);

    /// Its number, 0 for any.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Does it have ports?
    #[must_use]
    pub const fn has_ports(self) -> bool {
        self.0 == proto::TCP || self.0 == proto::UDP
    }
}

impl Scalar for Proto {
    const EXPECTING: &str = "a protocol: tcp, udp, icmp, icmpv6, any, or a number";

    fn from_number(number: i64) -> Result<Self, String> {
        u8::try_from(number)
            .ok()
            .filter(|&n| n > 0)
            .map(Self)
            .ok_or_else(|| {
                complaint(
                    format_args!("{number} is not an IP protocol"),
                    "use 1 to 255, or \"any\"",
                )
            })
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "any" => 0,
            "tcp" => proto::TCP,
            "udp" => proto::UDP,
            "icmp" => proto::ICMP,
            "icmpv6" => proto::ICMPV6,
            _ => {
                return Err(complaint(
                    format_args!("unknown protocol `{text}`"),
                    "use tcp, udp, icmp, icmpv6, any, or a number without quotes",
                ));
            }
        }))
    }
}

/// A time-out: at least a second, and short enough to be compared in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(u32);

impl Seconds {
    /// Serial arithmetic compares ticks that are less than 2^31 apart.
    const MAX: i64 = (((1_u64 << 31) - 1) * (1 << time::TICK_SHIFT) / time::NS_PER_SEC) as i64;

    /// `seconds`, which the caller knows to be in bounds.
    pub(super) const fn of(seconds: u32) -> Self {
        assert!(seconds > 0 && (seconds as i64) < Self::MAX);
        Self(seconds)
    }

    /// In seconds.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// In ticks, rounded up.
    #[must_use]
    pub const fn ticks(self) -> u32 {
        time::ticks_from_secs(self.0 as u64)
    }
}

impl Scalar for Seconds {
    const EXPECTING: &str = "a whole number of seconds";

    fn from_number(number: i64) -> Result<Self, String> {
        if !(1..=Self::MAX).contains(&number) {
            return Err(complaint(
                format_args!("{number} seconds is not a usable time-out"),
                format_args!("use 1 to {}", Self::MAX),
            ));
        }
        Ok(Self(number as u32))
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Err(complaint(
            format_args!("`{text}` is not a number of seconds"),
            "write a number without quotes and without a unit",
        ))
    }
}

/// One or several of something. Never empty: an empty list would match nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Several<T>(Vec<T>);

impl<T> Several<T> {
    /// The elements, at least one.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T> From<T> for Several<T> {
    fn from(one: T) -> Self {
        Self(vec![one])
    }
}

struct ScalarVisitor<T>(PhantomData<T>);

impl<T: Scalar> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTING)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        T::from_number(number).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).map_err(E::custom)
    }
}

macro_rules! deserialize_scalar {
    ($($name:ident),+) => { $(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(ScalarVisitor(PhantomData))
            }
        }
    )+ };
}
deserialize_scalar!(PortRange, Prefix, Proto, Seconds);

struct SeveralVisitor<T>(PhantomData<T>);

impl<'de, T: Scalar + Deserialize<'de>> Visitor<'de> for SeveralVisitor<T> {
    type Value = Several<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of such", T::EXPECTING)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Several<T>, E> {
        T::from_number(number).map(Several::from).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Several<T>, E> {
        T::from_text(text).map(Several::from).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Several<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element()? {
            all.push(one);
        }
        if all.is_empty() {
            let text = complaint(
                "an empty list matches nothing",
                "remove the key to match everything",
            );
            return Err(de::Error::custom(text));
        }
        Ok(Several(all))
    }
}

impl<'de, T: Scalar + Deserialize<'de>> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SeveralVisitor(PhantomData))
    }
}

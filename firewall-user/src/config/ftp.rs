//! What the FTP helper may do.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use super::{
    Tables,
    error::{Error, Source},
    ranges,
    raw::{self, RawAlias, RawFtp},
    value::{Prefix, Seconds},
};
use crate::ftp::{ActiveOpen, Alias, Ccc, SessionRange};

/// Of all expectations, a client may have one in this many.
const CLIENT_SHARE: u32 = 8;
/// But always this many: more than a mirroring client needs at a time.
const CLIENT_ALWAYS: u32 = 16;

/// What the FTP helper may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ftp {
    /// Life of a pinhole that nobody uses.
    pub expectation_timeout: Seconds,
    /// Live pinholes of one session; the newest replaces the oldest.
    pub max_expectations_per_session: u32,
    /// Live pinholes of all sessions of one client; more are refused.
    pub max_expectations_per_client: u32,
    /// When an active data connection is let in.
    pub active: ActiveOpen,
    /// Whether clear text after TLS is read.
    pub ccc: Ccc,
    /// How long after the end of its control connection a data connection is
    /// deleted; `None`: never.
    pub cut_after: Option<Seconds>,
    /// Does the helper run ahead of other processes?
    pub realtime: bool,
    /// Addresses that servers announce in place of their own.
    pub aliases: Vec<Alias>,
    /// What encrypted sessions may have.
    pub ranges: Vec<SessionRange>,
}

/// Takes what the file says.
pub(super) fn check(source: &Source<'_>, raw: &RawFtp, tables: &Tables) -> Result<Ftp, Error> {
    let per_session = raw.max_expectations_per_session.as_ref();
    let per_client = raw.max_expectations_per_client.as_ref();
    let max = tables.expectations;
    let aliases = raw.alias.iter().map(|raw| alias(source, raw));
    Ok(Ftp {
        expectation_timeout: raw.expectation_timeout,
        max_expectations_per_session: number(
            source,
            per_session,
            1,
            64,
            "expectations per session",
            "use 1 to 64; clients need 1",
        )?,
        max_expectations_per_client: number(
            source,
            per_client,
            (max / CLIENT_SHARE).max(CLIENT_ALWAYS),
            max.max(CLIENT_ALWAYS),
            "expectations per client",
            &format!("use 1 to {max}, the size of [tables] expectations"),
        )?,
        active: match raw.active {
            raw::Active::AtCommand => ActiveOpen::AtCommand,
            raw::Active::AfterReply => ActiveOpen::AtReply,
        },
        ccc: match raw.ccc {
            raw::Ccc::Allow => Ccc::Allow,
            raw::Ccc::Alert => Ccc::Alert,
            raw::Ccc::Refuse => Ccc::Refuse,
        },
        cut_after: match raw.data_after_control {
            raw::DataAfterControl::Keep => None,
            raw::DataAfterControl::Cut => Some(raw.cut_after),
        },
        realtime: raw.scheduling == raw::Scheduling::Realtime,
        aliases: aliases.collect::<Result<_, _>>()?,
        ranges: raw
            .session_range
            .iter()
            .map(|raw| ranges::of_session(source, raw))
            .collect::<Result<_, _>>()?,
    })
}

/// A number from 1 to `max`. `what` and `help` say of what, and what to do, where
/// it is not.
pub(super) fn number(
    source: &Source<'_>,
    given: Option<&Spanned<i64>>,
    default: u32,
    max: u32,
    what: &str,
    help: &str,
) -> Result<u32, Error> {
    let Some(given) = given else {
        return Ok(default);
    };
    let number = *given.get_ref();
    let fits = u32::try_from(number).ok().filter(|n| (1..=max).contains(n));
    fits.ok_or_else(|| source.error(given.span(), format!("{number} {what}"), help))
}

fn alias(source: &Source<'_>, raw: &RawAlias) -> Result<Alias, Error> {
    let server = raw.server.get_ref().net();
    let announces = host(source, &raw.announces)?;
    if announces.is_ipv4() != server.addr().is_ipv4() {
        return Err(source.error(
            raw.announces.span(),
            format!("{announces} is of another family than the server {server}"),
            "a session over IPv4 announces IPv4 addresses, one over IPv6 those of IPv6",
        ));
    }
    if server == IpNet::from(announces) {
        return Err(source.error(
            raw.announces.span(),
            format!("{announces} is the server's own address"),
            "remove the alias: its own address a server may always announce",
        ));
    }
    if announces.is_unspecified() || announces.is_multicast() || announces.is_loopback() {
        return Err(source.error(
            raw.announces.span(),
            format!("{announces} is the address of no server"),
            "write the address in the server's 227 reply; `pinhole ftp watch` shows it",
        ));
    }
    Ok(Alias { server, announces })
}

/// One address, not a network.
fn host(source: &Source<'_>, prefix: &Spanned<Prefix>) -> Result<IpAddr, Error> {
    let net = prefix.get_ref().net();
    if net.prefix_len() == net.max_prefix_len() {
        return Ok(net.addr());
    }
    Err(source.error(
        prefix.span(),
        format!("a server announces one address, not {net}"),
        "write one address, and an [[ftp.alias]] for each server and address",
    ))
}

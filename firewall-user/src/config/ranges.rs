//! Ranges of ports for data connections that nobody can read the ports of.

use ipnet::IpNet;
use toml::Spanned;

use super::{
    PolicyRule, Zone, check,
    error::{Error, Source},
    ftp::number,
    raw::{RawFixedRange, RawSessionRange},
    value::{PortRange, Prefix, Proto, Several},
};
use crate::ftp::{DataPort, SessionRange};

/// Data connections of a session at once, unless the file says: clients open one,
/// mirroring ones a few.
const AT_ONCE: u32 = 8;
/// New data connections of a session within a minute, unless the file says.
const PER_MINUTE: u32 = 120;
/// How the rules of fixed ranges are called.
const FIXED: &str = "fixed-range";

/// Is the name that of a rule that a fixed range stands for?
pub(super) fn is_reserved(name: &str) -> bool {
    let number = name.strip_prefix(FIXED).and_then(|n| n.strip_prefix('-'));
    let number = number.map(|n| n.strip_suffix("-active").unwrap_or(n));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// What encrypted sessions may have while they live.
pub(super) fn of_session(
    source: &Source<'_>,
    raw: &Spanned<RawSessionRange>,
) -> Result<SessionRange, Error> {
    let raw = raw.get_ref();
    let hosts = hosts(source, &raw.clients, &raw.servers, &raw.ports)?;
    Ok(SessionRange {
        clients: hosts.clients,
        servers: hosts.servers,
        ports: hosts.ports.bounds(),
        active: raw.active,
        max: number(
            source,
            raw.max.as_ref(),
            AT_ONCE,
            1024,
            "data connections at once",
            "use 1 to 1024",
        )? as usize,
        per_minute: number(
            source,
            raw.per_minute.as_ref(),
            PER_MINUTE,
            60_000,
            "data connections a minute",
            "use 1 to 60000",
        )? as usize,
    })
}

/// The rules that fixed ranges stand for.
pub(super) fn fixed(
    source: &Source<'_>,
    raw: &[Spanned<RawFixedRange>],
    zones: &[Zone],
) -> Result<Vec<PolicyRule>, Error> {
    let mut rules = Vec::new();
    for (number, raw) in (1_usize..).zip(raw) {
        let raw = raw.get_ref();
        let hosts = hosts(source, &raw.clients, &raw.servers, &raw.ports)?;
        let zone = |name: Option<&Spanned<String>>| check::zone_number(source, name, zones);
        let passive = PolicyRule {
            name: format!("{FIXED}-{number}"),
            from: zone(raw.client_zone.as_ref())?,
            to: zone(raw.server_zone.as_ref())?,
            proto: Proto::TCP,
            src: hosts.clients,
            dst: hosts.servers,
            sport: Vec::new(),
            dport: vec![hosts.ports],
            accept: true,
            helper: false,
            loose: false,
            liberal: false,
        };
        let active = raw.active.then(|| PolicyRule {
            name: format!("{FIXED}-{number}-active"),
            from: passive.to,
            to: passive.from,
            src: passive.dst.clone(),
            dst: passive.src.clone(),
            ..passive.clone()
        });
        rules.push(passive);
        rules.extend(active);
    }
    Ok(rules)
}

/// Between whom, and to which ports of who listens.
struct Hosts {
    clients: Vec<IpNet>,
    servers: Vec<IpNet>,
    ports: PortRange,
}

fn hosts(
    source: &Source<'_>,
    clients: &Several<Prefix>,
    servers: &Spanned<Several<Prefix>>,
    ports: &Spanned<PortRange>,
) -> Result<Hosts, Error> {
    let at = servers.span();
    let nets = |nets: &Several<Prefix>| -> Vec<IpNet> {
        let all = nets.clone().into_vec().into_iter();
        all.map(Prefix::net).collect()
    };
    let (clients, servers) = (nets(clients), nets(servers.get_ref()));
    let is_v4 = |net: &IpNet| net.addr().is_ipv4();
    let alone = servers
        .iter()
        .find(|server| !clients.iter().any(|client| is_v4(client) == is_v4(server)));
    if let Some(server) = alone {
        return Err(source.error(
            at,
            format!("no client of the family of {server}"),
            "give clients and servers of one family, or of both",
        ));
    }
    let lowest = ports.get_ref().bounds()[0];
    if lowest < DataPort::MIN {
        return Err(source.error(
            ports.span(),
            format!("port {lowest} belongs to a service of the system"),
            "use ports of 1024 or above: the range that the server is told to use \
             (PassivePorts, pasv_min_port)",
        ));
    }
    Ok(Hosts {
        clients,
        servers,
        ports: *ports.get_ref(),
    })
}

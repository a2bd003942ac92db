//! What would have helped a session, computed for it.

use std::net::IpAddr;

use firewall_common::abi::SessionPhase;

use super::{Account, Data, Fate};
use crate::{
    bpf::maps::Names,
    ftp::{DataPort, Refusal, Side, reply},
};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// Stable name: `ccc`, `fixed-range`, `session-range`, `ask-the-server`, `beyond`,
    /// `alias`, `reconnect`, `client-mode` or `other-address`.
    pub name: &'static str,
    /// In words.
    pub text: String,
    /// What to paste into the policy; `None` if there is nothing to change here.
    pub config: Option<String>,
}

impl Remedy {
    fn new(name: &'static str, text: impl Into<String>) -> Self {
        Self {
            name,
            text: text.into(),
            config: None,
        }
    }

    fn with(mut self, config: String) -> Self {
        self.config = Some(config);
        self
    }
}

/// The narrowest range of ports that a set of sessions used for their data
/// connections to one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The lowest.
    pub low: u16,
    /// The highest.
    pub high: u16,
}

impl Seen {
    /// Of the data connections to `listener` in `accounts`, those that nobody could
    /// read; `None` if there was none.
    #[must_use]
    pub fn of(accounts: &[&Account], listener: Side) -> Option<Self> {
        let ports = accounts
            .iter()
            .flat_map(|account| &account.data)
            .filter(|data| data.encrypted && data.listener == listener && data.syns > 0)
            .filter(|data| data.in_place_of.is_none())
            .map(|data| data.dst.port())
            // To a service of the host: no range may have it.
            .filter(|port| *port >= DataPort::MIN);
        ports.fold(None, |seen: Option<Self>, port| {
            let Self { low, high } = seen.unwrap_or(Self {
                low: port,
                high: port,
            });
            Some(Self {
                low: low.min(port),
                high: high.max(port),
            })
        })
    }

    /// As in a policy file: `50000-50100`, or one port.
    #[must_use]
    pub fn text(self) -> String {
        if self.low == self.high {
            self.low.to_string()
        } else {
            format!("{}-{}", self.low, self.high)
        }
    }
}

/// Remedies for one session, the best first. `all` are the sessions that the journal
/// knows, for the ports that others between the same hosts used.
#[must_use]
pub fn remedies(account: &Account, all: &[Account], names: &Names) -> Vec<Remedy> {
    let mut out = Vec::new();
    let dropped = |data: &&Data| matches!(data.fate, Fate::DroppedHere(_) | Fate::WouldDrop(_));
    let blind: Vec<&Data> = account.blind().filter(dropped).collect();
    if !blind.is_empty() {
        out.push(ccc(account));
        let own: Vec<&Account> = all
            .iter()
            .filter(|other| other.client.ip() == account.client.ip())
            .filter(|other| other.server.ip() == account.server.ip())
            .collect();
        for listener in [Side::Server, Side::Client] {
            let here = blind.iter().any(|data| data.listener == listener);
            if let Some(seen) = Seen::of(&own, listener).filter(|_| here) {
                out.extend(ranges(account, listener, seen, names));
            }
        }
    }
    out.extend(beyond(account));
    out.extend(readable(account));
    out
}

fn ccc(account: &Account) -> Remedy {
    let offered = match account.ccc {
        Some(true) => "The server lists CCC.",
        Some(false) => {
            "The server does not list CCC; try it all the same, pure-ftpd takes it without listing it."
        }
        None => "Whether the server has CCC is not known: its FEAT was encrypted, or not asked.",
    };
    Remedy::new(
        "ccc",
        format!(
            "Let the client clear the control connection after log-in (CCC; the data stay \
             encrypted, and this helper reads the ports again). {offered} These work: `curl --ssl-reqd \
             --ftp-ssl-ccc` with proftpd, the same with `--ftp-ssl-ccc-mode active` with \
             proftpd and pure-ftpd, Python's `FTP_TLS.ccc()` with both. lftp's does not, with or \
             without a firewall; vsftpd and pyftpdlib have no CCC."
        ),
    )
}

/// The fixed range and the session range, and whom to ask.
fn ranges(account: &Account, listener: Side, seen: Seen, names: &Names) -> Vec<Remedy> {
    let (client, server) = (account.client.ip(), account.server.ip());
    let zones = account.zones.map_or(String::new(), |(client, server)| {
        format!(
            "client-zone = \"{}\"\nserver-zone = \"{}\"\n",
            names.zone(client),
            names.zone(server)
        )
    });
    let ports = seen.text();
    let active = match listener {
        Side::Server => "",
        Side::Client => "active = true\n",
    };
    let ask = match listener {
        Side::Server => format!(
            "Ask the operator of {server} for the passive ports, or to fix them (proftpd \
             PassivePorts, pure-ftpd -p, vsftpd pasv_min_port and pasv_max_port, pyftpdlib \
             passive_ports): {ports} is what was seen so far, and the range above must be theirs. \
             A firewall at that end cannot read the ports either and needs the same range."
        ),
        Side::Client => format!(
            "Tell the client {client} to use fixed ports in active mode (curl --ftp-port \
             :50000-50100), or passive mode; {ports} is what was seen so far."
        ),
    };
    let hosts =
        format!("clients = \"{client}\"\nservers = \"{server}\"\nports = \"{ports}\"\n{active}");
    vec![
        Remedy::new(
            "session-range",
            "Let data connections in while an encrypted session of these two hosts lives, and only \
             then; they end with it. Add to the policy:",
        )
        .with(format!("[[ftp.session-range]]\n{hosts}")),
        Remedy::new(
            "fixed-range",
            "Or open the range between these two hosts for good, whether they have a session or not:",
        )
        .with(format!("[[ftp.fixed-range]]\n{hosts}{zones}")),
        Remedy::new("ask-the-server", ask),
    ]
}

/// What passed here and nobody answered.
fn beyond(account: &Account) -> Option<Remedy> {
    let silent = account.data.iter().rev();
    let data = { silent }.find(|data| matches!(data.fate, Fate::NoReply(_)))?;
    let why = if data.encrypted {
        " Its helper cannot read the port either, the session is encrypted: it needs CCC or a fixed range too."
    } else {
        ""
    };
    Some(Remedy::new(
        "beyond",
        format!(
            "Nothing to change here: the SYN left this firewall. Ask who runs {} and the firewall \
             in front of it: does TCP {} > {} port {} arrive there, and what drops it?{why}",
            data.dst.ip(),
            data.src.ip(),
            data.dst.ip(),
            data.dst.port()
        ),
    ))
}

/// Remedies for what the helper could read.
fn readable(account: &Account) -> Vec<Remedy> {
    let mut out = Vec::new();
    let refused = |wanted: Refusal| {
        let mut all = account.refused.iter().rev();
        all.find(|(refusal, _)| *refusal == wanted)
    };
    if let Some((_, said)) = refused(Refusal::ForeignAddress) {
        let line = said.line.as_ref().map_or(&[][..], |line| line.bytes());
        out.push(foreign(account, line));
    }
    if refused(Refusal::PrivilegedPort).is_some() {
        out.push(Remedy::new(
            "client-mode",
            "The announced port is below 1024, where the services of a host are: it is never opened. \
             The end that announced it must use other ports.",
        ));
    }
    if account.phase == SessionPhase::Blind {
        out.push(Remedy::new(
            "reconnect",
            "Log in again: bytes of this session went by unread (while no agent ran, as a rule), \
             and nothing more is opened for it.",
        ));
    }
    let mut strays = account.data.iter().rev();
    let stray = strays.find_map(|data| Some((data, data.in_place_of?)));
    out.extend(stray.map(|(data, expected)| other_address(data, expected)));
    let came_otherwise = |data: &Data| stray.is_some_and(|(stray, _)| stray.dst == data.dst);
    let never = |data: &&Data| data.fate == Fate::NeverSeen && !came_otherwise(data);
    if let Some(data) = account.data.iter().rev().find(never) {
        let (who, other) = match data.listener {
            Side::Server => ("client", "active"),
            Side::Client => ("server", "passive"),
        };
        out.push(Remedy::new(
            "client-mode",
            format!(
                "The port was open here, and no SYN from {} came to this firewall: look between it \
                 and the {who} (a firewall there, another route, another source address), or try \
                 {other} mode.",
                data.src.ip()
            ),
        ));
    }
    out
}

/// Another host came to a port than was told of it.
fn other_address(data: &Data, expected: IpAddr) -> Remedy {
    let (came, dst) = (data.src.ip(), data.dst);
    let advice = match data.listener {
        Side::Client => {
            "If that is the same server by another address of its own, or behind a NAT, have it \
             connect from the address that its clients reach it by, or use passive mode."
        }
        Side::Server => {
            "If that is the same client behind a NAT or proxy that spreads its connections over \
             several addresses, have all of them leave by one. If it is another server (a \
             transfer from server to server, FXP), no helper opens that."
        }
    };
    Remedy::new(
        "other-address",
        format!(
            "Port {} of {} was opened for {expected} alone, and {came} came. {advice} If you do \
             not know {came}, somebody tries ports, and there is nothing to do.",
            dst.port(),
            dst.ip()
        ),
    )
}

/// A 227 or PORT that names another address than its sender's.
fn foreign(account: &Account, line: &[u8]) -> Remedy {
    let server = account.server.ip();
    let text = line.get(3..).unwrap_or_default();
    let announced = line
        .starts_with(b"22")
        .then(|| reply::passive(text).ok())
        .flatten();
    let Some(announced) = announced.map(|end| end.ip()) else {
        return Remedy::new(
            "client-mode",
            "The client announces an address that is not its own: a NAT that does not know FTP \
             stands before it, or it is asked to bounce. Use passive mode.",
        );
    };
    let private = if is_private(announced) {
        ", a private address"
    } else {
        ""
    };
    Remedy::new(
        "alias",
        format!(
            "The server announces {announced}{private}, and is reached at {server}: a NAT that does not \
             know FTP stands before it. Have it announce {server} (proftpd MasqueradeAddress, \
             pure-ftpd -P, vsftpd pasv_address), use EPSV, or allow the address here:"
        ),
    )
    .with(format!(
        "[[ftp.alias]]\nserver = \"{server}\"\nannounces = \"{announced}\"\n"
    ))
}

/// RFC 1918, RFC 6598, RFC 4193, and link-local addresses.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

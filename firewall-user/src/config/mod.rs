//! The configuration: TOML → [`Policy`] → [`Compiled`].
//!
//! ```toml
#![doc = include_str!("reference.toml")]
//! ```

mod check;
mod compile;
mod error;
mod ftp;
mod ranges;
mod raw;
#[cfg(test)]
mod tests;
mod value;

use std::{fs, num::NonZeroU16, path::Path};

use firewall_common::abi::{ZONE_HOST, timeout};
use ipnet::IpNet;

pub use compile::{Compiled, GuardedIface};
pub use error::Error;
pub use ftp::Ftp;
pub use value::{PortRange, Prefix, Proto, Seconds, Several};

use error::Source;
use raw::Raw;

/// Every key of a policy file: what `run --help` ends with.
pub const REFERENCE: &str = include_str!("reference.toml");

/// The policy of `run` without `--config`: see the text itself.
pub const BUILTIN: &str = include_str!("default.toml");

/// A validated policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Zone 1 first.
    pub zones: Vec<Zone>,
    /// In order of precedence.
    pub rules: Vec<PolicyRule>,
    /// Bits of [`firewall_common::abi::essentials`].
    pub essentials: u32,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// Sizes of the tables.
    pub tables: Tables,
    /// Which packets the programs forward themselves.
    pub fast_path: FastPath,
    /// What the helper may do.
    pub ftp: Ftp,
}

/// The fast path of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastPath {
    /// Is there one?
    pub enabled: bool,
    /// Interfaces to which nobody sends packets with unwritten checksums, the operator says.
    pub complete_checksums: Vec<String>,
}

/// A set of interfaces that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// 1 to 15 bytes.
    pub name: String,
    /// Do flows that begin here count as begun inside?
    pub trusted: bool,
    /// In this zone and no other.
    pub interfaces: Vec<String>,
}

/// A rule with its lists; an empty list is no condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Unique, 1 to 31 bytes.
    pub name: String,
    /// Zone of origin, its number, `ZONE_HOST` or `ZONE_ANY`.
    pub from: u8,
    /// Zone of destination, likewise.
    pub to: u8,
    /// Protocol.
    pub proto: Proto,
    /// Any of these sources.
    pub src: Vec<IpNet>,
    /// Any of these destinations.
    pub dst: Vec<IpNet>,
    /// Any of these source ports.
    pub sport: Vec<PortRange>,
    /// Any of these destination ports.
    pub dport: Vec<PortRange>,
    /// Accept or drop.
    pub accept: bool,
    /// Payload goes to the FTP helper.
    pub helper: bool,
    /// TCP connections are picked up in mid-life.
    pub loose: bool,
    /// TCP segments out of window pass.
    pub liberal: bool,
}

/// By [`timeout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts(pub [Seconds; timeout::LEN]);

/// Elements of each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// `FLOWS4` and `FLOWS6`, each.
    pub flows: u32,
    /// The four `HALF_OPEN` tables, each.
    pub half_open: u32,
    /// `EXPECTATIONS`.
    pub expectations: u32,
    /// `SESSIONS`, and `PAIRS`.
    pub sessions: u32,
    /// Least number of elements that must stay free in a proved table: with
    /// fewer, the kernel would displace a flow.
    pub spare: u32,
    /// One of [`firewall_common::abi::table_full`].
    pub table_full: u32,
}

impl Tables {
    /// How many flows a proved table of `elements` admits: of TCP, of the rest.
    ///
    /// An eighth of the table at least stays free. Of what is left, five
    /// sevenths are for TCP.
    #[must_use]
    pub fn limits(&self, elements: u32) -> [u32; 2] {
        let usable = elements.saturating_sub(self.spare.max(elements / 8));
        let other = usable / 7 * 2;
        [usable - other, other]
    }
}

/// What `run` attaches, from its arguments.
///
/// # Errors
/// [`Error`]: the file cannot be read or used, or the interfaces do not fit it.
pub fn prepare(
    file: Option<&Path>,
    ifaces: &[String],
    admit_ssh: Option<NonZeroU16>,
) -> Result<Compiled, Error> {
    let mut policy = match file {
        Some(file) => Policy::load(file)?,
        None if ifaces.is_empty() => {
            return Err(Error::general(
                "no interface to guard",
                "name one with --iface (`ip link` lists them), or a policy with --config",
            ));
        }
        None => Policy::parse("built-in policy", BUILTIN, cpus())?,
    };
    policy.guard(ifaces)?;
    if let Some(port) = admit_ssh {
        policy.admit_ssh(port);
    }
    policy.compile()
}

impl Policy {
    /// Reads a file, for this machine.
    ///
    /// # Errors
    /// [`Error`], with the place in the file.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let name = file.display().to_string();
        let text = fs::read_to_string(file).map_err(|error| {
            Error::general(
                format!("the policy {name} cannot be read: {error}"),
                "name a readable text file with --config",
            )
        })?;
        Self::parse(&name, &text, cpus())
    }

    /// Parses `text`, which errors say to be of `file`, for a machine of `cpus` possible CPUs.
    ///
    /// # Errors
    /// [`Error`], with the place in the text.
    pub fn parse(file: &str, text: &str, cpus: usize) -> Result<Self, Error> {
        let source = Source { file, text };
        let raw: Raw = toml::from_str(text).map_err(|error| source.parse_error(&error))?;
        let zones = check::zones(&source, &raw)?;
        let tables = check::tables(&source, &raw.tables, cpus)?;
        // Before the rules: what an operator opens by name, no rule after it closes.
        let mut rules = ranges::fixed(&source, &raw.ftp.fixed_range, &zones)?;
        rules.extend(check::rules(&source, raw.rules, &zones)?);
        Ok(Self {
            rules,
            fast_path: check::fast_path(&source, raw.fast_path, &zones)?,
            zones,
            essentials: check::essential_bits(&raw.essentials),
            timeouts: check::timeouts(&raw.timeouts),
            ftp: ftp::check(&source, &raw.ftp, &tables)?,
            tables,
        })
    }

    /// Two zones or more: packets are forwarded between them.
    #[must_use]
    pub fn is_gateway(&self) -> bool {
        self.zones.len() > 1
    }

    /// Decides which interfaces are guarded.
    ///
    /// `wanted` narrows the policy to some of its interfaces; the one zone that
    /// names none takes the others. Empty, it takes all that the policy names.
    ///
    /// # Errors
    /// [`Error`]: an interface without a zone, or nothing to guard.
    pub fn guard(&mut self, wanted: &[String]) -> Result<(), Error> {
        if !wanted.is_empty() {
            self.narrow(wanted)?;
        }
        if self.zones.iter().all(|zone| zone.interfaces.is_empty()) {
            return Err(Error::general(
                "the policy names no interface to guard",
                "add it to a zone's `interfaces`, or name it with --iface",
            ));
        }
        Ok(())
    }

    fn narrow(&mut self, wanted: &[String]) -> Result<(), Error> {
        let mut open = self.zones.iter_mut().filter(|z| z.interfaces.is_empty());
        let open = match (open.next(), open.next()) {
            (Some(zone), None) => Some(zone.name.clone()),
            _ => None,
        };
        for name in wanted {
            let known = self.zones.iter().any(|z| z.interfaces.contains(name));
            if known || (open.is_some() && check::is_iface_name(name)) {
                continue;
            }
            let named: Vec<&str> = self.zones.iter().flat_map(Zone::interfaces).collect();
            return Err(Error::general(
                format!("--iface {name}: the policy puts no such interface into a zone"),
                format!(
                    "add it to a zone's `interfaces`, or use one of: {}",
                    named.join(", ")
                ),
            ));
        }
        for zone in &mut self.zones {
            if open.as_ref() != Some(&zone.name) {
                zone.interfaces.retain(|name| wanted.contains(name));
            }
        }
        let mut rest: Vec<String> = wanted.to_vec();
        rest.retain(|name| !self.zones.iter().any(|z| z.interfaces.contains(name)));
        rest.sort_unstable();
        rest.dedup();
        if let Some(zone) = self
            .zones
            .iter_mut()
            .find(|z| open.as_ref() == Some(&z.name))
        {
            zone.interfaces = rest;
        }
        Ok(())
    }

    /// Puts a rule before all others that lets every zone reach TCP `port` of the host.
    pub fn admit_ssh(&mut self, port: NonZeroU16) {
        let rule = PolicyRule {
            name: check::ADMIT_SSH.to_owned(),
            from: firewall_common::abi::ZONE_ANY,
            to: ZONE_HOST,
            proto: Proto::TCP,
            src: Vec::new(),
            dst: Vec::new(),
            sport: Vec::new(),
            dport: vec![PortRange::single(port)],
            accept: true,
            helper: false,
            loose: false,
            liberal: false,
        };
        self.rules.insert(0, rule);
    }

    /// Compiles it.
    ///
    /// # Errors
    /// [`Error`] if the rules do not fit their map.
    pub fn compile(&self) -> Result<Compiled, Error> {
        compile::compile(self)
    }
}

impl Zone {
    fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().map(String::as_str)
    }
}

/// Possible CPUs; 1 if the kernel does not say.
fn cpus() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}

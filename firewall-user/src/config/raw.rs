//! The shape of the file, before names and numbers mean anything.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::value::{PortRange, Prefix, Proto, Seconds, Several};

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Raw {
    #[serde(default)]
    pub(super) zones: BTreeMap<Spanned<String>, RawZone>,
    #[serde(default, rename = "rule")]
    pub(super) rules: Vec<Spanned<RawRule>>,
    #[serde(default)]
    pub(super) essentials: RawEssentials,
    #[serde(default)]
    pub(super) timeouts: RawTimeouts,
    #[serde(default)]
    pub(super) tables: RawTables,
    #[serde(default)]
    pub(super) fast_path: RawFastPath,
    #[serde(default)]
    pub(super) ftp: RawFtp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawFastPath {
    pub(super) enabled: bool,
    pub(super) complete_checksums: Vec<Spanned<String>>,
}

impl Default for RawFastPath {
    fn default() -> Self {
        Self {
            enabled: true,
            complete_checksums: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawZone {
    #[serde(default)]
    pub(super) interfaces: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) trusted: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    pub(super) name: Option<Spanned<String>>,
    pub(super) from: Option<Spanned<String>>,
    pub(super) to: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) proto: Proto,
    pub(super) src: Option<Several<Prefix>>,
    pub(super) dst: Option<Several<Prefix>>,
    pub(super) sport: Option<Spanned<Several<PortRange>>>,
    pub(super) dport: Option<Spanned<Several<PortRange>>>,
    pub(super) action: Action,
    pub(super) helper: Option<Spanned<Helper>>,
    pub(super) loose: Option<Spanned<bool>>,
    pub(super) liberal: Option<Spanned<bool>>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Accept,
    Drop,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Helper {
    Ftp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawEssentials {
    pub(super) arp: bool,
    pub(super) neighbour_discovery: bool,
    pub(super) dhcp_client: bool,
    pub(super) dhcpv6_client: bool,
    pub(super) multicast_listener: bool,
    pub(super) path_mtu: bool,
    pub(super) link_control: bool,
}

impl Default for RawEssentials {
    fn default() -> Self {
        Self {
            arp: true,
            neighbour_discovery: true,
            dhcp_client: true,
            dhcpv6_client: true,
            multicast_listener: true,
            path_mtu: true,
            link_control: true,
        }
    }
}

/// Defaults are those of nf_conntrack.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawTimeouts {
    pub(super) tcp_syn_sent: Seconds,
    pub(super) tcp_syn_recv: Seconds,
    pub(super) tcp_established: Seconds,
    pub(super) tcp_fin_wait: Seconds,
    pub(super) tcp_close_wait: Seconds,
    pub(super) tcp_last_ack: Seconds,
    pub(super) tcp_time_wait: Seconds,
    pub(super) tcp_close: Seconds,
    pub(super) tcp_unacknowledged: Seconds,
    pub(super) udp: Seconds,
    pub(super) udp_stream: Seconds,
    pub(super) icmp: Seconds,
    pub(super) other: Seconds,
}

impl Default for RawTimeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: Seconds::of(120),
            tcp_syn_recv: Seconds::of(60),
            tcp_established: Seconds::of(432_000),
            tcp_fin_wait: Seconds::of(120),
            tcp_close_wait: Seconds::of(60),
            tcp_last_ack: Seconds::of(30),
            tcp_time_wait: Seconds::of(120),
            tcp_close: Seconds::of(10),
            tcp_unacknowledged: Seconds::of(300),
            udp: Seconds::of(30),
            udp_stream: Seconds::of(120),
            icmp: Seconds::of(30),
            other: Seconds::of(600),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawTables {
    pub(super) flows: Option<Spanned<i64>>,
    pub(super) half_open: Option<Spanned<i64>>,
    pub(super) expectations: Option<Spanned<i64>>,
    pub(super) sessions: Option<Spanned<i64>>,
    pub(super) table_full: TableFull,
}

/// What a new flow meets while the proved tier is at its limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TableFull {
    #[default]
    TrackUnprotected,
    Drop,
    Pass,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawFtp {
    pub(super) expectation_timeout: Seconds,
    pub(super) max_expectations_per_session: Option<Spanned<i64>>,
    pub(super) max_expectations_per_client: Option<Spanned<i64>>,
    pub(super) active: Active,
    pub(super) ccc: Ccc,
    pub(super) data_after_control: DataAfterControl,
    pub(super) cut_after: Seconds,
    pub(super) scheduling: Scheduling,
    pub(super) alias: Vec<RawAlias>,
    pub(super) session_range: Vec<Spanned<RawSessionRange>>,
    pub(super) fixed_range: Vec<Spanned<RawFixedRange>>,
}

impl Default for RawFtp {
    fn default() -> Self {
        Self {
            expectation_timeout: Seconds::of(60),
            max_expectations_per_session: None,
            max_expectations_per_client: None,
            active: Active::default(),
            ccc: Ccc::default(),
            data_after_control: DataAfterControl::default(),
            cut_after: Seconds::of(10),
            scheduling: Scheduling::default(),
            alias: Vec::new(),
            session_range: Vec::new(),
            fixed_range: Vec::new(),
        }
    }
}

/// When an active data connection is let in.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Active {
    #[default]
    AtCommand,
    AfterReply,
}

/// What becomes of a session that goes back to clear text.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ccc {
    #[default]
    Allow,
    Alert,
    Refuse,
}

/// Which class of the scheduler the helper is in.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scheduling {
    #[default]
    Realtime,
    Normal,
}

/// What becomes of data connections when their control connection ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DataAfterControl {
    #[default]
    Keep,
    Cut,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAlias {
    pub(super) server: Spanned<Prefix>,
    pub(super) announces: Spanned<Prefix>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSessionRange {
    pub(super) clients: Several<Prefix>,
    pub(super) servers: Spanned<Several<Prefix>>,
    pub(super) ports: Spanned<PortRange>,
    #[serde(default)]
    pub(super) active: bool,
    pub(super) max: Option<Spanned<i64>>,
    pub(super) per_minute: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawFixedRange {
    pub(super) clients: Several<Prefix>,
    pub(super) servers: Spanned<Several<Prefix>>,
    pub(super) ports: Spanned<PortRange>,
    #[serde(default)]
    pub(super) active: bool,
    pub(super) client_zone: Option<Spanned<String>>,
    pub(super) server_zone: Option<Spanned<String>>,
}

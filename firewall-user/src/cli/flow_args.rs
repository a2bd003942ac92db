//! Arguments of `pinhole flows`.

mod check;

use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};
use firewall_common::abi::FlowEventKind;

use super::args::ListArgs;
use crate::{
    filter::{Net, Ports, StateName, Status},
    protocol,
};

/// `pinhole flows`.
#[derive(Debug, Subcommand)]
pub enum FlowsCommand {
    /// List the tracked flows, oldest first
    ///
    /// Half-open flows (not yet proved by two-way traffic) are among them.
    #[command(after_help = "\
Examples:
  sudo pinhole flows list
  sudo pinhole flows list -p tcp --state established --dst 192.0.2.0/24
  sudo pinhole flows list -o json | jq '.[] | select(.reply.bytes > 1000000)'

JSON: [{family, proto, state, tier, original: {src, sport, dst, dport, id,
packets, bytes}, reply: {packets, bytes}, zone: {from, to}, rule, would_drop,
parent: {client, cport, server, sport, via}, flags, started, last_seen, age_s, idle_s,
expires_s}]")]
    List(ListedArgs),
    /// Show one flow; exit code 1 if there is none
    ///
    /// Either direction of the flow names it.
    #[command(after_help = "\
Examples:
  sudo pinhole flows get -p tcp -s 192.0.2.9 --sport 40000 -d 10.0.0.1 --dport 22
  sudo pinhole flows get -p icmp -s 10.0.0.1 -d 192.0.2.9 --icmp-id 77 -o json

JSON: one object, as `flows list` has them.")]
    Get(GetArgs),
    /// Count flows
    #[command(after_help = "\
Examples:
  sudo pinhole flows count
  sudo pinhole flows count -p tcp --status half-open

JSON: {count}")]
    Count(ListedArgs),
    /// Watch flows begin, change and end, until Ctrl-C
    ///
    /// One watcher at a time. Lines are as `conntrack -E` writes them: NEW for an
    /// accepted first packet, UPDATE for another protocol state, DESTROY with
    /// counters and a reason, LOST with a number if the kernel had more to tell
    /// than was read in time, EVICTED with the number of flows that a full table
    /// displaced, as far as the agent's collector can tell: the kernel does not say
    /// which. While no agent runs, flows whose time is over are not collected: their
    /// end is told when a packet meets them, or when an agent runs again.
    #[command(after_help = "\
Examples:
  sudo pinhole flows watch
  sudo pinhole flows watch -e NEW,DESTROY -p tcp --dport 21 --timestamp
  sudo pinhole flows watch -o json | jq -c 'select(.reason == \"reset\")'

Reasons: expired (no packet in time), closed (both sides had said good-bye),
reset (a side reset it), reused (a new flow of the same ports took its
place), deleted (by `flows delete` or `flows flush`).
JSON, one object a line: {event, at, reason, …} and what `flows list` has of a
flow; {event: \"LOST\", at, lost} for events that could not be told, lost being
null if their number is not known; {event: \"EVICTED\", at, table, evicted}.")]
    Watch(WatchArgs),
    /// Delete the flows that a filter picks; exit code 1 if there is none
    ///
    /// A TCP connection whose flow is deleted is cut: its next packets are
    /// dropped, unless a rule is `loose`. Others begin again with their next
    /// packet, if a rule accepts it.
    #[command(after_help = "\
Examples:
  sudo pinhole flows delete -p tcp --src 192.0.2.9 --dport 22
  sudo pinhole flows delete --zone outside --status half-open

JSON: {matched, deleted}")]
    Delete(DeleteArgs),
    /// Delete all flows, or those that a filter picks
    ///
    /// As `flows delete`; without a filter it wants --yes, because it cuts every
    /// TCP connection, also the one through which you may be logged in.
    #[command(after_help = "\
Examples:
  sudo pinhole flows flush -p udp
  sudo pinhole flows flush --yes

JSON: {matched, deleted}")]
    Flush(DeleteArgs),
}

/// Which flows; what is given must hold all together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Protocol: tcp, udp, icmp, icmpv6, gre, … or a number
    #[arg(short, long, value_name = "PROTO", value_parser = protocol::number)]
    pub proto: Option<u8>,
    /// Source of the first packet
    #[arg(short, long, value_name = "ADDR[/PREFIX]", visible_alias = "orig-src")]
    pub src: Option<Net>,
    /// Destination of the first packet
    #[arg(short, long, value_name = "ADDR[/PREFIX]", visible_alias = "orig-dst")]
    pub dst: Option<Net>,
    /// Either end
    #[arg(long, value_name = "ADDR[/PREFIX]")]
    pub addr: Option<Net>,
    /// Source port of the first packet
    #[arg(long, value_name = "PORT[-PORT]", visible_alias = "orig-port-src")]
    pub sport: Option<Ports>,
    /// Destination port of the first packet
    #[arg(long, value_name = "PORT[-PORT]", visible_alias = "orig-port-dst")]
    pub dport: Option<Ports>,
    /// Port of either end
    #[arg(long, value_name = "PORT[-PORT]")]
    pub port: Option<Ports>,
    /// Identifier of an ICMP echo
    #[arg(long, value_name = "ID")]
    pub icmp_id: Option<u16>,
    /// State: established, syn_sent, … for TCP; unreplied or replied for anything else
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateName>,
    /// All of: half-open, assured, seen-reply, unreplied, related, helper, blind, seeded, from-inside,
    /// would-drop (in shadow mode)
    #[arg(short = 'u', long, value_name = "STATUS", value_delimiter = ',')]
    pub status: Vec<Status>,
    /// Zone of either end; `host` is the host itself
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Zone that the first packet came from
    #[arg(long, value_name = "ZONE")]
    pub from_zone: Option<String>,
    /// Zone that the first packet went to
    #[arg(long, value_name = "ZONE")]
    pub to_zone: Option<String>,
    /// Guarded interface of either end: a flow is kept by zone, so this is all of the interface's zone
    #[arg(long, value_name = "IF", conflicts_with = "zone")]
    pub iface: Option<String>,
    /// Control connections that a helper reads, and their data connections
    #[arg(long, value_name = "HELPER")]
    pub helper: Option<Helper>,
    /// Address family
    #[arg(short, long, value_name = "FAMILY")]
    pub family: Option<Family>,
    /// IPv4 only
    #[arg(short = '4', long, conflicts_with_all = ["ipv6", "family"])]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', long, conflicts_with = "family")]
    pub ipv6: bool,
}

/// A helper that reads control connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Helper {
    /// FTP
    Ftp,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

/// Arguments of `flows watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Which flows.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Which events: new, updates, destroy; several with commas
    #[arg(
        short,
        long,
        value_name = "EVENTS",
        value_delimiter = ',',
        ignore_case = true
    )]
    pub event_mask: Vec<EventName>,
    /// Begin each line with the time
    #[arg(long)]
    pub timestamp: bool,
    /// How.
    #[command(flatten)]
    pub list: ListArgs,
}

/// A kind of event, as conntrack(8) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventName {
    /// All of them
    All,
    /// An accepted first packet
    New,
    /// Another state
    #[value(alias = "update")]
    Updates,
    /// The end
    Destroy,
}

impl WatchArgs {
    /// The kinds asked for; all if none is named.
    #[must_use]
    pub fn kinds(&self) -> Vec<FlowEventKind> {
        let names = &self.event_mask;
        let all = names.is_empty() || names.contains(&EventName::All);
        let wanted = |kind: &FlowEventKind| {
            let name = match kind {
                FlowEventKind::New => EventName::New,
                FlowEventKind::Update => EventName::Updates,
                FlowEventKind::Destroy => EventName::Destroy,
            };
            all || names.contains(&name)
        };
        FlowEventKind::ALL.into_iter().filter(wanted).collect()
    }
}

/// Arguments of `flows delete` and `flows flush`.
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// Which flows.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Do it even if it cuts all connections, or your own
    #[arg(long)]
    pub yes: bool,
    /// How.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `flows list` and `flows count`.
#[derive(Clone, Debug, Args)]
pub struct ListedArgs {
    /// Which flows.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `flows get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Protocol: tcp, udp, icmp, icmpv6, gre, … or a number
    #[arg(short, long, value_name = "PROTO", value_parser = protocol::number)]
    pub proto: u8,
    /// Source
    #[arg(short, long, value_name = "ADDR", visible_alias = "orig-src", value_parser = host)]
    pub src: IpAddr,
    /// Destination
    #[arg(short, long, value_name = "ADDR", visible_alias = "orig-dst", value_parser = host)]
    pub dst: IpAddr,
    /// Source port, of TCP and UDP
    #[arg(long, value_name = "PORT", visible_alias = "orig-port-src")]
    pub sport: Option<u16>,
    /// Destination port, of TCP and UDP
    #[arg(long, value_name = "PORT", visible_alias = "orig-port-dst")]
    pub dport: Option<u16>,
    /// Identifier of an ICMP echo
    #[arg(long, value_name = "ID")]
    pub icmp_id: Option<u16>,
    /// How.
    #[command(flatten)]
    pub list: ListArgs,
}

fn host(text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>()
        .map(|address| address.to_canonical())
        .map_err(|_| "use one address, `192.0.2.1` or `2001:db8::1`".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        filter: FilterArgs,
    }

    #[derive(Debug, clap::Parser)]
    struct Get {
        #[command(flatten)]
        get: GetArgs,
    }

    fn parse(line: &str) -> Result<FilterArgs, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let filter = Cli::try_parse_from(words)
            .map_err(|e| e.to_string())?
            .filter;
        filter.check().map_err(|e| e.to_string())?;
        Ok(filter)
    }

    #[test]
    fn the_options_of_conntrack_are_known() {
        for line in [
            "",
            "-p tcp -s 192.0.2.0/24 -d 10.0.0.1 --sport 1024-65535 --dport 22",
            "--proto udp --orig-src 192.0.2.1 --orig-dst 10.0.0.1 --orig-port-dst 53",
            "-f ipv6 --addr 2001:db8::/32",
            "-u ASSURED,SEEN_REPLY",
            "-4 --state time-wait",
            "-6 -p icmpv6 --icmp-id 7",
            "--helper ftp --from-zone host --to-zone outside",
            "-p gre --addr 10.0.0.1 --state replied",
            "--iface eth0 --port 22",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
        assert!(parse("").unwrap().is_empty());
        assert!(!parse("-4").unwrap().is_empty());
    }

    #[test]
    fn wrong_filters_show_the_right_form() {
        for (line, says) in [
            ("--proto tpc", "use tcp, udp"),
            ("--src 10.0.0.300", "`192.0.2.0/24`"),
            ("--src 10.0.0.1/8", "`10.0.0.0/8`"),
            ("--sport ssh", "`1024-65535`"),
            ("--dport 30-20", "`20-30`"),
            ("--icmp-id x", "--icmp-id"),
            ("--state open", "established"),
            ("--status open", "half-open"),
            ("--helper sip", "ftp"),
            ("-f ip", "ipv4"),
            ("-4 -6", "cannot be used with"),
            ("-4 -f ipv6", "cannot be used with"),
            ("--zone a --iface b", "cannot be used with"),
            ("-p icmp --dport 22", "--icmp-id 77"),
            ("-p gre --dport 22", "--proto tcp"),
            ("-p tcp --icmp-id 7", "--proto icmp"),
            ("-p udp --state established", "--state replied"),
            ("-p tcp --state unreplied", "--status unreplied"),
            ("-4 --src 2001:db8::1", "both families"),
            ("-p icmpv6 --dst 10.0.0.1", "both families"),
            ("--src 10.0.0.1 --dst 2001:db8::1", "both families"),
            ("-p tcp 22", "unexpected argument"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn one_flow_is_named_in_full() {
        let ports = |line: &str| {
            let words = std::iter::once("x").chain(line.split_whitespace());
            let get = Get::try_parse_from(words).map_err(|e| e.to_string())?.get;
            get.ports().map_err(|e| e.to_string())
        };
        assert_eq!(
            ports("-p tcp -s 10.0.0.1 --sport 1 -d 10.0.0.2 --dport 2"),
            Ok((1, 2))
        );
        assert_eq!(
            ports("-p icmp -s 10.0.0.1 -d 10.0.0.2 --icmp-id 7"),
            Ok((7, 7))
        );
        assert_eq!(ports("-p 47 -s 10.0.0.1 -d 10.0.0.2"), Ok((0, 0)));
        for (line, says) in [
            ("-p tcp -s 10.0.0.1 -d 10.0.0.2", "--sport 40000"),
            ("-p tcp -s 10.0.0.1 --sport 1 -d 10.0.0.2", "--dport 22"),
            ("-p icmp -s 10.0.0.1 -d 10.0.0.2", "--icmp-id 77"),
            (
                "-p icmp -s 10.0.0.1 -d 10.0.0.2 --sport 1 --dport 2",
                "--icmp-id 77",
            ),
            ("-p gre -s 10.0.0.1 -d 10.0.0.2 --sport 1", "neither ports"),
            ("-p tcp -s 10.0.0.0/8 -d 10.0.0.2", "one address"),
            (
                "-p tcp -s 10.0.0.1 --sport 1 -d 2001:db8::1 --dport 2",
                "two families",
            ),
            ("-p tcp --sport 1 --dport 2", "--src"),
        ] {
            let error = ports(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}

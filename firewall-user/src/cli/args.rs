//! The command line, as clap sees it.

use std::{num::NonZeroU16, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use firewall_common::verdict::DropReason;

use super::flow_args::FlowsCommand;
use super::ftp_args::FtpCommand;
use super::why_args::WhyArgs;
use crate::{bpf::Instance, config::REFERENCE};

/// A stateful firewall with an FTP helper, on XDP and TC.
///
/// pinhole guards the interfaces that you name: replies come in, everything
/// goes out, and nothing else comes in but what the policy accepts. It reads
/// FTP control connections and opens exactly the port that was negotiated, for
/// one connection and as long as the session lives.
#[derive(Debug, Parser)]
#[command(
    name = "pinhole",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  sudo pinhole run --iface eth0 --confirm 60s --admit-ssh 22
                              guard eth0; undone after 60 s without `confirm`
  sudo pinhole confirm        keep it
  sudo pinhole flows list     what is tracked
  sudo pinhole stats          what passed and what was dropped, and why
  sudo pinhole unload         remove all of it

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
pub struct Cli {
    /// Which firewall: two on one machine differ by name
    #[arg(
        long,
        global = true,
        env = "PINHOLE_INSTANCE",
        value_name = "NAME",
        default_value = Instance::DEFAULT
    )]
    pub instance: Instance,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach to the interfaces and run the FTP agent in the foreground
    ///
    /// Ctrl-C or SIGTERM ends the agent only: the policy stays in force and
    /// established flows go on, but no new FTP data connection opens until
    /// `run` is started again. `unload` removes everything.
    #[command(after_help = RUN_EXAMPLES, after_long_help = run_long_help())]
    Run(RunArgs),
    /// Keep what `run --confirm` attached
    #[command(after_help = "\
Example:
  sudo pinhole confirm")]
    Confirm,
    /// Show what is attached where, and whether the agent lives
    #[command(after_help = "\
Examples:
  sudo pinhole status
  sudo pinhole status -o json | jq -e .agent.alive

JSON: {instance, mode, shadow, fast_path, kernel, here, agent: {alive, pid,
heartbeat_s}, confirm: {pending, left_s}, interfaces: [{name, index, zone, trusted,
ethernet, xdp, tc, fast_path}], flows: [{family, kind, count, limit}], table_full,
tables, collector and an interface's fast_path as of `stats`, memory: {kernel_bytes},
rules}. fast_path is \"on\", or why there is none: \"host\", \"policy\", \"shadow\".")]
    Status(ListArgs),
    /// Tracked flows
    #[command(subcommand)]
    Flows(FlowsCommand),
    /// Expected connections: the pinholes
    #[command(subcommand)]
    Expect(ExpectCommand),
    /// FTP sessions: what opens for them, and why one hangs
    #[command(subcommand)]
    Ftp(FtpCommand),
    /// Count packets by verdict and reason, and new flows by rule
    #[command(after_help = "\
Examples:
  sudo pinhole stats
  sudo pinhole stats --all -o json | jq '.drop[] | select(.packets > 0)'

JSON: {shadow, pass, drop, would_drop: [{reason, packets, bytes}],
events: [{event, count}], rules: [{name, action, packets, bytes}],
fast_path: [{interface, from, to, obstacles, packets, bytes, kernel_packets,
kernel: [{reason, packets}], share}], ftp_refused: [{reason, count}], tables: [{map, family,
tier, size, present, created, removed, evicted, evicted_stay_s, evicted_seen,
evicted_ages_s, census_age_s}], collector: {passes, read, deleted, cpu_s, pace_per_s,
pass_s, pass_read, pass_cpu_s, corrected, age_s}}. Each packet is counted once, in shadow mode under \"would drop\"
instead of \"dropped\". A rule counts first packets of flows. What is refused of FTP
is a line of a control connection. The fast path counts packets of tracked flows: those
that the programs forwarded, and those that were left to the kernel; `from` and `to` say
whether what arrives there may take it, and whether what takes it may leave there.")]
    Stats(StatsArgs),
    /// What shadow mode found
    #[command(subcommand)]
    Shadow(ShadowCommand),
    /// Say what becomes of a packet, and why; nothing live changes
    ///
    /// The attached programs are loaded a second time, under the same policy, with
    /// tables of their own that begin as copies of the live entries concerned, and
    /// the packet is run through them. The packets of a capture are judged in
    /// order, each as the ones before left those tables. Works with the agent
    /// stopped.
    #[command(after_help = WHY_EXAMPLES)]
    Why(Box<WhyArgs>),
    /// Detach from every interface and remove all pins
    #[command(after_help = "\
Example:
  sudo pinhole unload")]
    Unload,
    /// What `run --confirm` starts: waits for the deadline and unloads
    #[command(hide = true, after_help = "Example: none, `run --confirm` starts it")]
    Watchdog {
        /// `CLOCK_MONOTONIC` ns.
        #[arg(long)]
        deadline_ns: u64,
    },
}

const WHY_EXAMPLES: &str = "\
Examples:
  sudo pinhole why tcp 198.51.100.7:40000 192.0.2.1:22
      would this host let a new connection in?
  sudo pinhole why tcp 198.51.100.7:40000 192.0.2.1:22 --flags RST --seq 7
  sudo pinhole why udp '[2001:db8::1]:5353' '[2001:db8::2]:53' --iface eth0 --in
  sudo pinhole why icmp 192.0.2.1 198.51.100.2 --out
  sudo pinhole why --hex 4500003c…
  sudo pinhole why capture.pcap -o json | jq '.[] | select(.verdict == \"drop\")'
  pinhole why --list-reasons

A packet from an address of this host goes out, any other comes in, through the
guarded interface; where there are several, routes and Ethernet addresses say
through which. --in, --out and --iface say otherwise. Times of a capture are not
replayed: all of its packets are judged now.

JSON: {packet, time_s, headers: {proto, src, sport, dst, dport, icmp_type, id,
flags, seq, ack, payload}, iface, hook, verdict, reason, number, meaning, advice,
condition: {what, value, relation, bound, bound_is, by}, rule: {name, action},
zone: {from, to}, flow, flow_after, windows: {original, reply: {end, maxend,
maxack, maxwin}}, expectation, segments, captured}; of a capture an array of these. flow, flow_after and expectation are
as in the lists.";

const RUN_EXAMPLES: &str = "\
Examples:
  sudo pinhole run --iface eth0
      the built-in policy: everything out, replies in, FTP helped on port 21
  sudo pinhole run --config /etc/pinhole.toml --confirm 60s --admit-ssh 22
      your policy, undone after 60 s unless `pinhole confirm` comes first
  sudo pinhole run --config /etc/pinhole.toml --shadow
      watch what your policy would drop, while all of it passes; look at it with
      `pinhole shadow report`, then run again without --shadow";

fn run_long_help() -> String {
    format!("{RUN_EXAMPLES}\n\nThe policy file (TOML):\n\n{REFERENCE}")
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Policy file (TOML); without it the built-in policy
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Guard this interface; repeatable. With --config, guard only these of its interfaces
    #[arg(long = "iface", value_name = "IF")]
    pub ifaces: Vec<String>,
    /// Where XDP runs
    #[arg(long, value_enum, default_value_t = XdpMode::Auto)]
    pub mode: XdpMode,
    /// How the TC program is attached
    #[arg(long, value_enum, default_value_t = TcKind::Auto)]
    pub tc: TcKind,
    /// Detach again after this time (`60s`, `5m`) unless `pinhole confirm` comes first
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub confirm: Option<Duration>,
    /// Accept new TCP connections from outside to this port of the host
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub admit_ssh: Option<NonZeroU16>,
    /// Drop nothing: every packet passes, and what would be dropped is counted and tracked
    #[arg(long)]
    pub shadow: bool,
    /// Log more, the programs' own log lines among it
    #[arg(short, long)]
    pub verbose: bool,
}

/// Where XDP runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// In the driver if it can, else in the generic hook
    Auto,
    /// In the driver, or fail
    Native,
    /// In the generic hook
    Generic,
}

/// How the TC program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcKind {
    /// As a TCX link where the kernel has them (6.6), else as a clsact filter
    Auto,
    /// As a TCX link, or fail
    Tcx,
    /// As a clsact filter
    Clsact,
}

/// `pinhole expect`.
#[derive(Debug, Subcommand)]
pub enum ExpectCommand {
    /// List the expected connections, oldest first
    #[command(after_help = "\
Examples:
  sudo pinhole expect list
  sudo pinhole expect list -o json

JSON: [{src, dst, dport, proto, via, state, taken_by, parent: {client, cport,
server, sport}, zone: {from, to}, age_s, expires_s}]")]
    List(ListArgs),
}

/// `pinhole shadow`.
#[derive(Debug, Subcommand)]
pub enum ShadowCommand {
    /// What enforcing would have dropped, and where the kernel's own tracking disagrees
    ///
    /// Reads the tables twice and compares the connections that are quiet in both
    /// with nf_conntrack's, where that tracks here; busy ones are left out. States
    /// have the same names on both sides. Works with the agent stopped, and when
    /// the policy is enforced.
    #[command(after_help = "\
Examples:
  sudo pinhole shadow report
  sudo pinhole shadow report --wait 10s --top 20
  sudo pinhole shadow report --reason policy,tcp-no-flow
  sudo pinhole shadow report -o json | jq '.would_drop[] | {reason, talkers}'

JSON: {shadow, would_drop: [{reason, packets, bytes, flows, talkers: [{src,
flows, packets, bytes}], examples: [{proto, src, sport, dst, dport, packets,
bytes}]}], kernel: {tracking, connections, compared, agree, busy, elsewhere},
disagreements: [{kind, proto, src, sport, dst, dport, pinhole, kernel, reason,
would_drop}]}. kind is state, direction, missing-in-kernel or missing-in-pinhole;
tracking is active, idle or absent.

Exit codes: 0 pinhole and the kernel agree or nothing could be compared, 1 they
disagree (or the report failed: then nothing is on standard output).")]
    Report(ReportArgs),
}

/// Arguments of `shadow report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Time between the two looks (`3s`): connections with a packet in between are left out
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "3s")]
    pub wait: Duration,
    /// Of what would be dropped, only these reasons (`pinhole why --list-reasons`)
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = drop_reason)]
    pub reason: Vec<DropReason>,
    /// Sources and examples to name for each reason
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub top: usize,
    /// As of every list.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of everything that lists.
#[derive(Clone, Copy, Debug, Args)]
pub struct ListArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Arguments of `stats`.
#[derive(Clone, Copy, Debug, Args)]
pub struct StatsArgs {
    /// Also what is zero
    #[arg(long)]
    pub all: bool,
    /// As of every list.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns for people
    Table,
    /// One JSON document
    Json,
}

fn port(text: &str) -> Result<NonZeroU16, String> {
    text.parse()
        .map_err(|_| "use a port, 1 to 65535, as in `--admit-ssh 22`".into())
}

/// The stable name of a reason to drop.
fn drop_reason(name: &str) -> Result<DropReason, String> {
    let found = DropReason::ALL.iter().find(|reason| reason.name() == name);
    found.copied().ok_or_else(|| {
        "no packet is dropped for that: `pinhole why --list-reasons` names all reasons".into()
    })
}

/// `90`, `90s`, `5m`, `1h`: a positive number of seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("use seconds, minutes or hours: `60s`, `5m`, `1h`".into()),
    };
    let seconds = number.parse::<u32>().ok().filter(|&n| n > 0);
    let seconds = seconds.ok_or("use a whole number above 0, as in `60s`")?;
    Ok(Duration::from_secs(u64::from(seconds) * factor))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "0", "-1", "1d", "s", "99999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_port_is_admitted_without_a_number() {
        assert_eq!(port("22").map(NonZeroU16::get), Ok(22));
        for bad in ["0", "65536", "ssh", ""] {
            assert!(port(bad).unwrap_err().contains("1 to 65535"), "{bad}");
        }
    }

    #[test]
    fn reasons_go_by_their_stable_names() {
        assert_eq!(drop_reason("tcp-no-flow"), Ok(DropReason::TcpNoFlow));
        assert!(drop_reason("established").is_err(), "no reason to drop");
        let args = ["pinhole", "shadow", "report", "--reason", "policy,rule"];
        let Command::Shadow(ShadowCommand::Report(report)) =
            Cli::try_parse_from(args).unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!(report.reason, [DropReason::Policy, DropReason::Rule]);
    }

    #[test]
    fn the_instance_stands_anywhere() {
        let cli = Cli::try_parse_from(["pinhole", "flows", "list", "--instance", "a"]).unwrap();
        assert_eq!(cli.instance.name(), "a");
        assert!(Cli::try_parse_from(["pinhole", "--instance", "a/b", "stats"]).is_err());
    }

    #[test]
    fn every_subcommand_has_an_example() {
        fn check(command: &clap::Command) {
            let mut leaf = true;
            for sub in command.get_subcommands() {
                leaf = false;
                check(sub);
            }
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(!leaf || help.contains("Example"), "{}", command.get_name());
        }
        check(&Cli::command());
    }
}

//! Arguments of `why`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use super::args::ListArgs;
use crate::why::tuple;

/// Arguments of `why`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("question").args(["packet", "hex", "list_reasons"]).required(true))]
pub struct WhyArgs {
    /// PROTOCOL SOURCE DESTINATION, with ports as ADDRESS:PORT; or a capture (pcap, pcapng)
    #[arg(value_name = "PACKET", num_args = 1..=3)]
    pub packet: Vec<String>,
    /// The packet in hexadecimal, from its Ethernet or IP header on
    #[arg(long, value_name = "BYTES")]
    pub hex: Option<String>,
    /// The bytes of --hex begin with the IP header (else that is guessed)
    #[arg(long, requires = "hex")]
    pub l3: bool,
    /// Seen on this interface
    #[arg(long, value_name = "IF")]
    pub iface: Option<String>,
    /// It comes in
    #[arg(long = "in", conflicts_with = "outward")]
    pub inward: bool,
    /// It goes out
    #[arg(long = "out")]
    pub outward: bool,
    /// TCP flags; else ACK for a connection that is tracked, SYN for another
    #[arg(long, value_name = "FLAGS", value_parser = tuple::flags)]
    pub flags: Option<u8>,
    /// TCP sequence number; else the next that the connection expects
    #[arg(long, value_name = "N")]
    pub seq: Option<u32>,
    /// TCP acknowledgement number; else the next that the connection expects
    #[arg(long, value_name = "N")]
    pub ack: Option<u32>,
    /// TCP window, as in the header
    #[arg(long, value_name = "N", default_value_t = 64240)]
    pub win: u16,
    /// Bytes of payload
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1400))]
    pub len: u16,
    /// ICMP type; else an echo request
    #[arg(long, value_name = "N")]
    pub icmp_type: Option<u8>,
    /// ICMP code
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub icmp_code: u8,
    /// Identifier of an ICMP echo
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub id: u16,
    /// Exit with 1 unless every packet has this verdict
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub expect: Option<Expected>,
    /// List every reason for a verdict, with its meaning and what to do
    #[arg(long)]
    pub list_reasons: bool,
    /// That list as Markdown
    #[arg(long, hide = true, requires = "list_reasons")]
    pub markdown: bool,
    /// As of every list.
    #[command(flatten)]
    pub list: ListArgs,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Expected {
    /// It passes
    Pass,
    /// It is dropped
    Drop,
}

impl Expected {
    /// As the view names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// What a question asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// A described packet: protocol, source, destination.
    Tuple([&'a str; 3]),
    /// A packet in hexadecimal.
    Hex(&'a str),
    /// A capture.
    Capture(PathBuf),
}

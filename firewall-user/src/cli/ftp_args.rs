//! Arguments of `pinhole ftp`.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, Subcommand};

use super::args::ListArgs;

/// `pinhole ftp`.
#[derive(Debug, Subcommand)]
pub enum FtpCommand {
    /// List the FTP sessions, oldest first, with the data connections dropped between their hosts
    #[command(after_help = "\
Examples:
  sudo pinhole ftp list
  sudo pinhole ftp list -o json | jq '.[] | select(.encrypted and .dropped > 0)'

JSON: [{client, cport, server, sport, zone: {client, server}, phase, encrypted,
age_s, idle_s, tls_age_s, opened, refused, last_refusal, dropped, drops: [{ago_s,
from, sport, dport, reason}], expectations}]")]
    List(ListArgs),
    /// Tell what becomes of FTP sessions, as it happens
    ///
    /// One line an event: sessions that begin, turn encrypted or clear, and end;
    /// ports that open, are used, and close; data connections that were dropped,
    /// came about, or were not answered; lines that opened nothing, and why. The
    /// agent keeps the last 4096 events where this reads them, so it works over a
    /// restart of the agent, and several may watch. Events that were written over
    /// before they were read are told as LOST.
    #[command(after_help = "\
Examples:
  sudo pinhole ftp watch
  sudo pinhole ftp watch --host 192.0.2.7 --history
  sudo pinhole ftp watch -o json | jq 'select(.event == \"dropped\")'

JSON, one object a line: {event, at, seq, session: {client, cport, server, sport},
phase, reason, via, connection: {src, sport, dst, dport}, duration_s, line, text}.
event is began, opened, used, passed, connected, unanswered, withdrawn, closed,
refused, dropped, would-drop, phase, failed, features, ended, skipped, or LOST
({event, at, lost}).")]
    Watch(WatchArgs),
    /// Say in words what became of FTP sessions, and what would help them
    ///
    /// Three outcomes of a data connection are kept apart: dropped here; passed
    /// here, and nobody answered (a firewall or host beyond); announced, and never
    /// seen here. For a session that is encrypted, the remedies that fit it: CCC, a
    /// session range or a fixed range, ready to paste with the narrowest ports seen, and
    /// what to ask at the other end. Sessions that have ended are told of as long as
    /// the journal holds them. Without an argument: all that had trouble.
    #[command(after_help = "\
Examples:
  sudo pinhole ftp explain
  sudo pinhole ftp explain 10.0.0.2:41822
  sudo pinhole ftp explain 192.0.2.7 -o json | jq '.[].data[] | {outcome, dport}'

JSON: [{client, cport, server, sport, phase, began, live, trouble, ccc, story: [{at,
text}], data: [{outcome, reason, at, src, sport, in_place_of, dst, dport, via, syns,
encrypted}], remedies: [{remedy, text, config}]}]. outcome is dropped-here,
would-be-dropped-here, passed-no-reply, passed-reset, never-seen, connected, waiting or
withdrawn; in_place_of is who was expected, if another host came.")]
    Explain(ExplainArgs),
}

/// Arguments of `ftp explain`.
#[derive(Clone, Copy, Debug, Args)]
pub struct ExplainArgs {
    /// An end of a control connection (10.0.0.2:41822), or a host (192.0.2.7)
    #[arg(value_name = "SESSION | HOST")]
    pub which: Option<Which>,
    /// How.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `ftp watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Of which sessions.
    #[command(flatten)]
    pub which: WhichArgs,
    /// Begin with what the journal holds already
    #[arg(long)]
    pub history: bool,
    /// How.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Conditions on a session; none is every session.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct WhichArgs {
    /// Only the session whose client (or server) is this address and port
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub session: Option<SocketAddr>,
    /// Only sessions with this host at either end
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
}

impl WhichArgs {
    /// Is it one of these sessions?
    #[must_use]
    pub fn takes(&self, client: SocketAddr, server: SocketAddr) -> bool {
        let is_end = |end| end == client || end == server;
        let is_host = |host| host == client.ip() || host == server.ip();
        self.session.is_none_or(is_end) && self.host.is_none_or(is_host)
    }
}

/// A session by one of its ends, or all sessions of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// An end of its control connection.
    Session(SocketAddr),
    /// A host at either end.
    Host(IpAddr),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let session = text.parse().map(Self::Session);
        session
            .or_else(|_| text.parse().map(Self::Host))
            .map_err(|_| {
                "name a host by its address (`192.0.2.7`), or a session by an end of its control \
                 connection (`10.0.0.2:41822`, `[2001:db8::2]:41822`; `pinhole ftp list` has them)"
                    .into()
            })
    }
}

impl From<Which> for WhichArgs {
    fn from(which: Which) -> Self {
        match which {
            Which::Session(end) => Self {
                session: Some(end),
                host: None,
            },
            Which::Host(host) => Self {
                session: None,
                host: Some(host),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_or_a_host_is_named() {
        let client: SocketAddr = "10.0.0.2:41822".parse().unwrap();
        let server: SocketAddr = "[2001:db8::1]:21".parse().unwrap();
        let takes = |text: &str| {
            let which: Which = text.parse().unwrap();
            WhichArgs::from(which).takes(client, server)
        };
        for text in [
            "10.0.0.2",
            "10.0.0.2:41822",
            "2001:db8::1",
            "[2001:db8::1]:21",
        ] {
            assert!(takes(text), "{text}");
        }
        assert!(!takes("10.0.0.2:41823") && !takes("10.0.0.3"));
        assert!(WhichArgs::default().takes(client, server));
        assert!("server".parse::<Which>().is_err());
    }
}

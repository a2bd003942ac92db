//! What `pinhole … -o json` prints, as far as the lab reads it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

use super::Firewall;

/// An element of `flows list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flow {
    /// Name of the protocol.
    pub proto: String,
    /// State, in capitals for TCP.
    pub state: String,
    /// Endpoints, and what the originator sent.
    pub original: Original,
    /// What came back.
    pub reply: Traffic,
    /// Why enforcing refuses it, if shadow mode let it in.
    pub would_drop: Option<String>,
    /// Its control connection, of a data connection.
    pub parent: Option<FlowParent>,
    /// Since its first packet, seconds.
    pub age_s: f64,
}

/// The control connection of a data connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct FlowParent {
    /// Address of the client.
    pub client: IpAddr,
    /// Its port.
    pub cport: u16,
    /// Address of the server.
    pub server: IpAddr,
    /// Its port.
    pub sport: u16,
    /// The command that negotiated the data connection.
    pub via: String,
}

/// Originator's side of a flow.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Original {
    /// Who began it.
    pub src: IpAddr,
    /// Its port, of a protocol that has ports.
    pub sport: Option<u16>,
    /// To whom.
    pub dst: IpAddr,
    /// To which port.
    pub dport: Option<u16>,
    /// Bytes so far.
    pub bytes: u64,
}

/// Replier's side of a flow.
#[derive(Clone, Debug, Deserialize)]
pub struct Traffic {
    /// Bytes so far.
    pub bytes: u64,
}

impl Flow {
    /// Is it an established TCP connection?
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.proto == "tcp" && self.state == "ESTABLISHED"
    }

    /// Originator and replier of a flow that has ports.
    #[must_use]
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let Original {
            src,
            sport,
            dst,
            dport,
            ..
        } = self.original;
        Some((SocketAddr::new(src, sport?), SocketAddr::new(dst, dport?)))
    }
}

/// An element of `expect list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Expectation {
    /// Who may connect.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// To which port.
    pub dport: u16,
    /// The command that opened it.
    pub via: String,
    /// Free or taken.
    pub state: String,
}

/// An element of `ftp list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// Its client.
    pub client: IpAddr,
    /// Port of the client.
    pub cport: u16,
    /// Its server.
    pub server: IpAddr,
    /// Name of the phase.
    pub phase: String,
    /// Cannot be read.
    pub encrypted: bool,
    /// Pinholes opened so far.
    pub opened: u32,
    /// Negotiations refused so far.
    pub refused: u32,
    /// Name of the reason of the last.
    pub last_refusal: Option<String>,
    /// Data SYNs dropped between the two.
    pub dropped: u32,
    /// The last of them.
    pub drops: Vec<Drop>,
}

/// A dropped data connection of a session.
#[derive(Clone, Debug, Deserialize)]
pub struct Drop {
    /// `client` or `server`.
    pub from: String,
    /// To which port.
    pub dport: u16,
    /// Name of the reason.
    pub reason: String,
}

/// `stats`.
#[derive(Clone, Debug, Deserialize)]
pub struct Stats {
    /// What was dropped, by reason.
    pub drop: Vec<Count>,
    /// What passed in shadow mode and would have been dropped, by reason.
    pub would_drop: Vec<Count>,
    /// What passed, by reason.
    pub pass: Vec<Count>,
    /// What happened beside.
    pub events: Vec<EventCount>,
}

/// A counter of events.
#[derive(Clone, Debug, Deserialize)]
pub struct EventCount {
    /// Its name.
    pub event: String,
    /// How often.
    pub count: u64,
}

/// A counter.
#[derive(Clone, Debug, Deserialize)]
pub struct Count {
    /// Name of the reason.
    pub reason: String,
    /// Packets.
    pub packets: u64,
}

impl Stats {
    /// Packets that passed in shadow mode and would have been dropped for a reason.
    #[must_use]
    pub fn would_drop(&self, reason: &str) -> u64 {
        let found = self.would_drop.iter().find(|count| count.reason == reason);
        found.map_or(0, |count| count.packets)
    }

    /// Packets dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: &str) -> u64 {
        packets(&self.drop, reason)
    }

    /// Packets that passed for a reason.
    #[must_use]
    pub fn passed(&self, reason: &str) -> u64 {
        packets(&self.pass, reason)
    }

    /// How often an event happened.
    #[must_use]
    pub fn happened(&self, event: &str) -> u64 {
        let found = self.events.iter().find(|count| count.event == event);
        found.map_or(0, |count| count.count)
    }
}

fn packets(counts: &[Count], reason: &str) -> u64 {
    let found = counts.iter().find(|count| count.reason == reason);
    found.map_or(0, |count| count.packets)
}

impl Firewall {
    /// `flows list`.
    ///
    /// # Errors
    /// The command fails, or prints something else.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        self.view(&["flows", "list"])
    }

    /// `expect list`.
    ///
    /// # Errors
    /// As [`Firewall::flows`].
    pub fn expectations(&self) -> Result<Vec<Expectation>> {
        self.view(&["expect", "list"])
    }

    /// `ftp list`.
    ///
    /// # Errors
    /// As [`Firewall::flows`].
    pub fn sessions(&self) -> Result<Vec<Session>> {
        self.view(&["ftp", "list"])
    }

    /// `stats`.
    ///
    /// # Errors
    /// As [`Firewall::flows`].
    pub fn stats(&self) -> Result<Stats> {
        self.view(&["stats", "--all"])
    }

    fn view<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let value = self.json(args)?;
        serde_json::from_value(value.clone())
            .with_context(|| format!("{} printed {value}", args.join(" ")))
    }
}

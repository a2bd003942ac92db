//! Real FTP clients: curl and Python's ftplib.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{
    Family, Lab, Node,
    payload::{self, Payload},
    process,
    server::{PASSWORD, USER, python},
};

/// A client that outlives its own time limit by this much is killed.
const MARGIN: Duration = Duration::from_secs(20);

/// How the data connection is negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FtpCommand {
    /// Active (RFC 959), IPv4 only.
    Port,
    /// Active (RFC 2428).
    Eprt,
    /// Passive (RFC 959), IPv4 only.
    Pasv,
    /// Passive (RFC 2428).
    Epsv,
}

impl FtpCommand {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Port, Self::Eprt, Self::Pasv, Self::Epsv];

    /// As it stands on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "PORT",
            Self::Eprt => "EPRT",
            Self::Pasv => "PASV",
            Self::Epsv => "EPSV",
        }
    }

    /// Does the server open the data connection?
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Port | Self::Eprt)
    }

    /// PORT and PASV carry four octets of address: they have no IPv6 form.
    #[must_use]
    pub const fn exists_on(self, family: Family) -> bool {
        matches!(family, Family::V4) || matches!(self, Self::Eprt | Self::Epsv)
    }
}

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// curl.
    Curl,
    /// Python's ftplib.
    Ftplib,
}

/// One transfer to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// With which client.
    pub client: Kind,
    /// On which node.
    pub from: Node,
    /// From which server (port 21).
    pub server: IpAddr,
    /// Of which family `server` is.
    pub family: Family,
    /// Negotiated how.
    pub command: FtpCommand,
    /// With AUTH TLS and PROT P (ftplib only).
    pub tls: bool,
    /// Time limit: of the whole for curl, of every wait for ftplib.
    pub patience: Duration,
    /// List the directory instead of fetching the file (curl only).
    pub listing: bool,
}

impl Request {
    /// From the lab's client to its server, in clear, with ten seconds' patience.
    #[must_use]
    pub fn new(lab: &Lab, client: Kind, command: FtpCommand, family: Family) -> Self {
        Self {
            client,
            from: Node::Client,
            server: lab.server_ip(family),
            family,
            command,
            tls: false,
            patience: Duration::from_secs(10),
            listing: false,
        }
    }

    /// With another patience: short where the data connection must fail.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Runs the client.
    ///
    /// # Errors
    /// The client cannot be run. A transfer that fails is not an error but an [`Outcome`].
    pub fn run(&self, lab: &Lab) -> Result<Outcome> {
        match self.client {
            Kind::Curl => self.curl(lab),
            Kind::Ftplib => self.ftplib(lab),
        }
    }

    fn curl(&self, lab: &Lab) -> Result<Outcome> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = lab
            .dir()
            .join(format!("got-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut curl = lab.ns(self.from).command("curl");
        curl.args(["--silent", "--show-error", "--verbose", "--disable"])
            .args(["--user", &format!("{USER}:{PASSWORD}"), "--output"])
            .arg(&file)
            .args(["--connect-timeout", &seconds(self.patience)])
            // For an active data connection that never comes there is no other limit.
            .args(["--max-time", &seconds(self.patience)]);
        match self.command {
            FtpCommand::Port => curl.args(["--ftp-port", "-", "--disable-eprt"]),
            FtpCommand::Eprt => curl.args(["--ftp-port", "-"]),
            FtpCommand::Pasv => curl.arg("--disable-epsv"),
            FtpCommand::Epsv => &mut curl,
        };
        curl.arg(format!(
            "ftp://{}/{}",
            SocketAddr::new(self.server, 21),
            if self.listing { "" } else { payload::NAME }
        ));
        let output = process::run(&mut curl, self.patience + MARGIN)?;
        let said = |text: &str| output.stderr.contains(text);
        let complete = output.success();
        let outcome = Outcome {
            login: said("< 230"),
            negotiated: said(&format!("> {}", self.command.name()))
                && (said("< 200 ") || said("< 227 ") || said("< 229 ")),
            data: complete,
            bytes: fs::metadata(&file).map_or(0, |m| m.len()),
            sha256: complete.then(|| payload::sha256(&file)).transpose()?,
            error: (!complete).then(|| curl_error(&output)),
            elapsed: output.elapsed,
        };
        let _ = fs::remove_file(&file);
        Ok(outcome)
    }

    fn ftplib(&self, lab: &Lab) -> Result<Outcome> {
        let options = serde_json::json!({
            "host": self.server,
            "family": self.family.name(),
            "command": self.command.name(),
            "user": USER,
            "password": PASSWORD,
            "file": payload::NAME,
            "timeout": self.patience.as_secs_f64(),
            "tls": self.tls,
        });
        let mut script = lab.ns(self.from).command(python());
        script
            .args(["-c", include_str!("ftp_client.py")])
            .arg(options.to_string());
        let output = process::run(&mut script, self.patience + MARGIN)?;
        let report: FtplibReport = serde_json::from_str(output.stdout.trim())
            .with_context(|| format!("ftplib reported: {}{}", output.stdout, output.stderr))?;
        Ok(Outcome {
            login: report.login,
            negotiated: report.negotiated,
            data: report.data,
            bytes: report.bytes,
            sha256: report.sha256,
            error: report.error,
            elapsed: output.elapsed,
        })
    }
}

#[derive(Deserialize)]
struct FtplibReport {
    login: bool,
    negotiated: bool,
    data: bool,
    bytes: u64,
    sha256: Option<String>,
    error: Option<String>,
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The server let the user in (230).
    pub login: bool,
    /// The command was sent and the server agreed to it.
    pub negotiated: bool,
    /// The whole file came.
    pub data: bool,
    /// Bytes that came.
    pub bytes: u64,
    /// Of the file, if it came whole.
    pub sha256: Option<String>,
    /// What the client complained of.
    pub error: Option<String>,
    /// From start to end.
    pub elapsed: Duration,
}

impl Outcome {
    /// The very file came.
    #[must_use]
    pub fn is(&self, payload: &Payload) -> bool {
        self.login
            && self.negotiated
            && self.data
            && self.bytes == payload.len
            && self.sha256.as_deref() == Some(&payload.sha256)
    }

    /// Log-in intact, the command agreed, and not one byte of data: what a
    /// firewall without a helper does to FTP.
    ///
    /// An active transfer may fail before its command is agreed, where the
    /// server connects first; then `negotiated` is not asked for.
    #[must_use]
    pub fn hung_at_data(&self) -> bool {
        self.login && !self.data && self.bytes == 0
    }
}

fn seconds(duration: Duration) -> String {
    duration.as_secs_f64().to_string()
}

fn curl_error(output: &process::Output) -> String {
    if output.code == Some(28) {
        // Its own words are of the last system call, whatever that was.
        return format!("timed out after {:.0} s", output.elapsed.as_secs_f64());
    }
    let said = output.stderr.lines().rev().find(|l| l.starts_with("curl:"));
    said.unwrap_or("killed at the time limit").to_owned()
}

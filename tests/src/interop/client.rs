//! The clients, each told to log in, list the directory and fetch the file.
//!
//! Each is left its own choice of commands: curl and tnftp negotiate by EPSV and
//! EPRT, wget, ftplib and inetutils' ftp by PASV and PORT over IPv4, lftp by what
//! the server's FEAT says.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    Cell, Program, Security, Variant, Verdict,
    judge::{self},
};
use crate::lab::{
    Mode, Netns,
    payload::{self, Payload},
    process,
    server::{PASSWORD, python, unpacked},
};

/// What a client calls the file that it has fetched.
const GOT: &str = "got";

/// A client that is about to be run.
#[derive(Debug)]
pub struct Trial<'a> {
    /// What to do.
    pub cell: Cell,
    /// On which machine.
    pub ns: &'a Netns,
    /// At which server.
    pub server: IpAddr,
    /// Which file it has.
    pub payload: &'a Payload,
    /// An empty directory, whose contents are of no use later.
    pub dir: PathBuf,
    /// After which it is ended.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Trace {
    /// How it is judged.
    pub verdict: Verdict,
    /// What the client said.
    pub transcript: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Trial<'_> {
    /// Runs the client.
    ///
    /// # Errors
    /// It cannot be run. A session that fails is a [`Verdict`].
    pub fn run(&self) -> Result<Trace> {
        fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let (mut command, input) = self.command()?;
        command.current_dir(&self.dir);
        let output = process::run_from(&mut command, input, self.patience)?;
        let got = self.got();
        let bytes = fs::metadata(&got).map_or(0, |m| m.len());
        let is_the_file =
            bytes == self.payload.len && payload::sha256(&got)? == self.payload.sha256;
        let transcript = format!("{}{}", output.stdout, output.stderr);
        Ok(Trace {
            verdict: judge::verdict(&transcript, bytes, is_the_file),
            transcript,
            elapsed: output.elapsed,
        })
    }

    /// wget alone chooses the name itself.
    fn got(&self) -> PathBuf {
        self.dir.join(match self.cell.client.program {
            Program::Wget => payload::NAME,
            _ => GOT,
        })
    }

    fn command(&self) -> Result<(Command, Stdio)> {
        let own = |command| (command, Stdio::null());
        Ok(match self.cell.client.program {
            Program::Curl => own(self.curl()),
            Program::Lftp => own(self.lftp()?),
            Program::Wget => own(self.wget()?),
            Program::Ftplib => own(self.ftplib()),
            Program::Tnftp => (self.interactive("usr/bin/tnftp")?, self.script()?),
            Program::Ftp => (self.interactive("usr/bin/inetutils-ftp")?, self.script()?),
        })
    }

    fn user(&self) -> &'static str {
        self.cell.server.user()
    }

    fn is_active(&self) -> bool {
        self.cell.mode == Mode::Active
    }

    fn url(&self, scheme: &str, path: &str) -> String {
        let at = SocketAddr::new(self.server, self.cell.port());
        format!("{scheme}://{at}/{path}")
    }

    /// A little before it would be ended.
    fn seconds(&self) -> String {
        self.patience.as_secs().saturating_sub(1).max(1).to_string()
    }

    fn curl(&self) -> Command {
        let Cell {
            security, client, ..
        } = self.cell;
        let mut curl = self.ns.command("curl");
        curl.args(["--silent", "--show-error", "--verbose", "--disable"])
            .args(["--insecure", "--max-time", &self.seconds()])
            .args(["--user", &format!("{}:{PASSWORD}", self.user())]);
        if self.is_active() {
            curl.args(["--ftp-port", "-"]);
        }
        let control_only = matches!(
            client.variant,
            Variant::ControlOnly | Variant::ControlCloseBoth
        );
        match (security, control_only) {
            (Security::Clear, _) => {}
            (_, true) => _ = curl.arg("--ftp-ssl-control"),
            (_, false) => _ = curl.arg("--ssl-reqd"),
        }
        if security == Security::Ccc {
            curl.arg("--ftp-ssl-ccc");
        }
        match client.variant {
            Variant::CloseBoth | Variant::ControlCloseBoth => {
                curl.args(["--ftp-ssl-ccc-mode", "active"]);
            }
            Variant::Tls12 => _ = curl.args(["--tls-max", "1.2"]),
            Variant::Plain | Variant::ControlOnly => {}
        }
        let scheme = match security {
            Security::Implicit => "ftps",
            _ => "ftp",
        };
        curl.args(["--output", "listing", &self.url(scheme, "")])
            .args(["--output", GOT, &self.url(scheme, payload::NAME)]);
        curl
    }

    fn lftp(&self) -> Result<Command> {
        let protection = match self.cell.security {
            Security::Clear => "set ftp:ssl-allow no;",
            Security::Explicit => "set ftp:ssl-force yes;",
            Security::Implicit => "",
            Security::Ccc => "set ftp:ssl-force yes; set ftp:ssl-use-ccc yes;",
        };
        let scheme = match self.cell.security {
            Security::Implicit => "ftps",
            _ => "ftp",
        };
        let mut lftp = unpacked(self.ns, "usr/bin/lftp")?;
        lftp.env("HOME", &self.dir);
        lftp.args(["--norc", "-c"]).arg(format!(
            "set ssl:verify-certificate no; set ftp:ssl-protect-data yes; \
             set net:max-retries 1; set net:timeout {}; set ftp:passive-mode {}; {protection} \
             debug 9; open -u {},{PASSWORD} {}; ls; get {} -o {GOT}; bye",
            self.seconds(),
            if self.is_active() { "no" } else { "yes" },
            self.user(),
            self.url(scheme, ""),
            payload::NAME,
        ));
        Ok(lftp)
    }

    /// A pattern instead of a name makes wget list the directory first.
    fn wget(&self) -> Result<Command> {
        let mut wget = unpacked(self.ns, "usr/bin/wget")?;
        wget.env("HOME", &self.dir)
            .args(["--no-config", "--debug", "--tries=1"])
            .arg(format!("--timeout={}", self.seconds()))
            .args(["--no-check-certificate", "--user", self.user()])
            .args(["--password", PASSWORD]);
        if self.is_active() {
            wget.arg("--no-passive-ftp");
        }
        let scheme = match self.cell.security {
            Security::Clear => "ftp",
            Security::Implicit => {
                wget.arg("--ftps-implicit");
                "ftps"
            }
            Security::Explicit | Security::Ccc => "ftps",
        };
        wget.arg(self.url(scheme, &payload::NAME.replace('.', "*")));
        Ok(wget)
    }

    fn ftplib(&self) -> Command {
        let Cell {
            security, client, ..
        } = self.cell;
        let options = serde_json::json!({
            "host": self.server,
            "port": self.cell.port(),
            "user": self.user(),
            "password": PASSWORD,
            "file": payload::NAME,
            "into": GOT,
            "timeout": self.patience.as_secs_f64(),
            "tls": security != Security::Clear,
            "ccc": security == Security::Ccc,
            "tls12": client.variant == Variant::Tls12,
            "passive": self.cell.mode == Mode::Passive,
        });
        let mut command = self.ns.command(python());
        command
            .args(["-c", include_str!("ftplib.py")])
            .arg(options.to_string());
        command
    }

    /// tnftp and inetutils' ftp, which are told by their standard input what to do.
    fn interactive(&self, program: &str) -> Result<Command> {
        let mut command = unpacked(self.ns, program)?;
        command
            .env("HOME", &self.dir)
            .args(["-n", "-v", if self.is_active() { "-A" } else { "-p" }])
            .arg(self.server.to_string());
        Ok(command)
    }

    fn script(&self) -> Result<Stdio> {
        let path = self.dir.join("script");
        let text = format!(
            "user {} {PASSWORD}\nbinary\nls\nget {} {GOT}\nquit\n",
            self.user(),
            payload::NAME
        );
        fs::write(&path, text).with_context(|| cannot_write(&path))?;
        Ok(File::open(&path)?.into())
    }
}

fn cannot_write(path: &Path) -> String {
    format!("write {}", path.display())
}

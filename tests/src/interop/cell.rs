//! The axes of the matrix, and which of their combinations make sense.

use std::fmt;

use crate::lab::{Family, Mode, server::Kind};

/// How a session is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Not at all.
    Clear,
    /// AUTH TLS.
    Explicit,
    /// TLS from the first byte, on port 990.
    Implicit,
    /// AUTH TLS, and the control connection in clear again after the log-in.
    Ccc,
}

impl Security {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Clear, Self::Explicit, Self::Implicit, Self::Ccc];

    /// As in the table of what is expected.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Explicit => "explicit",
            Self::Implicit => "implicit",
            Self::Ccc => "ccc",
        }
    }

    /// In which columns it is run.
    #[must_use]
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Clear => &[Column::Open, Column::Off, Column::Pinhole, Column::Kernel],
            Self::Explicit | Self::Implicit => &[
                Column::Open,
                Column::Pinhole,
                Column::Fixed,
                Column::Session,
                Column::Kernel,
            ],
            Self::Ccc => &[Column::Open, Column::Pinhole, Column::Kernel],
        }
    }

    /// A server without CCC refuses it, and its sessions stay encrypted: they are
    /// those of [`Security::Explicit`].
    const fn is_spoken_by(self, server: Kind) -> bool {
        match self {
            Self::Clear => true,
            Self::Explicit => !matches!(server, Kind::Inetutils),
            Self::Implicit => matches!(server, Kind::Proftpd | Kind::Vsftpd),
            Self::Ccc => matches!(server, Kind::Proftpd | Kind::PureFtpd),
        }
    }
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// curl.
    Curl,
    /// lftp.
    Lftp,
    /// GNU wget.
    Wget,
    /// tnftp.
    Tnftp,
    /// `ftp` of GNU inetutils.
    Ftp,
    /// Python's ftplib.
    Ftplib,
}

impl Program {
    /// All six.
    pub const ALL: [Self; 6] = [
        Self::Curl,
        Self::Lftp,
        Self::Wget,
        Self::Tnftp,
        Self::Ftp,
        Self::Ftplib,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Lftp => "lftp",
            Self::Wget => "wget",
            Self::Tnftp => "tnftp",
            Self::Ftp => "ftp",
            Self::Ftplib => "ftplib",
        }
    }

    /// With which options besides its own ways it is run.
    const fn variants(self, security: Security) -> &'static [Variant] {
        use Variant::{CloseBoth, ControlCloseBoth, ControlOnly, Plain, Tls12};
        match (security, self) {
            (Security::Clear, _) | (Security::Ccc, Self::Lftp) => &[Plain],
            (Security::Explicit | Security::Implicit, Self::Curl) => &[Plain, ControlOnly],
            (Security::Explicit | Security::Implicit, Self::Lftp | Self::Wget)
            | (Security::Explicit, Self::Ftplib) => &[Plain],
            (Security::Ccc, Self::Curl) => {
                &[Plain, ControlOnly, CloseBoth, ControlCloseBoth, Tls12]
            }
            (Security::Ccc, Self::Ftplib) => &[Plain, Tls12],
            _ => &[],
        }
    }
}

/// Options of a client that change what is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// None.
    Plain,
    /// curl protects the control connection and leaves data in clear.
    ControlOnly,
    /// curl begins to end TLS on its control connection, instead of waiting for the server to.
    CloseBoth,
    /// Both.
    ControlCloseBoth,
    /// At most TLS 1.2.
    Tls12,
}

/// A client with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Which.
    pub program: Program,
    /// How.
    pub variant: Variant,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program.name())?;
        f.write_str(match self.variant {
            Variant::Plain => "",
            Variant::ControlOnly => " --ftp-ssl-control",
            Variant::CloseBoth => " --ftp-ssl-ccc-mode active",
            Variant::ControlCloseBoth => " --ftp-ssl-control --ftp-ssl-ccc-mode active",
            Variant::Tls12 => " (TLS 1.2)",
        })
    }
}

/// One session to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Protected how.
    pub security: Security,
    /// At which server.
    pub server: Kind,
    /// By which client.
    pub client: Client,
    /// In which mode.
    pub mode: Mode,
    /// Over which family.
    pub family: Family,
}

/// The servers, in the order of the tables.
pub const SERVERS: [Kind; 5] = [
    Kind::Proftpd,
    Kind::PureFtpd,
    Kind::Vsftpd,
    Kind::Pyftpdlib,
    Kind::Inetutils,
];

impl Cell {
    /// All that make sense.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for security in Security::ALL {
            for server in SERVERS.into_iter().filter(|&s| security.is_spoken_by(s)) {
                for program in Program::ALL {
                    for &variant in program.variants(security) {
                        let client = Client { program, variant };
                        cells.extend(Self::of(security, server, client));
                    }
                }
            }
        }
        cells
    }

    fn of(security: Security, server: Kind, client: Client) -> impl Iterator<Item = Self> {
        Mode::BOTH.into_iter().flat_map(move |mode| {
            Family::BOTH.into_iter().map(move |family| Self {
                security,
                server,
                client,
                mode,
                family,
            })
        })
    }

    /// The port of the control connection.
    #[must_use]
    pub const fn port(&self) -> u16 {
        use crate::lab::server::{FTP, FTPS};
        match self.security {
            Security::Implicit => FTPS,
            _ => FTP,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\t{}\t{}\t{}\t{}",
            self.security.name(),
            self.server.name(),
            self.client,
            self.mode.name(),
            self.family.name()
        )
    }
}

/// What stands at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// No firewall.
    Open,
    /// pinhole without its helper.
    Off,
    /// pinhole with its helper, and nothing else.
    Pinhole,
    /// As [`Column::Pinhole`], with a range of ports open between the hosts for good.
    Fixed,
    /// As [`Column::Pinhole`], with a range of ports open while an encrypted session lives.
    Session,
    /// nftables with `nf_conntrack_ftp`.
    Kernel,
}

impl Column {
    /// All of them, in the order in which they are run and shown.
    pub const ALL: [Self; 6] = [
        Self::Open,
        Self::Off,
        Self::Pinhole,
        Self::Fixed,
        Self::Session,
        Self::Kernel,
    ];

    /// As in the head of the table of what is expected.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Off => "off",
            Self::Pinhole => "pinhole",
            Self::Fixed => "fixed-range",
            Self::Session => "session-range",
            Self::Kernel => "kernel",
        }
    }
}

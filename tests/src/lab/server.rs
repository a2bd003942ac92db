//! Real FTP servers, run from the cache that `cargo xtask setup` fills.
//!
//! Nothing of them is installed and no account is made: vsftpd serves
//! anonymously, proftpd has a password file of its own, pyftpdlib keeps its
//! user in memory.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    Lab, Netns, Node,
    payload::{self, Payload},
    process::{self, Daemon},
};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// vsftpd, anonymous, without TLS.
    Vsftpd,
    /// proftpd with AUTH TLS and CCC.
    Proftpd,
    /// pyftpdlib, with AUTH TLS.
    Pyftpdlib,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::Pyftpdlib => "pyftpdlib",
        }
    }
}

/// User of every server here.
pub const USER: &str = "anonymous";
/// And the password.
pub const PASSWORD: &str = "lab@example.net";

/// A running server. It ends with the handle.
#[derive(Debug)]
pub struct FtpServer {
    daemon: Daemon,
    payload: Payload,
}

impl FtpServer {
    /// Starts a server on the lab's server node, with a file of
    /// [`payload::BYTES`] random bytes.
    ///
    /// # Errors
    /// The cache is not there, or the server does not answer in time.
    pub fn start(lab: &Lab, kind: Kind) -> Result<Self> {
        Self::start_at(lab, Node::Server, kind, payload::BYTES)
    }

    /// Starts a server on `node` with a file of `len` bytes. One server a node.
    ///
    /// # Errors
    /// As [`FtpServer::start`].
    pub fn start_at(lab: &Lab, node: Node, kind: Kind, len: usize) -> Result<Self> {
        let dir = lab.dir().join(format!("ftp-{}", node.name()));
        let site = Site::make(&dir)?;
        let payload = Payload::write(&site.files, len)?;
        let ns = lab.ns(node);
        let command = match kind {
            Kind::Vsftpd => vsftpd(ns, &site)?,
            Kind::Proftpd => proftpd(ns, &site)?,
            Kind::Pyftpdlib => pyftpdlib(ns, &site)?,
        };
        let mut daemon = Daemon::spawn(command, dir.join("log"))?;
        await_answer(ns, &mut daemon)
            .with_context(|| format!("{} says: {}", kind.name(), daemon.log()))?;
        Ok(Self { daemon, payload })
    }

    /// The file that it serves.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// What it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}

/// A server's directories, and the certificate of this run.
struct Site {
    dir: PathBuf,
    files: PathBuf,
}

impl Site {
    fn make(dir: &Path) -> Result<Self> {
        let files = dir.join("pub");
        for d in [&files, &dir.join("empty")] {
            fs::create_dir_all(d).with_context(|| format!("make {}", d.display()))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            files,
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Key and certificate in one file, made now: nothing secret is kept in the repository.
    fn certificate(&self) -> Result<PathBuf> {
        let (key, cert) = (self.dir.join("key.pem"), self.dir.join("cert.pem"));
        process::check(
            Command::new("openssl")
                .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(' '))
                .args("-nodes -days 2 -subj /CN=lab.example.net -keyout".split(' '))
                .arg(&key)
                .arg("-out")
                .arg(&cert),
        )?;
        self.write(
            "both.pem",
            &format!("{}{}", fs::read_to_string(key)?, fs::read_to_string(cert)?),
        )
    }
}

/// IPv4 clients reach the IPv6 socket through mapped addresses, which vsftpd
/// turns back for PASV and PORT.
fn vsftpd(ns: &Netns, site: &Site) -> Result<Command> {
    let conf = site.write(
        "vsftpd.conf",
        &format!(
            "listen=NO\nlisten_ipv6=YES\nbackground=NO\n\
             anonymous_enable=YES\nno_anon_password=YES\nlocal_enable=NO\n\
             ftp_username=daemon\nnopriv_user=nobody\nanon_root={files}\n\
             secure_chroot_dir={dir}/empty\n\
             port_enable=YES\nconnect_from_port_20=YES\n\
             pasv_enable=YES\npasv_min_port=50200\npasv_max_port=50299\n\
             xferlog_enable=NO\nseccomp_sandbox=NO\nisolate=NO\nisolate_network=NO\n",
            files = site.files.display(),
            dir = site.dir.display(),
        ),
    )?;
    let mut command = unpacked(ns, "usr/sbin/vsftpd")?;
    command.arg(conf);
    Ok(command)
}

fn proftpd(ns: &Netns, site: &Site) -> Result<Command> {
    let modules = cache()?.join("root/usr/lib/proftpd");
    let hash = process::check(Command::new("openssl").args(["passwd", "-6", PASSWORD]))?;
    let users = site.write(
        "passwd",
        &format!(
            "{USER}:{}:65534:65534::{}:/bin/false\n",
            hash.trim(),
            site.files.display()
        ),
    )?;
    // proftpd refuses a password file that others can read.
    fs::set_permissions(&users, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let certificate = site.certificate()?;
    let conf = site.write(
        "proftpd.conf",
        &format!(
            "ServerName lab\nServerType standalone\nDefaultServer on\nPort 21\nUseIPv6 on\n\
             User nobody\nGroup nogroup\nUseReverseDNS off\n\
             PidFile {dir}/pid\nScoreboardFile {dir}/scoreboard\nSystemLog {dir}/proftpd.log\n\
             DelayTable none\nWtmpLog off\nModulePath {modules}\n\
             AuthOrder mod_auth_file.c\nAuthUserFile {users}\nRequireValidShell off\n\
             DefaultRoot {files}\nPassivePorts 50000 50099\nUseSendfile off\n\
             LoadModule mod_tls.c\nTLSEngine on\nTLSLog {dir}/tls.log\n\
             TLSProtocol TLSv1.2 TLSv1.3\nTLSRequired off\nTLSOptions NoSessionReuseRequired\n\
             TLSECCertificateFile {certificate}\nTLSECCertificateKeyFile {certificate}\n",
            dir = site.dir.display(),
            modules = modules.display(),
            users = users.display(),
            files = site.files.display(),
            certificate = certificate.display(),
        ),
    )?;
    let mut command = unpacked(ns, "usr/sbin/proftpd")?;
    command.args(["--nodaemon", "--config"]).arg(conf);
    Ok(command)
}

fn pyftpdlib(ns: &Netns, site: &Site) -> Result<Command> {
    let mut command = ns.command(python());
    command
        .env(
            "PYTHONPATH",
            cache()?.join("root/usr/lib/python3/dist-packages"),
        )
        .args(["-c", include_str!("pyftpd.py")])
        .args([USER, PASSWORD])
        .arg(&site.files)
        .arg(site.certificate()?);
    Ok(command)
}

/// A program of the cache, with the libraries that came with it.
fn unpacked(ns: &Netns, program: &str) -> Result<Command> {
    let root = cache()?.join("root");
    let path = root.join(program);
    if !path.exists() {
        bail!("{} is missing: run `cargo xtask setup`", path.display());
    }
    let mut libraries = Vec::new();
    for top in ["usr/lib", "lib"] {
        for entry in fs::read_dir(root.join(top)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with("-linux-gnu") {
                libraries.push(entry.path());
            }
        }
    }
    let mut command = ns.command(&path.to_string_lossy());
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?);
    Ok(command)
}

/// The distribution's Python: the cached modules are built for that one, and
/// another may stand before it in `PATH`.
pub(super) fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() {
        "/usr/bin/python3"
    } else {
        "python3"
    }
}

/// `target/lab`, or `PINHOLE_LAB`.
fn cache() -> Result<PathBuf> {
    let dir = std::env::var_os("PINHOLE_LAB").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab"),
        PathBuf::from,
    );
    dir.canonicalize().with_context(|| {
        format!(
            "no FTP servers in {}: run `cargo xtask setup`",
            dir.display()
        )
    })
}

fn await_answer(ns: &Netns, daemon: &mut Daemon) -> Result<()> {
    let at = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 21);
    let mut ended = false;
    process::await_some("FTP server answers", Duration::from_secs(15), || {
        ended = daemon.ended().is_some();
        let up = matches!(ns.connect(at, Duration::from_secs(1)), Ok(Ok(_)));
        (ended || up).then_some(())
    })?;
    if ended {
        bail!("the FTP server ended at once");
    }
    Ok(())
}

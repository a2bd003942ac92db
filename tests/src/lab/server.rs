//! Real FTP servers, run from the cache that `cargo xtask setup` fills.
//!
//! Nothing of them is installed and no account is made: vsftpd serves
//! anonymously, proftpd and pure-ftpd have user files of their own, pyftpdlib
//! keeps its user in memory, and inetutils-ftpd sees another `/etc/passwd`.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// vsftpd, anonymous, with AUTH TLS.
    Vsftpd,
    /// proftpd with AUTH TLS and CCC.
    Proftpd,
    /// pure-ftpd with AUTH TLS and CCC.
    PureFtpd,
    /// pyftpdlib, with AUTH TLS.
    Pyftpdlib,
    /// inetutils-ftpd behind inetd, without TLS.
    Inetutils,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::PureFtpd => "pure-ftpd",
            Self::Pyftpdlib => "pyftpdlib",
            Self::Inetutils => "inetutils-ftpd",
        }
    }

    /// Who may log in, with [`PASSWORD`].
    #[must_use]
    pub const fn user(self) -> &'static str {
        match self {
            Self::Vsftpd | Self::Proftpd | Self::Pyftpdlib => USER,
            Self::PureFtpd | Self::Inetutils => ACCOUNT,
        }
    }
}

/// When a session is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    /// Never, or after AUTH: port 21.
    Explicit,
    /// From its first byte: port 990.
    Implicit,
}

impl Tls {
    const fn port(self) -> u16 {
        match self {
            Self::Explicit => FTP,
            Self::Implicit => FTPS,
        }
    }
}

/// The port of FTP's control connection.
pub const FTP: u16 = 21;
/// That of implicit FTPS.
pub const FTPS: u16 = 990;

/// User of vsftpd, proftpd and pyftpdlib.
pub const USER: &str = "anonymous";
/// User of those to which `anonymous` would be another kind of user.
const ACCOUNT: &str = "lab";
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
        Self::launch(lab, node, kind, len, Tls::Explicit)
    }

    /// Starts a server of implicit FTPS on the lab's server node, beside the
    /// other perhaps, with a file of `len` bytes. vsftpd and proftpd know it.
    ///
    /// # Errors
    /// As [`FtpServer::start`].
    pub fn start_implicit(lab: &Lab, kind: Kind, len: usize) -> Result<Self> {
        Self::launch(lab, Node::Server, kind, len, Tls::Implicit)
    }

    fn launch(lab: &Lab, node: Node, kind: Kind, len: usize, tls: Tls) -> Result<Self> {
        let dir = lab
            .dir()
            .join(format!("ftp-{}-{}", node.name(), tls.port()));
        let site = Site::make(&dir)?;
        let payload = Payload::write(&site.files, len)?;
        let ns = lab.ns(node);
        let command = match (kind, tls) {
            (Kind::Vsftpd, _) => vsftpd(ns, &site, tls)?,
            (Kind::Proftpd, _) => proftpd(ns, &site, tls)?,
            (Kind::PureFtpd, Tls::Explicit) => pure_ftpd(ns, &site)?,
            (Kind::Pyftpdlib, Tls::Explicit) => pyftpdlib(ns, &site)?,
            (Kind::Inetutils, Tls::Explicit) => inetutils(ns, &site)?,
            (_, Tls::Implicit) => bail!("{} has no implicit TLS", kind.name()),
        };
        let mut daemon = Daemon::spawn(command, dir.join("log"))?;
        await_answer(ns, &mut daemon, tls.port())
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

    /// As [`Site::write`], readable by root alone.
    fn write_secret(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.write(name, text)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
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
fn vsftpd(ns: &Netns, site: &Site, tls: Tls) -> Result<Command> {
    let certificate = site.certificate()?;
    let implicit = if tls == Tls::Implicit { "YES" } else { "NO" };
    let conf = site.write(
        "vsftpd.conf",
        &format!(
            "listen=NO\nlisten_ipv6=YES\nbackground=NO\n\
             anonymous_enable=YES\nno_anon_password=YES\nlocal_enable=NO\n\
             ftp_username=daemon\nnopriv_user=nobody\nanon_root={files}\n\
             secure_chroot_dir={dir}/empty\n\
             port_enable=YES\nconnect_from_port_20=YES\n\
             pasv_enable=YES\npasv_min_port=50200\npasv_max_port=50299\n\
             xferlog_enable=NO\nseccomp_sandbox=NO\nisolate=NO\nisolate_network=NO\n\
             listen_port={port}\nssl_enable=YES\nallow_anon_ssl=YES\nimplicit_ssl={implicit}\n\
             force_local_logins_ssl=NO\nforce_local_data_ssl=NO\nrequire_ssl_reuse=NO\n\
             ssl_ciphers=HIGH\n\
             rsa_cert_file={certificate}\nrsa_private_key_file={certificate}\n",
            port = tls.port(),
            certificate = certificate.display(),
            files = site.files.display(),
            dir = site.dir.display(),
        ),
    )?;
    let mut command = unpacked(ns, "usr/sbin/vsftpd")?;
    command.arg(conf);
    Ok(command)
}

fn proftpd(ns: &Netns, site: &Site, tls: Tls) -> Result<Command> {
    let (required, options) = match tls {
        Tls::Explicit => ("off", ""),
        Tls::Implicit => ("ctrl", " UseImplicitSSL"),
    };
    let modules = cache()?.join("root/usr/lib/proftpd");
    // proftpd refuses a password file that others can read.
    let users = site.write_secret(
        "passwd",
        &format!(
            "{USER}:{}:65534:65534::{}:/bin/false\n",
            hashed_password()?,
            site.files.display()
        ),
    )?;
    let certificate = site.certificate()?;
    let conf = site.write(
        "proftpd.conf",
        &format!(
            "ServerName lab\nServerType standalone\nDefaultServer on\nPort {port}\nUseIPv6 on\n\
             User nobody\nGroup nogroup\nUseReverseDNS off\n\
             PidFile {dir}/pid\nScoreboardFile {dir}/scoreboard\nSystemLog {dir}/proftpd.log\n\
             DelayTable none\nWtmpLog off\nModulePath {modules}\n\
             AuthOrder mod_auth_file.c\nAuthUserFile {users}\nRequireValidShell off\n\
             DefaultRoot {files}\nPassivePorts 50000 50099\nUseSendfile off\n\
             LoadModule mod_tls.c\nTLSEngine on\nTLSLog {dir}/tls.log\n\
             TLSProtocol TLSv1.2 TLSv1.3\nTLSRequired {required}\n\
             TLSOptions NoSessionReuseRequired{options}\n\
             TLSECCertificateFile {certificate}\nTLSECCertificateKeyFile {certificate}\n",
            port = tls.port(),
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

/// Its own tool would hash the password anew at a cost of seconds; crypt(3) will do.
fn pure_ftpd(ns: &Netns, site: &Site) -> Result<Command> {
    let users = site.write_secret(
        "users",
        &format!(
            "{ACCOUNT}:{}:65534:65534::{}/./::::::::::::\n",
            hashed_password()?,
            site.files.display()
        ),
    )?;
    let database = site.dir.join("users.pdb");
    let mut index = unpacked(ns, "usr/bin/pure-pw")?;
    process::check(index.arg("mkdb").arg(&database).arg("-f").arg(&users))?;
    let mut command = unpacked(ns, "usr/sbin/pure-ftpd")?;
    command
        .args(["--login", &format!("puredb:{}", database.display())])
        .arg("--certfile")
        .arg(site.certificate()?)
        .arg("--pidfile")
        .arg(site.dir.join("pid"))
        .args(["--tls", "1", "--passiveportrange", "50100:50199"])
        .args(["--chrooteveryone", "--noanonymous", "--dontresolve"])
        .args(["--brokenclientscompatibility", "--minuid", "100"])
        .args(["--maxclientsnumber", "100", "--maxclientsperip", "100"]);
    Ok(command)
}

/// It takes its users from `/etc/passwd` and `/etc/shadow`: it sees others
/// there, in a mount namespace of its own.
fn inetutils(ns: &Netns, site: &Site) -> Result<Command> {
    let account = |file: &str, line: &str| -> Result<(PathBuf, String)> {
        let seen = format!("/etc/{file}");
        let mut text = fs::read_to_string(&seen).with_context(|| format!("read {seen}"))?;
        text.push_str(line);
        Ok((site.write_secret(file, &text)?, seen))
    };
    let home = site.files.display();
    let passwd = account(
        "passwd",
        &format!("{ACCOUNT}:x:65534:65534::{home}:/bin/sh\n"),
    )?;
    let shadow = account(
        "shadow",
        &format!("{ACCOUNT}:{}:19000:0:99999:7:::\n", hashed_password()?),
    )?;
    fs::set_permissions(
        &passwd.0,
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )?;
    // Names are asked of files alone: there is no resolver in the lab.
    let switch = site.write(
        "nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    )?;
    let server = unpacked(ns, "usr/sbin/ftpd")?;
    let libraries = server.get_envs().find_map(|(_, value)| value);
    // inetd starts it with an empty environment.
    let line = format!(
        "root /usr/bin/env env LD_LIBRARY_PATH={} {} -q",
        libraries.unwrap_or_default().to_string_lossy(),
        cache()?.join("root/usr/sbin/ftpd").display(),
    );
    let services = site.write(
        "inetd.conf",
        &format!(
            "[::]:21 stream tcp6 nowait.10000 {line}\n0.0.0.0:21 stream tcp4 nowait.10000 {line}\n"
        ),
    )?;
    let mounts: String = [passwd, shadow, (switch, "/etc/nsswitch.conf".to_owned())]
        .iter()
        .map(|(file, over)| format!("mount --bind {} {over} && ", file.display()))
        .collect();
    let mut command = ns.command("unshare");
    command
        .envs(server.get_envs().filter_map(|(k, v)| Some((k, v?))))
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!(
            "{mounts}exec {} -i {}",
            cache()?.join("root/usr/sbin/inetd").display(),
            services.display()
        ));
    Ok(command)
}

fn hashed_password() -> Result<String> {
    let hash = process::check(Command::new("openssl").args(["passwd", "-6", PASSWORD]))?;
    Ok(hash.trim().to_owned())
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
pub(crate) fn unpacked(ns: &Netns, program: &str) -> Result<Command> {
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
pub(crate) fn python() -> &'static str {
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

fn await_answer(ns: &Netns, daemon: &mut Daemon, port: u16) -> Result<()> {
    let at = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
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

//! On whose behalf a task runs: builds never run as root on behalf of somebody else.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{IsTerminal, stdin},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Variables of the caller's own session that would mislead the programs of another user.
const SESSION_VARIABLES: &[&str] = &[
    "CARGO",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
];

/// Who builds, and how root is reached.
#[derive(Debug)]
pub(crate) enum Account {
    /// A log-in of root itself (a container, a build machine).
    Root,
    /// Root by way of sudo: builds run as the caller.
    Sudo(Caller),
    /// An ordinary user: what needs root goes through sudo.
    User,
}

/// The user who called sudo.
#[derive(Debug)]
pub(crate) struct Caller {
    name: String,
    home: PathBuf,
    uid: u32,
    gid: u32,
}

impl Account {
    pub(crate) fn detect() -> Result<Self> {
        let euid = fs::metadata("/proc/self")
            .context("/proc is not mounted")?
            .uid();
        if euid != 0 {
            return Ok(Self::User);
        }
        match env::var("SUDO_UID") {
            Ok(uid) if uid != "0" => Ok(Self::Sudo(Caller::look_up(&uid)?)),
            _ => Ok(Self::Root),
        }
    }

    /// A command that runs as the user who owns the build.
    pub(crate) fn user_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Self::Sudo(caller) = self {
            caller.adopt(&mut command);
        }
        command
    }

    /// A command that runs as root with the given environment added. `purpose` completes
    /// "root is needed to …".
    pub(crate) fn root_command(
        &self,
        program: impl AsRef<OsStr>,
        environment: &[(&str, &OsStr)],
        purpose: &str,
    ) -> Result<Command> {
        if !matches!(self, Self::User) {
            let mut command = Command::new(program);
            command.envs(environment.iter().copied());
            return Ok(command);
        }
        let mut command = Command::new(sudo(purpose)?);
        if !stdin().is_terminal() {
            command.arg("--non-interactive");
        }
        command.args(["--", "env"]);
        for (name, value) in environment {
            let mut assignment = OsString::from(name);
            assignment.push("=");
            assignment.push(value);
            command.arg(assignment);
        }
        command.arg(program);
        Ok(command)
    }

    /// Makes sure that root can be had, and has sudo ask for the password now, before progress
    /// is shown on the same line or minutes of work are spent.
    pub(crate) fn authenticate(&self, purpose: &str) -> Result<()> {
        if !matches!(self, Self::User) {
            return Ok(());
        }
        let mut sudo = Command::new(sudo(purpose)?);
        if !stdin().is_terminal() {
            sudo.arg("--non-interactive");
        }
        let status = sudo.args(["--", "true"]).status();
        if !status.context("cannot run sudo")?.success() {
            bail!("root is needed to {purpose}, and sudo does not allow it");
        }
        Ok(())
    }

    /// The caller behind sudo, when there is one.
    pub(crate) fn caller(&self) -> Option<&Caller> {
        match self {
            Self::Sudo(caller) => Some(caller),
            Self::Root | Self::User => None,
        }
    }
}

fn sudo(purpose: &str) -> Result<PathBuf> {
    find_program("sudo").with_context(|| {
        format!("root is needed to {purpose}, and there is no sudo: run this as root")
    })
}

impl Caller {
    fn look_up(uid: &str) -> Result<Self> {
        let output = Command::new("getent").args(["passwd", uid]).output();
        let output = output.context("cannot run getent to find the caller of sudo")?;
        let line = String::from_utf8_lossy(&output.stdout);
        Self::parse(line.trim_end())
            .with_context(|| format!("sudo was called by user {uid}, whom getent does not know"))
    }

    /// One line of passwd(5).
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = PathBuf::from(fields.nth(1)?);
        Some(Self {
            name,
            home,
            uid,
            gid,
        })
    }

    /// Makes `command` run as this user; std drops root's supplementary groups with it.
    fn adopt(&self, command: &mut Command) {
        for variable in SESSION_VARIABLES {
            command.env_remove(variable);
        }
        command
            .uid(self.uid)
            .gid(self.gid)
            .env("HOME", &self.home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name)
            .env("PATH", self.path());
    }

    /// sudo's secure path hides `~/.cargo/bin`.
    pub(crate) fn path(&self) -> OsString {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let mut path = self.cargo_bin().into_os_string();
        path.push(":");
        path.push(inherited);
        path
    }

    pub(crate) fn cargo_bin(&self) -> PathBuf {
        self.home.join(".cargo/bin")
    }

    pub(crate) fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }
}

/// Looks a program up in `PATH`, and where an ordinary user's `PATH` misses root's tools.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    env::split_paths(&path)
        .chain(system.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line_gives_the_caller() {
        let caller = Caller::parse("ada:x:1000:1001:Ada,,,:/home/ada:/bin/bash").unwrap();
        assert_eq!(caller.ids(), (1000, 1001));
        assert_eq!(caller.cargo_bin(), Path::new("/home/ada/.cargo/bin"));
    }

    #[test]
    fn a_broken_passwd_line_is_refused() {
        assert!(Caller::parse("").is_none());
        assert!(Caller::parse("ada:x:many:1:x:/home/ada:/bin/sh").is_none());
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-here").is_none());
    }
}

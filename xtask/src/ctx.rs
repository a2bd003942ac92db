//! What every task needs: where things are, how commands run, how progress is shown.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, IsTerminal, Write, stderr},
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::account::{Account, Caller};

/// Lines of a failed command's log that are shown.
const LOG_TAIL: usize = 40;

pub(crate) struct Ctx {
    root: PathBuf,
    account: Account,
}

impl Ctx {
    pub(crate) fn new() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("xtask has no parent directory")?;
        let ctx = Self {
            root: root.to_owned(),
            account: Account::detect()?,
        };
        ctx.create_dir(&ctx.target())?;
        ctx.give_back(&ctx.target())?;
        Ok(ctx)
    }

    /// The workspace.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that is built or cached lives below.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Tools that were built for this workspace.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    /// The eBPF object that the binary embeds.
    pub(crate) fn object(&self) -> PathBuf {
        self.target().join("bpf/pinhole.o")
    }

    /// The eBPF object of the tests' load generator.
    pub(crate) fn generator(&self) -> PathBuf {
        self.target().join("bpf/generator.o")
    }

    /// The cache of the lab: servers and clients, unpacked.
    pub(crate) fn lab(&self) -> PathBuf {
        self.target().join("lab")
    }

    /// The cache of virtual machines: kernels, unpacked.
    pub(crate) fn vm(&self) -> PathBuf {
        self.target().join("vm")
    }

    /// A command that runs as the user who owns the build, in the workspace.
    pub(crate) fn user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.account.user_command(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        scrub(&mut command);
        command
    }

    /// A command that runs as root, in the workspace, through sudo where that is the way.
    pub(crate) fn superuser(
        &self,
        program: impl AsRef<OsStr>,
        environment: &[(&str, &OsStr)],
        purpose: &str,
    ) -> Result<Command> {
        let mut command = self.account.root_command(program, environment, purpose)?;
        command.current_dir(&self.root);
        scrub(&mut command);
        Ok(command)
    }

    /// Fails now, not later, when a command could not be run as root.
    pub(crate) fn authenticate(&self, purpose: &str) -> Result<()> {
        self.account.authenticate(purpose)
    }

    /// The cargo of the user who owns the build.
    pub(crate) fn cargo(&self) -> Command {
        let program = match self.account.caller() {
            Some(caller) if caller.cargo_bin().join("cargo").exists() => {
                caller.cargo_bin().join("cargo")
            }
            Some(_) => PathBuf::from("cargo"),
            None => env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        };
        self.user(program)
    }

    /// `PATH` as the user who owns the build has it.
    pub(crate) fn path(&self) -> OsString {
        self.account
            .caller()
            .map_or_else(|| env::var_os("PATH").unwrap_or_default(), Caller::path)
    }

    /// One line of progress: a verb in cargo's manner, and what it is done to.
    pub(crate) fn status(&self, verb: &str, message: impl AsRef<str>) {
        let message = message.as_ref();
        if stderr().is_terminal() {
            eprintln!("\x1b[1;32m{verb:>12}\x1b[0m {message}");
        } else {
            eprintln!("{verb:>12} {message}");
        }
    }

    /// Runs a command with its output shown; failure names the command.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let status = command.status().with_context(|| cannot_run(command))?;
        check(command, status)
    }

    /// Runs a command and returns what it wrote to stdout.
    pub(crate) fn capture(&self, command: &mut Command) -> Result<String> {
        let output = command.output().with_context(|| cannot_run(command))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{}` failed ({}): {}",
                show(command),
                output.status,
                said.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a long command with its output in a log, shows how long it takes, and shows the end
    /// of the log when it fails.
    pub(crate) fn run_logged(
        &self,
        verb: &str,
        message: &str,
        command: &mut Command,
    ) -> Result<()> {
        self.run_limited(verb, message, command, Duration::MAX)
    }

    /// As `run_logged`; a command that outlives `limit` is killed and has failed.
    pub(crate) fn run_limited(
        &self,
        verb: &str,
        message: &str,
        command: &mut Command,
        limit: Duration,
    ) -> Result<()> {
        self.status(verb, message);
        let log = self
            .target()
            .join("log")
            .join(format!("{}.log", slug(message)));
        self.create_dir(&self.target().join("log"))?;
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        self.give_back(&log)?;
        command
            .stdout(file.try_clone()?)
            .stderr(file)
            .stdin(Stdio::null());
        let begun = Instant::now();
        let status = wait(command, begun, limit)?;
        let outcome = match status {
            Some(status) => check(command, status),
            None => Err(anyhow::anyhow!(
                "`{}` took over {limit:?}: stopped",
                show(command)
            )),
        };
        let took = begun.elapsed().as_secs();
        match outcome {
            Ok(()) if took >= 2 => self.status("", format!("… took {took} s")),
            Ok(()) => {}
            Err(error) => {
                return Err(error.context(format!("{}log: {}", tail(&log), log.display())));
            }
        }
        Ok(())
    }

    /// Creates a directory (and its parents) that belongs to the user who owns the build.
    pub(crate) fn create_dir(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        self.give_back(path)
    }

    /// Fills a directory under a temporary name and renames it, so that `path` is either whole
    /// or not there, whatever interrupts the work.
    pub(crate) fn publish(
        &self,
        path: &Path,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove(&partial)?;
        self.create_dir(&partial)?;
        if let Err(error) = fill(&partial) {
            remove(&partial)?;
            return Err(error);
        }
        self.give_back(&partial)?;
        remove(path)?;
        fs::rename(&partial, path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Writes a file under a temporary name and renames it.
    pub(crate) fn write(&self, path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
        let partial = path.with_extension("partial");
        let written = fs::write(&partial, content).and_then(|()| fs::rename(&partial, path));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        self.give_back(path)
    }

    /// Under sudo, hands what root owns below `path` back to the caller.
    pub(crate) fn give_back(&self, path: &Path) -> Result<()> {
        let Some(caller) = self.account.caller() else {
            return Ok(());
        };
        let (uid, gid) = caller.ids();
        chown_tree(path, uid, gid)
            .with_context(|| format!("cannot give {} back to the caller of sudo", path.display()))
    }
}

/// Removes what cargo sets for this process and what would mislead a cargo started by it.
fn scrub(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
            .iter()
            .any(|p| text.starts_with(p))
        {
            command.env_remove(&name);
        }
    }
}

fn wait(command: &mut Command, begun: Instant, limit: Duration) -> Result<Option<ExitStatus>> {
    let mut child = command.spawn().with_context(|| cannot_run(command))?;
    let live = stderr().is_terminal();
    loop {
        if let Some(status) = child.try_wait()? {
            clear_line(live);
            return Ok(Some(status));
        }
        if begun.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            clear_line(live);
            return Ok(None);
        }
        if live {
            eprint!("\r{:>12} {} s", "", begun.elapsed().as_secs());
            stderr().flush()?;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn clear_line(live: bool) {
    if live {
        eprint!("\r\x1b[K");
    }
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` failed ({status})", show(command))
}

fn cannot_run(command: &Command) -> String {
    format!("cannot run `{}`", show(command))
}

/// The command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_TAIL);
    lines[from..]
        .iter()
        .map(|line| format!("  | {line}\n"))
        .collect()
}

/// A file name made of the words of a message.
fn slug(message: &str) -> String {
    let words = message
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.take(5).collect::<Vec<_>>().join("-").to_lowercase()
}

/// Removes a file or a tree; that it is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// What vanishes meanwhile, under another cargo's hands, needs no owner.
fn chown_tree(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let owned = fs::symlink_metadata(path).and_then(|meta| {
        if meta.uid() == 0 {
            lchown(path, Some(uid), Some(gid))?;
        }
        Ok(meta.is_dir())
    });
    match owned {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(path)? {
        chown_tree(&entry?.path(), uid, gid)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_named_by_the_first_words() {
        assert_eq!(
            slug("bpf-linker 0.13.0 (about 1 minute)"),
            "bpf-linker-0-13-0"
        );
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        assert_eq!(
            show(Command::new("apt-get").args(["install", "-y"])),
            "apt-get install -y"
        );
    }
}

//! Names that two runs cannot share, and the removal of what a run left.
//!
//! Everything that the lab makes on the machine carries the process id of its
//! owner: `ph-<pid>-<n>-<what>`. So a later run can tell the leftovers of a
//! dead one from the belongings of a live one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{netns, process};

const PREFIX: &str = "ph-";

/// Where pinhole keeps its pins, by instance.
pub const PINS: &str = "/sys/fs/bpf/pinhole";

/// Name of one lab: `ph-<pid>-<n>`.
#[derive(Clone, Debug)]
pub struct LabId(String);

impl LabId {
    /// A name that no other lab on this machine has.
    ///
    /// The first call of a process also removes what dead runs left, and makes
    /// Ctrl-C clean up.
    ///
    /// # Errors
    /// The caller is not root.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces: run it as root (sudo)");
        }
        prepare();
        halt_if_interrupted();
        mount_bpffs()?;
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self(format!("{PREFIX}{}-{n}", std::process::id())))
    }

    /// `ph-<pid>-<n>-<what>`.
    #[must_use]
    pub fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.0)
    }

    /// A directory for this lab's files, readable by every user: FTP servers
    /// shed their privileges before they open it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_dir(&self) -> Result<PathBuf> {
        let dir = std::env::temp_dir().join(&self.0);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }
}

/// Removes the leftovers of dead runs, once a process, and arranges that
/// SIGINT, SIGTERM and SIGHUP remove this process's own before it ends.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        sweep(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        // Fails only if someone else installed a handler: then cleaning up is theirs.
        let _ = ctrlc::set_handler(|| {
            INTERRUPTED.store(true, Ordering::SeqCst);
            remove_own();
            if let Ok(acts) = ON_INTERRUPT.lock() {
                acts.iter().for_each(|act| act());
            }
            // What was being made at that moment.
            remove_own();
            std::process::exit(130);
        });
    });
}

/// The process is being ended from outside, and its labs are removed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Returns, unless the process is interrupted: then it waits for its end, so that neither
/// something new is made nor the process ends before all is removed.
pub fn halt_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_secs(1));
    }
}

/// Removes whatever labs of this process there still are.
pub fn remove_own() {
    let own = std::process::id();
    sweep(|pid| pid == own);
}

/// Has `act` called, once, when the process is interrupted: for what is not removed by name.
pub fn on_interrupt(act: fn()) {
    if let Ok(mut acts) = ON_INTERRUPT.lock()
        && !acts.iter().any(|&known| std::ptr::fn_addr_eq(known, act))
    {
        acts.push(act);
    }
}

static ON_INTERRUPT: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

/// Mounts `/sys/fs/bpf` where nobody has. pinhole does that, too, but two at
/// once on a fresh machine could each mount one over the other's.
fn mount_bpffs() -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let script = "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf";
    process::check(Command::new("sh").args(["-c", script])).map(drop)
}

/// Removes what the labs of those owners left for which `doomed` says so.
fn sweep(doomed: impl Fn(u32) -> bool) {
    let is_doomed = |name: &str| owner(name).is_some_and(&doomed);
    for name in names_in(Path::new(netns::DIR)).filter(|n| is_doomed(n)) {
        netns::remove(&name);
    }
    for name in names_in(Path::new(PINS)).filter(|n| is_doomed(n)) {
        unpin(&name);
    }
    for name in names_in(&std::env::temp_dir()).filter(|n| is_doomed(n)) {
        let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
    }
}

/// Removes the pins of an instance whose namespace is gone, and with them the
/// last references to its programs and maps.
pub(super) fn unpin(instance: &str) {
    let dir = Path::new(PINS).join(instance);
    if dir.exists() {
        // std's remove_dir_all trusts d_type, which bpffs does not report for pins.
        let mut rm = Command::new("rm");
        rm.arg("-rf").arg(&dir);
        let _ = process::run(&mut rm, process::SHORT);
    }
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn names_in(dir: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn owner_is_read_from_our_names_only() {
        assert_eq!(owner("ph-123-0-fw-a"), Some(123));
        assert_eq!(owner("ph-x-0"), None);
        assert_eq!(owner("phone-1"), None);
        assert_eq!(owner("default"), None);
    }
}

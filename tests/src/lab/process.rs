//! Commands with a time limit, and daemons that die with their handle.

use std::{
    fs::{self, File},
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Enough for any command that does not wait for the network.
pub const SHORT: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(5);

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; `None` if it was killed, by us at the time limit or otherwise.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Output {
    /// Did it exit with 0?
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs a command to its end, or kills it at the limit.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    run_from(command, Stdio::null(), limit)
}

/// As [`run`], with this as its standard input.
///
/// # Errors
/// As [`run`].
pub fn run_from(command: &mut Command, input: Stdio, limit: Duration) -> Result<Output> {
    let start = Instant::now();
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", show(command)))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let code = wait_until(&mut child, start + limit)?;
    let text =
        |t: Option<thread::JoinHandle<String>>| t.and_then(|t| t.join().ok()).unwrap_or_default();
    Ok(Output {
        code,
        stdout: text(stdout),
        stderr: text(stderr),
        elapsed: start.elapsed(),
    })
}

/// As [`run`], and a failure of the command is an error that shows its output.
///
/// # Errors
/// The command cannot be started, fails, or does not end within [`SHORT`].
pub fn check(command: &mut Command) -> Result<String> {
    let output = run(command, SHORT)?;
    if !output.success() {
        bail!(
            "{} failed ({}): {}{}",
            show(command),
            output.code.map_or("killed".into(), |c| c.to_string()),
            output.stderr.trim_end(),
            output.stdout.trim_end(),
        );
    }
    Ok(output.stdout)
}

/// As [`check`], with `input` on the command's standard input.
///
/// # Errors
/// As [`check`].
pub fn check_with_input(command: &mut Command, input: &str) -> Result<()> {
    use std::io::Write;

    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", show(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{} failed: {}with the input\n{input}",
            show(command),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Repeats `probe` until it gives a value, for at most `limit`.
///
/// # Errors
/// The limit is over; `what` names the thing that was awaited.
pub fn await_some<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A process of ours in the background. It is ended when the handle goes.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with both outputs in the file `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", show(&command)))?;
        Ok(Self { child, log })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Exit code if it has ended; the inner `None` if it was killed.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(status.code())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// SIGTERM, and SIGKILL if that does not end it within three seconds.
    pub fn stop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::SIGTERM);
            let end = Instant::now() + Duration::from_secs(3);
            if !matches!(wait_until(&mut self.child, end), Ok(Some(_))) {
                self.kill();
            }
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn wait_until(child: &mut Child, end: Instant) -> Result<Option<i32>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Reads a pipe to its end on a thread, so that a full pipe never blocks the child.
fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|a| a.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

//! pinhole on a node.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData};
use firewall_common::abi::{Watch, maps};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Lab, Netns, Node, id, netns,
    process::{self, Daemon, Output},
};

pub mod config;
pub mod view;

/// How long attaching may take on a busy machine, or an emulated one, whose verifier takes
/// minutes.
const READY: Duration = Duration::from_secs(600);

/// Which XDP mode is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Whatever the driver has.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
}

/// Which TC attachment is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcKind {
    /// Whatever the kernel has.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// A clsact qdisc with filters.
    Clsact,
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attach {
    /// Ingress.
    pub xdp: XdpMode,
    /// Egress.
    pub tc: TcKind,
}

impl Attach {
    fn args(self) -> [&'static str; 4] {
        let xdp = match self.xdp {
            XdpMode::Auto => "auto",
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        };
        let tc = match self.tc {
            TcKind::Auto => "auto",
            TcKind::Tcx => "tcx",
            TcKind::Clsact => "clsact",
        };
        ["--mode", xdp, "--tc", tc]
    }
}

/// A pinhole instance on a node. Everything of it is unloaded with the handle.
#[derive(Debug)]
pub struct Firewall {
    ns: String,
    dir: PathBuf,
    instance: String,
    run_args: Vec<String>,
    agent: Option<Daemon>,
}

impl Firewall {
    /// Attaches with a configuration file, or with the embedded default to
    /// `eth0`, and returns once the agent says that it is ready.
    ///
    /// # Errors
    /// The agent ends or is not ready in time; its output is in the error.
    pub fn start(lab: &Lab, node: Node, config: Option<&str>, attach: Attach) -> Result<Self> {
        Self::start_with(lab, node, config, attach, &[])
    }

    /// As [`Firewall::start`], with further arguments of `run`.
    ///
    /// # Errors
    /// As [`Firewall::start`].
    pub fn start_with(
        lab: &Lab,
        node: Node,
        config: Option<&str>,
        attach: Attach,
        more: &[&str],
    ) -> Result<Self> {
        let mut run_args: Vec<String> = attach.args().map(str::to_owned).into();
        if let Some(text) = config {
            let path = lab.dir().join(format!("{}.toml", node.name()));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            run_args.extend(["--config".to_owned(), path.to_string_lossy().into_owned()]);
        } else {
            run_args.extend(["--iface", "eth0"].map(str::to_owned));
        }
        run_args.extend(more.iter().map(|&a| a.to_owned()));
        let instance = lab.name(node.name());
        Self::launch(lab.ns(node), lab.dir(), instance, run_args)
    }

    /// In a namespace that no [`Lab`] made: `instance` is unique on the machine, and
    /// its files are in `dir`.
    ///
    /// # Errors
    /// As [`Firewall::start`].
    pub fn start_in(ns: &Netns, dir: &Path, instance: String, config: &str) -> Result<Self> {
        let path = dir.join(format!("{instance}.toml"));
        fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        let run_args = vec!["--config".to_owned(), path.to_string_lossy().into_owned()];
        Self::launch(ns, dir, instance, run_args)
    }

    fn launch(ns: &Netns, dir: &Path, instance: String, run_args: Vec<String>) -> Result<Self> {
        let mut firewall = Self {
            ns: ns.name().to_owned(),
            dir: dir.to_owned(),
            instance,
            run_args,
            agent: None,
        };
        firewall.start_agent()?;
        Ok(firewall)
    }

    /// Name of the instance.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Where its pins are.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(id::PINS).join(&self.instance)
    }

    /// Process id of the agent, while there is one.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Daemon::pid)
    }

    /// What the agent has printed so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.agent.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Starts an agent: the first, or one that takes over.
    ///
    /// # Errors
    /// As [`Firewall::start`].
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.command(&["run"])?;
        command.args(&self.run_args);
        let log = self.dir.join(format!("{}.log", self.instance));
        let mut agent = Daemon::spawn(command, log)?;
        let mut ended = false;
        let ready = process::await_some("pinhole is ready", READY, || {
            let up = agent.log().lines().any(|l| l.starts_with("ready"));
            ended = !up && agent.ended().is_some();
            (up || ended).then_some(())
        });
        if ended || ready.is_err() {
            let log = agent.log();
            agent.kill();
            bail!("pinhole on {} did not get ready:\n{log}", self.ns);
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts an agent with other arguments of `run`, among them another
    /// configuration file: it takes over.
    ///
    /// # Errors
    /// As [`Firewall::start`].
    pub fn start_agent_with(&mut self, config: &str, more: &[&str]) -> Result<()> {
        let path = self.dir.join(format!("{}-again.toml", self.instance));
        fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        self.run_args = ["--config".to_owned(), path.to_string_lossy().into_owned()].into();
        self.run_args.extend(more.iter().map(|&arg| arg.to_owned()));
        self.start_agent()
    }

    /// Ends the agent by SIGTERM, as Ctrl-C does; enforcement stays.
    pub fn stop_agent(&mut self) {
        // Daemon's drop sends SIGTERM and waits.
        self.agent = None;
    }

    /// Kills the agent with SIGKILL; enforcement stays.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// Sends SIGHUP, as the end of its terminal does.
    pub fn hang_up_agent(&mut self) {
        if let Some(agent) = &self.agent {
            agent.signal(Signal::SIGHUP);
        }
    }

    /// Stops the agent in its tracks, or lets it go on: within its heartbeat's
    /// time, nobody notices. When this returns, none of its threads runs.
    ///
    /// # Errors
    /// It does not stop.
    pub fn pause_agent(&self, paused: bool) -> Result<()> {
        let signal = if paused {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        let Some(agent) = &self.agent else {
            return Ok(());
        };
        agent.signal(signal);
        if !paused {
            return Ok(());
        }
        let tasks = PathBuf::from(format!("/proc/{}/task", agent.pid()));
        process::await_some("the agent's threads stop", Duration::from_secs(5), || {
            let mut tasks = fs::read_dir(&tasks).ok()?.flatten();
            tasks
                .all(|task| {
                    let stat = fs::read_to_string(task.path().join("stat"));
                    // The name before can hold anything.
                    stat.is_ok_and(|stat| {
                        stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
                    })
                })
                .then_some(())
        })
    }

    /// Has the agent ended?
    pub fn is_agent_gone(&mut self) -> bool {
        self.agent
            .as_mut()
            .is_none_or(|agent| agent.ended().is_some())
    }

    /// Runs a subcommand.
    ///
    /// # Errors
    /// The binary cannot be run; a failure of the command itself is in the output.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        process::run(&mut self.command(args)?, process::SHORT)
    }

    /// As [`Firewall::cli`], with these environment variables.
    ///
    /// # Errors
    /// As [`Firewall::cli`].
    pub fn cli_as(&self, environment: &[(&str, &str)], args: &[&str]) -> Result<Output> {
        let mut command = self.command(args)?;
        command.envs(environment.iter().copied());
        process::run(&mut command, process::SHORT)
    }

    /// Starts a subcommand whose output the caller reads.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, args: &[&str], stdout: Stdio) -> Result<Child> {
        let mut command = self.command(args)?;
        command.stdout(stdout).spawn().context("start pinhole")
    }

    /// A subcommand, not run yet.
    ///
    /// # Errors
    /// There is no `pinhole`.
    pub fn command_line(&self, args: &[&str]) -> Result<Command> {
        self.command(args)
    }

    /// Runs a subcommand with `-o json` and gives what it prints.
    ///
    /// # Errors
    /// It fails, or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args)?;
        let text = process::check(command.args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("{} printed {text}", args.join(" ")))
    }

    /// Starts `flows watch` with these arguments, and returns once it hears of flows.
    ///
    /// # Errors
    /// It ends at once, or is not ready in time; what it said is in the error.
    pub fn watch(&self, args: &[&str]) -> Result<Daemon> {
        let mut command = self.command(&["flows", "watch"])?;
        command.args(args);
        let log = self.dir.join(format!("{}-watch.log", self.instance));
        let mut watcher = Daemon::spawn(command, log)?;
        let map = MapData::from_pin(self.pins().join(maps::WATCH))?;
        let map = Array::<MapData, Watch>::try_from(Map::from_map_data(map)?)?;
        let ready = process::await_some("flows are watched", process::SHORT, || {
            let ended = watcher.ended().is_some();
            let mine = map.get(&0, 0).is_ok_and(|watch| watch.pid == watcher.pid());
            (mine || ended).then_some(mine)
        });
        if !matches!(ready, Ok(true)) {
            bail!(
                "`flows watch` on {} did not start: {}",
                self.ns,
                watcher.log()
            );
        }
        Ok(watcher)
    }

    /// Detaches and removes everything of the instance.
    ///
    /// # Errors
    /// `pinhole unload` fails.
    pub fn unload(&mut self) -> Result<()> {
        self.stop_agent();
        process::check(&mut self.command(&["unload"])?).map(drop)
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}/{}", netns::DIR, self.ns))
            .arg("--")
            .arg(binary()?)
            .args(["--instance", &self.instance])
            .args(args);
        Ok(command)
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        if self.agent.is_some() || self.pins().exists() {
            let _ = self.unload();
        }
        id::unpin(&self.instance);
    }
}

/// Runs `pinhole` in a namespace without a handle: for what must be refused.
///
/// # Errors
/// The binary cannot be run.
pub fn run_in(ns: &Netns, args: &[&str]) -> Result<Output> {
    let mut command = ns.command(&binary()?.to_string_lossy());
    process::run(command.args(args), process::SHORT)
}

/// The `pinhole` that stands beside this program in `target`, or `PINHOLE_BIN`.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PINHOLE_BIN") {
        return Ok(path.into());
    }
    // target/<profile>/demo, or target/<profile>/deps/<test>.
    let me = env::current_exe().context("where am I?")?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("pinhole"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no `pinhole` beside {}: run `cargo xtask build`",
                me.display()
            )
        })
}

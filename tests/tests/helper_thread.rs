//! The FTP helper has a thread of its own. Whatever the rest of the agent waits for, as a look
//! at the host's links does while the kernel holds its lock on them, no control line waits for.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Node, Place,
    client::{FtpCommand, Kind, Request},
    pinhole::Attach,
    process,
    script::Session,
    server::{self, FtpServer},
};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// The name of the helper's thread.
const HELPER: &str = "ftp-helper";
/// How long a connection is waited for that must not come about.
const TRY: Duration = Duration::from_secs(2);

#[test]
fn data_connections_need_no_other_thread_of_the_agent() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let agent = guarded.pinholes[0].agent_pid().context("an agent")?;

    let others = Stopped::threads(agent, |name| name != HELPER)?;
    for command in [FtpCommand::Epsv, FtpCommand::Eprt] {
        for family in Family::BOTH {
            let got = Request::new(&lab, Kind::Curl, command, family).run(&lab)?;
            ensure!(got.is(server.payload()), "{command:?} {family:?}: {got:?}");
        }
    }
    drop(others);

    // The control: with its own thread stopped, nothing opens.
    let mut session = Session::login(&lab, Family::V4)?;
    let helper = Stopped::threads(agent, |name| name == HELPER)?;
    let at = session.epsv()?;
    let tried = lab.ns(Node::Client).connect(at, TRY)?;
    ensure!(tried.is_err(), "{at} is open without the helper");
    drop(helper);
    Ok(())
}

/// Threads of another process that do not run until this is dropped, on the thread that made it.
struct Stopped(Vec<Pid>);

impl Stopped {
    /// Stops those whose names are `wanted`, of which there is one at least. Each is asleep
    /// then, so that it holds nothing that another may wait for.
    fn threads(process: u32, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut stopped = Self(Vec::new());
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let task = task?.path();
            if wanted(fs::read_to_string(task.join("comm"))?.trim_end()) {
                stopped.stop(&task)?;
            }
        }
        ensure!(!stopped.0.is_empty(), "no such thread in {process}");
        Ok(stopped)
    }

    fn stop(&mut self, task: &Path) -> Result<()> {
        let id = task.file_name().and_then(|name| name.to_str());
        let id = Pid::from_raw(id.context("a thread's number")?.parse()?);
        process::await_some("the thread sleeps", process::SHORT, || {
            let stat = fs::read_to_string(task.join("stat")).ok()?;
            // The name before can hold anything.
            let state = stat.rsplit(") ").next()?;
            state.starts_with('S').then_some(())
        })?;
        ptrace::seize(id, ptrace::Options::empty())?;
        self.0.push(id);
        ptrace::interrupt(id)?;
        waitpid(id, Some(WaitPidFlag::__WALL))?;
        Ok(())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for id in &self.0 {
            let _ = ptrace::detach(*id, None);
        }
    }
}

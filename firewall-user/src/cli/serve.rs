//! The foreground of `pinhole run`, after everything is attached.

use std::{convert::Infallible, io::Write as _, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use firewall_common::{abi::maps, time::NS_PER_SEC};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::sleep,
};

use super::{
    presence::Presence,
    program_log::{self, ProgramLog},
};
use crate::{
    bpf::{
        Instance,
        loader::{Loaded, pinned},
        maps::Pinned,
        requests::Requests,
        sys,
        vlan_children::{self, VlanChildren},
    },
    fast::FastPath,
    gc::Collector,
    helper::{Agent, Helper, MapTables, Settings},
    lock::AgentLock,
    netlink::route,
    unload::{self, By},
};

const LOOK_NS: u64 = NS_PER_SEC;
/// One look in so many is at the links even if the kernel tells no news of them, and at what
/// the fast path would bypass, too.
const DUE_LOOKS: u32 = 5;

/// The signals that end the agent. Others keep their meaning: the end of the
/// terminal kills it, and enforcement stays.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn new() -> anyhow::Result<Self> {
        let handle = |kind| signal(kind).context("signals cannot be handled");
        Ok(Self {
            interrupt: handle(SignalKind::interrupt())?,
            terminate: handle(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs agent, collector and log until a signal comes or the instance goes.
pub(super) async fn serve(
    instance: &Instance,
    lock: &AgentLock,
    verbose: bool,
    mut loaded: Loaded,
    (settings, realtime): (Settings, bool),
    host: Host,
    stop: &mut Stop,
) -> anyhow::Result<ExitCode> {
    let logger = verbose
        .then(|| program_log::open(&mut loaded))
        .transpose()?;
    let requests = Requests::new(Arc::new(loaded));
    let collector = Collector::open(instance, requests.clone())?;
    let own = instance.clone();
    let make = move || {
        let tables = MapTables::open(&own, requests)?;
        let agent = Agent::start(tables, settings, sys::monotonic_ns())?;
        Ok((agent, pinned(&own, maps::EVENTS)?))
    };
    let mut helper = Helper::start(realtime, make).await?;
    ready(instance)?;
    tokio::select! {
        biased;
        () = stop.wait() => stopped(instance),
        ended = helper.ended() => ended.map(|()| ExitCode::SUCCESS),
        ended = look_after(instance, lock, host) => ended,
        never = collect(collector) => match never {},
        ended = log_lines(logger) => ended,
    }
}

fn ready(instance: &Instance) -> anyhow::Result<()> {
    let deadline = Pinned::open(instance)?.control()?.confirm_deadline_ns;
    let left = deadline
        .saturating_sub(sys::monotonic_ns())
        .div_ceil(NS_PER_SEC);
    let mut out = std::io::stdout().lock();
    if deadline != 0 {
        writeln!(
            out,
            "not confirmed yet: run `{}` within {left} s, or everything is detached again",
            instance.command("confirm")
        )?;
    }
    writeln!(out, "ready, agent pid {}", std::process::id())?;
    Ok(out.flush()?)
}

/// What a signal means: before the confirmation it takes everything off at once.
fn stopped(instance: &Instance) -> anyhow::Result<ExitCode> {
    let deadline = Pinned::open(instance)
        .and_then(|pinned| pinned.control())
        .map(|control| control.confirm_deadline_ns);
    match deadline {
        // Gone, or overdue: the watchdog does it, or has done it.
        Err(_) => println!("instance {instance} was unloaded"),
        Ok(0) => println!(
            "agent stopped; the policy stays in force until `{}`, and FTP data connections \
             open again with the next `pinhole run`",
            instance.command("unload")
        ),
        Ok(_) => {
            let removed = unload::unload(instance, By::Agent)?;
            println!(
                "not confirmed: detached from {}",
                removed.interfaces.join(", ")
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks at the host when its links have changed, once a second at most, on a thread of its
/// own: the kernel answers about links when its lock on them is free, which takes seconds
/// where many come and go, and the FTP helper must not wait for that.
async fn look_after(
    instance: &Instance,
    lock: &AgentLock,
    mut host: Host,
) -> anyhow::Result<ExitCode> {
    let mut alarm = sys::Alarm::new().context("no timer for the looks at the host")?;
    let mut news = route::LinkNews::open()
        .inspect_err(|error| log::warn!("no news of links: {error}; they are listed every second"))
        .ok();
    let mut look_ns = sys::monotonic_ns();
    for looks in 0_u32.. {
        alarm.wait_until(look_ns).await?;
        look_ns = sys::monotonic_ns().saturating_add(LOOK_NS);
        lock.drain();
        if !instance.pin_dir().exists() {
            bail!("instance {instance} was removed: nothing is guarded any more; run it again");
        }
        // Asked every time, so that what was news is none the next time.
        let is_news = news.as_mut().is_none_or(route::LinkNews::any);
        let is_due = looks.is_multiple_of(DUE_LOOKS);
        if is_news || is_due || !host.presence.is_settled() {
            host = spawn_blocking(move || host.looked_at(is_due))
                .await
                .context("the look at the host ended")?;
        }
    }
    bail!("the look at the host ended")
}

/// What depends on the host's links, and changes with them.
pub(super) struct Host {
    presence: Presence,
    children: VlanChildren,
    fast_path: FastPath,
}

impl Host {
    pub(super) fn new(
        instance: &Instance,
        presence: Presence,
        fast_path: FastPath,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            presence,
            children: vlan_children::open(instance)?,
            fast_path,
        })
    }

    fn looked_at(mut self, fast_path: bool) -> Self {
        let changed = match route::links() {
            Ok(links) => {
                let changed = self.presence.look(&links);
                if let Err(error) = self.children.refresh(&links) {
                    log::warn!("VLANs on guarded interfaces: {error}");
                }
                changed
            }
            Err(error) => {
                log::warn!("the interfaces cannot be listed: {error}");
                false
            }
        };
        if changed || fast_path {
            match self.fast_path.refresh() {
                Ok(news) => news.iter().for_each(|line| log::warn!("{line}")),
                Err(error) => log::warn!("fast path: {error}"),
            }
        }
        self
    }
}

async fn collect(mut collector: Collector) -> Infallible {
    loop {
        let rest = collector.step().await.unwrap_or_else(|error| {
            log::warn!("collecting expired flows: {error}");
            Duration::from_nanos(LOOK_NS)
        });
        sleep(rest).await;
    }
}

/// Hands on the programs' own log lines; never ends without them.
async fn log_lines(logger: Option<ProgramLog>) -> anyhow::Result<ExitCode> {
    let Some(mut logger) = logger else {
        return std::future::pending().await;
    };
    let readable = sys::readable(&logger).context("the programs' log")?;
    loop {
        let mut guard = readable.readable().await.context("the programs' log")?;
        logger.flush();
        guard.clear_ready();
    }
}

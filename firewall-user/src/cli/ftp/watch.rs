//! `ftp watch`.

use std::time::Duration;

use anyhow::bail;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    bpf::{
        Instance,
        journal::{Found, Journal},
    },
    cli::{args::Output, ftp_args::WatchArgs},
    render::{self, JournalView, Line, LostView, Now},
};

/// Time between two looks at the journal.
const LOOK: Duration = Duration::from_millis(50);

/// Prints what becomes of FTP sessions until a signal comes, or until nobody
/// reads it any more.
///
/// # Errors
/// Nothing attached, or the journal cannot be read.
pub(super) fn run(instance: &Instance, args: &WatchArgs) -> anyhow::Result<()> {
    let mut journal = Journal::open(instance)?;
    if !args.history {
        journal.skip()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(watch(instance, journal, args))
}

async fn watch(instance: &Instance, mut journal: Journal, args: &WatchArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut every = interval(LOOK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = every.tick() => {}
        }
        let lines = lines(journal.take()?, args)?;
        if !lines.is_empty() && !render::print_to_reader(&lines)? {
            return Ok(());
        }
        if !instance.pin_dir().exists() {
            bail!("instance {instance} was removed: there are no more FTP sessions to watch");
        }
    }
}

fn lines(found: Found, args: &WatchArgs) -> anyhow::Result<String> {
    let now = Now::read();
    let json = args.list.output == Output::Json;
    let mut lines = String::new();
    if found.lost > 0 {
        lines += &LostView::new(Some(found.lost), now).line(json, true)?;
    }
    for told in found.told {
        let told = told?;
        if args.which.takes(told.client, told.server) {
            lines += &JournalView::new(&told, now).line(json, true)?;
        }
    }
    Ok(lines)
}

//! `pinhole shadow`.

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, bail};
use firewall_common::abi::{config_flags, heartbeat};

use super::args::{Output, ReportArgs, ShadowCommand};
use crate::{
    bpf::{
        Instance, claim,
        maps::{FlowRow, Pinned},
    },
    render::{self, Ink, Now, ShadowView},
    shadow::{self, Comparison, Surroundings, Tracking},
};

/// Does what the command says.
///
/// # Errors
/// Nothing attached, another network namespace, or the tables cannot be read.
pub(super) fn run(instance: &Instance, command: &ShadowCommand) -> anyhow::Result<ExitCode> {
    let ShadowCommand::Report(args) = command;
    let pinned = Pinned::open(instance)?;
    if claim::netns_inode()? != pinned.heartbeat()?[heartbeat::NETNS as usize] {
        bail!(
            "instance {instance} guards another network namespace, and the kernel's connections \
             are seen from there only: run this in that namespace (`nsenter --net=…`)"
        );
    }
    report(&pinned, args)
}

fn report(pinned: &Pinned, args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let Looked {
        rows,
        tracking,
        compared,
    } = Looked::twice(pinned, args.wait)?;
    let stats = pinned.stats()?;
    let refused = shadow::by_reason(&stats, &rows, args.top);
    let in_shadow = pinned.config()?.flags & config_flags::SHADOW != 0;
    let view = ShadowView::new(in_shadow, &refused, &tracking, &compared, args.top)
        .of_reasons(&args.reason);
    match args.list.output {
        Output::Json => render::json(&view)?,
        Output::Table => render::print(&view.render(Ink::of_stdout()))?,
    }
    Ok(if view.disagreements.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What two looks at both tables gave.
struct Looked {
    rows: Vec<FlowRow>,
    tracking: Tracking,
    compared: Comparison,
}

impl Looked {
    /// pinhole's table is read first and last, so that what did not change in
    /// it saw no packet while the kernel's was read.
    fn twice(pinned: &Pinned, wait: Duration) -> anyhow::Result<Self> {
        let before = pinned.flows()?;
        let kernel = |when| shadow::look().context(when);
        let kernel_before = kernel("read the kernel's connections")?;
        thread::sleep(wait);
        let tracking = kernel("read the kernel's connections again")?;
        let rows = pinned.flows()?;
        let compared = match (&kernel_before, &tracking) {
            (Tracking::Active(first), Tracking::Active(second)) => {
                let guarded = pinned.ifaces()?.into_iter().map(|(index, _)| index);
                let mut surroundings = Surroundings::new(guarded, Now::read())
                    .context("read routes and interfaces")?;
                shadow::compare([&before, &rows], [first, second], &mut surroundings)
                    .context("look up routes")?
            }
            _ => Comparison::default(),
        };
        Ok(Self {
            rows,
            tracking,
            compared,
        })
    }
}

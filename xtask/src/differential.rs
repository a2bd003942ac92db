//! `cargo xtask differential`: pinhole's programs against nf_conntrack, packet by packet.

use std::{convert::Infallible, os::unix::process::CommandExt};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    build, cargo_json,
    ctx::{Ctx, show},
    harness::{self, Lab},
    setup,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask differential --packets 10000000
  cargo xtask differential --seed 7 --conversation 1234
  cargo xtask differential --sabotage window --packets 100000   (must fail)")]
pub(crate) struct Args {
    /// Compare at least so many packets.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,

    /// Seed of the generated conversations.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Tell this conversation of the seed, packet by packet, instead.
    #[arg(long, value_name = "NUMBER")]
    conversation: Option<u64>,

    /// Judge programs built without one check, to see the comparison notice.
    #[arg(long, value_name = "CHECK")]
    sabotage: Option<Check>,
}

/// What `firewall_common::sabotage` can leave out.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Check {
    /// The window.
    Window,
    /// The sequence number of a RST.
    Rst,
    /// Window scaling.
    Scale,
    /// A new flow on the ports of a closed one.
    TupleReuse,
}

impl Check {
    /// As in the features of the eBPF crate, behind `sabotage-`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Rst => "rst",
            Self::Scale => "scale",
            Self::TupleReuse => "tuple-reuse",
        }
    }

    /// The end-to-end test that judges the object without it.
    pub(crate) fn test(self) -> String {
        format!("sabotage_{}_is_noticed", self.name().replace('-', "_"))
    }
}

/// Becomes the comparison, so that its exit code is the task's.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let ebpf = setup::ebpf(ctx)?;
    ctx.authenticate(harness::PURPOSE)?;
    setup::lab(ctx)?;
    let shipped = build::object(ctx, &ebpf)?;
    let object = match args.sabotage {
        Some(check) => build::sabotaged_object(ctx, &ebpf, check)?,
        None => shipped,
    };
    let pinhole = build::pinhole(ctx, false)?;
    let differential = cargo_json::binary(ctx, "differential", false)?;
    let mut command = Lab::new(ctx, &pinhole).command(ctx, &differential)?;
    command
        .arg("--object")
        .arg(object)
        .args(["--packets", &args.packets.to_string()])
        .args(["--seed", &args.seed.to_string()]);
    if let Some(number) = args.conversation {
        command.args(["--conversation", &number.to_string()]);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run `{}`", show(&command)))
}

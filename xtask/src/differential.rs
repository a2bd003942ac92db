//! `cargo xtask differential`: pinhole's programs against nf_conntrack, packet by packet.

use std::{convert::Infallible, ffi::OsString};

use anyhow::Result;
use clap::ValueEnum;

use crate::{build, ctx::Ctx, harness::Lab, setup};

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

/// Becomes the comparison.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Infallible> {
    let ebpf = setup::ebpf(ctx)?;
    let lab = Lab::set_up(ctx, &ebpf, false)?;
    let object = match args.sabotage {
        Some(check) => build::sabotaged_object(ctx, &ebpf, check)?,
        None => ctx.object(),
    };
    let numbers = [
        ("--packets", Some(args.packets)),
        ("--seed", Some(args.seed)),
        ("--conversation", args.conversation),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(flag, number)| Some((flag, number?)));
    let numbers = numbers.flat_map(|(flag, number)| [flag.into(), number.to_string().into()]);
    let object = [OsString::from("--object"), object.into()];
    lab.become_program(ctx, "differential", object.into_iter().chain(numbers))
}

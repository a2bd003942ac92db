//! `cargo xtask flood`: the tests of the flow tables under pressure, at full size.

use anyhow::{Result, bail};

use crate::{
    cargo_json,
    ctx::Ctx,
    harness::{self, Lab},
    setup,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask flood
  cargo xtask flood --packets 1000000 --flows 200000")]
pub(crate) struct Args {
    /// Send so many packets of each kind; the half-open table has room for a tenth of them.
    #[arg(long, default_value_t = 10_485_760)]
    packets: u64,

    /// Give the collector so many flows, half of them expired.
    #[arg(long, default_value_t = 1_000_000)]
    flows: u64,
}

/// The test suites, and the environment that gives each its size.
const SUITES: [&str; 2] = ["flood", "collector"];

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    let sizes = [
        ("PINHOLE_FLOOD_PACKETS", args.packets.to_string()),
        ("PINHOLE_COLLECTOR_FLOWS", args.flows.to_string()),
    ];
    let lab = Lab::set_up(ctx, &setup::ebpf(ctx)?, false)?.with(sizes);
    let mut failed = Vec::new();
    for suite in SUITES {
        let mut cargo = ctx.cargo();
        cargo.args([
            "test",
            "--package",
            "firewall-tests",
            "--no-run",
            "--test",
            suite,
        ]);
        for suite in cargo_json::executables(ctx, &mut cargo)?
            .iter()
            .filter(|s| s.test)
        {
            ctx.status("Running", format!("{} as root", suite.label()));
            let mut command = lab.command(ctx, &suite.path)?;
            command.args(["--nocapture", "--test-threads=1"]);
            if !harness::passes(&mut command)? {
                failed.push(suite.label());
            }
        }
    }
    ctx.give_back(&ctx.target())?;
    if failed.is_empty() {
        return Ok(());
    }
    bail!("tests failed in: {}", failed.join(", "))
}

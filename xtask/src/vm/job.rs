//! What can be done in a virtual machine, and what it needs there.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{initramfs::Archive, modules};
use crate::{account::find_program, build, cargo_json, ctx::Ctx, setup};

/// What process 1 does, by the name that it knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Job {
    /// Load every eBPF program, tell what each costs the verifier, and end.
    Smoke,
    /// As `cargo xtask verify` on this kernel alone.
    Verify,
    /// Run the core of the test suite: the programs packet by packet, one FTP transfer.
    Test,
    /// Measure pinhole against the kernel's flow table: `fwd_est_1k_vs_flowtable`.
    Bench,
    /// Send with the kernel's pktgen from one NIC to pinhole on another, and hold what was
    /// sent against what was counted.
    Pktgen,
}

/// Programs that the lab calls by name, in the directories of [`PATH`].
const TOOLS: [&str; 6] = ["ip", "nsenter", "sh", "mount", "mountpoint", "sysctl"];
/// Likewise the benchmark.
const BENCH_TOOLS: [&str; 3] = ["nft", "ethtool", "date"];
/// Where they are found there.
pub(super) const PATH: &str = "/usr/sbin:/usr/bin";
const BIN: &str = "/usr/bin";

impl Job {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Verify => "verify",
            Self::Test => "test",
            Self::Bench => "bench",
            Self::Pktgen => "pktgen",
        }
    }

    /// Emulation on a busy machine is slow; a machine that hangs is not waited for much longer.
    pub(super) const fn limit(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(300),
            Self::Verify | Self::Bench | Self::Pktgen => Duration::from_secs(900),
            Self::Test => Duration::from_secs(1800),
        }
    }

    /// Are two NICs on one wire needed?
    pub(super) const fn has_nics(self) -> bool {
        matches!(self, Self::Pktgen)
    }

    const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Smoke | Self::Verify => &[],
            Self::Test => &["veth", "sch_ingress", "cls_bpf", "tcp_diag", "udp_diag"],
            Self::Bench => &[
                "veth",
                "nf_tables",
                "nft_ct",
                "nft_flow_offload",
                "nf_flow_table_inet",
                "sch_ingress",
                "cls_bpf",
                "tcp_diag",
                "udp_diag",
            ],
            Self::Pktgen => &[
                "virtio_pci",
                "virtio_net",
                "pktgen",
                "sch_ingress",
                "cls_bpf",
                "tcp_diag",
                "udp_diag",
            ],
        }
    }

    /// Puts into the archive what it needs beside process 1.
    pub(super) fn pack(self, ctx: &Ctx, kernel: &Path, archive: &mut Archive) -> Result<()> {
        for (n, module) in modules::find(ctx, kernel, self.modules())?
            .iter()
            .enumerate()
        {
            let path = format!("/modules/{n:02}-{}.ko", module.name);
            archive.file(Path::new(&path), &module.content);
        }
        if matches!(self, Self::Smoke | Self::Verify) {
            return Ok(());
        }
        let more = if self == Self::Bench {
            &BENCH_TOOLS[..]
        } else {
            &[]
        };
        for tool in TOOLS.iter().chain(more) {
            let path = find_program(tool).with_context(|| format!("no program {tool}"))?;
            archive.program(ctx, &path, &Path::new(BIN).join(tool))?;
        }
        let pinhole = build::pinhole(ctx, false)?;
        archive.program(ctx, &pinhole, &Path::new(BIN).join("pinhole"))?;
        match self {
            Self::Test => suite(ctx, archive),
            Self::Bench => object(ctx, &ctx.generator(), archive),
            _ => Ok(()),
        }
    }
}

/// The suite `programs`, and the object, where the suite looks for it.
fn suite(ctx: &Ctx, archive: &mut Archive) -> Result<()> {
    let mut cargo = ctx.cargo();
    cargo.args(["test", "--workspace", "--no-run", "--test", "programs"]);
    let built = cargo_json::executables(ctx, &mut cargo)?;
    let suite = built.into_iter().find(|artifact| artifact.test);
    let suite = suite.context("cargo built no suite `programs`")?;
    archive.program(ctx, &suite.path, &Path::new(BIN).join("programs"))?;
    object(ctx, &ctx.object(), archive)
}

/// An object, where programs of the tests package look for it.
fn object(ctx: &Ctx, object: &Path, archive: &mut Archive) -> Result<()> {
    archive.directory(&ctx.root().join("tests"));
    archive.copy(object, object)
}

/// What the machines need of this one.
pub(super) fn set_up(ctx: &Ctx, job: Job) -> Result<()> {
    if matches!(job, Job::Smoke | Job::Verify) {
        return Ok(());
    }
    setup::lab(ctx)
}

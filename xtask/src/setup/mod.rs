//! `cargo xtask setup`: what the build and the tests need, found or installed.

pub(crate) mod apt;
pub(crate) mod components;
mod kernel;
mod lab;
mod linker;
mod toolchain;

use std::fs::File;

use anyhow::{Context, Result};

pub(crate) use self::kernel::{Kernel, Series};
use self::{
    linker::Linker,
    toolchain::{Decision, Origin, Toolchain},
};
use crate::{build, ctx::Ctx};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Choose the eBPF toolchain anew, and only from here.
    #[arg(long, value_enum)]
    toolchain: Option<Origin>,
}

/// What compiles and links for eBPF.
pub(crate) struct Ebpf {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: Linker,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    let ebpf = {
        let _guard = lock(ctx)?;
        if args.toolchain.is_some() {
            Decision::forget(ctx)?;
        }
        decide(ctx, args.toolchain.unwrap_or_default())?
    };
    ctx.status(
        "eBPF",
        format!("{}, {}", ebpf.toolchain.release, ebpf.linker),
    );
    build::object(ctx, &ebpf)?;
    lab(ctx)?;
    kernel(ctx, Series::OLDEST)?;
    ctx.status(
        "Ready",
        "`cargo build` works now; `cargo xtask test` runs everything",
    );
    Ok(())
}

/// The eBPF toolchain, set up when it is not.
pub(crate) fn ebpf(ctx: &Ctx) -> Result<Ebpf> {
    let _guard = lock(ctx)?;
    decide(ctx, Origin::Auto)
}

/// The lab's programs, set up when they are not.
pub(crate) fn lab(ctx: &Ctx) -> Result<()> {
    let _guard = lock(ctx)?;
    lab::ensure(ctx)
}

/// A kernel for virtual machines, and QEMU, set up when they are not.
pub(crate) fn kernel(ctx: &Ctx, series: Series) -> Result<Kernel> {
    let _guard = lock(ctx)?;
    kernel::ensure(ctx, series)
}

fn decide(ctx: &Ctx, origin: Origin) -> Result<Ebpf> {
    ctx.create_dir(&ctx.tools())?;
    if let Some((toolchain, linker)) = Decision::load(ctx) {
        return Ok(Ebpf { toolchain, linker });
    }
    let (toolchain, linker) = toolchain::find(ctx, origin)?;
    Decision::save(ctx, &toolchain, &linker)?;
    Ok(Ebpf { toolchain, linker })
}

/// One set-up at a time; the lock goes with the process, however it ends.
fn lock(ctx: &Ctx) -> Result<File> {
    let path = ctx.target().join("setup.lock");
    let cannot = || format!("cannot lock {}", path.display());
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(cannot)?;
    ctx.give_back(&path)?;
    if file.try_lock().is_err() {
        ctx.status("Waiting", "for another set-up of this workspace");
        file.lock().with_context(cannot)?;
    }
    Ok(file)
}

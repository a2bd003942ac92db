//! `cargo xtask setup`: what the build and the tests need, found or installed.

pub(crate) mod apt;
mod lab;

use anyhow::Result;

use crate::ctx::Ctx;

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(ctx: &Ctx, _args: &Args) -> Result<()> {
    lab::ensure(ctx)
}

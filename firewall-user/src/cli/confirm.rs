//! `pinhole confirm`.

use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::{
    bpf::{Instance, fill, maps::Pinned, sys},
    unload,
};

/// Keeps what `run --confirm` attached.
///
/// # Errors
/// Nothing attached, nothing to confirm, or too late.
pub(super) fn run(instance: &Instance) -> anyhow::Result<ExitCode> {
    let pinned = Pinned::open(instance)?;
    let _guard = unload::guard(instance)
        .with_context(|| format!("instance {instance} was detached just now"))?;
    match pinned.control()?.confirm_deadline_ns {
        0 => bail!(
            "instance {instance} waits for no confirmation: it is confirmed already, or runs without --confirm"
        ),
        deadline if deadline <= sys::monotonic_ns() => bail!(
            "too late: the time to confirm instance {instance} has passed, it is being detached; \
             run it again"
        ),
        _ => {}
    }
    fill::set_deadline(instance, 0)?;
    println!("instance {instance} is confirmed: it stays attached");
    Ok(ExitCode::SUCCESS)
}

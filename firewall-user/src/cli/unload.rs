//! `pinhole unload`.

use std::process::ExitCode;

use crate::{
    bpf::Instance,
    unload::{self, By},
};

/// Removes everything of the instance.
///
/// # Errors
/// Nothing attached, or something stays.
pub(super) fn run(instance: &Instance) -> anyhow::Result<ExitCode> {
    let removed = unload::unload(instance, By::Other)?;
    if let Some(pid) = removed.agent {
        println!("agent (pid {pid}) stopped");
    }
    for interface in &removed.interfaces {
        println!("{interface}: detached");
    }
    for interface in &removed.unreachable {
        eprintln!(
            "{interface}: in another network namespace, its clsact filter stays; enter that one \
             and run `tc filter del dev {interface} egress`"
        );
    }
    println!("instance {instance} is unloaded");
    Ok(ExitCode::SUCCESS)
}

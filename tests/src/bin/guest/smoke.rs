//! Loads every program of the embedded object into the running kernel, with the
//! code that pinhole itself uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    process,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use firewall_common::verdict::DropReason;
use firewall_user::{
    bpf::{
        Instance, fill,
        loader::{Loaded, ProgramLog},
        private::{Hook, Private},
    },
    classes::Classes,
    config,
};

use crate::say;

/// The loopback interface.
const LO: u32 = 1;

/// Loads the object as `pinhole run`, `pinhole run -v` and `pinhole why` would: to
/// the verifier these are different programs.
pub(crate) fn load_all() -> Result<()> {
    load(ProgramLog::Off, "without their log")?;
    load(ProgramLog::On, "with their log")?;
    explain()
}

/// Loads the object with notes on how a packet was judged, and has one judged:
/// without an interface of its own, it is dropped for that.
fn explain() -> Result<()> {
    let begun = Instant::now();
    let hooks = BTreeSet::from([Hook::Ingress, Hook::Egress]);
    let mut private = Private::load(None, 1, &hooks)?;
    let took = begun.elapsed().as_secs_f64();
    say(&format!(
        "{} programs loaded with notes in {took:.1} s",
        hooks.len()
    ));
    for hook in hooks {
        let notes = private.run(hook, LO, 0, &[0; 60])?;
        let wanted = DropReason::UnknownInterface.index();
        ensure!(notes.outcome == wanted, "{}: {notes:?}", hook.name());
    }
    Ok(())
}

/// Loads the object with the built-in policy's tables, and tells what each
/// program cost the verifier. The pins go with `loaded`.
fn load(log: ProgramLog, how: &str) -> Result<()> {
    let policy = config::prepare(None, &["lo".into()], None)?;
    let instance = format!("smoke-{}", process::id());
    let instance: Instance = instance.parse().map_err(anyhow::Error::msg)?;
    let begun = Instant::now();
    let mut loaded = Loaded::load(&instance, &policy.tables, log)?;
    let took = begun.elapsed().as_secs_f64();
    // That takes maps into maps, which a kernel may refuse.
    fill::stage(&mut loaded, &policy, &Classes::of(&policy.rules)?)?;
    let programs: BTreeMap<_, _> = loaded.ebpf.programs().collect();
    for (name, program) in &programs {
        let info = program.info().with_context(|| format!("program {name}"))?;
        let insns = info.verified_instruction_count().unwrap_or(0);
        say(&format!("{name:<16} {insns:>7} instructions verified"));
    }
    // At once, so no program has a time of its own.
    say(&format!(
        "{} programs loaded {how} in {took:.1} s",
        programs.len()
    ));
    Ok(())
}

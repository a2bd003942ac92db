//! What each program costs the verifier: instructions, states, stack.
//!
//! The kernel tells all of it only in the log of a load, and aya shows that log
//! of a load that fails. So every load is made to fail after the last check: a
//! process that may have no more files gets `EMFILE` for a program that has been
//! verified and compiled (`bpf_prog_load` of kernel/bpf/syscall.c takes the file
//! descriptor last).

use std::{collections::BTreeMap, thread};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use firewall_common::abi::EXPLAIN_SWITCH;
use firewall_user::bpf::loader::{OBJECT, ProgramLog};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

use crate::say;

/// As `pinhole run`, `pinhole run -v` and `pinhole why` load them: to the verifier
/// these are different programs.
const WAYS: [Way; 3] = [
    Way {
        name: "run",
        log: ProgramLog::Off,
        notes: false,
    },
    Way {
        name: "run-v",
        log: ProgramLog::On,
        notes: false,
    },
    Way {
        name: "why",
        log: ProgramLog::Off,
        notes: true,
    },
];

struct Way {
    name: &'static str,
    log: ProgramLog,
    notes: bool,
}

/// Verifies every program in every way, and says `verified PROGRAM WAY INSNS STATES STACK`
/// of each; `STACK` is what its functions use, in bytes, the program itself first,
/// joined by `+`.
///
/// `emulated` is slow: aya gives no log on its first try, so each program is verified
/// twice, for minutes there. Then only the first way counts; `smoke` loads all of them.
pub(crate) fn all(emulated: bool) -> Result<()> {
    let ways = if emulated { &WAYS[..1] } else { &WAYS[..] };
    for way in ways {
        let mut ebpf = way.object()?;
        for (name, cost) in verified(&mut ebpf)? {
            let Cost {
                insns,
                states,
                stack,
            } = cost;
            say(&format!(
                "verified {name} {} {insns} {states} {stack}",
                way.name
            ));
        }
    }
    Ok(())
}

impl Way {
    /// The object over maps of its own, none of which is pinned.
    fn object(&self) -> Result<Ebpf> {
        let (log, notes) = (self.log as u8, u8::from(self.notes));
        let mut loader = EbpfLoader::new();
        loader
            .override_global("AYA_LOG_LEVEL", &log, true)
            .override_global(EXPLAIN_SWITCH, &notes, true)
            .verifier_log_level(VerifierLogLevel::STATS);
        loader.load(OBJECT).context("creating the maps")
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    insns: u64,
    states: u64,
    stack: String,
}

/// All programs at once: the verifier takes its time over each, on one CPU.
fn verified(ebpf: &mut Ebpf) -> Result<BTreeMap<String, Cost>> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).context("forbidding files")?;
    let costs = thread::scope(|scope| {
        let loads: Vec<_> = ebpf
            .programs_mut()
            .map(|(name, program)| (name, scope.spawn(move || cost(program))))
            .collect();
        let ended = loads.into_iter().map(|(name, load)| {
            let cost = load.join().map_err(|_| anyhow!("panicked"));
            let cost = cost.and_then(|cost| cost).context(name.to_owned())?;
            Ok((name.to_owned(), cost))
        });
        ended.collect()
    });
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).context("allowing files again")?;
    costs
}

fn cost(program: &mut Program) -> Result<Cost> {
    let loaded = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => bail!("of a kind that pinhole does not load"),
    };
    match loaded {
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) if io_error.raw_os_error() == Some(Errno::EMFILE as i32) => {
            let log = verifier_log.to_string();
            parsed(&log).with_context(|| format!("the verifier's log has no figures: {log}"))
        }
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => bail!("refused: {io_error}\n{verifier_log}"),
        Err(error) => Err(error.into()),
        Ok(()) => bail!("loaded although no file was to be had"),
    }
}

/// From the last lines of the log:
///
/// ```text
/// stack depth 240+32+0
/// processed 187123 insns (limit 1000000) max_states_per_insn 19 total_states 9045 …
/// ```
fn parsed(log: &str) -> Option<Cost> {
    let line = |begin: &str| log.lines().find_map(|line| line.strip_prefix(begin));
    let stack = line("stack depth ")?.split_whitespace().next()?;
    let figures: Vec<&str> = line("processed ")?.split_whitespace().collect();
    let states = figures.iter().position(|word| *word == "total_states")?;
    Some(Cost {
        insns: figures.first()?.parse().ok()?,
        states: figures.get(states + 1)?.parse().ok()?,
        stack: stack.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_verifiers_log() {
        let log = "verification time 1234 usec\nstack depth 240+32\n\
                   processed 187123 insns (limit 1000000) max_states_per_insn 19 \
                   total_states 9045 peak_states 410 mark_read 88\n";
        let cost = Cost {
            insns: 187_123,
            states: 9045,
            stack: "240+32".into(),
        };
        assert_eq!(parsed(log), Some(cost));
        assert_eq!(parsed("R1 type=scalar expected=fp\n"), None);
    }
}

//! A run: conversations spread over threads, each with trackers of its own.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    compare::Pair,
    conversation::Conversation,
    report::{Report, story},
    shrink,
};

/// Conversations that a thread takes at a time.
const PORTION: u64 = 64;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The eBPF object.
    pub object: PathBuf,
    /// At least so many packets.
    pub packets: u64,
    /// Of the generator.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// Tell an example of each disagreement, which takes some seconds.
    pub examples: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Counts and disagreements.
    pub report: Report,
    /// From the first packet to the last, without loading.
    pub elapsed: Duration,
}

/// What the threads share.
struct Shared {
    next: AtomicU64,
    packets: AtomicU64,
    failed: AtomicBool,
}

/// Runs a plan to its end.
///
/// # Errors
/// A thread could not set its trackers up, or one of them failed.
pub fn run(plan: &Plan, progress: impl Fn(u64) + Sync) -> Result<Outcome> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the comparison loads programs and makes network namespaces: run it as root (sudo)"
    );
    let shared = Shared {
        next: AtomicU64::new(0),
        packets: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let results: Vec<Result<Outcome>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    let result = work(plan, &shared, &progress);
                    if result.is_err() {
                        shared.failed.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect()
    });
    let mut sum = Outcome {
        report: Report::default(),
        elapsed: Duration::ZERO,
    };
    for result in results {
        let outcome = result?;
        sum.report.add(outcome.report);
        sum.elapsed = sum.elapsed.max(outcome.elapsed);
    }
    if plan.examples {
        tell_examples(plan, &mut sum.report)?;
    }
    Ok(sum)
}

fn tell_examples(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut found: Vec<_> = report.known.iter_mut().chain(&mut report.unknown).collect();
    if found.is_empty() {
        return Ok(());
    }
    in_thread(|| {
        let mut pair = Pair::new(&plan.object)?;
        found
            .iter_mut()
            .try_for_each(|(name, found)| shrink::tell(&mut pair, plan.seed, name, found))
    })
}

/// A thread of its own, whose network namespace ends with it.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(work);
        worker.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

fn work(plan: &Plan, shared: &Shared, progress: &(impl Fn(u64) + Sync)) -> Result<Outcome> {
    let mut pair = Pair::new(&plan.object)?;
    let mut report = Report::default();
    let begun = Instant::now();
    while shared.packets.load(Ordering::Relaxed) < plan.packets
        && !shared.failed.load(Ordering::Relaxed)
    {
        let first = shared.next.fetch_add(PORTION, Ordering::Relaxed);
        let before = report.verdicts().total();
        for number in first..first + PORTION {
            let conversation = Conversation::new(plan.seed, number);
            let end = pair
                .run(&conversation, &mut report)
                .with_context(|| format!("conversation {number} of seed {}", plan.seed))?;
            report.conversation(&conversation, &end)?;
        }
        let more = report.verdicts().total() - before;
        progress(shared.packets.fetch_add(more, Ordering::Relaxed) + more);
    }
    Ok(Outcome {
        report,
        elapsed: begun.elapsed(),
    })
}

/// One conversation in words, to its end.
///
/// # Errors
/// As [`run`].
pub fn one(plan: &Plan, number: u64) -> Result<String> {
    in_thread(|| {
        let mut pair = Pair::new(&plan.object)?;
        let conversation = Conversation::new(plan.seed, number);
        let family = conversation.ends.family.name();
        let steps = pair.replay(&conversation, usize::MAX, 0)?;
        Ok(format!(
            "conversation {number} of seed {} ({family})\n{}",
            plan.seed,
            story(&steps)?
        ))
    })
}

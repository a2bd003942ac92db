//! What a run counted, and how it is printed.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use anyhow::Result;
use firewall_common::{
    tcp::{Segment as Kind, State},
    verdict::Verdict,
};

use super::{
    classes::classify,
    compare::{End, Step},
    conversation::Conversation,
    segment::{Segment, Side},
};

const STATES: usize = 10;
const KINDS: [&str; 6] = ["SYN", "SYN-ACK", "FIN", "ACK", "RST", "none of these"];

/// Packets by verdict: what pinhole does, by what nf_conntrack does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Both pass it.
    pub passed: u64,
    /// Both drop it.
    pub dropped: u64,
    /// pinhole drops what the kernel passes.
    pub stricter: u64,
    /// pinhole passes what the kernel drops.
    pub weaker: u64,
}

impl Verdicts {
    fn count(&mut self, kernel: bool, pinhole: bool) {
        *match (kernel, pinhole) {
            (true, true) => &mut self.passed,
            (false, false) => &mut self.dropped,
            (true, false) => &mut self.stricter,
            (false, true) => &mut self.weaker,
        } += 1;
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.dropped += other.dropped;
        self.stricter += other.stricter;
        self.weaker += other.weaker;
    }

    /// All packets.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.passed + self.dropped + self.stricter + self.weaker
    }
}

/// Disagreements of one kind, with the shortest example.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// Conversations that ended with it.
    pub count: u64,
    /// Number of the conversation whose example it is.
    pub number: u64,
    /// Packets up to the disagreement.
    pub packets: usize,
    /// The packets that it takes, in words (`super::shrink`).
    pub example: String,
}

/// Counts of one worker, or of all.
#[derive(Clone, Debug, Default)]
pub struct Report {
    cells: [[Verdicts; KINDS.len()]; STATES],
    /// Conversations taken through both.
    pub conversations: u64,
    /// Disagreements that are meant, by [`super::classes::Class::name`].
    pub known: BTreeMap<String, Disagreement>,
    /// Conversations that could not be compared to their end, by reason.
    pub departures: BTreeMap<&'static str, u64>,
    /// Disagreements that are not, by what they look like.
    pub unknown: BTreeMap<String, Disagreement>,
}

impl Report {
    /// Counts a packet that came when nf_conntrack's state was `before`.
    pub fn packet(&mut self, before: State, segment: &Segment, kernel: bool, pinhole: bool) {
        let kind = Kind::of(segment.flags).map_or(KINDS.len() - 1, |kind| kind as usize);
        self.cells[before as usize][kind].count(kernel, pinhole);
    }

    /// Counts a conversation and its end.
    ///
    /// # Errors
    /// A flow of pinhole's holds no TCP state.
    pub fn conversation(&mut self, conversation: &Conversation, end: &End) -> Result<()> {
        self.conversations += 1;
        let steps = match end {
            End::Agreement => return Ok(()),
            End::Departure(why) => {
                *self.departures.entry(why).or_default() += 1;
                return Ok(());
            }
            End::Disagreement(steps) => steps,
        };
        let found = Disagreement {
            count: 1,
            number: conversation.number,
            packets: steps.len(),
            example: String::new(),
        };
        match name(steps)? {
            (true, name) => note(&mut self.known, name, found),
            (false, name) => note(&mut self.unknown, name, found),
        }
        Ok(())
    }

    /// Adds what another worker counted.
    pub fn add(&mut self, other: Self) {
        for (to, from) in self
            .cells
            .iter_mut()
            .flatten()
            .zip(other.cells.iter().flatten())
        {
            to.add(from);
        }
        self.conversations += other.conversations;
        for (why, count) in other.departures {
            *self.departures.entry(why).or_default() += count;
        }
        for (name, found) in other.known {
            note(&mut self.known, name, found);
        }
        for (look, found) in other.unknown {
            note(&mut self.unknown, look, found);
        }
    }

    /// Packets by verdict, in all.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        let mut sum = Verdicts::default();
        self.cells.iter().flatten().for_each(|cell| sum.add(cell));
        sum
    }

    /// Packets that came when nf_conntrack's state was `state`.
    #[must_use]
    pub fn in_state(&self, state: State) -> Verdicts {
        let mut sum = Verdicts::default();
        self.cells[state as usize].iter().for_each(|c| sum.add(c));
        sum
    }

    /// Was there nothing but what is meant?
    #[must_use]
    pub fn passed(&self) -> bool {
        self.unknown.is_empty() && self.verdicts().weaker == 0
    }
}

fn note<K: Ord>(to: &mut BTreeMap<K, Disagreement>, key: K, found: Disagreement) {
    match to.entry(key) {
        std::collections::btree_map::Entry::Vacant(free) => {
            free.insert(found);
        }
        std::collections::btree_map::Entry::Occupied(mut taken) => {
            let so_far = taken.get_mut();
            let count = so_far.count + found.count;
            if (found.packets, found.number) < (so_far.packets, so_far.number) {
                *so_far = found;
            }
            so_far.count = count;
        }
    }
}

/// Is the disagreement at the end of `steps` meant, and what is it called?
///
/// # Errors
/// A flow of pinhole's holds no TCP state.
pub fn name(steps: &[Step]) -> Result<(bool, String)> {
    match classify(steps) {
        Some(class) => Ok((true, class.name.into())),
        None => Ok((false, look(steps)?)),
    }
}

/// What tells one kind of disagreement from another.
fn look(steps: &[Step]) -> Result<String> {
    let Some(last) = steps.last() else {
        return Ok("no packet".into());
    };
    if last.agrees()? {
        return Ok("gone when it was repeated".into());
    }
    let [before, ours_before] = last.states_before()?;
    let [after, ours_after] = last.states_after()?;
    let kind = Kind::of(last.segment.flags).map_or(KINDS.len() - 1, |kind| kind as usize);
    let mut text = format!("{} in {}", KINDS[kind], before.name());
    if before != ours_before {
        write!(text, " (pinhole: {})", ours_before.name())?;
    }
    write!(
        text,
        ": kernel {} -> {}, pinhole {} -> {}",
        if last.kernel.passes() {
            "passes"
        } else {
            "drops"
        },
        after.name(),
        reason(last),
        ours_after.name(),
    )?;
    Ok(text)
}

/// What pinhole does, with its reason where that is known.
fn reason(step: &Step) -> String {
    let does = if step.passes { "passes" } else { "drops" };
    match step.reason {
        Some(Verdict::Pass(reason)) => format!("{does} ({})", reason.name()),
        Some(Verdict::Drop(reason)) => format!("{does} ({})", reason.name()),
        None => does.into(),
    }
}

/// Steps in words. Sequence numbers count from each side's first.
///
/// # Errors
/// A flow of pinhole's holds no TCP state.
pub fn story(steps: &[Step]) -> Result<String> {
    let mut text = String::new();
    let bases = Side::BOTH.map(|side| {
        let first = steps.iter().find(|s| s.segment.from == side);
        first.map_or(0, |s| s.segment.seq)
    });
    for (at, step) in steps.iter().enumerate() {
        let [kernel, pinhole] = step.states_after()?;
        let mut line = format!("{:>5} ", at + 1);
        line += &step.segment.told(bases);
        let kernel_does = match step.kernel.passes() {
            true => "passes",
            false => "drops",
        };
        writeln!(
            text,
            "{line}\n           kernel {kernel_does}, {}; pinhole {}, {}{}",
            kernel.name(),
            reason(step),
            pinhole.name(),
            if step.agrees()? { "" } else { "   <--" },
        )?;
    }
    Ok(text)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<12} {:<14} {:>11} {:>11} {:>12} {:>12}",
            "state before", "flags", "both pass", "both drop", "kernel only", "pinhole only"
        )?;
        let row = |f: &mut fmt::Formatter<'_>, state: &str, kind: &str, v: &Verdicts| {
            writeln!(
                f,
                "{state:<12} {kind:<14} {:>11} {:>11} {:>12} {:>12}",
                v.passed, v.dropped, v.stricter, v.weaker
            )
        };
        for (state, cells) in self.cells.iter().enumerate() {
            let name = State::try_from(state as u8).map_or("?", State::name);
            for (kind, cell) in cells.iter().enumerate().filter(|(_, c)| c.total() > 0) {
                row(f, name, KINDS[kind], cell)?;
            }
        }
        row(f, "all", "", &self.verdicts())?;
        writeln!(
            f,
            "\n\"kernel only\": only the kernel passes it. {} conversations.",
            self.conversations
        )?;
        for (why, count) in &self.departures {
            writeln!(f, "{count} of them were not compared to their end: {why}.")?;
        }
        section(
            f,
            "Disagreements that are meant (docs/differential.md)",
            &self.known,
        )?;
        section(f, "DISAGREEMENTS", &self.unknown)
    }
}

fn section<K: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    found: &BTreeMap<K, Disagreement>,
) -> fmt::Result {
    if found.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}:")?;
    let mut sorted: Vec<_> = found.iter().collect();
    sorted.sort_by_key(|(_, found)| std::cmp::Reverse(found.count));
    for (name, found) in sorted {
        writeln!(
            f,
            "\n{:>8} x {name}; conversation {}:\n{}",
            found.count,
            found.number,
            found.example.trim_end()
        )?;
    }
    Ok(())
}

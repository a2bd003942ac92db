//! One conversation through both, verdict against verdict and state against state.

use std::path::Path;

use anyhow::Result;
use firewall_common::{abi::Flow, key::Direction, tcp::State, verdict::Verdict};

use super::{
    classes,
    conversation::Conversation,
    ctnetlink::Tracked,
    kernel::{Kernel, KernelVerdict},
    programs::{self, Programs},
    report::Report,
    segment::{Ends, Segment},
};

/// How a conversation ended.
#[derive(Clone, Debug)]
pub enum End {
    /// In agreement.
    Agreement,
    /// Verdicts or states differ after the last of these steps.
    Disagreement(Vec<Step>),
    /// Both agree so far, and cannot be compared any further, for this reason.
    Departure(&'static str),
}

/// Both trackers, with tables of their own.
pub struct Pair {
    kernel: Kernel,
    programs: Programs,
    frame: Vec<u8>,
}

/// What both hold of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// nf_conntrack's entry.
    pub kernel: Option<Tracked>,
    /// pinhole's live entry.
    pub flow: Option<Flow>,
}

impl Sight {
    fn states(&self) -> Result<[State; 2]> {
        Ok([
            self.kernel.map_or(State::None, |k| k.state),
            self.flow
                .as_ref()
                .map_or(Ok(State::None), programs::state)?,
        ])
    }
}

/// A packet, what was there before it and after it, and what both said.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The packet.
    pub segment: Segment,
    /// Its direction in pinhole's entry, if there was one.
    pub direction: Option<Direction>,
    /// Before it.
    pub before: Sight,
    /// What nf_conntrack said.
    pub kernel: KernelVerdict,
    /// Does pinhole let it through?
    pub passes: bool,
    /// What pinhole counted, where that was looked at.
    pub reason: Option<Verdict>,
    /// After it.
    pub after: Sight,
}

impl Step {
    /// States of nf_conntrack and of pinhole before the packet.
    ///
    /// # Errors
    /// pinhole's entry holds none.
    pub fn states_before(&self) -> Result<[State; 2]> {
        self.before.states()
    }

    /// States of nf_conntrack and of pinhole after the packet.
    ///
    /// # Errors
    /// pinhole's entry holds none.
    pub fn states_after(&self) -> Result<[State; 2]> {
        self.after.states()
    }

    /// Do both say the same and stand in the same state?
    ///
    /// # Errors
    /// pinhole's entry holds no TCP state.
    pub fn agrees(&self) -> Result<bool> {
        let [kernel, pinhole] = self.states_after()?;
        Ok(self.kernel.passes() == self.passes && kernel == pinhole)
    }
}

impl Pair {
    /// Both, for the calling thread, which moves into a network namespace.
    ///
    /// # Errors
    /// One of them cannot be set up.
    pub fn new(object: &Path) -> Result<Self> {
        Ok(Self {
            kernel: Kernel::new()?,
            programs: Programs::load(object)?,
            frame: Vec::with_capacity(2048),
        })
    }

    /// Takes a conversation through both up to its first disagreement, and
    /// counts its packets.
    ///
    /// After it the two hold different views, and what follows tells nothing.
    ///
    /// # Errors
    /// One of them fails.
    pub fn run(&mut self, conversation: &Conversation, report: &mut Report) -> Result<End> {
        let ends = &conversation.ends;
        let mut before = self.sight(ends)?;
        for (at, segment) in conversation.segments.iter().enumerate() {
            ends.frame(segment, &mut self.frame);
            let kernel = self.kernel.judge(ends.family, segment.from, &self.frame)?;
            let passes = self.programs.passes(segment.from, &self.frame)?;
            let after = self.sight(ends)?;
            let [theirs, ours] = after.states()?;
            report.packet(before.states()?[0], segment, kernel.passes(), passes);
            if kernel.passes() != passes || theirs != ours {
                self.forget(ends)?;
                return self.explain(conversation, at).map(End::Disagreement);
            }
            if !passes
                && let Some(flow) = &before.flow
                && let Some(why) = classes::departs(
                    segment,
                    programs::direction(ends, segment.from, flow),
                    &before,
                )
            {
                self.forget(ends)?;
                return Ok(End::Departure(why));
            }
            before = after;
        }
        self.forget(ends)?;
        Ok(End::Agreement)
    }

    /// The steps up to the disagreement at packet `at`.
    fn explain(&mut self, conversation: &Conversation, at: usize) -> Result<Vec<Step>> {
        let mut steps = self.replay(conversation, at + 1, at)?;
        self.forget(&conversation.ends)?;
        if steps.iter().any(classes::is_resync) {
            steps = self.replay(conversation, at + 1, 0)?;
            self.forget(&conversation.ends)?;
        }
        Ok(steps)
    }

    /// Takes the first `count` packets of a conversation through both again,
    /// with everything that can be known; from packet `reasons` on also what
    /// pinhole counted, which is slow.
    ///
    /// # Errors
    /// One of them fails.
    pub fn replay(
        &mut self,
        conversation: &Conversation,
        count: usize,
        reasons: usize,
    ) -> Result<Vec<Step>> {
        let ends = &conversation.ends;
        let mut steps = Vec::new();
        let mut before = self.sight(ends)?;
        for (at, segment) in conversation.segments.iter().take(count).enumerate() {
            ends.frame(segment, &mut self.frame);
            let kernel = self.kernel.judge(ends.family, segment.from, &self.frame)?;
            let (passes, reason) = if at < reasons {
                (self.programs.passes(segment.from, &self.frame)?, None)
            } else {
                let verdict = self.programs.judge(segment.from, &self.frame)?;
                (matches!(verdict, Verdict::Pass(_)), Some(verdict))
            };
            let after = self.sight(ends)?;
            let direction = before
                .flow
                .map(|flow| programs::direction(ends, segment.from, &flow));
            steps.push(Step {
                segment: *segment,
                direction,
                before,
                kernel,
                passes,
                reason,
                after,
            });
            before = after;
        }
        Ok(steps)
    }

    /// Empties both tables of the flow between `ends`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget(&mut self, ends: &Ends) -> Result<()> {
        self.kernel.forget(ends)?;
        self.programs.forget(ends)
    }

    fn sight(&mut self, ends: &Ends) -> Result<Sight> {
        Ok(Sight {
            kernel: self.kernel.table().get(ends)?,
            flow: self.programs.flow(ends)?,
        })
    }
}

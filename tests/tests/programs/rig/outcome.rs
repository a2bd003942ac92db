//! What a run did.

use firewall_common::verdict::{DropReason, PassReason, Verdict};

/// What one run did: the verdict, as counted, and the mode it was counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome(pub(crate) Verdict, Mode);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Enforced,
    Shadow,
}

pub(crate) fn passed(reason: PassReason) -> Outcome {
    Outcome(Verdict::Pass(reason), Mode::Enforced)
}

pub(crate) fn dropped(reason: DropReason) -> Outcome {
    Outcome(Verdict::Drop(reason), Mode::Enforced)
}

/// Passed in shadow mode instead of being dropped.
pub(crate) fn would_drop(reason: DropReason) -> Outcome {
    Outcome(Verdict::Drop(reason), Mode::Shadow)
}

impl Outcome {
    /// Index of the counter that tells.
    pub(super) fn index(self) -> usize {
        let index = self.0.index();
        match self.1 {
            Mode::Enforced => index as usize,
            Mode::Shadow => Verdict::in_shadow(index) as usize,
        }
    }

    pub(super) fn passes(self) -> bool {
        matches!(self, Self(Verdict::Pass(_), _) | Self(_, Mode::Shadow))
    }
}

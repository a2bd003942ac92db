//! Disagreements that are meant. Each has its reason in `docs/differential.md`.

use super::compare::Step;

/// A kind of disagreement in which pinhole is stricter, or the kernel breaks an RFC.
pub struct Class {
    /// Its name, as in `docs/differential.md`.
    pub name: &'static str,
    /// Is the last of these steps one of the kind?
    matches: fn(&[Step]) -> bool,
}

/// All of them.
pub const CLASSES: &[Class] = &[];

/// The class of the disagreement at the end of `steps`.
///
/// That pinhole passes what the kernel drops is never meant.
#[must_use]
pub fn classify(steps: &[Step]) -> Option<&'static Class> {
    let last = steps.last()?;
    if last.passes && !last.kernel.passes() {
        return None;
    }
    CLASSES.iter().find(|class| (class.matches)(steps))
}

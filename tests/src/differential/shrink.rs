//! The packets of a conversation that a disagreement takes.

use anyhow::Result;

use super::{
    compare::{Pair, Step},
    conversation::Conversation,
    report::{Disagreement, name, story},
};

/// Tells the example of a disagreement of this name: its conversation without
/// every packet that can be left out.
///
/// # Errors
/// One of the trackers fails.
pub(super) fn tell(
    pair: &mut Pair,
    seed: u64,
    called: &str,
    found: &mut Disagreement,
) -> Result<()> {
    let mut conversation = Conversation::new(seed, found.number);
    conversation.segments.truncate(found.packets);
    let mut at = conversation.segments.len();
    // The last packet is the disagreement; from the back, so that what depends
    // on another packet goes before it.
    while at > 1 {
        at -= 1;
        let left_out = conversation.segments.remove(at - 1);
        let still = is_at_the_end(pair, &conversation, called)?;
        if !still {
            conversation.segments.insert(at - 1, left_out);
        }
    }
    found.example = story(&replay(pair, &conversation, 0)?)?;
    Ok(())
}

fn is_at_the_end(pair: &mut Pair, conversation: &Conversation, called: &str) -> Result<bool> {
    let last = conversation.segments.len() - 1;
    let steps = replay(pair, conversation, last)?;
    let Some((end, before)) = steps.split_last() else {
        return Ok(false);
    };
    for step in before {
        if !step.agrees()? {
            return Ok(false);
        }
    }
    Ok(!end.agrees()? && name(&steps)?.1 == called)
}

fn replay(pair: &mut Pair, conversation: &Conversation, reasons: usize) -> Result<Vec<Step>> {
    let steps = pair.replay(conversation, usize::MAX, reasons);
    pair.forget(&conversation.ends)?;
    steps
}

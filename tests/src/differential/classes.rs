//! Disagreements that are meant. Each has its reason in `docs/differential.md`.

use firewall_common::{
    abi::{
        Flow, FlowState, LastKind,
        flow_flags::{self, NO_SCALE},
    },
    key::Direction,
    tcp::{Segment as Kind, State},
    verdict::{DropReason, PassReason, Verdict},
    wire::tcp_flags::{FIN, RST, SYN},
};

use super::{
    compare::{Sight, Step},
    peer::after,
    segment::Segment,
};

/// A kind of disagreement in which pinhole is stricter, or the kernel breaks an RFC.
pub struct Class {
    /// Its name, as in `docs/differential.md`.
    pub name: &'static str,
    /// Is the last of these steps one of the kind?
    matches: fn(&[Step], &Last<'_>) -> bool,
}

/// Needs no flow: the segment alone decides.
const MALFORMED_OPTIONS: &Class = &Class {
    name: "malformed-options",
    matches: |_, last| is_malformed(last.step),
};

/// All of them.
pub const CLASSES: &[Class] = &[
    Class {
        name: "handshake-ack",
        matches: |_, last| last.is_handshake_ack(),
    },
    Class {
        name: "simultaneous-ack",
        matches: |steps, last| {
            let ignored = || steps.iter().any(is_ignored_simultaneous);
            last.is_simultaneous_ack() && (last.was_simultaneous() && last.lags() || ignored())
        },
    },
    Class {
        name: "resync-window",
        matches: follows_resync,
    },
    Class {
        name: "rst-after-own-syn",
        matches: |_, last| last.is_rst_after_own_syn(),
    },
    Class {
        name: "sack-beyond-windows",
        matches: |_, last| is_wide_sack(last.step),
    },
    Class {
        name: "second-introduction",
        matches: follows_two_introductions,
    },
];

/// The class of the disagreement at the end of `steps`.
///
/// That pinhole passes what the kernel drops is never meant.
#[must_use]
pub fn classify(steps: &[Step]) -> Option<&'static Class> {
    let step = steps.last()?;
    if step.passes && !step.kernel.passes() {
        return None;
    }
    if is_malformed(step) {
        return Some(MALFORMED_OPTIONS);
    }
    let last = Last::of(steps)?;
    CLASSES.iter().find(|class| (class.matches)(steps, &last))
}

/// The packet that both disagree on, and the entry that it came to.
struct Last<'a> {
    step: &'a Step,
    flow: &'a Flow,
    direction: Direction,
    kind: Kind,
    kernel: [State; 2],
    pinhole: [State; 2],
}

impl<'a> Last<'a> {
    fn of(steps: &'a [Step]) -> Option<Self> {
        let step = steps.last()?;
        let (before, after) = (step.states_before().ok()?, step.states_after().ok()?);
        Some(Self {
            step,
            flow: step.before.flow.as_ref()?,
            direction: step.direction?,
            kind: Kind::of(step.segment.flags)?,
            kernel: [before[0], after[0]],
            pinhole: [before[1], after[1]],
        })
    }

    /// Does it acknowledge less than all that the other side has sent?
    fn lags(&self) -> bool {
        let end = self.flow.tcp[self.direction.flip().index()].end;
        after(end, self.step.segment.ack)
    }

    /// The handshake is done by who knows the other side's sequence number, and
    /// not by who comes within 66,000 of it.
    fn is_handshake_ack(&self) -> bool {
        let opening = match self.kind {
            Kind::SynAck => [State::SynSent, State::SynSent2].contains(&self.pinhole[0]),
            Kind::Ack | Kind::Fin => {
                self.pinhole[0] == State::SynRecv && self.direction == Direction::Original
            }
            Kind::Syn | Kind::Rst => false,
        };
        opening
            && self.lags()
            && self.step.reason == Some(Verdict::Drop(DropReason::TcpHandshake))
            && self.pinhole[0] == self.pinhole[1]
    }

    /// The replier's ACK ends a simultaneous open, for the kernel.
    fn is_simultaneous_ack(&self) -> bool {
        self.kind == Kind::Ack
            && self.direction == Direction::Reply
            && self.kernel == [State::SynRecv, State::Established]
            && self.pinhole == [State::SynRecv; 2]
    }

    /// An RST of the side that sent the SYN which was let through last: what the
    /// other side has acknowledged is still held against it.
    fn is_rst_after_own_syn(&self) -> bool {
        let last = self.flow.last();
        let syn = matches!(last.kind(), LastKind::Syn | LastKind::SynInLastAck);
        self.kind == Kind::Rst
            && syn
            && last.direction() == self.direction
            && self.pinhole[0] == self.pinhole[1]
            && (self.step.passes || self.step.reason == Some(Verdict::Drop(DropReason::TcpRst)))
    }

    fn was_simultaneous(&self) -> bool {
        FlowState(self.flow.state).has(flow_flags::SIMULTANEOUS)
    }
}

/// An option that is cut short, or has a length that cannot be. Whole headers are
/// all that is generated.
fn is_malformed(step: &Step) -> bool {
    step.reason == Some(Verdict::Drop(DropReason::MalformedTcp))
}

/// A SYN of the replier that passed without being accepted: no simultaneous
/// open, but the kernel notes one before it looks at the window.
fn is_ignored_simultaneous(step: &Step) -> bool {
    let stays = |states: anyhow::Result<[State; 2]>| states.is_ok_and(|s| s == [State::SynSent; 2]);
    Kind::of(step.segment.flags) == Some(Kind::Syn)
        && step.direction == Some(Direction::Reply)
        && stays(step.states_before())
        && stays(step.states_after())
}

/// Did this SYN-ACK begin a new entry, because it answers a SYN that was ignored?
#[must_use]
pub fn is_resync(step: &Step) -> bool {
    let incarnation = |sight: &Sight| sight.flow.map(|f| FlowState(f.state).incarnation());
    let [before, after] = [&step.before, &step.after].map(incarnation);
    Kind::of(step.segment.flags) == Some(Kind::SynAck)
        && before.is_some()
        && after.is_some()
        && before != after
}

/// Of an ignored SYN no window is kept, so after a resync the originator's is
/// known to be open and no more until its next segment tells. Up to then the
/// replier may send less far than the kernel allows, and what repeats old data
/// is not accepted but ignored; afterwards the two may differ in what they
/// remember as the last packet.
fn follows_resync(steps: &[Step], last: &Last<'_>) -> bool {
    let Some(at) = steps.iter().rposition(is_resync) else {
        return false;
    };
    let resync = &steps[at].segment;
    let Some(syn) = steps[..at].iter().rev().map(|s| &s.segment).find(|s| {
        s.flags & (SYN | RST | FIN) == SYN && s.from != resync.from && s.end() == resync.ack
    }) else {
        return false;
    };
    let since = &steps[at + 1..];
    let scale = FlowState(last.flow.state).scale(Direction::Original);
    let scale = if scale == NO_SCALE { 0 } else { scale };
    let is_narrow = |before: usize| {
        let counts = Some(Verdict::Pass(PassReason::Established));
        let told = since[..before].iter().filter(|s| s.reason == counts);
        let (mut widest, mut sent) = (0, 0);
        for segment in told.map(|s| &s.segment).filter(|s| !s.has(SYN | RST)) {
            if segment.from == syn.from {
                widest = widest.max(u32::from(segment.window) << scale);
            } else {
                // What exceeds the window widens it, for both.
                sent += u32::from(segment.len);
            }
        }
        widest < u32::from(syn.window) + sent
    };
    let unlike = |number: usize| is_window(&since[number]) && is_narrow(number);
    // A SYN may find that another packet came last.
    let remembered = last.kind == Kind::Syn && last.kernel == [State::Close; 2];
    let numbers = if remembered {
        0
    } else {
        since.len().saturating_sub(1)
    }..since.len();
    numbers.into_iter().any(unlike)
}

/// A segment that lies outside the windows as pinhole knows them, and inside as
/// the kernel does, or is taken for old in one and not in the other.
fn is_window(step: &Step) -> bool {
    matches!(
        step.reason,
        Some(
            Verdict::Drop(DropReason::TcpSeqOver)
                | Verdict::Pass(PassReason::TcpOldData | PassReason::TcpOvershot)
        )
    )
}

/// The kernel adds to a window what lies between an acknowledgement and the highest
/// selective one, and does not hold the former against anything.
fn is_wide_sack(step: &Step) -> bool {
    step.reason == Some(Verdict::Drop(DropReason::TcpSackOver))
}

/// A SYN-ACK that is refused has, in the kernel, introduced its side all the same:
/// its scale is forgotten, but that the other side offered one is not. A second
/// SYN with a scale then turns scaling on there; here both sides have to offer it
/// in what they were introduced with.
fn follows_two_introductions(steps: &[Step], last: &Last<'_>) -> bool {
    let flags = FlowState(last.flow.state);
    let unscaled = Direction::Reply;
    let none = flags.scale(unscaled) == NO_SCALE && flags.scale(unscaled.flip()) == NO_SCALE;
    let of_replier =
        |step: &&Step| step.segment.has(SYN) && step.direction == Some(Direction::Reply);
    let mut introductions = steps
        .iter()
        .filter(of_replier)
        .map(|s| has_scale(&s.segment));
    let first = introductions.next();
    is_window(last.step) && none && introductions.any(|scale| Some(scale) != first)
}

fn has_scale(segment: &Segment) -> bool {
    segment.options.bytes().windows(2).any(|w| w == [3, 3])
}

/// Why the two cannot be compared beyond a packet that both have dropped.
///
/// `direction` is the packet's in pinhole's entry, `before` what was there.
#[must_use]
pub fn departs(segment: &Segment, direction: Direction, before: &Sight) -> Option<&'static str> {
    let flow = before.flow.as_ref()?;
    let answers_ignored = {
        let last = flow.last();
        let syn = matches!(last.kind(), LastKind::Syn | LastKind::SynInLastAck);
        syn && last.direction() != direction && last.end() == segment.ack
    };
    let kind = Kind::of(segment.flags)?;
    (kind == Kind::SynAck && answers_ignored).then_some("kernel-keeps-invalid-resync")
}

//! VLAN end points for kernels without 802.1Q: two TC programs on an interface.

use std::path::Path;

use anyhow::Result;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};

use super::{
    Netns,
    foreign::{Instruction, Pinned},
    process,
};

/// A customer's tag (IEEE 802.1Q).
pub const C_TAG: u16 = 0x8100;
/// A provider's tag (IEEE 802.1ad).
pub const S_TAG: u16 = 0x88a8;

/// What an interface sends is tagged, and what it receives loses its tags before
/// the stack looks at it.
#[derive(Debug)]
pub struct VlanEnd {
    _programs: [SchedClassifier; 2],
    _pins: Pinned,
}

impl VlanEnd {
    /// Attaches to `interface` with `tags`, the outer one first; `name` is unique on
    /// the machine. A frame is tagged before any other program at egress sees it: the
    /// outer tag stands beside it then, as one that a VLAN device puts there.
    ///
    /// # Errors
    /// The kernel has no TCX.
    pub fn attach(ns: &Netns, interface: &str, tags: &[u16], name: String) -> Result<Self> {
        let pins = Pinned::new(name)?;
        let push = pins.classifier("push", &pusher(tags))?;
        let pop = pins.classifier("pop", &popper(tags.len()))?;
        let programs = ns.within(|| {
            Ok::<_, anyhow::Error>([
                first(interface, TcAttachType::Egress, &push)?,
                first(interface, TcAttachType::Ingress, &pop)?,
            ])
        })??;
        Ok(Self {
            _programs: programs,
            _pins: pins,
        })
    }
}

fn first(interface: &str, hook: TcAttachType, pin: &Path) -> Result<SchedClassifier> {
    let mut program = SchedClassifier::from_pin(pin)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    program.attach_with_options(interface, hook, order)?;
    Ok(program)
}

/// `TCX_NEXT`: other programs have their say.
const NEXT: i32 = -1;

fn pusher(tags: &[u16]) -> Vec<Instruction> {
    const VLAN_PUSH: i32 = 18;
    let mut program = vec![Instruction::copy(6, 1)];
    for (id, tag) in (100..).zip(tags.iter().rev()) {
        program.extend([
            Instruction::copy(1, 6),
            // In network byte order.
            Instruction::set(2, tag.to_be().into()),
            Instruction::set(3, id),
            Instruction::call(VLAN_PUSH),
        ]);
    }
    program.extend([Instruction::set(0, NEXT), Instruction::EXIT]);
    program
}

fn popper(tags: usize) -> Vec<Instruction> {
    const VLAN_POP: i32 = 19;
    let mut program = vec![Instruction::copy(6, 1)];
    for _ in 0..tags {
        program.extend([Instruction::copy(1, 6), Instruction::call(VLAN_POP)]);
    }
    program.extend([Instruction::set(0, NEXT), Instruction::EXIT]);
    program
}

/// Whether an interface leaves the outer tag of what it sends beside the frame, as
/// for a device that puts it in: over a veth it then arrives there.
///
/// # Errors
/// `ethtool` fails.
pub fn offload(ns: &Netns, interface: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    let mut set = ns.command("ethtool");
    set.args(["-K", interface]);
    for feature in ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"] {
        set.args([feature, state]);
    }
    process::check(&mut set).map(drop)
}

/// The VLAN offloads of an interface that are on, by ethtool's names.
///
/// # Errors
/// `ethtool` fails.
pub fn offloads(ns: &Netns, interface: &str) -> Result<Vec<String>> {
    const NAMES: [&str; 4] = [
        "rx-vlan-offload",
        "tx-vlan-offload",
        "rx-vlan-stag-hw-parse",
        "tx-vlan-stag-hw-insert",
    ];
    let text = process::check(ns.command("ethtool").args(["-k", interface]))?;
    let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
    let on = lines.filter(|(name, state)| NAMES.contains(name) && state.starts_with("on"));
    Ok(on.map(|(name, _)| name.to_owned()).collect())
}

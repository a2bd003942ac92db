//! The fast path, in `stats` and `status`.

use firewall_common::abi::{FastCounter, FastIface, Kept, Obstacle, fast_flags};
use serde::Serialize;

use super::{Paint, Table, short_bytes};

/// What the fast path did with packets of tracked flows that arrived at an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FastView {
    /// The interface's name.
    pub interface: String,
    /// May what arrives there take it?
    pub from: bool,
    /// May what takes it leave there?
    pub to: bool,
    /// Names of the [`Obstacle`]s.
    pub obstacles: Vec<&'static str>,
    /// Packets that took it.
    pub packets: u64,
    /// Their bytes of layer 3 upwards.
    pub bytes: u64,
    /// Packets of tracked flows that were left to the kernel.
    pub kernel_packets: u64,
    /// The same by reason.
    pub kernel: Vec<KeptView>,
    /// Of all of them, the part that took it; `null` without packets.
    pub share: Option<f64>,
}

/// Packets that were left to the kernel for a reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeptView {
    /// Name of the [`Kept`].
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    #[serde(skip)]
    help: &'static str,
}

impl FastView {
    /// Reasons without packets only if `all`.
    #[must_use]
    pub fn new(interface: String, entry: &FastIface, counter: &FastCounter, all: bool) -> Self {
        let kept = |reason: &Kept| KeptView {
            reason: reason.name(),
            packets: counter.kept.get(*reason as usize).copied().unwrap_or(0),
            help: reason.help(),
        };
        let kernel: Vec<_> = Kept::ALL.iter().map(kept).collect();
        let kernel_packets = kernel.iter().map(|kept| kept.packets).sum();
        let all_packets = counter.packets + kernel_packets;
        let obstacles = Obstacle::ALL.iter();
        Self {
            interface,
            from: entry.flags & fast_flags::FROM != 0,
            to: entry.flags & fast_flags::TO != 0,
            obstacles: obstacles
                .filter(|o| entry.obstacles & o.bit() != 0)
                .map(|o| o.name())
                .collect(),
            packets: counter.packets,
            bytes: counter.bytes,
            kernel_packets,
            kernel: kernel
                .into_iter()
                .filter(|kept| all || kept.packets > 0)
                .collect(),
            share: (all_packets > 0).then(|| counter.packets as f64 / all_packets as f64),
        }
    }

    /// Whether it takes part: `yes`, or what stands in the way.
    #[must_use]
    pub fn state(&self) -> String {
        if self.from && self.to {
            return "yes".to_owned();
        }
        let which = match (self.from, self.to) {
            (true, false) => "arriving only: ",
            (false, true) => "leaving only: ",
            _ => "no: ",
        };
        format!("{which}{}", self.obstacles.join(", "))
    }

    /// `98.7%`, or `-`.
    #[must_use]
    pub fn percent(&self) -> String {
        self.share
            .map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", 100.0 * share))
    }
}

/// Two tables: interfaces, and why packets were left to the kernel.
#[must_use]
pub fn fast(views: &[FastView]) -> [Table; 2] {
    let mut shares = Table::new(&["FAST PATH", ">PACKETS", ">BYTES", ">SHARE", "TAKES PART"]);
    let mut kept = Table::new(&["LEFT TO THE KERNEL", "REASON", ">PACKETS", "MEANING"]);
    for view in views {
        shares.row([
            (view.interface.clone(), Paint::None),
            (view.packets.to_string(), Paint::None),
            (short_bytes(view.bytes), Paint::None),
            (view.percent(), Paint::None),
            (
                view.state(),
                if view.from && view.to {
                    Paint::Good
                } else {
                    Paint::Notice
                },
            ),
        ]);
        for reason in &view.kernel {
            kept.row([
                (view.interface.clone(), Paint::None),
                (reason.reason.to_owned(), Paint::None),
                (reason.packets.to_string(), Paint::None),
                (reason.help.to_owned(), Paint::Dim),
            ]);
        }
    }
    [shares, kept]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::render::Ink;

    fn view(obstacles: u32) -> FastView {
        let entry = FastIface {
            ifindex: 1,
            flags: Obstacle::leave(obstacles),
            obstacles,
            mac: [2, 0, 0, 0, 0, 1],
            number: 0,
            zone: 1,
        };
        let mut counter = FastCounter {
            packets: 30,
            bytes: 2048,
            ..FastCounter::default()
        };
        counter.kept[Kept::Header as usize] = 9;
        counter.kept[Kept::Refresh as usize] = 1;
        FastView::new("in0".into(), &entry, &counter, false)
    }

    #[test]
    fn the_json() {
        assert_eq!(
            serde_json::to_value(view(Obstacle::Shaping.bit())).unwrap(),
            json!({
                "interface": "in0",
                "from": true,
                "to": false,
                "obstacles": ["shaping"],
                "packets": 30,
                "bytes": 2048,
                "kernel_packets": 10,
                "kernel": [
                    { "reason": "header", "packets": 9 },
                    { "reason": "refresh", "packets": 1 },
                ],
                "share": 0.75,
            })
        );
    }

    #[test]
    fn the_tables() {
        let [shares, kept] = fast(&[view(0)]);
        assert_eq!(
            shares.render(Ink::Plain),
            "FAST PATH  PACKETS  BYTES  SHARE  TAKES PART\n\
             in0             30   2.0K  75.0%  yes\n"
        );
        assert!(
            kept.render(Ink::Plain)
                .contains("in0                 header         9  IP options")
        );
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        assert_eq!(view(0).state(), "yes");
        let both = Obstacle::KernelRules.bit() | Obstacle::Shaping.bit();
        assert_eq!(view(both).state(), "no: kernel-rules, shaping");
        let arriving = Obstacle::PartialChecksums.bit();
        assert_eq!(view(arriving).state(), "leaving only: partial-checksums");
    }

    #[test]
    fn without_packets_there_is_no_share() {
        let entry = FastIface {
            ifindex: 1,
            flags: 0,
            obstacles: 0,
            mac: [0; 6],
            number: 0,
            zone: 1,
        };
        let view = FastView::new("in0".into(), &entry, &FastCounter::default(), true);
        assert_eq!((view.share, view.percent().as_str()), (None, "-"));
        assert_eq!(view.kernel.len(), Kept::ALL.len());
    }
}

//! Segments that almost fit: real ones with a field or two bent to an edge.

use firewall_common::wire::tcp_flags::{ACK, FIN, RST, SYN, URG};

use super::{
    path::Path,
    segment::{CWR, ECE, Options, PSH, Segment, Side},
};

impl Path {
    /// A segment of nobody's, or of one end's that was changed on its way.
    pub(super) fn forge(&mut self, side: Side) {
        let mut segment = if self.seen.is_empty() || self.rng.chance(50) {
            let peer = &mut self.peers[side as usize];
            let seq = peer.next;
            let len = if self.rng.chance(40) {
                self.rng.between(1, 100) as u16
            } else {
                0
            };
            peer.segment(ACK, seq, len)
        } else {
            let at = self.rng.below(self.seen.len() as u32) as usize;
            self.seen[at]
        };
        for _ in 0..self.rng.between(1, 2) {
            self.bend(&mut segment);
        }
        self.seen.push(segment);
        if self.rng.chance(30) {
            self.deliver(&segment);
        }
    }

    fn bend(&mut self, segment: &mut Segment) {
        match self.rng.weighted(&[25, 25, 25, 8, 8, 6, 3]) {
            0 => segment.seq = self.near_seq(segment.from),
            1 => segment.ack = self.near_ack(segment.from),
            2 => {
                segment.flags = match self.rng.below(16) {
                    0..=2 => RST,
                    3 | 4 => RST | ACK,
                    5 => SYN,
                    6 => SYN | ACK,
                    7 | 8 => FIN | ACK,
                    9 => FIN,
                    10 => ACK | URG | PSH,
                    11 => ACK | ECE | CWR,
                    12 => 0,
                    13 => FIN | PSH | URG,
                    _ => self.rng.below(256) as u8,
                }
            }
            3 => segment.window = self.rng.pick(&[0, 1, 2, u16::MAX]),
            4 => segment.window = self.rng.word() as u16,
            5 => segment.options = self.options(segment.from),
            _ => segment.from = segment.from.other(),
        }
    }

    /// A sequence number at an edge of what is valid.
    fn near_seq(&mut self, side: Side) -> u32 {
        let (own, other) = (
            &self.peers[side as usize],
            &self.peers[side.other() as usize],
        );
        let edges = [
            own.next,
            own.unacknowledged,
            own.initial,
            other.expected,
            other.expected.wrapping_add(other.window),
            self.allowed_to(side),
            own.next.wrapping_sub(other.window),
            own.unacknowledged.wrapping_sub(other.window),
            other.expected.wrapping_sub(66_000),
            0,
            self.rng.word(),
        ];
        let edge = self.rng.pick(&edges);
        self.beside(edge)
    }

    /// An acknowledgement at an edge of what is valid.
    fn near_ack(&mut self, side: Side) -> u32 {
        let (own, other) = (
            &self.peers[side as usize],
            &self.peers[side.other() as usize],
        );
        let edges = [
            other.next,
            other.unacknowledged,
            other.initial,
            own.expected,
            other.next.wrapping_sub(66_000),
            other.next.wrapping_sub(own.window),
            other.next.wrapping_add(own.window),
            0,
            self.rng.word(),
        ];
        let edge = self.rng.pick(&edges);
        self.beside(edge)
    }

    /// The end of the window that the other end opened last, as the firewall saw it.
    fn allowed_to(&self, side: Side) -> u32 {
        let last = self
            .seen
            .iter()
            .rev()
            .find(|s| s.from != side && s.has(ACK) && !s.has(SYN | RST));
        last.map_or(0, |s| {
            let scale = self.peers[side.other() as usize].offer.scale.unwrap_or(0);
            s.ack
                .wrapping_add(u32::from(s.window) << u32::from(scale.min(14)))
        })
    }

    fn beside(&mut self, edge: u32) -> u32 {
        let offset = self
            .rng
            .pick(&[0, 0, 0, 1, -1, 2, -2, 3, -3, 100, -100, 1000, -1000]);
        edge.wrapping_add_signed(offset)
    }

    /// Options that a parser may stumble over. Those that pinhole does not take for
    /// any end the conversation, so they are few.
    fn options(&mut self, side: Side) -> Options {
        let (own, other) = (
            &self.peers[side as usize],
            &self.peers[side.other() as usize],
        );
        let mut bytes = Vec::new();
        match self.rng.below(32) {
            // Selective acknowledgements, of something sent or not.
            0..=15 => {
                let blocks = self.rng.between(1, 4);
                bytes.extend([1, 1, 5, (2 + 8 * blocks) as u8]);
                for _ in 0..blocks {
                    let right = match self.rng.below(3) {
                        0 => other.next,
                        1 => other.next.wrapping_add(self.rng.below(3)),
                        _ => own.expected.wrapping_add(self.rng.below(2000)),
                    };
                    bytes.extend(right.wrapping_sub(self.rng.between(1, 100)).to_be_bytes());
                    bytes.extend(right.to_be_bytes());
                }
            }
            16..=22 => bytes.extend([3, 3, self.rng.below(256) as u8, 4, 2]),
            // A length of zero, a length beyond the header.
            23 => bytes.extend([1, 5, 0, 10, 1, 2, 3, 4]),
            24 => bytes.extend([4, 2, 5, 40, 1, 2, 3, 4]),
            // The list ends before what follows.
            25..=30 => bytes.extend([0, 3, 3, 7, 4, 2, 0, 0]),
            _ => {
                let len = self.rng.below(41);
                bytes.extend((0..len).map(|_| self.rng.below(9) as u8));
            }
        }
        Options::new(&bytes)
    }
}

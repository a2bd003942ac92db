//! Generated conversations: a seed and a number make one, the same always.
//!
//! What happens in one is in `path.rs`.

use super::{
    path::Path,
    rng::Rng,
    segment::{End, Ends, Segment, Side},
};
use crate::lab::Family;

/// A conversation.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Its number under the seed.
    pub number: u64,
    /// Its ends.
    pub ends: Ends,
    /// Its segments, in the order in which they reach the firewall.
    pub segments: Vec<Segment>,
}

impl Conversation {
    /// Conversation `number` under `seed`.
    #[must_use]
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = Rng::of(seed, number);
        let ends = ends(&mut rng);
        let segments = Path::new(rng).run();
        Self {
            number,
            ends,
            segments,
        }
    }
}

/// Addresses out of the prefixes of [`super::kernel`], so that either side is
/// the smaller of the two now and then.
fn ends(rng: &mut Rng) -> Ends {
    let family = rng.pick(&Family::BOTH);
    let address = |rng: &mut Rng, side: Side| {
        let mut address = [0; 16];
        let random = rng.double().to_be_bytes();
        match family {
            Family::V4 => {
                let low = rng.chance(50);
                let host = |from: &mut [u8]| from.copy_from_slice(&random[..from.len()]);
                match (side, low) {
                    (Side::Inside, true) => {
                        address[0] = 10;
                        host(&mut address[1..4]);
                    }
                    (Side::Inside, false) => {
                        address[..2].copy_from_slice(&[203, 0]);
                        host(&mut address[2..4]);
                        address[2] = 112 | address[2] & 0x0f;
                    }
                    (Side::Outside, true) => {
                        address[..2].copy_from_slice(&[172, 16]);
                        host(&mut address[2..4]);
                    }
                    (Side::Outside, false) => {
                        address[..2].copy_from_slice(&[198, 18]);
                        host(&mut address[2..4]);
                    }
                }
            }
            Family::V6 => {
                let prefix: &[u8] = match (side, rng.chance(50)) {
                    (Side::Inside, true) => &[0xfd, 0],
                    (Side::Inside, false) => &[0x20, 1, 0x0d, 0xb8, 0, 0x0a],
                    (Side::Outside, true) => &[0xfd, 1],
                    (Side::Outside, false) => &[0x20, 1, 0x0d, 0xb8, 0, 0x0b],
                };
                address[..prefix.len()].copy_from_slice(prefix);
                address[8..].copy_from_slice(&random);
            }
        }
        address
    };
    let [inside, outside] = Side::BOTH.map(|side| End {
        address: address(rng, side),
        port: rng.between(1, u32::from(u16::MAX)) as u16,
    });
    Ends {
        family,
        ends: [inside, outside],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use firewall_common::wire::tcp_flags::{ACK, RST, SYN, URG};

    use super::*;

    #[test]
    fn a_seed_and_a_number_make_one_conversation() {
        let again = Conversation::new(7, 3);
        assert_eq!(Conversation::new(7, 3).segments, again.segments);
        assert_ne!(Conversation::new(7, 4).segments, again.segments);
        assert_ne!(Conversation::new(8, 3).segments, again.segments);
    }

    /// The generator is what the comparison is worth: each kind of trouble is in it.
    #[test]
    fn every_kind_of_trouble_occurs() {
        let mut seen = HashSet::new();
        for number in 0..2000 {
            let conversation = Conversation::new(1, number);
            seen.insert(conversation.ends.family.name());
            let mut syns: Vec<u32> = Vec::new();
            let mut closed = false;
            for s in &conversation.segments {
                let again = conversation.segments.iter().filter(|t| *t == s).count() > 1;
                if again {
                    seen.insert("repeated");
                }
                if s.has(RST) {
                    closed = true;
                    seen.insert("rst");
                }
                if s.has(SYN) && !s.has(ACK) {
                    syns.push(s.seq);
                    if closed {
                        seen.insert("syn after rst");
                    }
                    if syns.iter().any(|seq| *seq != s.seq) {
                        seen.insert("syn with another number");
                    }
                }
                if s.window == 0 {
                    seen.insert("zero window");
                }
                if s.flags == 0 {
                    seen.insert("no flags");
                }
                if s.end() < s.seq {
                    seen.insert("wrap");
                }
                if s.options.bytes().windows(2).any(|w| w == [5, 10]) {
                    seen.insert("sack");
                }
                if s.has(URG) {
                    seen.insert("urgent");
                }
            }
        }
        assert_eq!(seen.len(), 11, "{seen:?}");
    }

    /// A firewall learns most of a window from conversations that work.
    #[test]
    fn most_conversations_get_beyond_the_handshake() {
        let total = 1000;
        let talks = (0..total)
            .map(|number| Conversation::new(2, number))
            .filter(|c| c.segments.iter().filter(|s| s.len > 0).count() > 3)
            .count();
        assert!(talks > total as usize / 2, "{talks} of {total}");
    }
}

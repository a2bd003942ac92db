//! What happens in a conversation.
//!
//! Two [`Peer`]s talk over a path that loses, delays and duplicates on either
//! side of the firewall. Now and then one of them crashes and begins anew on the
//! same ports, and somebody else sends segments that almost fit ([`super::forge`]).

use super::{
    peer::{Offer, Peer, Phase},
    rng::Rng,
    segment::{Segment, Side},
};

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// A segment on its way reaches the firewall.
    Arrive,
    Data,
    Ack,
    Fin,
    Rst,
    /// A SYN: the same again, or a new connection on the same ports.
    Syn,
    /// A segment from before comes again.
    Repeat,
    /// A segment that almost fits.
    Forge,
    /// The receive window changes.
    Window,
    /// Bytes leave, and are lost before the firewall.
    Leap,
}

const MOVES: [Move; 10] = [
    Move::Arrive,
    Move::Data,
    Move::Ack,
    Move::Fin,
    Move::Rst,
    Move::Syn,
    Move::Repeat,
    Move::Forge,
    Move::Window,
    Move::Leap,
];

/// What a conversation is like.
struct Mood {
    /// How likely it is, against the others.
    share: u32,
    /// Of [`MOVES`].
    weights: [u32; 10],
    /// Per cent of the segments lost before the firewall, and behind it.
    loss: [u32; 2],
    /// Per cent of the segments that others overtake, and that are doubled.
    disorder: [u32; 2],
    /// Most segments.
    longest: u32,
}

const MOODS: [Mood; 7] = [
    // Tidy: as most are.
    Mood {
        share: 20,
        weights: [120, 40, 6, 6, 1, 1, 1, 1, 4, 0],
        loss: [0, 0],
        disorder: [2, 1],
        longest: 60,
    },
    // A bad line.
    Mood {
        share: 20,
        weights: [110, 50, 6, 5, 1, 2, 6, 2, 8, 6],
        loss: [8, 8],
        disorder: [25, 8],
        longest: 80,
    },
    // Somebody interferes.
    Mood {
        share: 20,
        weights: [80, 25, 6, 4, 2, 3, 6, 40, 4, 3],
        loss: [2, 4],
        disorder: [8, 3],
        longest: 50,
    },
    // Ends that crash and begin again on the same ports.
    Mood {
        share: 15,
        weights: [100, 15, 4, 8, 12, 25, 5, 3, 2, 2],
        loss: [3, 10],
        disorder: [8, 3],
        longest: 60,
    },
    // A handshake that takes several attempts.
    Mood {
        share: 10,
        weights: [60, 5, 4, 2, 4, 40, 10, 10, 2, 1],
        loss: [10, 25],
        disorder: [20, 8],
        longest: 20,
    },
    // An end that takes several attempts.
    Mood {
        share: 10,
        weights: [80, 15, 8, 30, 6, 6, 12, 6, 2, 2],
        loss: [8, 12],
        disorder: [20, 5],
        longest: 50,
    },
    // Bytes at random.
    Mood {
        share: 5,
        weights: [40, 20, 5, 5, 5, 10, 10, 100, 5, 5],
        loss: [5, 5],
        disorder: [10, 5],
        longest: 30,
    },
];

/// The way between two ends, with the firewall in the middle.
pub(super) struct Path {
    pub(super) rng: Rng,
    mood: &'static Mood,
    pub(super) peers: [Peer; 2],
    /// Sent, and not at the firewall yet.
    flying: Vec<Segment>,
    /// What reached the firewall.
    pub(super) seen: Vec<Segment>,
}

impl Path {
    pub(super) fn new(mut rng: Rng) -> Self {
        let shares: Vec<u32> = MOODS.iter().map(|mood| mood.share).collect();
        let mood = &MOODS[rng.weighted(&shares)];
        let peers = Side::BOTH.map(|side| {
            let offer = offer(&mut rng);
            let window = window(&mut rng, &offer);
            Peer::new(side, offer, window)
        });
        Self {
            rng,
            mood,
            peers,
            flying: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Everything that reached the firewall, in that order.
    pub(super) fn run(mut self) -> Vec<Segment> {
        let length = self.rng.between(3, self.mood.longest) as usize;
        if self.rng.chance(97) {
            let side = self.rng.pick(&Side::BOTH);
            self.open(side);
            // Simultaneous open (RFC 9293, section 3.5).
            if self.rng.chance(5) {
                self.open(side.other());
            }
        }
        for _ in 0..length * 8 {
            if self.seen.len() >= length {
                break;
            }
            self.advance();
        }
        self.seen
    }

    fn advance(&mut self) {
        let next = MOVES[self.rng.weighted(&self.mood.weights)];
        let side = self.rng.pick(&Side::BOTH);
        let at = side as usize;
        let open = matches!(self.peers[at].phase, Phase::Open | Phase::TimeWait);
        match next {
            Move::Arrive => self.arrive(),
            Move::Data if open => {
                let len = self.payload(side);
                let segment = self.peers[at].data(len);
                self.flying.push(segment);
            }
            Move::Ack if open => {
                let segment = self.peers[at].ack();
                self.flying.push(segment);
            }
            Move::Fin if open || self.peers[at].phase == Phase::SynReceived => {
                let segment = self.peers[at].fin();
                self.flying.push(segment);
            }
            Move::Rst if self.peers[at].phase != Phase::Closed => {
                let segment = self.peers[at].abort();
                self.flying.push(segment);
            }
            Move::Syn => self.syn(side),
            Move::Repeat => self.repeat(),
            Move::Forge => self.forge(side),
            Move::Window => {
                let offer = self.peers[at].offer;
                self.peers[at].window = window(&mut self.rng, &offer);
            }
            Move::Leap if open => {
                let len = self.rng.below(self.peers[at].allowed.max(1) + 1);
                self.peers[at].leap(len);
            }
            Move::Data | Move::Ack | Move::Fin | Move::Rst | Move::Leap => {}
        }
    }

    /// What fits the other end's window, more or less.
    fn payload(&mut self, side: Side) -> u16 {
        let peer = &self.peers[side as usize];
        let used = peer.next.wrapping_sub(peer.unacknowledged);
        let room = peer.allowed.saturating_sub(used).min(1400);
        let len = match self.rng.below(10) {
            0..=4 => self.rng.between(1, 64),
            5 => 1,
            6..=8 => room,
            _ => self.rng.between(1, 1400),
        };
        if self.rng.chance(90) {
            len.min(room).max(1) as u16
        } else {
            len.max(1) as u16
        }
    }

    fn arrive(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let [overtaken, doubled] = self.mood.disorder;
        let at = if self.rng.chance(overtaken) {
            self.rng.below(self.flying.len() as u32) as usize
        } else {
            0
        };
        let segment = if self.rng.chance(doubled) {
            self.flying[at]
        } else {
            self.flying.remove(at)
        };
        let [before, behind] = self.mood.loss;
        if self.rng.chance(before) {
            return;
        }
        self.seen.push(segment);
        if !self.rng.chance(behind) {
            self.deliver(&segment);
        }
    }

    pub(super) fn deliver(&mut self, segment: &Segment) {
        let receiver = &mut self.peers[segment.from.other() as usize];
        self.flying.extend(receiver.receive(segment, &mut self.rng));
    }

    fn open(&mut self, side: Side) {
        let initial = match self.rng.below(10) {
            // Close to the wrap.
            0..=2 => 0_u32.wrapping_sub(self.rng.below(3000)),
            3 => self.rng.below(3),
            _ => self.rng.word(),
        };
        let segment = self.peers[side as usize].open(initial);
        self.flying.push(segment);
    }

    fn syn(&mut self, side: Side) {
        let peer = &mut self.peers[side as usize];
        let initial = match self.rng.below(10) {
            0..=2 if peer.phase != Phase::Closed => {
                let segment = peer.open_again();
                self.flying.push(segment);
                return;
            }
            0..=3 => peer.next.wrapping_add(self.rng.below(100_000)),
            4 => peer.initial.wrapping_add(self.rng.between(1, 5)),
            5 => peer.initial.wrapping_sub(self.rng.between(1, 5)),
            6 => peer.initial,
            _ => self.rng.word(),
        };
        if self.rng.chance(30) {
            let offer = offer(&mut self.rng);
            self.peers[side as usize].offer = offer;
        }
        let segment = self.peers[side as usize].open(initial);
        self.flying.push(segment);
    }

    fn repeat(&mut self) {
        if self.seen.is_empty() {
            return;
        }
        let at = self.rng.below(self.seen.len() as u32) as usize;
        let segment = self.seen[at];
        self.seen.push(segment);
        if self.rng.chance(50) {
            self.deliver(&segment);
        }
    }
}

fn offer(rng: &mut Rng) -> Offer {
    let scale = match rng.below(10) {
        0..=2 => None,
        3 => Some(0),
        4 => Some(rng.between(13, 16) as u8),
        _ => Some(rng.between(1, 9) as u8),
    };
    Offer {
        scale,
        sack: rng.chance(70),
        timestamps: rng.chance(50),
    }
}

/// Small windows are where the edges are.
fn window(rng: &mut Rng, offer: &Offer) -> u32 {
    let scale = u32::from(offer.scale.unwrap_or(0).min(14));
    match rng.below(12) {
        0 => 0,
        1..=4 => rng.between(1, 3000),
        5..=8 => rng.between(3000, 65_535),
        _ => rng.below(65_536) << scale.min(8),
    }
}

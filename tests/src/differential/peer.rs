//! One end of a generated conversation: enough of a TCP to answer as one would.
//!
//! It keeps sequence numbers, windows and options by RFC 9293, 7323 and 2018,
//! challenges by RFC 5961, and no timers: when it sends is the generator's choice.

use firewall_common::wire::tcp_flags::{ACK, FIN, RST, SYN};

use super::{
    rng::Rng,
    segment::{Options, PSH, Segment, Side},
};

/// Where an end stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No connection; a SYN may find a listener.
    Closed,
    /// SYN sent.
    SynSent,
    /// SYN received, SYN-ACK sent.
    SynReceived,
    /// Sends and receives; FINs are told apart by `fin_sent` and `fin_received`.
    Open,
    /// Both FINs sent and received.
    TimeWait,
}

/// What an end offers in its SYN.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Window scale.
    pub scale: Option<u8>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
}

/// One end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Which end.
    pub side: Side,
    /// Where it stands.
    pub phase: Phase,
    /// What its SYN offers.
    pub offer: Offer,
    /// What the other end's SYN offered.
    pub offered: Offer,
    /// Its initial sequence number.
    pub initial: u32,
    /// The first number not acknowledged.
    pub unacknowledged: u32,
    /// The next number to send.
    pub next: u32,
    /// The next number that it expects.
    pub expected: u32,
    /// Its receive window in bytes.
    pub window: u32,
    /// What the other end's last segment allows, in bytes.
    pub allowed: u32,
    fin_sent: bool,
    fin_received: bool,
    /// A block received beyond a gap.
    beyond: Option<(u32, u32)>,
    clock: u32,
}

const NOTHING: Offer = Offer {
    scale: None,
    sack: false,
    timestamps: false,
};

/// Is `a` after `b`? (RFC 1982.)
#[must_use]
pub const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

impl Peer {
    /// An end without a connection.
    #[must_use]
    pub const fn new(side: Side, offer: Offer, window: u32) -> Self {
        Self {
            side,
            phase: Phase::Closed,
            offer,
            offered: NOTHING,
            initial: 0,
            unacknowledged: 0,
            next: 0,
            expected: 0,
            window,
            allowed: 0,
            fin_sent: false,
            fin_received: false,
            beyond: None,
            clock: 1,
        }
    }

    /// Begins a connection at `initial`, whatever it had before.
    pub fn open(&mut self, initial: u32) -> Segment {
        self.begin(initial);
        self.phase = Phase::SynSent;
        self.expected = 0;
        self.offered = NOTHING;
        self.segment(SYN, initial, 0)
    }

    fn begin(&mut self, initial: u32) {
        self.initial = initial;
        self.unacknowledged = initial;
        self.next = initial.wrapping_add(1);
        self.fin_sent = false;
        self.fin_received = false;
        self.beyond = None;
    }

    /// Its SYN again, or its SYN-ACK.
    #[must_use]
    pub fn open_again(&mut self) -> Segment {
        let flags = match self.phase {
            Phase::SynSent => SYN,
            _ => SYN | ACK,
        };
        self.segment(flags, self.initial, 0)
    }

    /// The next `len` bytes.
    pub fn data(&mut self, len: u16) -> Segment {
        let seq = self.next;
        self.next = self.next.wrapping_add(u32::from(len));
        self.segment(ACK | PSH, seq, len)
    }

    /// `len` bytes leave, and nobody on the way sees them.
    pub const fn leap(&mut self, len: u32) {
        self.next = self.next.wrapping_add(len);
    }

    /// An acknowledgement without payload.
    pub fn ack(&mut self) -> Segment {
        self.segment(ACK, self.next, 0)
    }

    /// The end of what it sends.
    pub fn fin(&mut self) -> Segment {
        let seq = if self.fin_sent {
            self.next.wrapping_sub(1)
        } else {
            self.next = self.next.wrapping_add(1);
            self.next.wrapping_sub(1)
        };
        self.fin_sent = true;
        self.segment(FIN | ACK, seq, 0)
    }

    /// Ends the connection at once.
    pub fn abort(&mut self) -> Segment {
        self.phase = Phase::Closed;
        let flags = if self.clock.is_multiple_of(3) {
            RST
        } else {
            RST | ACK
        };
        self.segment(flags, self.next, 0)
    }

    /// A segment with its present acknowledgement, window and options.
    pub fn segment(&mut self, flags: u8, seq: u32, len: u16) -> Segment {
        self.clock += 1;
        let scale = match (flags & SYN, self.offer.scale, self.offered.scale) {
            (0, Some(scale), Some(_)) => u32::from(scale.min(14)),
            _ => 0,
        };
        Segment {
            from: self.side,
            seq,
            ack: if flags & ACK == 0 { 0 } else { self.expected },
            flags,
            window: (self.window >> scale).min(u32::from(u16::MAX)) as u16,
            len,
            options: self.options(flags),
        }
    }

    fn options(&self, flags: u8) -> Options {
        let mut bytes = Vec::with_capacity(40);
        let answers = flags & ACK != 0;
        if flags & SYN != 0 {
            bytes.extend([2, 4, 5, 0xb4]);
            if self.offer.sack && (!answers || self.offered.sack) {
                bytes.extend([1, 1, 4, 2]);
            }
            if let Some(scale) = self.offer.scale
                && (!answers || self.offered.scale.is_some())
            {
                bytes.extend([1, 3, 3, scale]);
            }
        }
        if flags & RST == 0 && self.offer.timestamps && (!answers || self.offered.timestamps) {
            bytes.extend([1, 1, 8, 10]);
            bytes.extend(self.clock.to_be_bytes());
            bytes.extend(self.clock.wrapping_mul(3).to_be_bytes());
        }
        if let Some((left, right)) = self.beyond
            && flags & (SYN | RST) == 0
            && self.offer.sack
            && self.offered.sack
        {
            bytes.extend([1, 1, 5, 10]);
            bytes.extend(left.to_be_bytes());
            bytes.extend(right.to_be_bytes());
        }
        Options::new(&bytes)
    }

    /// Takes a segment of the other end, and says what it answers.
    pub fn receive(&mut self, segment: &Segment, rng: &mut Rng) -> Option<Segment> {
        match self.phase {
            Phase::Closed => self.receive_closed(segment, rng),
            Phase::SynSent => self.receive_syn_sent(segment),
            Phase::SynReceived | Phase::Open | Phase::TimeWait => {
                self.receive_synchronised(segment, rng)
            }
        }
    }

    fn receive_closed(&mut self, segment: &Segment, rng: &mut Rng) -> Option<Segment> {
        if segment.has(RST) {
            return None;
        }
        if segment.has(SYN) && !segment.has(ACK) && rng.chance(85) {
            return Some(self.accept(segment, rng.word()));
        }
        Some(self.refuse(segment))
    }

    fn accept(&mut self, syn: &Segment, initial: u32) -> Segment {
        self.begin(initial);
        self.hear(syn);
        self.phase = Phase::SynReceived;
        self.segment(SYN | ACK, initial, 0)
    }

    /// RFC 9293, section 3.10.7.1: the RST for a segment without a connection.
    fn refuse(&mut self, segment: &Segment) -> Segment {
        if segment.has(ACK) {
            return self.segment(RST, segment.ack, 0);
        }
        let mut rst = self.segment(RST | ACK, 0, 0);
        rst.ack = segment.end();
        rst
    }

    /// Takes what a SYN says of the other end.
    fn hear(&mut self, syn: &Segment) {
        self.expected = syn.seq.wrapping_add(1);
        self.offered = offer_of(syn);
        self.allowed = u32::from(syn.window);
    }

    fn receive_syn_sent(&mut self, segment: &Segment) -> Option<Segment> {
        if segment.has(ACK) && segment.ack != self.next {
            return (!segment.has(RST)).then(|| self.refuse(segment));
        }
        if segment.has(RST) {
            if segment.has(ACK) {
                self.phase = Phase::Closed;
            }
            return None;
        }
        if !segment.has(SYN) {
            return None;
        }
        self.hear(segment);
        if segment.has(ACK) {
            self.unacknowledged = segment.ack;
            self.phase = Phase::Open;
            return Some(self.ack());
        }
        self.phase = Phase::SynReceived;
        Some(self.segment(SYN | ACK, self.initial, 0))
    }

    fn receive_synchronised(&mut self, segment: &Segment, rng: &mut Rng) -> Option<Segment> {
        if segment.has(RST) {
            return self.receive_rst(segment);
        }
        if segment.has(SYN) {
            let fresh = self.phase == Phase::TimeWait && after(segment.seq, self.expected);
            if fresh && !segment.has(ACK) {
                return Some(self.accept(segment, rng.word()));
            }
            // RFC 5961, section 4.2: challenge.
            return Some(self.ack());
        }
        if !segment.has(ACK) {
            return None;
        }
        self.receive_ack(segment);
        self.receive_payload(segment, rng)
    }

    fn receive_rst(&mut self, segment: &Segment) -> Option<Segment> {
        let ahead = segment.seq.wrapping_sub(self.expected);
        if ahead == 0 {
            self.phase = Phase::Closed;
            return None;
        }
        // RFC 5961, section 3.2.
        (ahead < self.window).then(|| self.ack())
    }

    fn receive_ack(&mut self, segment: &Segment) {
        let scale = match (self.offer.scale, self.offered.scale) {
            (Some(_), Some(scale)) => u32::from(scale.min(14)),
            _ => 0,
        };
        self.allowed = u32::from(segment.window) << scale;
        if after(segment.ack, self.unacknowledged) && !after(segment.ack, self.next) {
            self.unacknowledged = segment.ack;
        }
        if self.phase == Phase::SynReceived && segment.ack == self.next {
            self.phase = Phase::Open;
        }
    }

    fn receive_payload(&mut self, segment: &Segment, rng: &mut Rng) -> Option<Segment> {
        let end = segment.end();
        if end == segment.seq {
            return None;
        }
        if after(segment.seq, self.expected) {
            if segment.seq.wrapping_sub(self.expected) < self.window {
                self.beyond = Some((segment.seq, end));
            }
            return Some(self.ack());
        }
        if after(end, self.expected) {
            self.expected = end;
            if let Some((left, right)) = self.beyond
                && !after(left, end)
            {
                if after(right, end) {
                    self.expected = right;
                }
                self.beyond = None;
            }
        }
        if segment.has(FIN) {
            self.fin_received = true;
        }
        if self.fin_sent && self.fin_received {
            self.phase = Phase::TimeWait;
            return Some(self.ack());
        }
        // RFC 1122, section 4.2.3.2: not every segment is acknowledged.
        (segment.has(FIN) || rng.chance(70)).then(|| self.ack())
    }
}

/// The offer in the options of a SYN that a [`Peer`] made.
fn offer_of(syn: &Segment) -> Offer {
    let mut offer = NOTHING;
    let mut rest = syn.options.bytes();
    while let [kind, after @ ..] = rest {
        if *kind == 0 {
            break;
        }
        if *kind == 1 {
            rest = after;
            continue;
        }
        let Some((len, value)) = after.split_first() else {
            break;
        };
        match (*kind, value.first()) {
            (3, Some(scale)) => offer.scale = Some(*scale),
            (4, _) => offer.sack = true,
            (8, _) => offer.timestamps = true,
            _ => {}
        }
        rest = match value.get(usize::from(*len).saturating_sub(2)..) {
            Some(rest) if *len >= 2 => rest,
            _ => break,
        };
    }
    offer
}

//! Any conversation on a control connection, cut into segments that arrive in any
//! order and more than once: nothing opens but what was negotiated, and the
//! segmentation makes no difference.
//!
//! The two directions are read twice. `whole` reads byte by byte, in order, and
//! every opening is held against what was said ([`heard`]); `cut` reads segments
//! through the reassembly, and must bring about the very same.
#![no_main]

mod heard;
mod talk;

// The files themselves, not the crate: they are pure, and so the coverage is theirs alone.
#[allow(dead_code, unused_imports, reason = "the agent uses more of it")]
#[path = "../../../firewall-user/src/ftp/mod.rs"]
mod ftp;
#[allow(dead_code, unused_imports, reason = "the agent uses more of it")]
#[path = "../../../firewall-user/src/helper/reassembly.rs"]
mod reassembly;

use std::{net::IpAddr, sync::LazyLock};

use firewall_common::abi::{SessionPhase, outstanding};
use libfuzzer_sys::fuzz_target;

use crate::{
    ftp::{Action, ActiveOpen, Alias, Ccc, Config, Conversation, Side},
    heard::Heard,
    reassembly::{BUDGET, MAX_SEGMENTS, Outcome, Reassembler, SEGMENT_COST, WINDOW},
    talk::{Burst, Input},
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut world = World::begun(&mut input);
    while !input.is_empty() {
        let burst = Burst::read(&mut input, &world.hosts);
        world.burst(&burst, &mut input);
    }
});

/// The two addresses of the control connection.
#[derive(Clone, Copy, Debug)]
struct Hosts {
    client: IpAddr,
    server: IpAddr,
}

impl Hosts {
    const fn of(&self, side: Side) -> IpAddr {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

const HOSTS: [(&str, &str); 2] = [("10.0.0.2", "192.0.2.7"), ("2001:db8::2", "2001:db8:1::7")];
/// Servers that may announce their clients' addresses for their own.
static ALIASES: LazyLock<Vec<Alias>> = LazyLock::new(|| {
    HOSTS
        .map(|(client, server)| Alias {
            server: server.parse::<IpAddr>().expect("an address").into(),
            announces: client.parse().expect("an address"),
        })
        .to_vec()
});
/// Where the streams begin: some wrap soon.
const STARTS: [u32; 4] = [1000, 0, u32::MAX - 5, u32::MAX - 300];

struct World {
    hosts: Hosts,
    whole: Conversation,
    heard: Heard,
    cut: Conversation,
    streams: [Reassembler; 2],
    /// All bytes of each side so far, and the sequence number of the first.
    sent: [Vec<u8>; 2],
    start: u32,
    /// Does the side's stream consist of records since it went TLS?
    records: [bool; 2],
    /// Is what was encrypted once never read again?
    for_good: bool,
    was_tls: bool,
}

impl World {
    fn begun(input: &mut Input<'_>) -> Self {
        let how = input.byte();
        let [client, server] = {
            let (client, server) = HOSTS[usize::from(how >> 3 & 1)];
            [client, server].map(|text| text.parse().expect("an address"))
        };
        let mut config = Config::default();
        if how & 4 != 0 {
            config.active = ActiveOpen::AtReply;
        }
        match how >> 6 {
            1 => config.ccc = Ccc::Refuse,
            2 => config.aliases = &ALIASES,
            _ => {}
        }
        let resumed =
            |phase| Conversation::resumed(client, server, config, phase, outstanding::PASV);
        let new = || match how & 3 {
            0 => Conversation::new(client, server, config),
            1 => Conversation::adopted(client, server, config),
            2 => resumed(SessionPhase::Ready),
            _ => resumed(SessionPhase::Cleared),
        };
        let start = STARTS[usize::from(how >> 4 & 3)];
        let mut heard = Heard::default();
        if how & 2 != 0 {
            heard.earlier(b"PASV\r\n");
        }
        Self {
            hosts: Hosts { client, server },
            whole: new(),
            heard,
            cut: new(),
            streams: [(); 2].map(|()| Reassembler::at(start)),
            sent: [Vec::new(), Vec::new()],
            start,
            records: [false; 2],
            for_good: config.ccc == Ccc::Refuse,
            was_tls: false,
        }
    }

    /// One side speaks, then the other may.
    fn burst(&mut self, burst: &Burst, input: &mut Input<'_>) {
        let side = burst.side;
        let actions = self.read_whole(burst);
        let mut same = Vec::new();
        let at = self.sent[side.index()].len();
        self.sent[side.index()].extend_from_slice(&burst.bytes);
        self.strays(side, at, input.byte(), &mut same);
        for (from, to) in pieces(burst.bytes.len(), input) {
            self.segment(side, at + from, at + to, &mut same);
        }
        assert_eq!(actions, same, "the segmentation made a difference");
        let state = |talk: &Conversation| {
            let session = talk.session();
            let unread = [Side::Client, Side::Server].map(|side| talk.unread(side));
            (
                session.phase(),
                session.outstanding(),
                unread,
                talk.is_read(),
            )
        };
        assert_eq!(state(&self.whole), state(&self.cut));
        for talk in [&mut self.whole, &mut self.cut] {
            talk.take_remarks();
        }
        assert_eq!(self.streams[side.index()].held(), 0, "all was delivered");
        self.is_bounded();
    }

    /// Reads the burst byte by byte, and holds what it opens against what was said.
    fn read_whole(&mut self, burst: &Burst) -> Vec<Action> {
        let mut all = Vec::new();
        for byte in &burst.bytes {
            let before = self.whole.session().phase();
            let mut actions = Vec::new();
            self.whole.feed(burst.side, &[*byte], &mut actions);
            self.heard.byte(burst.side, *byte);
            for action in &actions {
                if let Action::Open(opening) = action {
                    assert!(self.heard.may_open_in(before), "opened in {before:?}");
                    assert!(!(self.for_good && self.was_tls), "opened after a CCC");
                    // Of a reply that is too long, the code counts.
                    let by_code = opening.listener == Side::Client && burst.side == Side::Server;
                    assert!(*byte == b'\n' || by_code, "opened within a line");
                    self.heard.justifies(burst.side, opening, &self.hosts);
                }
                if *action == Action::Phase(SessionPhase::Tls) {
                    self.records = [true; 2];
                    self.was_tls = true;
                }
            }
            all.append(&mut actions);
        }
        let records = &mut self.records[burst.side.index()];
        *records &= burst.is_records;
        let opens = |action: &Action| matches!(action, Action::Open(_));
        assert!(
            !(*records && all.iter().any(opens)),
            "opened by the inside of a record"
        );
        all
    }

    /// What changes nothing: other bytes for those that were delivered, and
    /// segments that are far out of the window.
    fn strays(&mut self, side: Side, at: usize, which: u8, out: &mut Vec<Action>) {
        let text = b"\r\nPASV\r\nPORT 10,0,0,2,195,155\r\n227 (192,0,2,7,195,155)\r\n";
        let talk = &mut self.cut;
        let stream = &mut self.streams[side.index()];
        let next = seq(self.start, at);
        if which & 1 != 0 {
            let len = at.min(text.len());
            let back = seq(self.start, at - len);
            let outcome = stream.push(back, &text[..len], BUDGET, |b| talk.feed(side, b, out));
            assert_eq!(outcome, Outcome::Duplicate);
        }
        for (bit, far) in [(2, WINDOW + 1), (4, WINDOW.wrapping_neg() - 1)] {
            if which & bit != 0 {
                let far = next.wrapping_add(far);
                let outcome = stream.push(far, text, BUDGET, |b| talk.feed(side, b, out));
                assert_eq!(outcome, Outcome::OutOfWindow);
            }
        }
        assert!(out.is_empty(), "strays were read");
    }

    /// The bytes `from..to` of the side's stream, as a segment.
    fn segment(&mut self, side: Side, from: usize, to: usize, out: &mut Vec<Action>) {
        let talk = &mut self.cut;
        let bytes = &self.sent[side.index()][from..to];
        let seq = seq(self.start, from);
        let outcome =
            self.streams[side.index()].push(seq, bytes, BUDGET, |b| talk.feed(side, b, out));
        assert!(!matches!(
            outcome,
            Outcome::NoRoom | Outcome::OverBudget | Outcome::OutOfWindow
        ));
        self.is_bounded();
    }

    fn is_bounded(&self) {
        for talk in [&self.whole, &self.cut] {
            assert!(talk.held() <= Conversation::MOST_HELD, "{}", talk.held());
        }
        for stream in &self.streams {
            assert!(stream.held() <= WINDOW as usize + MAX_SEGMENTS * SEGMENT_COST);
        }
    }
}

/// Sequence number of the byte at `offset` of a stream.
fn seq(start: u32, offset: usize) -> u32 {
    start.wrapping_add(u32::try_from(offset).expect("a short stream"))
}

/// Cuts `len` bytes into segments: in any order, some twice, some with bytes of
/// the one before.
fn pieces(len: usize, input: &mut Input<'_>) -> Vec<(usize, usize)> {
    let how = input.byte();
    let mut cuts: Vec<usize> = (0..how & 7)
        .map(|_| usize::from(input.byte()) * len / 256)
        .collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();
    let overlap = if how & 8 != 0 { 3 } else { 0 };
    let mut pieces: Vec<_> = cuts
        .windows(2)
        .map(|pair| (pair[0].saturating_sub(overlap), pair[1]))
        .collect();
    if how & 16 != 0 {
        pieces.reverse();
    }
    if how & 32 != 0 {
        let middle = pieces.len() / 2;
        pieces.rotate_left(middle);
    }
    if how & 64 != 0 {
        pieces.extend_from_within(..);
    }
    pieces
}

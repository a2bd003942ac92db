//! What a session takes of the agent's memory, with ten thousand of them at once, and
//! what reading its lines takes of a CPU.

#![expect(clippy::unwrap_used, reason = "tables in memory refuse nothing")]

use std::{fs, net::Ipv4Addr, time::Instant};

use bytemuck::{Zeroable as _, bytes_of};
use firewall_common::{
    abi::{
        CtlFlow, DataFlow, EventHeader, EventKind, ExpectKey, Expectation, FlowKey6, FlowState,
        JournalEntry, Pair, PairKey, Session, event_flags,
    },
    key::{FlowKey as _, Heading},
    tcp::State,
    time::{Tick, ticks_from_secs},
    wire::{Headers, proto},
};
use firewall_user::{
    bpf::words,
    ftp::{self, Side},
    helper::{Agent, Settings, Tables, tables::FlowView},
};

const SESSIONS: u32 = 10_000;
/// What [ARCHITECTURE.md] promises of a session that has negotiated and waits.
const PROMISED: usize = 4096;

type Result<T> = firewall_user::helper::tables::Result<T>;

/// Tables whose memory is the kernel's: of the expectations they count how many there are.
#[derive(Default)]
struct Elsewhere {
    expected: usize,
}

impl Tables for Elsewhere {
    fn expect(&mut self, _: &ExpectKey, _: &Expectation) -> Result<()> {
        self.expected += 1;
        Ok(())
    }
    fn unexpect(&mut self, _: &ExpectKey) -> Result<()> {
        self.expected -= 1;
        Ok(())
    }
    fn expectations(&mut self) -> Result<Vec<(ExpectKey, Expectation)>> {
        Ok(Vec::new())
    }
    fn put_session(&mut self, _: &FlowKey6, _: &Session) -> Result<()> {
        Ok(())
    }
    fn drop_session(&mut self, _: &FlowKey6) -> Result<()> {
        Ok(())
    }
    fn sessions(&mut self) -> Result<Vec<(FlowKey6, Session)>> {
        Ok(Vec::new())
    }
    fn put_pair(&mut self, _: &PairKey, _: u32) -> Result<()> {
        Ok(())
    }
    fn drop_pair(&mut self, _: &PairKey) -> Result<()> {
        Ok(())
    }
    fn pairs(&mut self) -> Result<Vec<(PairKey, Pair)>> {
        Ok(Vec::new())
    }
    fn flow(&mut self, _: &FlowKey6) -> Result<Option<FlowView>> {
        Ok(Some(FlowView {
            state: FlowState::new(State::Established as u8, 0, 0),
            expires: Tick(0).plus(ticks_from_secs(3600)),
        }))
    }
    fn state(&mut self, _: &FlowKey6) -> Result<Option<FlowState>> {
        Ok(None)
    }
    fn journal(&mut self, _: &JournalEntry) -> Result<()> {
        Ok(())
    }
    fn last_of_journal(&mut self) -> Result<u64> {
        Ok(0)
    }
    fn heartbeat(&mut self, _: u64, _: u32) -> Result<()> {
        Ok(())
    }
    fn blind(&mut self, _: &FlowKey6) -> Result<()> {
        Ok(())
    }
    fn unhelp(&mut self, _: &FlowKey6) -> Result<()> {
        Ok(())
    }
    fn admit(&mut self, _: &FlowKey6) -> Result<bool> {
        Ok(false)
    }
    fn count_refusals(&mut self, _: u8, _: u64) -> Result<()> {
        Ok(())
    }
    fn tie(&mut self, _: &FlowKey6, _: &DataFlow) -> Result<()> {
        Ok(())
    }
    fn data_flow(&mut self, _: &FlowKey6) -> Result<Option<DataFlow>> {
        Ok(None)
    }
    fn data_flows(&mut self) -> Result<Vec<(FlowKey6, DataFlow)>> {
        Ok(Vec::new())
    }
    fn delete(&mut self, _: &[CtlFlow]) -> Result<u32> {
        Ok(0)
    }
    fn reinject(&mut self, _: &[u8], _: u32) -> Result<()> {
        Ok(())
    }
    fn resend(&mut self, _: &[u8], _: u32) -> Result<()> {
        Ok(())
    }
}

/// A control connection of its own client, and what each side has sent.
struct Control {
    client: Ipv4Addr,
    sent: [u32; 2],
}

impl Control {
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn begun(agent: &mut Agent<Elsewhere>, number: u32) -> Self {
        let client = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number);
        let control = Self {
            client,
            sent: [1, 1],
        };
        control.record(agent, EventKind::Open, Side::Client, b"");
        control
    }

    fn record(&self, agent: &mut Agent<Elsewhere>, kind: EventKind, from: Side, data: &[u8]) {
        let (client, server) = (words(self.client.into()), words(Self::SERVER.into()));
        let ends = [(client, 41_822), (server, 21)];
        let (src, dst) = match from {
            Side::Client => (ends[0], ends[1]),
            Side::Server => (ends[1], ends[0]),
        };
        let (key, heading) = FlowKey6::of(&Headers {
            src: src.0,
            dst: dst.0,
            sport: src.1,
            dport: dst.1,
            proto: proto::TCP,
            ..Headers::ZERO
        });
        let mut flags = 0;
        if heading == Heading::Down {
            flags |= event_flags::HEADING_DOWN;
        }
        if from == Side::Server {
            flags |= event_flags::REPLY;
        }
        let header = EventHeader {
            at_ns: 1,
            key,
            seq: self.sent[from.index()],
            ack: self.sent[from.other().index()],
            len: u32::try_from(data.len()).unwrap(),
            kind: kind as u16,
            flags,
            from_zone: 1,
            to_zone: 2,
            ..EventHeader::zeroed()
        };
        let bytes = [bytes_of(&header), data].concat();
        agent.handle(&bytes, 1).unwrap();
    }

    fn say(&mut self, agent: &mut Agent<Elsewhere>, from: Side, line: &str) {
        self.record(agent, EventKind::Payload, from, line.as_bytes());
        self.sent[from.index()] += u32::try_from(line.len()).unwrap();
    }
}

/// Log-in and negotiation, as clients do it: command and reply in turn.
const TALK: [(&str, &str); 6] = [
    ("USER anonymous\r\n", "331 Password required.\r\n"),
    ("PASS guest@example.net\r\n", "230 Logged in.\r\n"),
    ("SYST\r\n", "215 UNIX Type: L8\r\n"),
    ("PWD\r\n", "257 \"/\" is the current directory\r\n"),
    ("TYPE I\r\n", "200 Type set to I.\r\n"),
    (
        "PASV\r\n",
        "227 Entering Passive Mode (192,0,2,7,195,155).\r\n",
    ),
];

/// Resident memory of this process, bytes.
fn resident() -> usize {
    const PAGE: usize = 4096;
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split(' ').nth(1).unwrap();
    pages.parse::<usize>().unwrap() * PAGE
}

#[test]
fn ten_thousand_sessions_take_what_is_promised() {
    let settings = Settings {
        expectation_ticks: ticks_from_secs(60),
        per_session: 1,
        per_client: 16,
        max_expectations: SESSIONS as usize,
        max_sessions: SESSIONS as usize,
        shadow: false,
        ftp: ftp::Config::default(),
        cut_after_ns: None,
        ranges: &[],
    };
    let mut agent = Agent::start(Elsewhere::default(), settings, 1).unwrap();
    let before = resident();
    let mut all: Vec<_> = (0..SESSIONS)
        .map(|n| Control::begun(&mut agent, n))
        .collect();
    let began = Instant::now();
    for control in &mut all {
        control.say(&mut agent, Side::Server, "220 ready\r\n");
    }
    // One command of each in turn, so that all are under way at the same time.
    for (command, reply) in TALK {
        for control in &mut all {
            control.say(&mut agent, Side::Client, command);
            control.say(&mut agent, Side::Server, reply);
        }
    }
    let spent = began.elapsed();
    let of_the_test = all.capacity() * size_of::<Control>();
    let each = (resident() - before - of_the_test) / SESSIONS as usize;
    let commands = SESSIONS * u32::try_from(TALK.len()).unwrap();
    println!(
        "{each} bytes a session; {:?} a command with its reply (this build)",
        spent / commands
    );
    assert_eq!(agent.sessions(), SESSIONS as usize);
    assert_eq!(agent.tables().expected, SESSIONS as usize);
    assert!(
        each <= PROMISED,
        "{each} bytes, and {PROMISED} are promised"
    );
    // The figure is of sessions, and goes with them.
    for control in &mut all {
        control.say(&mut agent, Side::Server, "221 bye\r\n");
        control.record(&mut agent, EventKind::Rst, Side::Client, b"");
    }
    assert_eq!((agent.sessions(), agent.tables().expected), (0, 0));
}

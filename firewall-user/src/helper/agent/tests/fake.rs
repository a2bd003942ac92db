//! Tables in memory, and records as the programs would make them.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use bytemuck::{Zeroable as _, bytes_of};
use firewall_common::{
    abi::{CtlFlow, DataFlow, EventHeader, FlowKey6, FlowState, JournalEntry, Pair},
    key::{FlowKey as _, Heading},
    time::ticks_from_secs,
    wire::Headers,
};

use super::*;

pub(super) const CLIENT: &str = "10.0.0.2";
pub(super) const SERVER: &str = "192.0.2.7";
pub(super) const NOW: u64 = 1000 * NS_PER_SEC;
pub(super) const OUTSIDE: u8 = 2;
pub(super) const INSIDE: u8 = 1;
const IFINDEX: u32 = 7;

#[derive(Clone, Debug, Default)]
pub(super) struct Fake {
    pub(super) expectations: HashMap<ExpectKey, Expectation>,
    pub(super) sessions: HashMap<FlowKey6, Session>,
    pub(super) pairs: HashMap<PairKey, u32>,
    pub(super) flows: HashMap<FlowKey6, FlowView>,
    pub(super) heartbeat: (u64, u32),
    pub(super) blinded: Vec<FlowKey6>,
    pub(super) unhelped: Vec<FlowKey6>,
    pub(super) reinjected: Vec<(Vec<u8>, u32)>,
    pub(super) refusals: HashMap<u8, u64>,
    pub(super) data_flows: Vec<(FlowKey6, DataFlow)>,
    pub(super) resent: Vec<(Vec<u8>, u32)>,
    pub(super) admitted: Vec<FlowKey6>,
    pub(super) refused: Vec<FlowKey6>,
    pub(super) journal: Vec<JournalEntry>,
    pub(super) states: HashMap<FlowKey6, FlowState>,
    /// How often all ties were read.
    pub(super) dumps: usize,
    pub(super) fail: bool,
}

impl Fake {
    fn ok(&self) -> Result<()> {
        if self.fail {
            Err(TableError {
                object: "fake",
                reason: "told to".into(),
            })
        } else {
            Ok(())
        }
    }
}

impl Tables for Fake {
    fn expect(&mut self, key: &ExpectKey, value: &Expectation) -> Result<()> {
        self.ok()?;
        self.expectations.insert(*key, *value);
        Ok(())
    }

    fn unexpect(&mut self, key: &ExpectKey) -> Result<()> {
        self.expectations.remove(key);
        self.ok()
    }

    fn expectations(&mut self) -> Result<Vec<(ExpectKey, Expectation)>> {
        Ok(self.expectations.iter().map(|(k, v)| (*k, *v)).collect())
    }

    fn put_session(&mut self, key: &FlowKey6, session: &Session) -> Result<()> {
        self.sessions.insert(*key, *session);
        self.ok()
    }

    fn drop_session(&mut self, key: &FlowKey6) -> Result<()> {
        self.sessions.remove(key);
        self.ok()
    }

    fn sessions(&mut self) -> Result<Vec<(FlowKey6, Session)>> {
        Ok(self.sessions.iter().map(|(k, v)| (*k, *v)).collect())
    }

    fn put_pair(&mut self, key: &PairKey, sessions: u32) -> Result<()> {
        self.pairs.insert(*key, sessions);
        self.ok()
    }

    fn drop_pair(&mut self, key: &PairKey) -> Result<()> {
        self.pairs.remove(key);
        self.ok()
    }

    fn pairs(&mut self) -> Result<Vec<(PairKey, Pair)>> {
        Ok(self.pairs.keys().map(|k| (*k, Pair::zeroed())).collect())
    }

    fn flow(&mut self, key: &FlowKey6) -> Result<Option<FlowView>> {
        self.ok()?;
        Ok(self.flows.get(key).copied())
    }

    fn state(&mut self, key: &FlowKey6) -> Result<Option<FlowState>> {
        Ok(self.states.get(key).copied())
    }

    fn journal(&mut self, entry: &JournalEntry) -> Result<()> {
        self.journal.push(*entry);
        Ok(())
    }

    fn last_of_journal(&mut self) -> Result<u64> {
        Ok(self.journal.last().map_or(0, |entry| entry.seq))
    }

    fn heartbeat(&mut self, now_ns: u64, pid: u32) -> Result<()> {
        self.heartbeat = (now_ns, pid);
        self.ok()
    }

    fn blind(&mut self, key: &FlowKey6) -> Result<()> {
        self.blinded.push(*key);
        self.ok()
    }

    fn unhelp(&mut self, key: &FlowKey6) -> Result<()> {
        self.unhelped.push(*key);
        self.ok()
    }

    fn admit(&mut self, key: &FlowKey6) -> Result<bool> {
        self.ok()?;
        self.admitted.push(*key);
        Ok(self.refused.contains(key))
    }

    fn count_refusals(&mut self, reason: u8, count: u64) -> Result<()> {
        *self.refusals.entry(reason).or_default() += count;
        Ok(())
    }

    fn tie(&mut self, key: &FlowKey6, data: &DataFlow) -> Result<()> {
        self.data_flows.push((*key, *data));
        Ok(())
    }

    fn data_flow(&mut self, key: &FlowKey6) -> Result<Option<DataFlow>> {
        let mut ties = self.data_flows.iter();
        Ok(ties.find(|(other, _)| other == key).map(|(_, tie)| *tie))
    }

    fn data_flows(&mut self) -> Result<Vec<(FlowKey6, DataFlow)>> {
        self.dumps += 1;
        Ok(self.data_flows.clone())
    }

    fn delete(&mut self, flows: &[CtlFlow]) -> Result<u32> {
        let before = self.data_flows.len();
        self.data_flows
            .retain(|(key, data)| !flows.contains(&CtlFlow::new(*key, data.incarnation)));
        self.ok()?;
        Ok(u32::try_from(before - self.data_flows.len()).unwrap())
    }

    fn resend(&mut self, frame: &[u8], ifindex: u32) -> Result<()> {
        self.resent.push((frame.to_vec(), ifindex));
        Ok(())
    }

    fn reinject(&mut self, frame: &[u8], ifindex: u32) -> Result<()> {
        self.reinjected.push((frame.to_vec(), ifindex));
        self.ok()
    }
}

/// A control flow, and how far each side has sent.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) incarnation: u32,
    pub(super) seq: [u32; 2],
}

impl Flow {
    pub(super) fn new(client: &str, port: u16, server: &str) -> Self {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        Self {
            client: SocketAddr::new(ip(client), port),
            server: SocketAddr::new(ip(server), 21),
            incarnation: u32::from(port),
            // Both streams wrap in the middle of the log-in.
            seq: [u32::MAX - 5, u32::MAX - 20],
        }
    }

    pub(super) fn key(&self) -> FlowKey6 {
        key(self.client, self.server).0
    }
}

/// Key and heading of a packet.
pub(super) fn key(src: SocketAddr, dst: SocketAddr) -> (FlowKey6, Heading) {
    FlowKey6::of(&Headers {
        src: words(src.ip()),
        dst: words(dst.ip()),
        sport: src.port(),
        dport: dst.port(),
        proto: proto::TCP,
        ..Headers::ZERO
    })
}

pub(super) fn settings() -> Settings {
    Settings {
        shadow: false,
        expectation_ticks: ticks_from_secs(60),
        per_session: 1,
        per_client: 20,
        max_expectations: 100,
        max_sessions: 100,
        ftp: ftp::Config::default(),
        ranges: &[],
        cut_after_ns: None,
    }
}

pub(super) struct World {
    pub(super) agent: Agent<Fake>,
    pub(super) now: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        change(&mut settings);
        Self {
            agent: Agent::start(Fake::default(), settings, NOW).unwrap(),
            now: NOW,
        }
    }

    /// The agent dies, and another one starts `ns` later over the same tables.
    pub(super) fn restart(self, ns: u64) -> Self {
        let now = self.now + ns;
        let settings = self.agent.settings;
        Self {
            agent: Agent::start(self.agent.tables, settings, now).unwrap(),
            now,
        }
    }

    pub(super) fn handle(&mut self, header: EventHeader, data: &[u8]) {
        let mut bytes = bytes_of(&header).to_vec();
        bytes.extend_from_slice(data);
        // Records come in size classes.
        bytes.resize(bytes.len() + 40, 0);
        self.agent.handle(&bytes, self.now).unwrap();
    }

    pub(super) fn tick(&mut self) {
        self.agent.tick(self.now);
    }

    pub(super) fn event(
        &mut self,
        flow: &Flow,
        kind: EventKind,
        from: Side,
        seq: u32,
        ack: u32,
        data: &[u8],
    ) {
        let (src, dst) = match from {
            Side::Client => (flow.client, flow.server),
            Side::Server => (flow.server, flow.client),
        };
        let (key, heading) = key(src, dst);
        let mut flags = 0;
        if heading == Heading::Down {
            flags |= event_flags::HEADING_DOWN;
        }
        if from == Side::Server {
            flags |= event_flags::REPLY;
        }
        let header = EventHeader {
            at_ns: self.now,
            key,
            incarnation: flow.incarnation,
            ifindex: IFINDEX,
            seq,
            ack,
            len: u32::try_from(data.len()).unwrap(),
            kind: kind as u16,
            flags,
            from_zone: OUTSIDE,
            to_zone: INSIDE,
            ..EventHeader::zeroed()
        };
        self.handle(header, data);
    }

    pub(super) fn payload(&mut self, flow: &Flow, from: Side, seq: u32, ack: u32, text: &str) {
        self.event(flow, EventKind::Payload, from, seq, ack, text.as_bytes());
    }

    fn say(&mut self, flow: &mut Flow, from: Side, text: &str) {
        let [own, other] = [flow.seq[from.index()], flow.seq[from.other().index()]];
        self.payload(flow, from, own, other, text);
        flow.seq[from.index()] = own.wrapping_add(u32::try_from(text.len()).unwrap());
    }

    pub(super) fn client(&mut self, flow: &mut Flow, text: &str) {
        self.say(flow, Side::Client, text);
    }

    pub(super) fn server(&mut self, flow: &mut Flow, text: &str) {
        self.say(flow, Side::Server, text);
    }

    pub(super) fn open(&mut self, flow: &Flow) {
        self.set_flow(flow, 0);
        let [seq, ack] = flow.seq;
        self.event(flow, EventKind::Open, Side::Client, seq, ack, b"");
    }

    pub(super) fn log_in(&mut self, flow: &mut Flow) {
        self.open(flow);
        self.server(flow, "220 hi\r\n");
        self.client(flow, "USER a\r\n");
        self.server(flow, "331 password\r\n");
        self.client(flow, "PASS b\r\n");
        self.server(flow, "230 in\r\n");
        assert_eq!(self.session(flow).phase, SessionPhase::Ready as u8);
    }

    pub(super) fn set_flow(&mut self, flow: &Flow, flags: u32) {
        let state = FlowState::new(State::Established as u8, flags, flow.incarnation);
        let expires = Tick::from_ns(self.now).plus(ticks_from_secs(3600));
        let view = FlowView { state, expires };
        self.agent.tables.flows.insert(flow.key(), view);
    }

    pub(super) fn expectations(&self) -> &HashMap<ExpectKey, Expectation> {
        &self.agent.tables.expectations
    }

    #[track_caller]
    pub(super) fn only_expectation(&self) -> (ExpectKey, Expectation) {
        assert_eq!(self.expectations().len(), 1);
        let (key, value) = self.expectations().iter().next().unwrap();
        (*key, *value)
    }

    pub(super) fn sessions(&self) -> &HashMap<FlowKey6, Session> {
        &self.agent.tables.sessions
    }

    #[track_caller]
    pub(super) fn session(&self, flow: &Flow) -> Session {
        self.sessions()[&flow.key()]
    }

    pub(super) fn pair_count(&self, flow: &Flow) -> Option<u32> {
        let pair = PairKey::new(words(flow.client.ip()), words(flow.server.ip()));
        self.agent.tables.pairs.get(&pair).copied()
    }
}

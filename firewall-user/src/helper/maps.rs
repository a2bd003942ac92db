//! [`Tables`] over the pinned maps and the loaded programs.

use aya::maps::{Array, HashMap, MapData, MapError};
use bytemuck::Zeroable as _;
use firewall_common::abi::{
    Config, CtlFlow, DataFlow, ExpectKey, Expectation, Flow, FlowKey4, FlowKey6, FlowState,
    JOURNAL_LEN, JournalEntry, Pair, PairKey, Phase, Session, Target, heartbeat, maps, programs,
};
use log::warn;

use super::tables::{FlowView, Result, TableError, Tables};
use crate::bpf::{
    Instance, causes,
    loader::{self, pinned},
    maps::all,
    requests::Requests,
    sys::{FrameSender, monotonic_ns},
};

/// The maps that the agent uses.
pub struct MapTables {
    expectations: HashMap<MapData, ExpectKey, Expectation>,
    targets: HashMap<MapData, Target, u64>,
    sessions: HashMap<MapData, FlowKey6, Session>,
    pairs: HashMap<MapData, PairKey, Pair>,
    data_flows: HashMap<MapData, FlowKey6, DataFlow>,
    refusals: Array<MapData, u64>,
    flows4: HashMap<MapData, FlowKey4, Flow>,
    flows6: HashMap<MapData, FlowKey6, Flow>,
    half_open4: [HashMap<MapData, FlowKey4, Flow>; 2],
    half_open6: [HashMap<MapData, FlowKey6, Flow>; 2],
    journal: Array<MapData, JournalEntry>,
    config: Array<MapData, Config>,
    heartbeat: Array<MapData, u64>,
    /// The process id that is in it.
    told: Option<u32>,
    requests: Requests,
    sender: FrameSender,
}

fn error(object: &'static str, error: &dyn std::error::Error) -> TableError {
    let reason = causes(error);
    TableError { object, reason }
}

impl MapTables {
    /// Opens the pinned maps of `instance`.
    ///
    /// # Errors
    /// A map that cannot be opened or is of another shape.
    pub fn open(
        instance: &Instance,
        requests: Requests,
    ) -> std::result::Result<Self, loader::Error> {
        Ok(Self {
            expectations: pinned(instance, maps::EXPECTATIONS)?,
            targets: pinned(instance, maps::TARGETS)?,
            sessions: pinned(instance, maps::SESSIONS)?,
            pairs: pinned(instance, maps::PAIRS)?,
            data_flows: pinned(instance, maps::DATA_FLOWS)?,
            refusals: pinned(instance, maps::REFUSALS)?,
            flows4: pinned(instance, maps::FLOWS4)?,
            flows6: pinned(instance, maps::FLOWS6)?,
            half_open4: [
                pinned(instance, maps::HALF_OPEN4_IN)?,
                pinned(instance, maps::HALF_OPEN4_OUT)?,
            ],
            half_open6: [
                pinned(instance, maps::HALF_OPEN6_IN)?,
                pinned(instance, maps::HALF_OPEN6_OUT)?,
            ],
            journal: pinned(instance, maps::JOURNAL)?,
            config: pinned(instance, maps::CONFIG)?,
            heartbeat: pinned(instance, maps::HEARTBEAT)?,
            told: None,
            requests,
            sender: FrameSender::default(),
        })
    }
}

/// Absent is not an error here.
fn optional<T>(name: &'static str, result: std::result::Result<T, MapError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(None)
        }
        Err(e) => Err(error(name, &e)),
    }
}

/// The entry of `key` that is no left-over of a promotion or a deletion.
fn first_live<K: aya::Pod>(
    proved: &HashMap<MapData, K, Flow>,
    half_open: &[HashMap<MapData, K, Flow>; 2],
    key: &K,
) -> Result<Option<Flow>> {
    for map in std::iter::once(proved).chain(half_open) {
        let flow = optional("flow tables", map.get(key, 0))?;
        if let Some(flow) = flow.filter(|flow| flow.state().phase() != Phase::Doomed) {
            return Ok(Some(flow));
        }
    }
    Ok(None)
}

impl Tables for MapTables {
    fn expect(&mut self, key: &ExpectKey, value: &Expectation) -> Result<()> {
        // As late as can be: this is how long a pinhole is waited for.
        let value = Expectation {
            created_ns: monotonic_ns(),
            ..*value
        };
        let done = self.expectations.insert(key, value, 0);
        done.map_err(|e| error(maps::EXPECTATIONS, &e))?;
        // Afterwards, and of no matter to the connection: who else comes is told.
        if let Err(e) = self.targets.insert(key.target(), 0, 0) {
            warn!("{}", error(maps::TARGETS, &e));
        }
        Ok(())
    }

    fn unexpect(&mut self, key: &ExpectKey) -> Result<()> {
        optional(maps::EXPECTATIONS, self.expectations.remove(key))?;
        // Two clients of a server can be told of one port in turn: the end of the first
        // expectation is then that of the other's target, too. That costs a report.
        optional(maps::TARGETS, self.targets.remove(&key.target())).map(|_| ())
    }

    fn expectations(&mut self) -> Result<Vec<(ExpectKey, Expectation)>> {
        all(&self.expectations).map_err(|e| error(maps::EXPECTATIONS, &e))
    }

    fn put_session(&mut self, key: &FlowKey6, session: &Session) -> Result<()> {
        let done = self.sessions.insert(key, session, 0);
        done.map_err(|e| error(maps::SESSIONS, &e))
    }

    fn drop_session(&mut self, key: &FlowKey6) -> Result<()> {
        optional(maps::SESSIONS, self.sessions.remove(key)).map(|_| ())
    }

    fn sessions(&mut self) -> Result<Vec<(FlowKey6, Session)>> {
        all(&self.sessions).map_err(|e| error(maps::SESSIONS, &e))
    }

    fn put_pair(&mut self, key: &PairKey, sessions: u32) -> Result<()> {
        let known = optional(maps::PAIRS, self.pairs.get(key, 0))?;
        // The budget may lose a count between the two calls. That lets one more
        // SYN be reported, no more.
        let pair = Pair {
            sessions,
            ..known.unwrap_or(Pair::zeroed())
        };
        let done = self.pairs.insert(key, pair, 0);
        done.map_err(|e| error(maps::PAIRS, &e))
    }

    fn drop_pair(&mut self, key: &PairKey) -> Result<()> {
        optional(maps::PAIRS, self.pairs.remove(key)).map(|_| ())
    }

    fn pairs(&mut self) -> Result<Vec<(PairKey, Pair)>> {
        all(&self.pairs).map_err(|e| error(maps::PAIRS, &e))
    }

    fn flow(&mut self, key: &FlowKey6) -> Result<Option<FlowView>> {
        let flow = match key.narrow() {
            Some(key) => optional(maps::FLOWS4, self.flows4.get(&key, 0))?,
            None => optional(maps::FLOWS6, self.flows6.get(key, 0))?,
        };
        let Some(flow) = flow else {
            return Ok(None);
        };
        let config = self.config.get(&0, 0);
        let config = config.map_err(|e| error(maps::CONFIG, &e))?;
        Ok(Some(FlowView {
            state: flow.state(),
            expires: flow.expires(key.proto(), &config.timeouts),
        }))
    }

    fn state(&mut self, key: &FlowKey6) -> Result<Option<FlowState>> {
        let live = match key.narrow() {
            Some(key) => first_live(&self.flows4, &self.half_open4, &key)?,
            None => first_live(&self.flows6, &self.half_open6, key)?,
        };
        Ok(live.map(|flow| flow.state()))
    }

    fn journal(&mut self, entry: &JournalEntry) -> Result<()> {
        let done = self.journal.set(JournalEntry::slot(entry.seq), entry, 0);
        done.map_err(|e| error(maps::JOURNAL, &e))
    }

    fn last_of_journal(&mut self) -> Result<u64> {
        let mut last = 0;
        for slot in 0..JOURNAL_LEN as u32 {
            let entry = self.journal.get(&slot, 0);
            let entry = entry.map_err(|e| error(maps::JOURNAL, &e))?;
            last = last.max(if entry.is_whole() { entry.seq } else { 0 });
        }
        Ok(last)
    }

    fn heartbeat(&mut self, now_ns: u64, pid: u32) -> Result<()> {
        let mut set = |word, value| {
            let set = self.heartbeat.set(word, value, 0);
            set.map_err(|e| error(maps::HEARTBEAT, &e))
        };
        // There is one agent at a time, and it says once which.
        if self.told != Some(pid) {
            set(heartbeat::PID, u64::from(pid))?;
            self.told = Some(pid);
        }
        set(heartbeat::AT_NS, now_ns)
    }

    fn blind(&mut self, key: &FlowKey6) -> Result<()> {
        let done = self.requests.blind(&[*key]);
        done.map_err(|e| error(programs::CTL, &e)).map(|_| ())
    }

    fn unhelp(&mut self, key: &FlowKey6) -> Result<()> {
        let done = self.requests.unhelp(&[*key]);
        done.map_err(|e| error(programs::CTL, &e)).map(|_| ())
    }

    fn admit(&mut self, key: &FlowKey6) -> Result<bool> {
        let done = self.requests.expected(&[*key]);
        done.map(|count| count > 0)
            .map_err(|e| error(programs::CTL, &e))
    }

    fn count_refusals(&mut self, reason: u8, count: u64) -> Result<()> {
        let index = u32::from(reason);
        let before = self.refusals.get(&index, 0);
        before
            .and_then(|before| self.refusals.set(index, before.wrapping_add(count), 0))
            .map_err(|e| error(maps::REFUSALS, &e))
    }

    fn tie(&mut self, key: &FlowKey6, data: &DataFlow) -> Result<()> {
        let done = self.data_flows.insert(key, data, 0);
        done.map_err(|e| error(maps::DATA_FLOWS, &e))
    }

    fn data_flow(&mut self, key: &FlowKey6) -> Result<Option<DataFlow>> {
        optional(maps::DATA_FLOWS, self.data_flows.get(key, 0))
    }

    fn data_flows(&mut self) -> Result<Vec<(FlowKey6, DataFlow)>> {
        all(&self.data_flows).map_err(|e| error(maps::DATA_FLOWS, &e))
    }

    fn delete(&mut self, flows: &[CtlFlow]) -> Result<u32> {
        let done = self.requests.delete(flows);
        done.map_err(|e| error(programs::CTL, &e))
    }

    fn reinject(&mut self, frame: &[u8], ifindex: u32) -> Result<()> {
        let done = self.requests.reinject(ifindex, frame);
        done.map_err(|e| error(programs::REINJECT, &e))
    }

    fn resend(&mut self, frame: &[u8], ifindex: u32) -> Result<()> {
        let done = self.sender.send(ifindex, frame);
        done.map_err(|e| error("a packet socket", &e))
    }
}

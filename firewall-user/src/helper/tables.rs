//! What the agent does to the maps and programs, as a trait: its logic is tested without them.

use firewall_common::{
    abi::{
        CtlFlow, DataFlow, ExpectKey, Expectation, FlowKey6, FlowState, JournalEntry, Pair,
        PairKey, Session,
    },
    time::Tick,
};

/// A map or program refused.
#[derive(Debug, thiserror::Error)]
#[error("{object}: {reason}")]
pub struct TableError {
    /// Name of the map or program.
    pub object: &'static str,
    /// What the kernel or aya said.
    pub reason: String,
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, TableError>;

/// A flow's entry, as far as the helper cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// The state word.
    pub state: FlowState,
    /// After this point the entry counts as absent.
    pub expires: Tick,
}

/// What the agent reads and writes. Removing what is not there is no error.
///
/// Every method fails with what the kernel said of the map or program concerned.
pub trait Tables {
    /// Writes an expectation, in place of one with the same key.
    fn expect(&mut self, key: &ExpectKey, value: &Expectation) -> Result<()>;
    /// Removes an expectation.
    fn unexpect(&mut self, key: &ExpectKey) -> Result<()>;
    /// All expectations.
    fn expectations(&mut self) -> Result<Vec<(ExpectKey, Expectation)>>;

    /// Writes a session, by the key of its control flow.
    fn put_session(&mut self, key: &FlowKey6, session: &Session) -> Result<()>;
    /// Removes a session.
    fn drop_session(&mut self, key: &FlowKey6) -> Result<()>;
    /// All sessions.
    fn sessions(&mut self) -> Result<Vec<(FlowKey6, Session)>>;

    /// Says how many sessions two hosts have; the programs' part of the entry stays.
    fn put_pair(&mut self, key: &PairKey, sessions: u32) -> Result<()>;
    /// Removes a pair.
    fn drop_pair(&mut self, key: &PairKey) -> Result<()>;
    /// All pairs.
    fn pairs(&mut self) -> Result<Vec<(PairKey, Pair)>>;

    /// The proved flow of this key.
    fn flow(&mut self, key: &FlowKey6) -> Result<Option<FlowView>>;
    /// State word of a flow in any table, proved or not.
    fn state(&mut self, key: &FlowKey6) -> Result<Option<FlowState>>;
    /// Writes a record of the journal, by its number.
    fn journal(&mut self, entry: &JournalEntry) -> Result<()>;
    /// Number of the journal's last record, 0 if there is none.
    fn last_of_journal(&mut self) -> Result<u64>;
    /// Gives a sign of life: `CLOCK_MONOTONIC` in ns, and the process.
    fn heartbeat(&mut self, now_ns: u64, pid: u32) -> Result<()>;
    /// Has no more payload of the flow queued; its FIN and RST still are.
    fn blind(&mut self, key: &FlowKey6) -> Result<()>;
    /// Has nothing of the flow queued any more.
    fn unhelp(&mut self, key: &FlowKey6) -> Result<()>;
    /// Admits a flow that shadow mode let in although it was refused, as an
    /// expected one; false if there is no such flow.
    fn admit(&mut self, key: &FlowKey6) -> Result<bool>;
    /// Counts refused lines, by the number of their reason.
    fn count_refusals(&mut self, reason: u8, count: u64) -> Result<()>;
    /// Ties a data connection to its control connection, whatever entry its flow has.
    fn tie(&mut self, key: &FlowKey6, data: &DataFlow) -> Result<()>;
    /// The tie of a data connection to its control connection.
    fn data_flow(&mut self, key: &FlowKey6) -> Result<Option<DataFlow>>;
    /// Every data connection's tie to its control connection.
    fn data_flows(&mut self) -> Result<Vec<(FlowKey6, DataFlow)>>;
    /// Deletes flows, alive as they may be; returns how many there were of
    /// these incarnations.
    fn delete(&mut self, flows: &[CtlFlow]) -> Result<u32>;
    /// Runs a held frame again, as if it had come in through `ifindex`.
    fn reinject(&mut self, frame: &[u8], ifindex: u32) -> Result<()>;
    /// Sends a held frame out of `ifindex` after all.
    fn resend(&mut self, frame: &[u8], ifindex: u32) -> Result<()>;
}

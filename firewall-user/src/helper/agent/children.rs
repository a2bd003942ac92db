//! Data connections that are up when their session ends.

use std::collections::HashSet;

use firewall_common::abi::{CtlFlow, DataFlow, FlowKey6};
use log::{info, warn};

use super::{Agent, Standing};
use crate::helper::tables::{Result, Tables};

/// A session that may have ended: its control flow's key, and its incarnation.
pub type SessionId = (FlowKey6, u32);

/// A session whose data connections are to be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    session: SessionId,
    /// `CLOCK_MONOTONIC`, ns; set at the first tick after the session's end.
    due_ns: Option<u64>,
}

impl<T: Tables> Agent<T> {
    /// Cuts all data connections of a session, established as they may be, and
    /// returns how many there were. Their ends are told nothing: what they still
    /// send is dropped as of no flow.
    ///
    /// # Errors
    /// The tie of a data connection cannot be read, or its flow not be deleted.
    pub fn cut_data(&mut self, session: SessionId) -> Result<u32> {
        self.cut(|data| session_of(data) == session)
    }

    /// Cuts the data connections with such ties, and returns how many there were. All
    /// ties are read.
    pub(super) fn cut(&mut self, which: impl Fn(&DataFlow) -> bool) -> Result<u32> {
        let mut flows = self.tables.data_flows()?;
        flows.retain(|(_, data)| which(data));
        let flows: Vec<_> = flows.iter().map(flow_of).collect();
        if flows.is_empty() {
            return Ok(0);
        }
        self.tables.delete(&flows)
    }

    /// A session ended that had `opened` ports: its data connections follow it, if
    /// they are to.
    pub(super) fn end_children(&mut self, session: SessionId, opened: u32) {
        if opened != 0 && self.settings.cut_after_ns.is_some() {
            self.cuts.push(Cut {
                session,
                due_ns: None,
            });
        }
    }

    /// Cuts what is due.
    pub(super) fn cut_due(&mut self, now_ns: u64) {
        let Some(grace_ns) = self.settings.cut_after_ns else {
            return;
        };
        let mut due = HashSet::new();
        self.cuts.retain_mut(|cut| {
            let due_ns = *cut.due_ns.get_or_insert(now_ns.saturating_add(grace_ns));
            let is_due = now_ns >= due_ns;
            if is_due {
                due.insert(cut.session);
            }
            !is_due
        });
        if due.is_empty() {
            return;
        }
        match self.cut(|data| due.contains(&session_of(data))) {
            Ok(0) => {}
            Ok(count) => info!("{count} data connections cut: their session has ended"),
            Err(error) => warn!("cannot cut data connections: {error}"),
        }
    }

    /// Data connections whose sessions ended while no agent ran.
    pub(super) fn resume_children(&mut self, now_ns: u64) -> Result<()> {
        if self.settings.cut_after_ns.is_none() {
            return Ok(());
        }
        let ties = self.tables.data_flows()?.into_iter();
        let sessions: HashSet<SessionId> = ties.map(|(_, data)| session_of(&data)).collect();
        for session in sessions {
            if self.standing(&session.0, session.1, now_ns) == Standing::Gone {
                self.end_children(session, 1);
            }
        }
        Ok(())
    }
}

/// Whose data connection is it?
pub(super) const fn session_of(data: &DataFlow) -> SessionId {
    (data.parent, data.parent_incarnation)
}

/// The flow of a tie, in no other incarnation than the one that was tied.
pub(super) const fn flow_of((key, data): &(FlowKey6, DataFlow)) -> CtlFlow {
    CtlFlow::new(*key, data.incarnation)
}

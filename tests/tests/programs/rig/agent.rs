//! What the agent would write.

use firewall_common::abi::{ExpectKey, Expectation, Pair, PairKey, heartbeat, maps};

use super::{Rig, now_ns};
use crate::packets::End;

impl Rig {
    /// An agent that lives for the rest of the test.
    pub(crate) fn agent_lives(&mut self) {
        self.agent_beat(now_ns() + 3_600_000_000_000);
    }

    /// An agent that died.
    pub(crate) fn agent_died(&mut self) {
        self.agent_beat(now_ns() - 10_000_000_000);
    }

    fn agent_beat(&mut self, at_ns: u64) {
        self.array::<u64>(maps::HEARTBEAT)
            .set(heartbeat::AT_NS, at_ns, 0)
            .unwrap();
    }

    /// These two hosts have one FTP session.
    pub(crate) fn session(&mut self, one: End, other: End) {
        let pair = Pair {
            sessions: 1,
            ..bytemuck::Zeroable::zeroed()
        };
        let key = PairKey::new(one.mapped(), other.mapped());
        self.hash(maps::PAIRS).insert(key, pair, 0).unwrap();
    }

    /// Writes a pinhole, in place of the one that there is.
    pub(crate) fn expect(&mut self, key: ExpectKey, pinhole: Expectation) {
        let mut table = self.hash(maps::EXPECTATIONS);
        table.insert(key, pinhole, 0).unwrap();
    }

    /// A pinhole as it is now.
    pub(crate) fn pinhole(&mut self, key: &ExpectKey) -> Expectation {
        self.hash(maps::EXPECTATIONS).get(key, 0).unwrap()
    }
}

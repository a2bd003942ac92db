//! Entries of the flow tables as they are listed, and the names to print them with.

use std::{collections::BTreeMap, rc::Rc};

use firewall_common::{
    abi::{Flow, FlowKey6, FlowState, Phase, RULE_NONE, ZONE_ANY, ZONE_HOST, name_of_id},
    time::Tick,
};

/// Which of a family's tables a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowTier {
    /// Has proved itself: never evicted by one that has not.
    Proved,
    /// Has not yet.
    HalfOpen,
}

impl FlowTier {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::HalfOpen => "half-open",
        }
    }
}

/// A live flow of any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// IPv4 in mapped form.
    pub key: FlowKey6,
    /// The entry.
    pub flow: Flow,
    /// Where it is.
    pub tier: FlowTier,
    /// After this point it counts as absent.
    pub expires: Tick,
}

impl FlowRow {
    /// The state word.
    #[must_use]
    pub const fn state(&self) -> FlowState {
        FlowState(self.flow.state)
    }

    /// Is it a flow at `now`? Expired, promoting and doomed entries are misses
    /// to the programs too.
    #[must_use]
    pub fn is_live(&self, now: Tick) -> bool {
        self.state().phase() == Phase::Live && !now.is_after(self.expires)
    }
}

/// Names of zones and rules, to print entries with. They are shared, not copied: a list
/// can be of a million flows.
#[derive(Clone, Debug, Default)]
pub struct Names {
    zones: BTreeMap<u8, Rc<str>>,
    rules: Vec<Rc<str>>,
}

impl Names {
    /// Name of the zone of the host itself.
    pub const HOST: &str = "host";

    /// From pairs of number and name, and rule names by
    /// [`name_of_id`].
    pub fn new(
        zones: impl IntoIterator<Item = (u8, String)>,
        rules: impl IntoIterator<Item = String>,
    ) -> Self {
        let zones = zones
            .into_iter()
            .map(|(number, name)| (number, name.into()));
        let own = [(ZONE_HOST, Self::HOST.into()), (ZONE_ANY, "any".into())];
        let mut rules: Vec<String> = rules.into_iter().collect();
        let last = rules.iter().rposition(|name| !name.is_empty());
        rules.truncate(last.map_or(0, |at| at + 1));
        Self {
            zones: zones.chain(own).collect(),
            rules: rules.into_iter().map(Rc::from).collect(),
        }
    }

    /// The zone's name; its number if it has no interface any more.
    #[must_use]
    pub fn zone(&self, number: u8) -> Rc<str> {
        match self.zones.get(&number) {
            Some(name) => name.clone(),
            None => format!("zone-{number}").into(),
        }
    }

    /// The rule's name, `None` for flows that no rule admitted.
    #[must_use]
    pub fn rule(&self, id: u16) -> Option<&Rc<str>> {
        if id == RULE_NONE {
            return None;
        }
        let name = self.rules.get(name_of_id(id) as usize);
        name.filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_an_entry_are_numbers() {
        let names = Names::new([(1, "outside".into())], vec!["ssh".into()]);
        assert_eq!(&*names.zone(0), "host");
        assert_eq!(&*names.zone(1), "outside");
        assert_eq!(&*names.zone(2), "zone-2");
        assert_eq!(names.rule(0).map(|name| &**name), Some("ssh"));
        assert_eq!(names.rule(u16::MAX), None);
    }
}

//! Guarded interfaces that vanish, and come back.
//!
//! A removed interface takes its programs with it, one that goes to another network namespace
//! keeps the XDP program, which knows nothing of that namespace. Either leaves an entry and
//! pins behind, and whatever gets its name next would pass for guarded.

use std::{
    collections::{BTreeMap, HashSet},
    io,
};

use anyhow::Context as _;
use aya::maps::{HashMap, MapData};
use firewall_common::abi::{Iface, maps};

use super::run::{Target, describe, seed_flows};
use crate::{
    bpf::{
        attach::{self, Wish},
        detach, fill,
        loader::{Error, Hooks},
        text, vlan_children,
    },
    classes::Classes,
    config::Compiled,
    netlink::route::{self, Link},
    preflight, unload,
};

/// The id of the program where there are several.
const SEVERAL: u32 = 0;

/// Looks whether all interfaces of the policy are there and guarded.
pub(super) struct Presence {
    hooks: Hooks,
    compiled: Compiled,
    wish: Wish,
    map: HashMap<MapData, u32, Iface>,
    /// Why an interface that is back is not guarded, as it was said last.
    said: BTreeMap<String, String>,
}

impl Presence {
    /// For interfaces that have just been attached.
    pub(super) fn new(hooks: Hooks, compiled: Compiled, wish: Wish) -> Result<Self, Error> {
        Ok(Self {
            map: fill::ifaces(&hooks.instance)?,
            hooks,
            compiled,
            wish,
            said: BTreeMap::new(),
        })
    }

    /// Is there nothing that is to be tried again?
    pub(super) fn is_settled(&self) -> bool {
        self.said.is_empty()
    }

    /// Clears away what is left of interfaces that are gone, and guards those that are back.
    /// Returns whether there was one.
    pub(super) fn look(&mut self, links: &[Link]) -> bool {
        let looked = self.gone(links).and_then(|gone| {
            let back = self.back(links)?;
            Ok(gone || back)
        });
        looked.unwrap_or_else(|error| {
            log::warn!("the guarded interfaces cannot be looked at: {error:#}");
            false
        })
    }

    fn gone(&mut self, links: &[Link]) -> anyhow::Result<bool> {
        let guarded = self.guarded()?;
        let mut gone = Vec::new();
        for entry in &guarded {
            let (index, iface) = entry;
            let listed = links.iter().find(|link| link.index == *index);
            // The list is some moments old, and what is taken off is off.
            if !self.is_there(iface, listed) && !self.is_there(iface, route::link(*index)?.as_ref())
            {
                gone.push(entry);
            }
        }
        if gone.is_empty() {
            return Ok(false);
        }
        // So that an unload meets all of it or nothing.
        let _guard = unload::guard(&self.hooks.instance)?;
        let stay = guarded.iter().filter(|entry| !gone.contains(entry));
        let mut stay: Vec<String> = stay.map(|(_, iface)| text(&iface.name)).collect();
        stay.sort_unstable();
        for (index, iface) in &gone {
            let name = text(&iface.name);
            // Its index may be another interface's by now, which is left alone.
            if let Err(error) = detach::interface(&self.hooks.instance, *index, iface, &[]) {
                log::warn!("{name}: what is left of it cannot be removed: {error}");
            }
            self.map.remove(index).map_err(Error::map(maps::IFACES))?;
            let is_there = links.iter().any(|l| l.index == *index && l.name == name);
            log::warn!("{}", farewell(&name, is_there, &stay));
        }
        Ok(true)
    }

    fn guarded(&self) -> Result<Vec<(u32, Iface)>, Error> {
        vlan_children::guarded(&self.map).map_err(Error::map(maps::IFACES))
    }

    /// With our program, under its name or under another: then it was renamed.
    fn is_there(&self, iface: &Iface, link: Option<&Link>) -> bool {
        let attached = link.and_then(|link| link.xdp).map(|state| state.program);
        let pin = detach::xdp_pin(&text(&iface.name));
        attached
            .is_some_and(|id| is_ours(id, detach::pinned_program(&self.hooks.instance.pin(&pin))))
    }

    fn back(&mut self, links: &[Link]) -> anyhow::Result<bool> {
        let guarded = self.guarded()?;
        let known: HashSet<String> = guarded.iter().map(|(_, i)| text(&i.name)).collect();
        let is_back = |name: &str| !known.contains(name) && links.iter().any(|l| l.name == name);
        let ifaces = self.compiled.ifaces.iter();
        let back: Vec<_> = ifaces.filter(|i| is_back(&i.name)).cloned().collect();
        let mut changed = false;
        for iface in back {
            let name = iface.name.clone();
            match self.guard(iface, &guarded) {
                Ok(attached) => {
                    self.said.remove(&name);
                    changed = true;
                    log::warn!("interface {name} is back, and guarded again: {attached}");
                }
                Err(error) => {
                    let said = format!("{error:#}");
                    if self.said.get(&name) != Some(&said) {
                        log::warn!(
                            "interface {name} is back, but NOT guarded, and tried again each \
                             second: {said}"
                        );
                    }
                    self.said.insert(name, said);
                }
            }
        }
        Ok(changed)
    }

    /// Attaches to an interface of the policy beside those that are `guarded`.
    fn guard(
        &mut self,
        iface: crate::config::GuardedIface,
        guarded: &[(u32, Iface)],
    ) -> anyhow::Result<String> {
        let instance = self.hooks.instance.clone();
        let _guard = unload::guard(&instance).context("it is being unloaded")?;
        let link = preflight::interfaces([iface.name.as_str()])?
            .pop()
            .context("it is gone again")?;
        let mut zones: BTreeMap<u32, u8> = guarded.iter().map(|(i, e)| (*i, e.zone)).collect();
        zones.insert(link.index, iface.zone);
        preflight::vlan_zones(&zones)?;
        let target: Target = (iface, link);
        let others = guarded.iter().map(|(index, _)| *index).collect();
        let targets = [target.clone()];
        let classes = Classes::of(&self.compiled.rules)?;
        let attached = attach::attach_again(&mut self.hooks, target, self.wish, || {
            seed_flows(&instance, &self.compiled, &classes, &targets, &others)?;
            Ok(())
        })?;
        Ok(describe(&attached, &self.compiled.config))
    }
}

/// Is the program that an interface runs the one that is `pinned` for it? Nothing is taken off
/// because that cannot be told.
fn is_ours(attached: u32, pinned: io::Result<Option<u32>>) -> bool {
    match pinned {
        Ok(Some(ours)) => attached == ours || attached == SEVERAL,
        Ok(None) => false,
        Err(_) => true,
    }
}

/// What is said of an interface that is gone, or whose program is, while others `stay`.
fn farewell(name: &str, is_there: bool, stay: &[String]) -> String {
    if is_there {
        return format!("interface {name} has lost its XDP program: it is attached anew");
    }
    let rest = match stay {
        [] => "nothing is guarded now".to_owned(),
        some => format!("still guarded: {}", some.join(", ")),
    };
    format!(
        "interface {name} is gone: removed, or moved to another network namespace, and detached; \
         {rest}. It is guarded again when an interface of that name comes back"
    )
}

#[cfg(test)]
mod tests {
    use super::{SEVERAL, farewell, io, is_ours};

    #[test]
    fn a_program_is_ours_if_it_is_the_pinned_one() {
        assert!(is_ours(7, Ok(Some(7))));
        assert!(!is_ours(8, Ok(Some(7))));
        assert!(!is_ours(7, Ok(None)));
        assert!(is_ours(SEVERAL, Ok(Some(7))));
        assert!(is_ours(7, Err(io::ErrorKind::PermissionDenied.into())));
    }

    #[test]
    fn who_stays_is_said() {
        let alone = farewell("eth0", false, &[]);
        assert!(alone.contains("eth0 is gone") && alone.contains("nothing is guarded now"));
        let said = farewell("eth0", false, &["in0".into(), "in1".into()]);
        assert!(said.contains("still guarded: in0, in1."), "{said}");
        assert!(farewell("eth0", true, &[]).contains("attached anew"));
    }
}

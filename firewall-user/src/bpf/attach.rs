//! Programs onto interfaces, all or none.
//!
//! Order: seed, TC egress, seed, XDP. So what the host sends is tracked before
//! anything that comes in is judged, and nobody is cut off: the first seed lets
//! TC know what runs already, the second finds what began since. Whatever was
//! attached before a failure is taken off again.
//!
//! An interface that is added beside live ones gets XDP first, then its entry, then
//! TC egress: egress of the live ones takes what came in by an interface with an entry
//! for judged. XDP without an entry drops.

use std::io;

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use firewall_common::abi::{Iface, iface_flags, maps};

use super::{
    Instance,
    detach::{self, tcx_pin, xdp_pin},
    fill, hooks,
    loader::{self, Hooks},
    refusal::NativeRefusal,
    text, vlan, vlan_children,
};
use crate::{
    cli::args::{TcKind, XdpMode},
    config::GuardedIface,
    netlink::route::{self, Link, LinkHeader, XdpState},
    preflight::Version,
};

/// The first kernel with TCX links.
const TCX_KERNEL: Version = Version(6, 6);

/// Why the interfaces are not guarded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else's XDP program is there.
    #[error(
        "interface {interface} already runs the XDP program {name:?} (id {id}): detach it \
         (`ip link set dev {interface} xdp off`, or the tool that attached it), or guard another"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// Name of the program.
        name: String,
        /// Id of the program.
        id: u32,
    },
    /// Another instance guards the interface.
    #[error(
        "interface {interface} is guarded by instance {instance} already: unload that one \
         (`pinhole --instance {instance} unload`), run as it with --instance {instance}, or guard \
         another interface"
    )]
    Guarded {
        /// The interface.
        interface: String,
        /// The instance.
        instance: String,
    },
    /// The wish does not fit what is attached.
    #[error(
        "interface {interface} is attached with {found}, not {wanted}: changing it would leave \
         a moment without enforcement; `pinhole unload` first, or leave the option out"
    )]
    Fixed {
        /// The interface.
        interface: String,
        /// What is attached.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The driver refuses native XDP, and nothing else was to be tried.
    #[error(
        "interface {interface} takes no native XDP program: {refusal}; or use --mode auto or \
         generic"
    )]
    Native {
        /// The interface.
        interface: String,
        /// Why.
        refusal: NativeRefusal,
    },
    /// The driver refuses XDP.
    #[error("interface {interface} takes no {mode} XDP program: {cause}; {remedy}")]
    Xdp {
        /// The interface.
        interface: String,
        /// The last mode tried.
        mode: &'static str,
        /// What the kernel says.
        cause: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel refuses the TC program.
    #[error("interface {interface} takes no TC program as {kind}: {cause}; {remedy}")]
    Tc {
        /// The interface.
        interface: String,
        /// "TCX link" or "clsact filter".
        kind: &'static str,
        /// What the kernel says.
        cause: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// VLAN offload stays on.
    #[error(transparent)]
    Vlan(#[from] vlan::Error),
    /// A map or program of the object.
    #[error(transparent)]
    Load(#[from] loader::Error),
    /// Something around it.
    #[error("interface {interface}: {what}: {cause}; try `pinhole unload`, then run again")]
    Io {
        /// The interface.
        interface: String,
        /// What failed.
        what: &'static str,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The seeds cannot be found or written.
    #[error("existing connections cannot be taken over: {0}")]
    Seed(String),
}

/// How the operator wants it.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Where XDP runs.
    pub mode: XdpMode,
    /// How TC is attached.
    pub tc: TcKind,
}

/// What an interface got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its index.
    pub index: u32,
    /// As in the `IFACES` map.
    pub iface: Iface,
    /// Why it runs in generic mode although native was tried.
    pub native_refused: Option<String>,
    /// What native mode lacks there.
    pub queues: Option<String>,
}

/// Attaches to `targets`, running `seed` before TC egress and again before XDP.
/// Replaces in place what an earlier run attached; what it attached to other
/// interfaces goes last, after `commit`. Both get `context`.
///
/// # Errors
///
/// [`Error`]. Everything that this call attached is off again then.
pub fn attach<C>(
    hooks: &mut Hooks,
    targets: &[(GuardedIface, Link)],
    wish: Wish,
    context: &mut C,
    mut seed: impl FnMut(&mut C) -> Result<(), Error>,
    commit: impl FnOnce(&mut C) -> Result<(), Error>,
) -> Result<Vec<Attached>, Error> {
    let links = route::links().map_err(|e| failed("(any)", "the list cannot be read")(e))?;
    let before = recorded(&hooks.instance)?;
    let mut undo = Undo::default();
    let seed = || seed(context);
    let plans = put_on(hooks, targets, wish, &links, &before, &mut undo, seed)?;
    commit(context)?;
    undo.disarm();
    remove_others(&hooks.instance, &before, &plans, &links)?;
    vlan_children::open(&hooks.instance)?.refresh(&links)?;
    Ok(plans.into_iter().map(Plan::attached).collect())
}

/// As [`attach`], for an interface that has come back while the others stay as they are.
///
/// # Errors
///
/// [`Error`]; nothing is attached to it then.
pub fn attach_again(
    hooks: &mut Hooks,
    target: (GuardedIface, Link),
    wish: Wish,
    seed: impl FnMut() -> Result<(), Error>,
) -> Result<Attached, Error> {
    let links = route::links().map_err(|e| failed("(any)", "the list cannot be read")(e))?;
    let name = target.1.name.clone();
    let before = recorded(&hooks.instance)?;
    let mut undo = Undo::default();
    let plans = put_on(hooks, &[target], wish, &links, &before, &mut undo, seed)?;
    undo.disarm();
    let attached = plans.into_iter().map(Plan::attached).next();
    attached.ok_or_else(|| failed(&name, "it was not planned")(io::ErrorKind::NotFound.into()))
}

/// Attaches to each, as long as `undo` is not dropped before it is disarmed. `links` are all of
/// this network namespace, `before` what is guarded.
fn put_on(
    hooks: &mut Hooks,
    targets: &[(GuardedIface, Link)],
    wish: Wish,
    links: &[Link],
    before: &[(u32, Iface)],
    undo: &mut Undo,
    mut seed: impl FnMut() -> Result<(), Error>,
) -> Result<Vec<Plan>, Error> {
    let mut plans = Vec::with_capacity(targets.len());
    for (guarded, link) in targets {
        plans.push(plan(&hooks.instance, guarded, link, wish, before)?);
    }
    let (instance, all) = (hooks.instance.clone(), links.to_vec());
    // Undone last: when the guarded interfaces are as they were.
    undo.push(move || {
        if let Err(error) = vlan_children::open(&instance).and_then(|mut map| map.refresh(&all)) {
            log::warn!("{error}");
        }
    });
    let is_live = |link: &Link| link.xdp.is_some() && before.iter().any(|(i, _)| *i == link.index);
    let beside_live = links.iter().any(is_live);
    let added = |plan: &Plan| beside_live && plan.replace_xdp.is_none();
    seed()?;
    for plan in &mut plans {
        prepare(plan, links, undo)?;
        if added(plan) {
            withdraw(&hooks.instance, plan, undo)?;
            hooks::attach_xdp(hooks, plan, undo)?;
        }
        enter(&hooks.instance, plan, undo)?;
        hooks::attach_tc(hooks, plan, undo)?;
    }
    vlan_children::open(&hooks.instance)?.refresh(links)?;
    seed()?;
    for plan in plans.iter_mut().filter(|plan| !added(plan)) {
        hooks::attach_xdp(hooks, plan, undo)?;
        record(&hooks.instance, plan)?;
    }
    Ok(plans)
}

/// What to do on one interface.
pub(super) struct Plan {
    guarded: GuardedIface,
    pub(super) link: Link,
    /// Of the `IFACES` entry, as they become known.
    pub(super) flags: u32,
    /// The entry of an earlier run.
    before: Option<Iface>,
    /// The program of an earlier run, to be replaced in its link.
    pub(super) replace_xdp: Option<XdpState>,
    /// Is there a TC program of an earlier run?
    pub(super) replace_tc: bool,
    /// Of which kind it is or will be; never `Auto`.
    pub(super) tc: TcKind,
    /// Where XDP shall run.
    pub(super) mode: XdpMode,
    /// Why native mode was not to be had.
    pub(super) native_refused: Option<String>,
    /// What it lacks.
    pub(super) queues: Option<String>,
}

impl Plan {
    fn iface(&self) -> Iface {
        self.guarded.entry(self.flags)
    }

    fn attached(self) -> Attached {
        Attached {
            index: self.link.index,
            iface: self.iface(),
            native_refused: self.native_refused,
            queues: self.queues,
        }
    }
}

/// Looks, and changes nothing yet but stale pins.
fn plan(
    instance: &Instance,
    guarded: &GuardedIface,
    link: &Link,
    wish: Wish,
    before: &[(u32, Iface)],
) -> Result<Plan, Error> {
    let before = before
        .iter()
        .find(|(index, iface)| *index == link.index && text(&iface.name) == link.name)
        .map(|(_, iface)| *iface);
    let replace_xdp = ours(instance, link)?;
    if let Some(state) = replace_xdp {
        fixed_mode(link, state, wish.mode)?;
    }
    let bare = link.header() == Some(LinkHeader::None);
    let (tc, replace_tc) = tc_kind(instance, link, wish.tc)?;
    // What an earlier run has to restore stays to be restored.
    let keep = iface_flags::CLSACT_ADDED | iface_flags::RESTORE;
    let framing = if bare { iface_flags::NO_ETHERNET } else { 0 };
    Ok(Plan {
        guarded: guarded.clone(),
        link: link.clone(),
        flags: before.map_or(0, |iface| iface.flags & keep) | framing,
        mode: if bare { XdpMode::Generic } else { wish.mode },
        before,
        replace_xdp,
        replace_tc,
        tc,
        native_refused: None,
        queues: None,
    })
}

/// The XDP program of an earlier run, if it is still there. Refuses anybody else's.
fn ours(instance: &Instance, link: &Link) -> Result<Option<XdpState>, Error> {
    let pin = instance.pin(&xdp_pin(&link.name));
    let pinned = detach::pinned_program(&pin)
        .map_err(failed(&link.name, "its pinned XDP link cannot be read"))?;
    match link.xdp {
        Some(state) if Some(state.program) == pinned => Ok(Some(state)),
        Some(state) => Err(occupied(link, state.program)),
        // The interface was removed and made again: the link is dead.
        None => {
            detach::pinned_link(&pin)
                .map_err(failed(&link.name, "its dead XDP link cannot be removed"))?;
            Ok(None)
        }
    }
}

/// Whose the XDP program on `link` is, if it is not this instance's.
fn occupied(link: &Link, program: u32) -> Error {
    let interface = link.name.clone();
    let is_its = |other: &Instance| {
        let pinned = detach::pinned_program(&other.pin(&xdp_pin(&link.name)));
        matches!(pinned, Ok(Some(id)) if id == program)
    };
    let others = Instance::all().unwrap_or_default().into_iter();
    match others.filter_map(|name| name.parse().ok()).find(is_its) {
        Some(other) => Error::Guarded {
            interface,
            instance: other.to_string(),
        },
        None => Error::Occupied {
            interface,
            name: program_name(program),
            id: program,
        },
    }
}

fn program_name(id: u32) -> String {
    loaded_programs()
        .flatten()
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

fn fixed_mode(link: &Link, state: XdpState, wish: XdpMode) -> Result<(), Error> {
    let (found, other) = if state.native {
        ("native XDP", XdpMode::Generic)
    } else {
        ("generic XDP", XdpMode::Native)
    };
    if wish == other {
        return Err(Error::Fixed {
            interface: link.name.clone(),
            found,
            wanted: if state.native { "generic" } else { "native" },
        });
    }
    Ok(())
}

/// Which kind of TC attachment it will be, and whether there is one to replace.
fn tc_kind(instance: &Instance, link: &Link, wish: TcKind) -> Result<(TcKind, bool), Error> {
    let found = existing_tc(instance, link)?;
    let fixed = |found, wanted| Error::Fixed {
        interface: link.name.clone(),
        found,
        wanted,
    };
    match (found, wish) {
        (Some(TcKind::Clsact), TcKind::Tcx) => Err(fixed("a clsact filter", "TCX")),
        (Some(TcKind::Tcx), TcKind::Clsact) => Err(fixed("TCX", "a clsact filter")),
        (Some(found), _) => Ok((found, true)),
        (None, TcKind::Auto) => Ok((
            if has_tcx() {
                TcKind::Tcx
            } else {
                TcKind::Clsact
            },
            false,
        )),
        (None, TcKind::Tcx) if !has_tcx() => Err(Error::Tc {
            interface: link.name.clone(),
            kind: "TCX link",
            cause: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            remedy: "the kernel is older than 6.6: leave out --tc, or use --tc clsact",
        }),
        (None, wish) => Ok((wish, false)),
    }
}

fn has_tcx() -> bool {
    crate::preflight::kernel_release()
        .ok()
        .and_then(|release| Version::parse(&release))
        .is_some_and(|version| version >= TCX_KERNEL)
}

fn existing_tc(instance: &Instance, link: &Link) -> Result<Option<TcKind>, Error> {
    let pin = instance.pin(&tcx_pin(&link.name));
    let pinned = detach::pinned_program(&pin)
        .map_err(failed(&link.name, "its pinned TCX link cannot be read"))?;
    if let Some(program) = pinned {
        let alive = SchedClassifier::query_tcx(&link.name, TcAttachType::Egress)
            .is_ok_and(|(_, found)| found.iter().any(|info| info.id() == program));
        if alive {
            return Ok(Some(TcKind::Tcx));
        }
        detach::pinned_link(&pin)
            .map_err(failed(&link.name, "its dead TCX link cannot be removed"))?;
    }
    let filter = detach::has_filter(link.index)
        .map_err(failed(&link.name, "its TC filters cannot be listed"))?;
    Ok(filter.then_some(TcKind::Clsact))
}

/// VLAN offload, and the flags of the entry.
fn prepare(plan: &mut Plan, links: &[Link], undo: &mut Undo) -> Result<(), Error> {
    // Without Ethernet there are no tags.
    let restore = match plan.link.header() {
        Some(LinkHeader::Ethernet) => vlan::turn_off(&plan.link, links)?,
        _ => 0,
    };
    plan.flags |= restore;
    let (link, all) = (plan.link.clone(), links.to_vec());
    undo.push(move || vlan::restore(&link, &all, restore));
    plan.flags |= match plan.tc {
        TcKind::Clsact => iface_flags::CLSACT,
        TcKind::Tcx | TcKind::Auto => iface_flags::TCX,
    };
    // The mode that it most likely gets; another is recorded once it is known.
    plan.flags |= match plan.replace_xdp {
        Some(XdpState { native: false, .. }) => iface_flags::XDP_GENERIC,
        _ if plan.mode == XdpMode::Generic => iface_flags::XDP_GENERIC,
        _ => iface_flags::XDP_NATIVE,
    };
    Ok(())
}

/// Writes the entry that the programs look up.
fn enter(instance: &Instance, plan: &Plan, undo: &mut Undo) -> Result<(), Error> {
    record(instance, plan)?;
    let mut map = fill::ifaces(instance)?;
    let (index, before) = (plan.link.index, plan.before);
    undo.push(move || {
        let restored = match before {
            Some(iface) => map.insert(index, iface, 0),
            None => map.remove(&index),
        };
        if let Err(error) = restored {
            log::warn!("map IFACES: {error}");
        }
    });
    Ok(())
}

/// Takes the entry away that an interface has which has lost its XDP program, as long as it has
/// no other.
fn withdraw(instance: &Instance, plan: &mut Plan, undo: &mut Undo) -> Result<(), Error> {
    let Some(before) = plan.before.take() else {
        return Ok(());
    };
    let mut map = fill::ifaces(instance)?;
    let index = plan.link.index;
    map.remove(&index)
        .map_err(loader::Error::map(maps::IFACES))?;
    undo.push(move || {
        if let Err(error) = map.insert(index, before, 0) {
            log::warn!("map IFACES: {error}");
        }
    });
    Ok(())
}

/// Writes the interface's entry as far as it is known.
pub(super) fn record(instance: &Instance, plan: &Plan) -> Result<(), Error> {
    fill::ifaces(instance)?
        .insert(plan.link.index, plan.iface(), 0)
        .map_err(loader::Error::map(maps::IFACES))?;
    Ok(())
}

/// Takes off the interfaces that an earlier run guarded and this one does not.
fn remove_others(
    instance: &Instance,
    before: &[(u32, Iface)],
    plans: &[Plan],
    links: &[Link],
) -> Result<(), Error> {
    let mut map = fill::ifaces(instance)?;
    for (index, iface) in before {
        if plans.iter().any(|plan| plan.link.index == *index) {
            continue;
        }
        let name = text(&iface.name);
        // An interface made again under its old name has the pins that were
        // just written.
        if !plans.iter().any(|plan| plan.link.name == name) {
            detach::interface(instance, *index, iface, links)
                .map_err(failed(&name, "it cannot be detached"))?;
        }
        map.remove(index)
            .map_err(loader::Error::map(maps::IFACES))?;
    }
    Ok(())
}

fn recorded(instance: &Instance) -> Result<Vec<(u32, Iface)>, Error> {
    let found = vlan_children::guarded(&fill::ifaces(instance)?);
    Ok(found.map_err(loader::Error::map(maps::IFACES))?)
}

fn failed(interface: &str, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    let interface = interface.to_owned();
    move |cause| Error::Io {
        interface,
        what,
        cause,
    }
}

/// Steps back, latest first, unless disarmed.
#[derive(Default)]
pub(super) struct Undo(Vec<Box<dyn FnOnce()>>);

impl Undo {
    pub(super) fn push(&mut self, step: impl FnOnce() + 'static) {
        self.0.push(Box::new(step));
    }

    fn disarm(&mut self) {
        self.0.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(step) = self.0.pop() {
            step();
        }
    }
}

//! The two hooks of one interface: making, and replacing in place, what runs there.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::programs::{
    LinkOrder, ProgramError, TcAttachType, Xdp, XdpMode as AyaMode,
    links::{FdLink, LinkError, PinnedLink},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact},
    xdp::XdpLink,
};
use firewall_common::abi::iface_flags;

use super::{
    attach::{Error, Plan, Undo, record},
    detach::{self, HANDLE, PRIORITY, tcx_pin, xdp_pin},
    errno,
    loader::Hooks,
    queues,
    refusal::NativeRefusal,
};
use crate::{
    cli::args::{TcKind, XdpMode},
    netlink::route,
};

/// TC egress as planned.
pub(super) fn attach_tc(hooks: &mut Hooks, plan: &mut Plan, undo: &mut Undo) -> Result<(), Error> {
    match (plan.tc, plan.replace_tc) {
        (TcKind::Clsact, true) => replace_clsact(hooks, plan),
        (TcKind::Clsact, false) => add_clsact(hooks, plan, undo),
        (_, true) => replace_tcx(hooks, plan),
        (_, false) => add_tcx(hooks, plan, undo),
    }
}

fn add_tcx(hooks: &mut Hooks, plan: &Plan, undo: &mut Undo) -> Result<(), Error> {
    let pin = hooks.instance.pin(&tcx_pin(&plan.link.name));
    let wrong = |cause| Error::Tc {
        interface: plan.link.name.clone(),
        kind: "TCX link",
        cause,
        remedy: "try --tc clsact",
    };
    let program = &mut hooks.egress;
    // First, so that no other program ends the chain before it.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(&plan.link.name, TcAttachType::Egress, order)
        .map_err(|e| wrong(os_error(&e)))?;
    let link = program.take_link(id).map_err(|e| wrong(os_error(&e)))?;
    let link = FdLink::try_from(link).map_err(|e| wrong(io::Error::other(e)))?;
    link.pin(&pin).map_err(|e| wrong(io::Error::other(e)))?;
    undo.push(move || unpin(&pin));
    Ok(())
}

fn replace_tcx(hooks: &mut Hooks, plan: &Plan) -> Result<(), Error> {
    let pin = hooks.instance.pin(&tcx_pin(&plan.link.name));
    let wrong = |cause| Error::Tc {
        interface: plan.link.name.clone(),
        kind: "TCX link",
        cause,
        remedy: "`pinhole unload`, then run again",
    };
    let link: SchedClassifierLink = open_link(&pin).map_err(wrong)?;
    let program = &mut hooks.egress;
    let id = program
        .attach_to_link(link)
        .map_err(|e| wrong(os_error(&e)))?;
    // The pin keeps it; the program must not detach it when it is dropped.
    program
        .take_link(id)
        .map(drop)
        .map_err(|e| wrong(os_error(&e)))
}

fn add_clsact(hooks: &mut Hooks, plan: &mut Plan, undo: &mut Undo) -> Result<(), Error> {
    let name = plan.link.name.clone();
    let wrong = |cause| Error::Tc {
        interface: name.clone(),
        kind: "clsact filter",
        cause,
        remedy: "if there is an ingress qdisc, remove it (`tc qdisc del dev IF ingress`); \
                 else try --tc tcx",
    };
    match qdisc_add_clsact(&name) {
        Ok(()) => {
            plan.flags |= iface_flags::CLSACT_ADDED;
            record(&hooks.instance, plan)?;
            let (index, name) = (plan.link.index, name.clone());
            undo.push(move || {
                if let Err(error) = route::remove_empty_clsact(index) {
                    log::warn!("{name}: clsact qdisc: {error}");
                }
            });
        }
        Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        Err(e) => return Err(wrong(tc_os_error(&e))),
    }
    let program = &mut hooks.egress;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let id = program
        .attach_with_options(&name, TcAttachType::Egress, options)
        .map_err(|e| wrong(os_error(&e)))?;
    let link = program.take_link(id).map_err(|e| wrong(os_error(&e)))?;
    // aya removes the filter when its link is dropped; this one shall stay when
    // the agent ends, and the next run finds it by priority and handle.
    std::mem::forget(link);
    let link = plan.link.clone();
    undo.push(move || {
        if let Err(error) = detach::clsact_filter(&link) {
            log::warn!("{}: clsact filter: {error}", link.name);
        }
    });
    Ok(())
}

fn replace_clsact(hooks: &mut Hooks, plan: &Plan) -> Result<(), Error> {
    let wrong = |cause| Error::Tc {
        interface: plan.link.name.clone(),
        kind: "clsact filter",
        cause,
        remedy: "`pinhole unload`, then run again",
    };
    let link = SchedClassifierLink::attached(
        &plan.link.name,
        TcAttachType::Egress,
        PRIORITY,
        HANDLE,
        None,
    )
    .map_err(wrong)?;
    let program = &mut hooks.egress;
    // cls_bpf swaps the program of a filter under RCU.
    let id = program
        .attach_to_link(link)
        .map_err(|e| wrong(os_error(&e)))?;
    let link = program.take_link(id).map_err(|e| wrong(os_error(&e)))?;
    std::mem::forget(link);
    Ok(())
}

/// XDP as planned, native first; sets the mode in the plan's flags.
pub(super) fn attach_xdp(hooks: &mut Hooks, plan: &mut Plan, undo: &mut Undo) -> Result<(), Error> {
    let pin = hooks.instance.pin(&xdp_pin(&plan.link.name));
    let program = &mut hooks.ingress;
    let native = if let Some(state) = plan.replace_xdp {
        replace_xdp(program, plan, &pin)?;
        state.native
    } else {
        let native = add_xdp(program, plan, &pin)?;
        undo.push(move || unpin(&pin));
        native
    };
    plan.flags &= !(iface_flags::XDP_NATIVE | iface_flags::XDP_GENERIC);
    plan.flags |= if native {
        iface_flags::XDP_NATIVE
    } else {
        iface_flags::XDP_GENERIC
    };
    Ok(())
}

fn replace_xdp(program: &mut Xdp, plan: &Plan, pin: &Path) -> Result<(), Error> {
    let wrong = |cause| Error::Xdp {
        interface: plan.link.name.clone(),
        mode: "other",
        cause,
        remedy: "`pinhole unload`, then run again",
    };
    let link: XdpLink = open_link(pin).map_err(wrong)?;
    let id = program
        .attach_to_link(link)
        .map_err(|e| wrong(os_error(&e)))?;
    program
        .take_link(id)
        .map(drop)
        .map_err(|e| wrong(os_error(&e)))
}

/// Native first, generic where the driver has none. Returns whether it is native.
fn add_xdp(program: &mut Xdp, plan: &mut Plan, pin: &Path) -> Result<bool, Error> {
    let wish = plan.mode;
    let index = plan.link.index;
    if wish != XdpMode::Generic {
        // Afterwards those of XDP are among the queues in use.
        let queues = queues::remark(&plan.link.name);
        let Err(cause) = link_xdp(program, index, AyaMode::Driver, pin) else {
            plan.queues = queues;
            return Ok(true);
        };
        let refusal = native_refusal(program, index, cause);
        if wish == XdpMode::Native {
            return Err(Error::Native {
                interface: plan.link.name.clone(),
                refusal,
            });
        }
        plan.native_refused = Some(refusal.to_string());
    }
    link_xdp(program, index, AyaMode::Skb, pin).map_err(|cause| Error::Xdp {
        interface: plan.link.name.clone(),
        mode: "generic",
        cause,
        remedy: "guard another interface",
    })?;
    Ok(false)
}

/// With the words of the kernel, if it has any.
fn native_refusal(program: &Xdp, index: u32, cause: io::Error) -> NativeRefusal {
    let fd = program.fd().ok();
    let asked = fd.map(|fd| route::xdp_refusal(index, fd.as_fd()));
    let words = asked.and_then(|asked| {
        asked.unwrap_or_else(|error| {
            log::debug!("the kernel does not say why native XDP is refused: {error}");
            None
        })
    });
    NativeRefusal::new(cause, words)
}

fn link_xdp(program: &mut Xdp, index: u32, mode: AyaMode, pin: &Path) -> io::Result<()> {
    let id = program
        .attach_to_if_index(index, mode)
        .map_err(|e| os_error(&e))?;
    let link = program.take_link(id).map_err(|e| os_error(&e))?;
    // aya may fall back to netlink; such an attachment ends with the agent, so
    // it counts as refused, and dropping it takes it off.
    let link = FdLink::try_from(link).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    link.pin(pin).map(drop).map_err(io::Error::other)
}

fn open_link<L: TryFrom<FdLink, Error = LinkError>>(pin: &Path) -> io::Result<L> {
    let link = PinnedLink::from_pin(pin).map_err(io::Error::other)?;
    L::try_from(FdLink::from(link)).map_err(io::Error::other)
}

fn unpin(pin: &Path) {
    if let Err(error) = detach::pinned_link(pin) {
        log::warn!("{}: {error}", pin.display());
    }
}

/// The kernel's own error inside aya's, or aya's as it is.
pub(super) fn os_error(error: &ProgramError) -> io::Error {
    errno(error).and_then(io::Error::raw_os_error).map_or_else(
        || io::Error::other(error.to_string()),
        io::Error::from_raw_os_error,
    )
}

fn tc_os_error(error: &TcError) -> io::Error {
    match error {
        TcError::NetlinkError(e) => e.raw_os_error().map_or_else(
            || io::Error::other(e.to_string()),
            io::Error::from_raw_os_error,
        ),
        other => io::Error::other(other.to_string()),
    }
}

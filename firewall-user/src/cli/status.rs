//! `pinhole status`.

use std::process::ExitCode;

use anyhow::Context as _;
use firewall_common::abi::{Config, Iface, config_flags, heartbeat, iface_flags, table_full};
use serde::Serialize;

use super::{
    args::{ListArgs, Output},
    stats,
};
use crate::{
    bpf::{
        Instance, claim,
        detach::{self, tcx_pin, xdp_pin},
        maps::Pinned,
        memory, text,
    },
    fast::{self, Off},
    lock,
    netlink::route::{self, Link},
    preflight,
    render::{self, CollectorView, FastView, Ink, Now, Paint, Table, TableView},
};

/// What `status` shows; its fields are the JSON.
#[derive(Debug, Serialize)]
struct StatusView {
    instance: String,
    /// "host" or "gateway".
    mode: &'static str,
    /// Does every packet pass, whatever the policy says?
    shadow: bool,
    /// "on", or why there is none: "host", "policy", "shadow".
    fast_path: &'static str,
    kernel: String,
    /// Is this the network namespace that it guards?
    here: bool,
    agent: AgentView,
    confirm: ConfirmView,
    interfaces: Vec<IfaceView>,
    flows: Vec<TierView>,
    /// What a new flow meets while a class of them is at its limit.
    table_full: &'static str,
    tables: Vec<TableView>,
    collector: CollectorView,
    memory: MemoryView,
    rules: u32,
}

#[derive(Debug, Serialize)]
struct MemoryView {
    /// What the kernel says that the tables and the ring take.
    kernel_bytes: u64,
}

#[derive(Debug, Serialize)]
struct AgentView {
    alive: bool,
    pid: Option<u64>,
    /// Since its last sign of life.
    heartbeat_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct ConfirmView {
    pending: bool,
    /// Until everything is detached.
    left_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct IfaceView {
    name: String,
    index: u32,
    zone: String,
    trusted: bool,
    /// Do its packets have an Ethernet header?
    ethernet: bool,
    /// "native" or "generic"; `null` if the program is gone.
    xdp: Option<&'static str>,
    /// "tcx" or "clsact"; `null` if the program is gone.
    tc: Option<&'static str>,
    /// What the fast path does there; `null` if it knows nothing of it.
    fast_path: Option<FastView>,
}

#[derive(Debug, Serialize)]
struct TierView {
    family: &'static str,
    kind: &'static str,
    count: u64,
    limit: u32,
}

/// Prints what is attached where, and whether the agent lives.
///
/// # Errors
/// Nothing attached, or the maps cannot be read.
pub(super) fn run(instance: &Instance, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let view = view(instance)?;
    match args.output {
        Output::Json => render::json(&view)?,
        Output::Table => render::print(&draw(&view))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn view(instance: &Instance) -> anyhow::Result<StatusView> {
    let pinned = Pinned::open(instance)?;
    let config = pinned.config()?;
    let now = Now::read();
    let beat = pinned.heartbeat()?;
    let here = claim::netns_inode()? == beat[heartbeat::NETNS as usize];
    let deadline = pinned.control()?.confirm_deadline_ns;
    let links = if here { route::links()? } else { Vec::new() };
    let ifaces = pinned.ifaces()?.into_iter();
    let off = fast::off(&config);
    let fast_views = match off {
        None => stats::fast(&pinned, false)?,
        Some(_) => Vec::new(),
    };
    let mut interfaces: Vec<_> = ifaces
        .map(|(index, iface)| {
            let mut view = iface_view(instance, index, &iface, here.then_some(&links));
            let mut fast = fast_views.iter();
            view.fast_path = fast.find(|fast| fast.interface == view.name).cloned();
            view
        })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(StatusView {
        instance: instance.to_string(),
        mode: if config.flags & config_flags::GATEWAY != 0 {
            "gateway"
        } else {
            "host"
        },
        shadow: config.flags & config_flags::SHADOW != 0,
        fast_path: match off {
            None => "on",
            Some(Off::Host) => "host",
            Some(Off::Policy) => "policy",
            Some(Off::Shadow) => "shadow",
        },
        kernel: preflight::kernel_release()?,
        here,
        agent: agent(instance, &config, &beat, now, here),
        confirm: ConfirmView {
            pending: deadline != 0,
            left_s: (deadline != 0).then(|| now.until(deadline)),
        },
        interfaces,
        flows: tiers(&config, &pinned.tier_counts()?),
        table_full: match config.table_full {
            table_full::DROP => "drop",
            table_full::PASS => "pass",
            _ => "track-unprotected",
        },
        tables: stats::tables(&pinned, now)?,
        collector: CollectorView::new(&pinned.collector()?, now),
        memory: MemoryView {
            kernel_bytes: memory::taken(instance)
                .context("the memory of the tables cannot be read")?,
        },
        rules: config.rule_count[config.generation as usize & 1],
    })
}

fn agent(
    instance: &Instance,
    config: &Config,
    beat: &[u64; heartbeat::LEN as usize],
    now: Now,
    here: bool,
) -> AgentView {
    let at_ns = beat[heartbeat::AT_NS as usize];
    // Within its namespace the lock tells at once; from elsewhere the heartbeat.
    let alive = if here {
        lock::holder(instance).is_some()
    } else {
        now.monotonic_ns.saturating_sub(at_ns) < config.agent_stale_ns
    };
    AgentView {
        alive,
        pid: alive.then_some(beat[heartbeat::PID as usize]),
        heartbeat_s: (at_ns != 0).then(|| now.since(at_ns)),
    }
}

/// What the interface really runs; from another namespace, what is recorded.
fn iface_view(
    instance: &Instance,
    index: u32,
    iface: &Iface,
    links: Option<&Vec<Link>>,
) -> IfaceView {
    let name = text(&iface.name);
    let pinned = |pin: String| detach::pinned_program(&instance.pin(&pin)).ok().flatten();
    let has = |flag| iface.flags & flag != 0;
    let attached = links.map(|links| links.iter().find(|link| link.index == index));
    let xdp_program = pinned(xdp_pin(&name));
    let xdp = match attached {
        None => xdp_program.is_some(),
        Some(link) => link
            .and_then(|link| link.xdp)
            .is_some_and(|state| Some(state.program) == xdp_program),
    };
    let tc = if has(iface_flags::TCX) {
        pinned(tcx_pin(&name)).is_some() && attached.is_none_or(|link| link.is_some())
    } else {
        attached.is_none_or(|_| detach::has_filter(index).unwrap_or(false))
    };
    IfaceView {
        xdp: xdp.then_some(if has(iface_flags::XDP_NATIVE) {
            "native"
        } else {
            "generic"
        }),
        tc: tc.then_some(if has(iface_flags::TCX) {
            "tcx"
        } else {
            "clsact"
        }),
        fast_path: None,
        name,
        index,
        zone: text(&iface.zone_name),
        trusted: iface.trusted != 0,
        ethernet: !has(iface_flags::NO_ETHERNET),
    }
}

fn tiers(config: &Config, counts: &[u64]) -> Vec<TierView> {
    let names = [
        ("ipv4", "tcp"),
        ("ipv4", "other"),
        ("ipv6", "tcp"),
        ("ipv6", "other"),
    ];
    names
        .into_iter()
        .zip(counts.iter().zip(config.tier_limits))
        .map(|((family, kind), (&count, limit))| TierView {
            family,
            kind,
            // Below zero for a moment while counts of several CPUs meet.
            count: u64::try_from(count.cast_signed()).unwrap_or(0),
            limit,
        })
        .collect()
}

fn draw(view: &StatusView) -> String {
    let ink = Ink::of_stdout();
    let mut out = format!(
        "instance {}: {} mode, {} rules, kernel {}\n",
        view.instance, view.mode, view.rules, view.kernel
    );
    if view.shadow {
        out += "SHADOW MODE: nothing is dropped; `pinhole shadow report` says what would be, and \
                `pinhole run` without --shadow enforces the policy\n";
    }
    if !view.here {
        out += "guards another network namespace than this one\n";
    }
    out += &agent_line(&view.agent);
    if let Some(left) = view.confirm.left_s {
        out += &format!("NOT CONFIRMED: detached in {left:.0} s unless `pinhole confirm` comes\n");
    }
    out += match view.fast_path {
        "policy" => "fast path: off, as the policy says\n",
        "shadow" => "fast path: off in shadow mode\n",
        _ => "",
    };
    for tier in view.flows.iter().filter(|tier| tier.count > 0) {
        out += &format!(
            "flows: {} of {} {} over {}\n",
            tier.count, tier.limit, tier.kind, tier.family
        );
    }
    let evicted: u64 = view.tables.iter().map(|table| table.evicted).sum();
    if evicted > 0 {
        out += &format!(
            "displaced: {evicted} flows, the least used of full tables; `pinhole stats` says which\n"
        );
    }
    if view.collector.passes > 0 {
        out += &view.collector.line();
    }
    out += &format!(
        "tables: {} of kernel memory\n",
        memory::mebibytes(view.memory.kernel_bytes)
    );
    out.push('\n');
    out += &interfaces(&view.interfaces).render(ink);
    let fast: Vec<FastView> = view
        .interfaces
        .iter()
        .filter_map(|iface| iface.fast_path.clone())
        .collect();
    if !fast.is_empty() {
        let [shares, _] = render::fast(&fast);
        out.push('\n');
        out += &shares.render(ink);
    }
    out
}

fn agent_line(agent: &AgentView) -> String {
    match (agent.pid, agent.heartbeat_s) {
        (Some(pid), Some(age)) => format!("agent: pid {pid}, last sign of life {age:.1} s ago\n"),
        (_, Some(age)) => format!(
            "agent: none since {age:.0} s; the policy is in force, but no FTP data connection \
             opens: start `pinhole run` again\n"
        ),
        _ => "agent: none\n".to_owned(),
    }
}

fn interfaces(views: &[IfaceView]) -> Table {
    let mut table = Table::new(&["INTERFACE", "ZONE", "TRUSTED", "XDP", "TC"]);
    for view in views {
        let hook = |kind: Option<&str>| match kind {
            Some(kind) => (kind.to_owned(), Paint::Good),
            None => ("GONE".to_owned(), Paint::Bad),
        };
        table.row([
            (view.name.clone(), Paint::None),
            (view.zone.clone(), Paint::None),
            (
                if view.trusted { "yes" } else { "no" }.to_owned(),
                Paint::None,
            ),
            hook(view.xdp),
            hook(view.tc),
        ]);
    }
    table
}

//! `pinhole run`.

use std::{
    collections::{HashMap, HashSet},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use firewall_common::{
    abi::{Config, Iface, config_flags, iface_flags},
    time::{NS_PER_SEC, Tick},
};

use super::{
    args::{RunArgs, XdpMode},
    presence::Presence,
    progress,
    serve::{self, Host, Stop},
};
use crate::{
    bpf::{
        Instance,
        attach::{self, Attached, Wish},
        detach, fill,
        loader::{Hooks, Loaded, ProgramLog},
        maps::Pinned,
        memory, sys, text, vlan_children,
    },
    classes::Classes,
    config::{self, Compiled, GuardedIface, Tables},
    error::Usage,
    fast::{self, FastPath},
    ftp,
    helper::Settings,
    lock::AgentLock,
    netlink::route::{self, Link},
    preflight, seed,
    shadow::{self, Readmitted},
    watchdog,
};

/// Attaches, and runs the agent until it is told to stop.
///
/// # Errors
/// Everything that keeps it from attaching; nothing is half attached then.
pub(super) fn run(instance: &Instance, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut compiled = config::prepare(args.config.as_deref(), &args.ifaces, args.admit_ssh)?;
    if args.shadow {
        compiled.config.flags |= config_flags::SHADOW;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime cannot be started")?;
    let ended = runtime.block_on(attached(instance, args, compiled));
    // A look at the host that the kernel keeps waiting holds nothing up.
    runtime.shutdown_background();
    ended
}

async fn attached(
    instance: &Instance,
    args: &RunArgs,
    mut compiled: Compiled,
) -> anyhow::Result<ExitCode> {
    let kernel = preflight::system()?;
    let links = links(&compiled, args.mode)?;
    if is_gateway(&compiled) {
        preflight::no_nat()?;
    }
    // From here on a signal waits until attaching is done or undone.
    let mut stop = Stop::new()?;
    let lock = AgentLock::take(instance)?;
    let log = if args.verbose {
        ProgramLog::On
    } else {
        ProgramLog::Off
    };
    if !instance.pin_dir().exists() {
        println!("{}", tables(&compiled.tables));
    }
    let mut loaded = progress::saying("the kernel verifies the programs", || {
        Loaded::load(instance, &compiled.tables, log)
    })?;
    say_kept(&loaded);
    let guarded = renumber(&loaded, &mut compiled)?;
    let classes = Classes::of(&compiled.rules)?;
    println!("{}", rules(&compiled, &classes));
    let targets: Vec<_> = compiled.ifaces.iter().cloned().zip(links).collect();
    let confirm = Confirmation::begin(&loaded, args.confirm)?;
    println!(
        "pinhole {}, kernel {kernel}, instance {instance}, {} mode",
        env!("CARGO_PKG_VERSION"),
        if is_gateway(&compiled) {
            "gateway"
        } else {
            "host"
        }
    );
    if let Some(change) = mode_change(&mut loaded, args.shadow)? {
        println!("{change}");
    }
    let before = readmit(&loaded, &classes)?;
    let off = fast::off(&compiled.config);
    let mut fast_path = FastPath::open(instance, off, &compiled.complete_checksums)?;
    let mut hooks = loaded.hooks()?;
    let wish = Wish {
        mode: args.mode,
        tc: args.tc,
    };
    attach(
        &mut loaded,
        &mut hooks,
        &compiled,
        &classes,
        &targets,
        &guarded,
        wish,
    )?;
    // Flows can have begun under the old mode until the moment of the switch.
    match readmit(&loaded, &classes) {
        Ok(after) => say_readmitted(before, after, args.shadow),
        Err(error) => log::warn!("{error:#}"),
    }
    for line in fast_path.refresh()? {
        println!("{line}");
    }
    loaded.keep();
    if let Some(confirm) = confirm {
        confirm.keep();
    }
    let settings = (settings(&compiled), compiled.ftp.realtime);
    let presence = Presence::new(hooks, compiled, wish)?;
    let host = Host::new(instance, presence, fast_path)?;
    sys::trim_heap();
    serve::serve(
        instance,
        &lock,
        args.verbose,
        loaded,
        settings,
        host,
        &mut stop,
    )
    .await
}

/// What the operator must know of shadow mode, on or just ended.
fn mode_change(loaded: &mut Loaded, shadow: bool) -> anyhow::Result<Option<&'static str>> {
    let was = loaded
        .taken_over
        .then(|| fill::config(loaded))
        .transpose()?;
    let was_shadow = was.map(|config| config.flags & config_flags::SHADOW != 0);
    Ok(match (was_shadow, shadow) {
        (Some(false), true) => {
            Some("SHADOW MODE: the policy was enforced until now; from now on nothing is dropped")
        }
        (_, true) => Some("SHADOW MODE: nothing is dropped, whatever the policy says"),
        (Some(true), false) => Some("shadow mode ends: the policy is enforced from now on"),
        (_, false) => None,
    })
}

/// What the policy makes of the flows that an earlier shadow mode let in.
fn readmit(loaded: &Loaded, classes: &Classes<'_>) -> anyhow::Result<Readmitted> {
    if loaded.taken_over {
        shadow::readmit(loaded, classes)
    } else {
        Ok(Readmitted::default())
    }
}

fn say_readmitted(before: Readmitted, after: Readmitted, shadow: bool) {
    let admitted = before.admitted + after.admitted;
    if admitted > 0 {
        println!("{admitted} connections of shadow mode are accepted by this policy and go on");
    }
    if after.refused > 0 && !shadow {
        println!(
            "{} connections of shadow mode are refused by this policy: their packets are dropped \
             from now on",
            after.refused
        );
    }
}

fn is_gateway(compiled: &Compiled) -> bool {
    compiled.config.flags & config_flags::GATEWAY != 0
}

/// What the policy says to the helper.
fn settings(compiled: &Compiled) -> Settings {
    Settings {
        expectation_ticks: compiled.ftp.expectation_timeout.ticks(),
        per_session: compiled.ftp.max_expectations_per_session as usize,
        per_client: compiled.ftp.max_expectations_per_client as usize,
        max_expectations: compiled.tables.expectations as usize,
        max_sessions: compiled.tables.sessions as usize,
        shadow: compiled.config.flags & config_flags::SHADOW != 0,
        ftp: ftp::Config {
            active: compiled.ftp.active,
            ccc: compiled.ftp.ccc,
            // Once a process, which has one policy.
            aliases: compiled.ftp.aliases.clone().leak(),
        },
        ranges: compiled.ftp.ranges.clone().leak(),
        cut_after_ns: compiled
            .ftp
            .cut_after
            .map(|seconds| u64::from(seconds.get()) * NS_PER_SEC),
    }
}

pub(super) type Target = (GuardedIface, Link);

/// The interfaces of the policy, in its order.
fn links(compiled: &Compiled, mode: XdpMode) -> anyhow::Result<Vec<Link>> {
    let names = compiled.ifaces.iter().map(|iface| iface.name.as_str());
    let found = preflight::interfaces(names).and_then(|links| {
        if mode == XdpMode::Native {
            preflight::native(&links)?;
        }
        let zones = links.iter().zip(&compiled.ifaces);
        let zones = zones.map(|(link, iface)| (link.index, iface.zone));
        preflight::vlan_zones(&zones.collect()).map(|()| links)
    });
    found.map_err(|error| match error {
        preflight::Error::UnknownInterface { .. }
        | preflight::Error::LinkType { .. }
        | preflight::Error::NoNative { .. }
        | preflight::Error::VlanZones { .. } => Usage::new(error.to_string()).into(),
        other => anyhow::Error::from(other),
    })
}

/// What will be taken, before it is.
fn tables(tables: &Tables) -> String {
    format!(
        "tables: {} proved and {} half-open flows, {} expectations, {} sessions: {} of kernel memory",
        2 * u64::from(tables.flows),
        4 * u64::from(tables.half_open),
        tables.expectations,
        tables.sessions,
        memory::mebibytes(memory::planned(tables)),
    )
}

/// How many rules there are, and what they take.
fn rules(compiled: &Compiled, classes: &Classes<'_>) -> String {
    format!(
        "rules: {}, which compile to {}: {} of kernel memory",
        compiled.rule_names.len(),
        compiled.rules.len(),
        memory::mebibytes(memory::of_policy(classes)),
    )
}

fn say_kept(loaded: &Loaded) {
    for (table, wanted, kept) in &loaded.kept_sizes {
        log::warn!(
            "table {table} keeps its {kept} elements, not {wanted}: its flows are worth more; \
             `pinhole unload` first to change it"
        );
    }
}

/// On a take-over, zones keep the numbers that flows name them by. Returns the
/// indices of the interfaces that are guarded already.
fn renumber(loaded: &Loaded, compiled: &mut Compiled) -> anyhow::Result<HashSet<u32>> {
    if !loaded.taken_over {
        return Ok(HashSet::new());
    }
    let entries = Pinned::open(&loaded.instance)?.ifaces()?;
    let pinned: Vec<_> = entries.iter().map(|(_, iface)| *iface).collect();
    fill::renumber(compiled, &pinned);
    // The entry is written first, XDP comes last: a run that was killed in
    // between has judged nothing yet, and may have seeded nothing.
    let judged = |iface: &Iface| {
        let pin = loaded.instance.pin(&detach::xdp_pin(&text(&iface.name)));
        pin.exists()
    };
    let judged = entries.iter().filter(|(_, iface)| judged(iface));
    Ok(judged.map(|(index, _)| *index).collect())
}

fn attach(
    loaded: &mut Loaded,
    hooks: &mut Hooks,
    compiled: &Compiled,
    classes: &Classes<'_>,
    targets: &[Target],
    guarded: &HashSet<u32>,
    wish: Wish,
) -> anyhow::Result<()> {
    let config = fill::stage(loaded, compiled, classes)?;
    // Egress follows this policy from its first packet, unless another is in force.
    if guarded.is_empty() {
        fill::commit(loaded, &config)?;
    }
    let mut seeded = 0;
    let attached = attach::attach(
        hooks,
        targets,
        wish,
        loaded,
        |loaded| {
            fill::first_beat(loaded)?;
            if targets
                .iter()
                .any(|(_, link)| !guarded.contains(&link.index))
            {
                seeded += seed_flows(&loaded.instance, compiled, classes, targets, guarded)?;
            }
            Ok(())
        },
        |loaded| Ok(fill::commit(loaded, &config)?),
    )?;
    for got in &attached {
        println!("{}", describe(got, &compiled.config));
    }
    if loaded.taken_over {
        println!("taken over from an earlier run, with its flows");
    }
    if seeded > 0 {
        println!("{seeded} existing connections go on");
    }
    Ok(())
}

/// Writes the connections that are known beside pinhole, on interfaces that are not `guarded`
/// yet. Returns how many.
pub(super) fn seed_flows(
    instance: &Instance,
    compiled: &Compiled,
    classes: &Classes<'_>,
    targets: &[Target],
    guarded: &HashSet<u32>,
) -> Result<usize, attach::Error> {
    let iface = |(iface, link): &Target| {
        let known = seed::Guarded {
            zone: iface.zone,
            trusted: iface.trusted,
            fresh: !guarded.contains(&link.index),
        };
        (link.index, known)
    };
    let mut ifaces: HashMap<_, _> = targets.iter().map(iface).collect();
    let links = route::links().map_err(|e| attach::Error::Seed(e.to_string()))?;
    for (child, parent) in vlan_children::find(&links, |index| ifaces.contains_key(&index)) {
        ifaces.extend(
            ifaces
                .get(&parent)
                .copied()
                .map(|known| (child.index, known)),
        );
    }
    let policy = seed::Policy {
        config: &compiled.config,
        rules: classes,
        ifaces,
    };
    let seeds = seed::collect(&policy, Tick::from_ns(sys::monotonic_ns()))
        .map_err(|e| attach::Error::Seed(e.to_string()))?;
    let written = seed::write(instance, &seeds, compiled.config.tier_limits)?;
    if written < seeds.len() {
        log::debug!(
            "{written} of {} connections seeded: the others were known already",
            seeds.len()
        );
    }
    Ok(written)
}

/// `eth0: zone outside, XDP native, TC TCX`.
pub(super) fn describe(got: &Attached, config: &Config) -> String {
    let has = |flag| got.iface.flags & flag != 0;
    let mode = if has(iface_flags::XDP_NATIVE) {
        match &got.queues {
            // Nothing else is sent by XDP.
            Some(lack) if config.flags & config_flags::FAST_PATH != 0 => format!("native ({lack})"),
            _ => "native".to_owned(),
        }
    } else {
        match &got.native_refused {
            Some(reason) => format!("generic (the driver refuses native: {reason})"),
            None if has(iface_flags::NO_ETHERNET) => "generic (no Ethernet header)".to_owned(),
            None => "generic".to_owned(),
        }
    };
    let tc = if has(iface_flags::TCX) {
        "TCX"
    } else {
        "clsact"
    };
    let (name, zone) = (text(&got.iface.name), text(&got.iface.zone_name));
    format!("{name}: zone {zone}, XDP {mode}, TC {tc}")
}

/// The deadline of `--confirm`, and the process that watches it. Dropped before
/// [`Confirmation::keep`], it puts the earlier deadline back.
struct Confirmation {
    instance: Instance,
    before: u64,
    restore: bool,
}

impl Confirmation {
    /// Before anything is attached, so that no death of this process is too early.
    fn begin(loaded: &Loaded, time: Option<Duration>) -> anyhow::Result<Option<Self>> {
        let Some(time) = time else {
            return Ok(None);
        };
        let instance = loaded.instance.clone();
        let before = Pinned::open(&instance)?.control()?.confirm_deadline_ns;
        let deadline = sys::monotonic_ns() + time.as_nanos() as u64;
        fill::set_deadline(&instance, deadline)?;
        let this = Self {
            before,
            restore: true,
            instance,
        };
        watchdog::spawn(&this.instance, deadline).context(
            "the watchdog that undoes an unconfirmed attachment cannot be started; \
             free some memory or processes, or leave out --confirm",
        )?;
        Ok(Some(this))
    }

    fn keep(mut self) {
        self.restore = false;
    }
}

impl Drop for Confirmation {
    fn drop(&mut self) {
        if !self.restore {
            return;
        }
        if let Err(error) = fill::set_deadline(&self.instance, self.before) {
            log::warn!("the earlier time to confirm is not restored: {error}");
            return;
        }
        // The watchdog of the earlier deadline may have seen another, and gone.
        if self.before != 0
            && let Err(error) = watchdog::spawn(&self.instance, self.before)
        {
            log::warn!(
                "the watchdog of the earlier time to confirm cannot be started: {error}; when \
                 that time is over everything passes, but stays attached until `{}`",
                self.instance.command("unload")
            );
        }
    }
}

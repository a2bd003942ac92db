//! Packets through, or into, the machine in the middle: pinhole and its peers in turns.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};

use super::{
    Bench, TIME,
    field::{Field, Mode, data, opening},
    metric::Metric,
    talk,
    traffic::{Amount, Flows, Proto, cpus},
};
use crate::lab::Family;

/// Room for the flows of loads that make new ones.
const FRESH: u32 = 1 << 18;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Load {
    /// Packets of so many established flows.
    Established(Wire, u32),
    /// Each packet is the first of a flow.
    New(Wire),
    /// TCP handshakes.
    Handshakes,
    /// TCP connections from the SYN to the last ACK, with four segments each way.
    Connections,
    /// Five SYNs from new sources to each packet of a thousand established flows.
    Flood,
}

/// Family and protocol, as it is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wire {
    /// UDP over IPv4.
    Udp4,
    /// TCP over IPv4.
    Tcp4,
    /// UDP over IPv6.
    Udp6,
    /// TCP over IPv6.
    Tcp6,
}

impl Wire {
    const ALL: [Self; 4] = [Self::Udp4, Self::Tcp4, Self::Udp6, Self::Tcp6];

    const fn what(self) -> (Family, Proto) {
        match self {
            Self::Udp4 => (Family::V4, Proto::Udp),
            Self::Tcp4 => (Family::V4, Proto::Tcp),
            Self::Udp6 => (Family::V6, Proto::Udp),
            Self::Tcp6 => (Family::V6, Proto::Tcp),
        }
    }

    /// UDP over IPv4 goes without saying.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Udp4 => "",
            Self::Tcp4 => "_tcp",
            Self::Udp6 => "_v6",
            Self::Tcp6 => "_tcp_v6",
        }
    }
}

impl Load {
    /// Part of ids.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Established(wire, flows) => format!("est_{}{}", size(flows), wire.suffix()),
            Self::New(wire) => format!("new{}", wire.suffix()),
            Self::Handshakes => "handshakes".to_owned(),
            Self::Connections => "connections".to_owned(),
            Self::Flood => "flood".to_owned(),
        }
    }

    /// Flows for which there must be room at once, of one protocol.
    const fn room(self) -> u32 {
        match self {
            Self::Established(_, flows) => flows,
            _ => FRESH,
        }
    }
}

fn size(flows: u32) -> String {
    match flows {
        flows if flows >= 1 << 20 => format!("{}m", flows >> 20),
        flows if flows >= 1 << 10 => format!("{}k", flows >> 10),
        flows => flows.to_string(),
    }
}

/// What becomes of the samples.
#[derive(Clone, Debug)]
struct Figure {
    id: String,
    load: Load,
    of: Mode,
    kind: Kind,
}

/// What a figure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Packets per CPU.
    Rate,
    /// Of the packets of another mode.
    Ratio(Mode),
    /// CPU time of a packet.
    Cost,
    /// Connections per CPU, of so many packets each.
    Connections(u32),
}

/// Sizes that share one set of fields, and how much of every load they are tried with.
const GROUPS: [(&[u32], &[Wire]); 3] = [
    (&[1, 1 << 10, 1 << 15], &Wire::ALL),
    (&[1 << 18], &[Wire::Udp4, Wire::Tcp4, Wire::Udp6]),
    (&[1 << 20], &[Wire::Udp4, Wire::Tcp4]),
];

const ROUTED: [Mode; 5] = [
    Mode::Ceiling,
    Mode::Forward,
    Mode::Nft,
    Mode::Pass,
    Mode::Fast,
];
const HOST: [Mode; 3] = [Mode::HostOpen, Mode::HostNft, Mode::HostPinhole];

/// Everything of this file, in the sets that are run together.
fn figures() -> Vec<Vec<Figure>> {
    let mut sets: Vec<Vec<Figure>> = Vec::new();
    for (sizes, wires) in GROUPS {
        let loads = wires.iter().flat_map(|&wire| {
            sizes
                .iter()
                .map(move |&flows| Load::Established(wire, flows))
        });
        let mut set: Vec<Figure> = loads.flat_map(|load| all_of(load, &ROUTED)).collect();
        if sizes.contains(&1024) {
            set.extend(all_of(Load::Established(Wire::Udp4, KEPT), &[Mode::NftFtp]));
            set.extend(all_of(Load::Established(Wire::Tcp4, KEPT), &[Mode::NftFtp]));
        }
        sets.push(set);
    }
    let tracked = [Mode::Forward, Mode::Nft, Mode::Pass, Mode::Fast];
    let mut fresh = Vec::new();
    for load in [
        Load::New(Wire::Udp4),
        Load::New(Wire::Tcp4),
        Load::New(Wire::Udp6),
        Load::Handshakes,
        Load::Connections,
        Load::Flood,
    ] {
        fresh.extend(all_of(load, &tracked));
    }
    fresh.extend(all_of(Load::New(Wire::Udp4), &[Mode::Insert]));
    fresh.push(Figure {
        id: "insert_new_vs_nft".to_owned(),
        load: Load::New(Wire::Udp4),
        of: Mode::Insert,
        kind: Kind::Ratio(Mode::Nft),
    });
    sets.push(fresh);
    sets.push(all_of(Load::Established(Wire::Udp4, KEPT), &HOST));
    sets
}

/// The rate of each mode under a load, and what is asked for that follows from it.
fn all_of(load: Load, modes: &[Mode]) -> Vec<Figure> {
    let name = load.name();
    let figure = |id, of, kind| Figure { id, load, of, kind };
    let mut figures = Vec::new();
    for &of in modes {
        let mode = of.name();
        figures.push(figure(format!("mpps_{mode}_{name}"), of, Kind::Rate));
        match load {
            Load::Established(Wire::Udp4 | Wire::Tcp4, KEPT) => {
                figures.push(figure(format!("cpu_ns_{mode}_{name}"), of, Kind::Cost));
            }
            Load::Handshakes => {
                let kind = Kind::Connections(opening(Proto::Tcp).len() as u32);
                figures.push(figure(format!("connections_s_{mode}"), of, kind));
            }
            _ => {}
        }
        for &by in modes {
            figures.extend(ratio(load, of, by).map(|id| figure(id, of, Kind::Ratio(by))));
        }
    }
    figures
}

/// Of which packets the CPU time is told, too.
const KEPT: u32 = 1 << 10;

/// The ratio of two modes that is of interest.
fn ratio(load: Load, of: Mode, by: Mode) -> Option<String> {
    let name = load.name();
    Some(match (of, by, load) {
        (Mode::Fast, Mode::Nft, Load::New(wire)) => format!("new_flows{}_vs_nft", wire.suffix()),
        (Mode::Fast, Mode::Nft, Load::Established(..)) => format!("fwd_{name}_vs_nft"),
        (Mode::Fast, Mode::Nft, _) => format!("{name}_vs_nft"),
        (Mode::Fast, Mode::Ceiling, _) => format!("fwd_{name}_vs_ceiling"),
        (Mode::Pass, Mode::Nft, Load::Established(..)) => format!("pass_{name}_vs_nft"),
        (Mode::HostPinhole, Mode::HostNft, _) => format!("host_{name}_vs_nft"),
        _ => return None,
    })
}

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    figures()
        .into_iter()
        .flatten()
        .map(|figure| figure.id)
        .collect()
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails, or no packets come out.
pub fn run(bench: &mut Bench) -> Result<()> {
    for set in figures() {
        let set: Vec<Figure> = set
            .into_iter()
            .filter(|figure| bench.wants(&figure.id))
            .collect();
        if !set.is_empty() {
            let ids: Vec<String> = set.iter().map(|figure| figure.id.clone()).collect();
            let done = measure(bench, &set);
            bench.or_missing(&ids, done);
        }
    }
    Ok(())
}

type Samples = BTreeMap<(Load, Mode), Vec<f64>>;

fn measure(bench: &mut Bench, set: &[Figure]) -> Result<()> {
    let pairs: BTreeSet<(Load, Mode)> = set
        .iter()
        .flat_map(|figure| {
            let by = match figure.kind {
                Kind::Ratio(by) => Some(by),
                _ => None,
            };
            let modes = [Some(figure.of), by].into_iter().flatten();
            modes.map(|mode| (figure.load, mode))
        })
        .collect();
    let modes: BTreeSet<Mode> = pairs.iter().map(|&(_, mode)| mode).collect();
    let room = pairs.iter().map(|(load, _)| load.room()).max().unwrap_or(1);
    let mut fields = BTreeMap::new();
    for mode in modes {
        bench.say(&format!("setting up: {}", mode.title()));
        let field = Field::new(mode, room).with_context(|| mode.title())?;
        fields.insert(mode, field);
    }
    let mut samples = Samples::new();
    let loads: BTreeSet<Load> = pairs.iter().map(|&(load, _)| load).collect();
    let mut lost = Vec::new();
    for load in loads {
        let modes: Vec<Mode> = pairs
            .iter()
            .filter(|(of, _)| *of == load)
            .map(|&(_, mode)| mode)
            .collect();
        for mode in &modes {
            let field = fields.get_mut(mode).context("no field")?;
            bench.say(&format!("{}: {}", load.name(), mode.title()));
            prepare(field, load).with_context(|| mode.title())?;
        }
        // The first round warms up, and is not counted.
        for round in 0..=bench.runs {
            bench.say(&format!("{}: round {round} of {}", load.name(), bench.runs));
            for &mode in &modes {
                let field = fields.get_mut(&mode).context("no field")?;
                let (mpps, share) = sample(field, load).with_context(|| mode.title())?;
                if round > 0 {
                    samples.entry((load, mode)).or_default().push(mpps);
                    if share < 0.9 {
                        lost.push((load, mode, share));
                    }
                }
            }
        }
    }
    for figure in set {
        bench.add(result(figure, &samples, &lost));
    }
    Ok(())
}

fn result(figure: &Figure, samples: &Samples, lost: &[(Load, Mode, f64)]) -> Metric {
    let of = |mode: Mode| {
        samples
            .get(&(figure.load, mode))
            .cloned()
            .unwrap_or_default()
    };
    let each = |change: &dyn Fn(f64) -> f64| -> Vec<f64> {
        of(figure.of).into_iter().map(change).collect()
    };
    let mut metric = match figure.kind {
        Kind::Rate => Metric::of(&figure.id, "Mpps/core", &of(figure.of)),
        Kind::Ratio(by) => {
            let (upper, lower) = (of(figure.of), of(by));
            let ratios = upper.iter().zip(&lower).map(|(upper, lower)| upper / lower);
            Metric::of(&figure.id, "x", &ratios.collect::<Vec<_>>())
        }
        Kind::Cost => Metric::of(&figure.id, "ns", &each(&|mpps| 1000.0 / mpps)),
        Kind::Connections(packets) => {
            let each = each(&|mpps| mpps * 1e6 / f64::from(packets));
            Metric::of(&figure.id, "1/s/core", &each)
        }
    };
    let shares = lost
        .iter()
        .filter(|(load, mode, _)| *load == figure.load && *mode == figure.of)
        .map(|(_, _, share)| *share);
    if let Some(least) = shares.reduce(f64::min) {
        metric = metric.noted(format!("only {:.1} % came out", least * 100.0));
    }
    metric
}

fn prepare(field: &mut Field, load: Load) -> Result<()> {
    match load {
        Load::Established(wire, flows) => field.establish(wire.what(), flows),
        Load::Flood => field.establish(Wire::Udp4.what(), talk::LIVE),
        Load::New(_) | Load::Handshakes | Load::Connections => Ok(()),
    }
}

/// Packets that came out per µs of CPU, and the share that did.
fn sample(field: &mut Field, load: Load) -> Result<(f64, f64)> {
    let cpus = cpus();
    let rate = match load {
        Load::Established(wire, flows) => {
            // One flow is on one CPU.
            let amount = Amount::For(TIME, cpus.min(flows));
            field.rate(wire.what(), &data(), Flows::Of(flows), amount)?
        }
        Load::New(wire) => {
            let packet = opening(wire.what().1)[0];
            let fresh = Flows::From(field.take_fresh(1 << 22));
            field.rate(wire.what(), &packet, fresh, Amount::For(TIME, cpus))?
        }
        Load::Handshakes => talk::handshakes(field, TIME)?,
        Load::Connections => talk::connections(field, TIME)?,
        Load::Flood => talk::flood(field, TIME)?,
    };
    Ok((rate.mpps, rate.share))
}

//! Packets through, or into, the machine in the middle: pinhole and its peers in turns.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{
    Bench, TIME, TURNS,
    field::{Field, Mode, Rate, data, opening},
    metric::Metric,
    stand::Stand,
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
    /// The same over UDP, with as much room for new flows in pinhole's tables as the kernel has.
    NewWithRoom,
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
            Self::NewWithRoom => "new_with_room".to_owned(),
            Self::Handshakes => "handshakes".to_owned(),
            Self::Connections => "connections".to_owned(),
            Self::Flood => "flood".to_owned(),
        }
    }

    /// Flows for which there must be room at once, of one protocol.
    ///
    /// None of what is only begun has to stay in pinhole's tables, which have the sizes
    /// then that they have by default. The kernel keeps them all.
    pub(super) const fn room(self, mode: Mode) -> u32 {
        match self {
            Self::Established(_, flows) => flows,
            Self::New(_) if mode.is_pinhole() => 0,
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

pub(super) const ROUTED: [Mode; 5] = [
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
            for flows in [KEPT, 1 << 15] {
                let load = Load::Established(Wire::Udp4, flows);
                set.extend(all_of(load, &[Mode::Lookup]));
                set.push(Figure {
                    id: format!("lookup_{}_vs_ceiling", load.name()),
                    load,
                    of: Mode::Lookup,
                    kind: Kind::Ratio(Mode::Ceiling),
                });
            }
        }
        sets.push(set);
    }
    let tracked = [Mode::Forward, Mode::Nft, Mode::Pass, Mode::Fast];
    let whole = [Load::Handshakes, Load::Connections, Load::Flood];
    let mut whole: Vec<Figure> = whole
        .iter()
        .flat_map(|&load| all_of(load, &tracked))
        .collect();
    whole.push(Figure {
        id: "new_flows_with_room_vs_nft".to_owned(),
        load: Load::NewWithRoom,
        of: Mode::Fast,
        kind: Kind::Ratio(Mode::Nft),
    });
    sets.push(whole);
    let fresh = [Wire::Udp4, Wire::Tcp4, Wire::Udp6].map(Load::New);
    let mut fresh: Vec<Figure> = fresh
        .iter()
        .flat_map(|&load| all_of(load, &tracked))
        .collect();
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
                figures.push(figure(format!("handshakes_s_{mode}"), of, kind));
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
        // What the former would be if pinhole cost nothing.
        (Mode::Forward, Mode::Nft, Load::Established(_, KEPT)) => format!("open_{name}_vs_nft"),
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

/// Measures what is wanted. What fails is a result without a value.
///
/// # Errors
/// None.
pub fn run(bench: &mut Bench) -> Result<()> {
    for set in figures() {
        let is_wanted = |figure: &Figure| bench.wants(&figure.id);
        let set: Vec<Figure> = set.into_iter().filter(is_wanted).collect();
        if !set.is_empty() {
            measure(bench, &set)?;
        }
    }
    Ok(())
}

fn measure(bench: &mut Bench, set: &[Figure]) -> Result<()> {
    let pairs: BTreeSet<(Load, Mode)> = set.iter().flat_map(Figure::pairs).collect();
    let stand = Stand::measured(bench, &pairs)?;
    for figure in set {
        bench.add(figure.result(&stand));
    }
    Ok(())
}

impl Figure {
    /// What it needs.
    fn pairs(&self) -> Vec<(Load, Mode)> {
        let by = match self.kind {
            Kind::Ratio(by) => Some(by),
            _ => None,
        };
        let modes = [Some(self.of), by].into_iter().flatten();
        modes.map(|mode| (self.load, mode)).collect()
    }

    fn result(&self, stand: &Stand) -> Metric {
        let pairs = self.pairs();
        if let Some(why) = pairs.iter().find_map(|pair| stand.failure(*pair)) {
            return Metric::missing(&self.id, self.unit(), why);
        }
        let each: Vec<Vec<f64>> = pairs.iter().map(|pair| stand.mpps(*pair)).collect();
        let values: Vec<f64> = match (self.kind, each.as_slice()) {
            (Kind::Ratio(_), [own, other]) => {
                own.iter().zip(other).map(|(own, by)| own / by).collect()
            }
            (Kind::Cost, [mpps, ..]) => mpps.iter().map(|mpps| 1000.0 / mpps).collect(),
            (Kind::Connections(packets), [mpps, ..]) => mpps
                .iter()
                .map(|mpps| mpps * 1e6 / f64::from(packets))
                .collect(),
            (_, each) => each.concat(),
        };
        let metric = Metric::of(&self.id, self.unit(), &values);
        let notes = pairs.into_iter().filter_map(|pair| stand.loss(pair));
        match notes.collect::<Vec<_>>() {
            notes if notes.is_empty() => metric,
            notes => metric.noted(notes.join("; ")),
        }
    }

    const fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Rate => "Mpps/core",
            Kind::Ratio(_) => "x",
            Kind::Cost => "ns",
            Kind::Connections(_) => "1/s/core",
        }
    }
}

impl Load {
    /// What must be there before it.
    pub(super) fn prepare(self, field: &mut Field) -> Result<()> {
        match self {
            Self::Established(wire, flows) => field.establish(wire.what(), flows),
            Self::Flood => field.establish(Wire::Udp4.what(), talk::LIVE),
            Self::New(_) | Self::NewWithRoom | Self::Handshakes | Self::Connections => Ok(()),
        }
    }

    /// One turn of it.
    pub(super) fn sample(self, field: &mut Field) -> Result<Rate> {
        let (cpus, time) = (cpus(), TIME / TURNS);
        match self {
            Self::Established(wire, flows) => {
                // One flow is on one CPU.
                let amount = Amount::For(time, cpus.min(flows));
                field.rate(wire.what(), &data(), Flows::Of(flows), amount)
            }
            Self::New(wire) => {
                field.forget()?;
                let packet = opening(wire.what().1)[0];
                let fresh = Flows::From(field.take_fresh(1 << 20));
                field.rate(wire.what(), &packet, fresh, Amount::For(time, cpus))
            }
            Self::NewWithRoom => Self::New(Wire::Udp4).sample(field),
            Self::Handshakes => {
                field.forget()?;
                talk::handshakes(field, time)
            }
            Self::Connections => {
                field.forget()?;
                talk::connections(field, time)
            }
            Self::Flood => {
                field.forget()?;
                self.prepare(field)?;
                talk::flood(field, time)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(packets: u64, out: u64) -> Rate {
        Rate {
            packets,
            cpu_ns: 1000,
            out: [10, out],
        }
    }

    #[test]
    fn a_failure_is_of_what_needs_it_alone() {
        let load = Load::Established(Wire::Tcp4, KEPT);
        let of = |mode| (load, mode);
        let samples = [
            (of(Mode::Ceiling), rate(4, 10)),
            (of(Mode::Fast), rate(3, 10)),
            (of(Mode::Pass), rate(1, 8)),
        ];
        let stand = Stand::with(&samples, &[(of(Mode::Nft), "no room")]);
        let figures = all_of(load, &ROUTED[2..]);
        let result = |id: &str| {
            let figure = figures.iter().find(|figure| figure.id == id).unwrap();
            let metric = figure.result(&stand);
            (metric.value, metric.note)
        };
        let failed = (None, Some("no room".to_owned()));
        assert_eq!(result("mpps_nft_est_1k_tcp"), failed);
        assert_eq!(result("fwd_est_1k_tcp_vs_nft"), failed);
        assert_eq!(result("mpps_fwd_est_1k_tcp"), (Some(3.0), None));
        let lossy = Some("pinhole, kernel forward: only 80.0 % came out".to_owned());
        assert_eq!(result("mpps_pass_est_1k_tcp"), (Some(1.0), lossy));
    }
}

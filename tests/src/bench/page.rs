//! `docs/benchmark.md`: the results with what one must know to read them. Every figure in
//! it is one of the results.

use super::{
    bounds,
    field::Mode,
    forward::ROUTED,
    metric::{self, Metric, range, show},
    plot,
    report::{RESULTS, Report},
};

/// A chart with its table: rates of firewalls, by load.
pub(super) struct Chart {
    /// Heading.
    title: &'static str,
    /// What one must know to read it.
    text: &'static str,
    /// Name of the SVG.
    pub(super) file: &'static str,
    /// Loads as columns: heading, and that part of the ids.
    loads: &'static [(&'static str, &'static str)],
    modes: &'static [Mode],
}

/// What is before the mode in the ids of rates.
const RATE: &str = "mpps_";

const CHARTS: [Chart; 5] = [
    Chart {
        title: "Established flows: UDP over IPv4",
        text: "By the number of flows, whose packets come in turns.",
        file: "benchmark-established.svg",
        loads: &[
            ("1 flow", "est_1"),
            ("1k", "est_1k"),
            ("32k", "est_32k"),
            ("256k", "est_256k"),
            ("1M", "est_1m"),
        ],
        modes: &ROUTED,
    },
    Chart {
        title: "Established flows: TCP over IPv4",
        text: "Data segments within the window, which both firewalls check.",
        file: "benchmark-established-tcp.svg",
        loads: &[
            ("1 flow", "est_1_tcp"),
            ("1k", "est_1k_tcp"),
            ("32k", "est_32k_tcp"),
            ("256k", "est_256k_tcp"),
            ("1M", "est_1m_tcp"),
        ],
        modes: &ROUTED,
    },
    Chart {
        title: "Established flows: UDP over IPv6",
        text: "As above, in frames of 80 bytes.",
        file: "benchmark-established-v6.svg",
        loads: &[
            ("1 flow", "est_1_v6"),
            ("1k", "est_1k_v6"),
            ("32k", "est_32k_v6"),
            ("256k", "est_256k_v6"),
        ],
        modes: &ROUTED,
    },
    Chart {
        title: "Established flows: TCP over IPv6",
        text: "As above.",
        file: "benchmark-established-tcp-v6.svg",
        loads: &[
            ("1 flow", "est_1_tcp_v6"),
            ("1k", "est_1k_tcp_v6"),
            ("32k", "est_32k_tcp_v6"),
        ],
        modes: &ROUTED,
    },
    Chart {
        title: "New flows, connections, a flood",
        text: "*New*: every packet is the first of a flow. *Handshakes*: SYN, SYN-ACK, ACK, and \
               nothing else. *Connections*: the same, four segments each way, and both FINs. \
               *Flood*: five SYNs from ever new sources to each packet of a thousand established \
               flows; all packets count.",
        file: "benchmark-new.svg",
        loads: &[
            ("new UDP", "new"),
            ("new TCP", "new_tcp"),
            ("new UDP, IPv6", "new_v6"),
            ("handshakes", "handshakes"),
            ("connections", "connections"),
            ("flood", "flood"),
        ],
        modes: &[
            Mode::Insert,
            Mode::Forward,
            Mode::Nft,
            Mode::Pass,
            Mode::Fast,
        ],
    },
];

/// A part with figures and no chart: heading, what its ids begin with, and what to know.
const PARTS: [(&str, &[&str], &str); 9] = [
    (
        "Compared",
        &["fwd_", "pass_", "open_", "lookup_", "mpps_lookup_"],
        "Ratios of rates under established flows: `fwd` is pinhole with its fast path, `pass` \
         pinhole with the kernel forwarding, `open` the kernel forwarding behind an empty XDP \
         program, `lookup` an XDP program that looks one entry up in an LRU hash and redirects.",
    ),
    (
        "New flows, compared",
        &[
            "new_flows",
            "handshakes_",
            "connections_",
            "flood_",
            "insert_",
            "rules_",
        ],
        "`fwd` of the table above against `nft`; `insert`: an XDP program that puts one entry \
         into an LRU hash and redirects. Where packets only begin flows, pinhole's tables have \
         their default sizes, and that hash has the size of its table for flows that nobody has \
         answered; the kernel's table has room for all that are begun, and is emptied before \
         each turn, while pinhole's stay full from one to the next. `with_room`: so have \
         pinhole's, of which then less is in the caches. `handshakes_s_` are handshakes a \
         second of CPU. `rules_`: how many times as long new flows take when \
         a thousand rules or more that match nothing stand before the one that does, against ten.",
    ),
    (
        "CPU time of a packet",
        &["cpu_ns_"],
        "The reciprocals of rates, generator and sink included.",
    ),
    (
        "nftables with nf_conntrack_ftp attached",
        &["mpps_nft_ftp_", "cpu_ns_nft_ftp_"],
        "Traffic that is not FTP: what the kernel's helper costs everybody else.",
    ),
    (
        "The programs alone",
        &["prog_"],
        "BPF_PROG_RUN over and over on one packet, less that of an empty program.",
    ),
    (
        "Packets for the host itself",
        &["host_", "mpps_host_", "cpu_ns_host_"],
        "No forwarding: a rule counts and drops the packets when the firewall has let them in.",
    ),
    (
        "A TCP stream",
        &["tcp_gbit_"],
        "One stream between the stacks of two namespaces, through the third.",
    ),
    (
        "FTP",
        &["ftp_"],
        "Through two firewalls: pinhole's helper at both, or nf_conntrack_ftp at both. Passive \
         transfers a second of eight sessions at once, by the clock; and how long connecting \
         a data connection takes, one after another: 99 of 100 are shorter.",
    ),
    (
        "The agent, its lists, the collector, memory",
        &["agent_", "list_", "collector_", "bytes_"],
        "With a million flows, but for the agent at rest.",
    ),
];

const HEAD: &str = "# Benchmark

`cargo xtask bench` measures pinhole against the kernel's own firewall, nftables with
nf_conntrack, on one machine and in turns.
";

const METHOD: &str = "
## How it is measured

- Three network namespaces on two veth wires, for each firewall its own. A generator in XDP
  writes 60-byte packets (80 over IPv6) of numbered flows and sends them from every core, each
  with flows of its own; at the other end a program counts what arrives, and drops it.
- A rate is packets a second *of CPU*: the time of the sending threads, with all that the
  kernel did for their packets, and of the kernel's threads that took work over. What else
  the machine does counts as little as can be. Generator, wires and sink are included in all,
  which makes every ratio smaller than that of the firewalls alone.
- Rates of packets that are compared are measured in turns of 50 ms, every other time the
  other way round; four turns are a run. What cannot be cut so short (a TCP stream, FTP, lists)
  takes turns as a whole. The first run warms up and is not counted. A value is the median of the
  runs; beside it are the smallest and the largest. A ratio is made of each run before the
  median is taken.
- The peer is nftables with the usual `ct state` rules. It is not made slower: its hash table
  is as long as the flows want, it need not verify checksums (a NIC would have), no GRO is
  spent on packets that cannot be merged, and its packets come in by way of the same empty
  XDP program as where there is no firewall, which is the cheapest way through a veth.
- *Redirect, no tracking* is the ceiling: an XDP program that changes the Ethernet addresses.
";

const IN_MACHINES: &str = "
## In virtual machines

The kernel of the figures above may have no flow tables; those of `cargo xtask vm bench` have.
Where the CPU is an emulated one (its name says so), a packet costs what its instructions cost
the emulator: the ratio is not one of speeds on hardware.
";

fn link(file: &str) -> String {
    format!("[{RESULTS}/{file}](../{RESULTS}/{file})")
}

impl Report {
    /// `docs/benchmark.md`, with what was measured in virtual machines.
    #[must_use]
    pub fn page(&self, results: &str, machines: &[(String, Self)]) -> String {
        let mut text = format!(
            "{HEAD}\n| | |\n| --- | --- |\n| measured | {} of {} |\n| machine | {}, {} CPUs, \
             Linux {} |\n| runs | {} of each measurement |\n| results | {} |\n\n\
             The same again: `cargo xtask bench --write`, on a machine that does nothing else; it \
             makes this page. `--quick` takes three runs instead of ten, `--only ID…` what is \
             named.\n",
            self.commit,
            self.date,
            self.cpu,
            self.cpus,
            self.kernel,
            self.runs,
            link(results)
        );
        text += &self.goals();
        text += METHOD;
        for chart in &CHARTS {
            text += &chart.part(self);
        }
        let mut rest: Vec<&Metric> = self.metrics.iter().collect();
        rest.retain(|metric| !CHARTS.iter().any(|chart| chart.shows(metric)));
        let mut parts = PARTS.map(|part| (part, Vec::new()));
        let mut others = Vec::new();
        for metric in rest {
            match bearer(&metric.id) {
                Some(at) => parts[at].1.push(metric),
                None => others.push(metric),
            }
        }
        for ((title, _, what), metrics) in parts {
            let said = bounds::of_part(self, title).unwrap_or_default();
            text += &part(title, &[what, &said], &metrics);
        }
        text += &part("Other figures", &[], &others);
        if !machines.is_empty() {
            text += IN_MACHINES;
        }
        for (file, report) in machines {
            text += &format!(
                "\n{}: {} of {}, Linux {}, {} CPUs ({}), {} runs:\n\n",
                link(file),
                report.commit,
                report.date,
                report.kernel,
                report.cpus,
                report.cpu,
                report.runs
            );
            let metrics: Vec<&Metric> = report.metrics.iter().collect();
            text += &figures(&metrics);
        }
        text
    }

    /// Those with a goal, and what bounds those that miss theirs.
    fn goals(&self) -> String {
        let with = metric::with_goals(&self.metrics);
        let mut text = "\n## Goals\n\n| | id | goal | value | min–max | |\n".to_owned();
        text += &("| --- ".repeat(6) + "|\n");
        for metric in &with {
            let met = match metric.met {
                Some(true) => "met",
                _ if metric.value.is_none() => "**not measured**",
                _ => "**missed**",
            };
            text += &format!(
                "| {} | `{}` | {} | {} {} | {} | {met} |\n",
                bounds::what(&metric.id),
                metric.id,
                metric.goal.as_deref().unwrap_or_default(),
                show(metric.value),
                metric.unit,
                range(metric),
            );
        }
        let missed: Vec<&Metric> = with.into_iter().filter(|m| m.met == Some(false)).collect();
        if missed.is_empty() {
            return text;
        }
        text += "\n### What bounds those that are missed\n\n";
        for metric in missed {
            let known = bounds::of(self, &metric.id).filter(|_| metric.value.is_some());
            let said = known.or_else(|| metric.note.clone());
            let said = said.unwrap_or_else(|| "Nothing that was measured tells.".to_owned());
            text += &format!("- `{}`: {said}\n", metric.id);
        }
        text
    }
}

/// The part that shows it: the one that names most of its id.
fn bearer(id: &str) -> Option<usize> {
    let named = |(_, starts, _): &(&str, &[&str], &str)| {
        let fit = starts.iter().filter(|start| id.starts_with(**start));
        fit.map(|start| start.len()).max().unwrap_or(0)
    };
    let best = (0..PARTS.len()).max_by_key(|&at| named(&PARTS[at]))?;
    (named(&PARTS[best]) > 0).then_some(best)
}

fn part(title: &str, said: &[&str], metrics: &[&Metric]) -> String {
    if metrics.is_empty() {
        return String::new();
    }
    let mut text = format!("\n## {title}\n\n");
    for said in said.iter().filter(|said| !said.is_empty()) {
        text += &format!("{said}\n\n");
    }
    text + &figures(metrics)
}

impl Chart {
    /// All that have figures, as SVG by name.
    pub(super) fn drawn(report: &Report) -> Vec<(&'static str, String)> {
        let charts = CHARTS.iter().filter_map(|chart| {
            let rows = chart.rows(report);
            let names: Vec<&str> = chart.loads.iter().map(|(name, _)| *name).collect();
            let unit = "million packets a second of one core";
            (!rows.is_empty()).then(|| (chart.file, plot::bars(chart.title, unit, &names, &rows)))
        });
        charts.collect()
    }

    /// Does its table say all of this metric?
    fn shows(&self, metric: &Metric) -> bool {
        let is_shown = |mode: &Mode| {
            let loads = self.loads.iter();
            loads
                .map(|(_, load)| id(*mode, load))
                .any(|id| id == metric.id)
        };
        metric.note.is_none() && self.modes.iter().any(is_shown)
    }

    /// Rates by load, of the modes that have any.
    fn rows(&self, report: &Report) -> Vec<(&'static str, Vec<Option<f64>>)> {
        let rows = self.modes.iter().map(|mode| {
            let rates = self.loads.iter();
            let rates = rates.map(|(_, load)| report.clean(&id(*mode, load)));
            (mode.title(), rates.collect::<Vec<_>>())
        });
        rows.filter(|row| row.1.iter().any(Option::is_some))
            .collect()
    }

    fn part(&self, report: &Report) -> String {
        let rows = self.rows(report);
        if rows.is_empty() {
            return String::new();
        }
        let names: Vec<&str> = self.loads.iter().map(|(name, _)| *name).collect();
        format!(
            "\n## {}\n\n{}\n\n![{}]({})\n\n{}",
            self.title,
            self.text,
            self.title,
            self.file,
            rates(&names, &rows)
        )
    }
}

fn id(mode: Mode, load: &str) -> String {
    format!("{RATE}{}_{load}", mode.name())
}

/// A table of whole metrics.
fn figures(metrics: &[&Metric]) -> String {
    let mut text = "| id | value | min–max | unit | |\n".to_owned();
    text += &("| --- ".repeat(5) + "|\n");
    for metric in metrics {
        text += &format!(
            "| `{}` | {} | {} | {} | {} |\n",
            metric.id,
            show(metric.value),
            range(metric),
            metric.unit,
            metric.note.as_deref().unwrap_or("").replace('|', "\\|"),
        );
    }
    text
}

/// Rates by load, and CPU time of a packet.
fn rates(names: &[&str], rows: &[(&str, Vec<Option<f64>>)]) -> String {
    let mut text = format!("| Mpps/core (ns/packet) | {} |\n", names.join(" | "));
    text += &("| --- ".repeat(names.len() + 1) + "|\n");
    for (name, rates) in rows {
        let cells = rates.iter().map(|rate| {
            rate.map_or_else(
                || "-".to_owned(),
                |mpps| format!("{} ({:.0})", show(Some(mpps)), 1000.0 / mpps),
            )
        });
        text += &format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(metrics: Vec<Metric>) -> Report {
        Report {
            kernel: "6.18".to_owned(),
            cpu: "model".to_owned(),
            cpus: 2,
            commit: "abc".to_owned(),
            date: "2026-01-02".to_owned(),
            runs: 3,
            metrics,
        }
    }

    fn page(metrics: Vec<Metric>) -> String {
        report(metrics).page("x.json", &[])
    }

    #[test]
    fn the_page_has_goals_tables_and_notes() {
        let page = page(vec![
            Metric::of("fwd_est_1k_vs_nft", "x", &[5.5, 5.0, 6.0]),
            Metric::of("mpps_nft_est_1k", "Mpps/core", &[0.5]),
            Metric::missing("rules_10k_vs_10", "x", "a | b"),
            Metric::of("something_else", "x", &[2.0]),
        ]);
        for line in [
            "| `fwd_est_1k_vs_nft` | >= 5 | 5.50 x | 5.00–6.00 | met |",
            "| - | 0.500 (2000) | - | - | - |",
            "| `rules_10k_vs_10` | - |  | x | a \\| b |",
            "- `rules_10k_vs_10`: a | b",
            "| `something_else` | 2.00 | 2.00–2.00 | x |  |",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
        assert!(!page.contains("UDP over IPv6") && !page.contains("virtual"));
    }

    #[test]
    fn virtual_machines_stand_apart() {
        let machine = Report {
            cpu: "emulated".to_owned(),
            ..report(vec![Metric::of("fwd_est_1k_vs_flowtable", "x", &[2.0])])
        };
        let page = report(vec![]).page("x.json", &[("vm-6.12.json".to_owned(), machine)]);
        let (_, beside) = page.split_once("## In virtual machines").unwrap();
        assert!(beside.contains("(../bench/results/vm-6.12.json): abc of"));
        assert!(beside.contains("(emulated)") && beside.contains("| `fwd_est_1k_vs_flowtable` |"));
    }

    #[test]
    fn what_bounds_a_goal_is_said_in_its_figures() {
        let missed = Metric::of("pass_est_1k_vs_nft", "x", &[1.1]);
        let alone = page(vec![missed.clone()]);
        assert!(alone.contains("- `pass_est_1k_vs_nft`: Nothing that was measured tells."));
        let costs = [("forward", 1200.0), ("pass", 1450.0), ("nft", 1600.0)];
        let costs =
            costs.map(|(mode, ns)| Metric::of(format!("cpu_ns_{mode}_est_1k"), "ns", &[ns]));
        let bound = Metric::of("open_est_1k_vs_nft", "x", &[1.33]);
        let page = page([vec![missed, bound], costs.to_vec()].concat());
        let said = page
            .lines()
            .find(|l| l.starts_with("- `pass_est_1k_vs_nft`"));
        let said = said.unwrap();
        assert!(said.contains("1.33") && said.contains("250 ns"), "{said}");
    }

    #[test]
    fn every_id_has_a_place() {
        for id in crate::bench::ids() {
            let metric = Metric::of(&id, "", &[]);
            let in_chart = CHARTS.iter().any(|chart| chart.shows(&metric));
            assert!(in_chart || bearer(&id).is_some(), "{id}");
        }
    }
}

//! Measures the race between data connections and the FTP helper, pinhole's and the
//! kernel's; see `docs/race.md`. `cargo xtask race` builds and starts it.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use firewall_tests::lab::{
    Family, Guard, Mode,
    pinhole::Attach,
    race::{Field, Raced, Way, fleet::Load, hold_nothing, percentile, tap::Syns},
};
use serde::Serialize;

/// Portions of a load that the firewalls take turns with.
const TURNS: usize = 10;
/// Sessions at once.
const AT_ONCE: [usize; 2] = [1, 50];

#[derive(Parser)]
struct Args {
    /// Transfers of each kind, through each firewall.
    #[arg(long, default_value_t = 10_000)]
    transfers: usize,
    /// Sessions at once, in turn.
    #[arg(long, num_args = 1.., default_values_t = AT_ONCE, value_name = "N")]
    at_once: Vec<usize>,
    /// Only through these firewalls.
    #[arg(long, num_args = 1.., value_name = "FIREWALL")]
    through: Vec<Whose>,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// Whose firewall stands at both ends.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Whose {
    /// pinhole.
    Pinhole,
    /// pinhole, but no SYN is held.
    Unheld,
    /// nf_conntrack_ftp.
    Kernel,
    /// None.
    Nobody,
}

impl Whose {
    const fn name(self) -> &'static str {
        match self {
            Self::Pinhole => "pinhole",
            Self::Unheld => "pinhole, nothing held",
            Self::Kernel => "nf_conntrack_ftp",
            Self::Nobody => "no firewall",
        }
    }
}

/// Of many values: the middle one, that below which 99 of 100 are, the largest; µs.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Spread {
    fn of(values: &mut [u64]) -> Option<Self> {
        values.sort_unstable();
        let at = |share| percentile(values, share).map(|ns| ns as f64 / 1000.0);
        Some(Self {
            p50_us: at(0.5)?,
            p99_us: at(0.99)?,
            max_us: at(1.0)?,
        })
    }
}

/// What a kind of transfers came to through one firewall.
#[derive(Default)]
struct Sum {
    transfers: usize,
    syns: Syns,
    slow: usize,
    on_two_cpus: usize,
    held: u64,
    took: Duration,
    set_up: Vec<u64>,
    usable: Vec<u64>,
}

/// The same, told.
#[derive(Serialize)]
struct Row {
    mode: &'static str,
    at_once: usize,
    firewall: &'static str,
    transfers: usize,
    /// SYNs of data connections that were sent again, by the wire.
    syns_again: usize,
    /// Data connections that took as long as a SYN that is sent again.
    slow: usize,
    /// SYNs that were held, at both firewalls together.
    held: u64,
    /// Data connections whose SYN and line were on different CPUs.
    on_two_cpus: usize,
    /// Transfers a second, after the log-in.
    rate: f64,
    /// From the opener's call to the connection.
    set_up: Option<Spread>,
    /// From the line on the wire to the pinholes written at both firewalls.
    usable: Option<Spread>,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when no SYN was sent again through pinhole.
fn measure(args: &Args) -> Result<bool> {
    let whose = [Whose::Pinhole, Whose::Unheld, Whose::Kernel, Whose::Nobody];
    let fields = whose
        .into_iter()
        .filter(|whose| args.through.is_empty() || args.through.contains(whose))
        .map(|whose| Ok((whose, field(whose)?)))
        .collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for mode in Mode::BOTH {
        for &at_once in &args.at_once {
            rows.extend(kind(args, &fields, mode, at_once)?);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", table(&rows));
    }
    let pinhole = rows.iter().filter(|r| r.firewall == Whose::Pinhole.name());
    Ok(pinhole
        .into_iter()
        .all(|row| row.syns_again == 0 && row.slow == 0 && row.transfers == args.transfers))
}

fn field(whose: Whose) -> Result<Field> {
    let guard = match whose {
        Whose::Pinhole | Whose::Unheld => Guard::Pinhole(Attach::default()),
        Whose::Kernel => Guard::Kernel,
        Whose::Nobody => Guard::Open,
    };
    let field = Field::new(Way::Routers(guard), Family::V4)?;
    if whose == Whose::Unheld {
        for firewall in field.firewalls() {
            hold_nothing(&firewall.pins())?;
        }
    }
    Ok(field)
}

/// Runs one kind of transfers through all firewalls, in turns.
fn kind(args: &Args, fields: &[(Whose, Field)], mode: Mode, at_once: usize) -> Result<Vec<Row>> {
    let mut sums: Vec<Sum> = fields.iter().map(|_| Sum::default()).collect();
    for turn in 0..TURNS {
        for ((whose, field), sum) in fields.iter().zip(&mut sums) {
            // The second before a SYN is sent again is waited for.
            let of = if *whose == Whose::Unheld { 100 } else { 1 };
            let load = Load {
                mode,
                transfers: (args.transfers / TURNS / of).max(1),
                at_once,
            };
            progress(mode, at_once, turn, *whose);
            let before = held(field)?;
            let raced = field.race(load).with_context(|| trouble(*whose, field))?;
            sum.add(&raced, held(field)? - before);
        }
    }
    let rows = fields.iter().zip(sums);
    Ok(rows
        .map(|((whose, _), sum)| sum.row(mode, at_once, *whose))
        .collect())
}

/// Whose transfer failed, and what its firewalls say that tells why.
fn trouble(whose: Whose, field: &Field) -> String {
    let mut text = whose.name().to_owned();
    for (firewall, end) in field.firewalls().iter().zip(["client's", "server's"]) {
        let Ok(stats) = firewall.stats() else {
            text += &format!("; the {end} says nothing");
            continue;
        };
        text += &format!(
            "; the {end} end: {} control segments unread because the agent gave no sign of \
             life, dropped:",
            stats.passed("blind"),
        );
        for count in stats.drop.iter().filter(|count| count.packets != 0) {
            text += &format!(" {} {}", count.packets, count.reason);
        }
    }
    text
}

fn held(field: &Field) -> Result<u64> {
    let counts = field.firewalls().iter();
    let counts = counts.map(|firewall| Ok(firewall.stats()?.dropped("held")));
    counts.sum()
}

fn progress(mode: Mode, at_once: usize, turn: usize, whose: Whose) {
    if stderr().is_terminal() {
        let (mode, whose) = (mode.name(), whose.name());
        eprint!("\r{mode}, {at_once} at once, turn {turn}: {whose:<24}");
        let _ = stderr().flush();
    }
}

impl Sum {
    fn add(&mut self, raced: &Raced, held: u64) {
        self.transfers += raced.opened.len();
        let syns = raced.sent();
        self.syns.connections += syns.connections;
        self.syns.again += syns.again;
        self.slow += raced.slow();
        self.took += raced.took;
        self.on_two_cpus += raced.on_two_cpus();
        self.held += held;
        self.set_up.extend(raced.set_up());
        self.usable.extend(raced.usable_after());
    }

    fn row(mut self, mode: Mode, at_once: usize, whose: Whose) -> Row {
        Row {
            mode: mode.name(),
            at_once,
            firewall: whose.name(),
            transfers: self.transfers.min(self.syns.connections),
            syns_again: self.syns.again,
            slow: self.slow,
            held: self.held,
            on_two_cpus: self.on_two_cpus,
            rate: self.transfers as f64 / self.took.as_secs_f64(),
            set_up: Spread::of(&mut self.set_up),
            usable: Spread::of(&mut self.usable),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let spread = |spread: &Option<Spread>| {
        spread.as_ref().map_or_else(
            || "-".to_owned(),
            |s| format!("{:.0} / {:.0} / {:.0}", s.p50_us, s.p99_us, s.max_us),
        )
    };
    let mut text = format!(
        "| mode | at once | firewall | transfers | SYNs again | held | two CPUs \
         | a second | set-up, µs (p50 / p99 / max) | pinhole usable after, µs |\n{}|\n",
        "| --- ".repeat(10)
    );
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.0} | {} | {} |\n",
            row.mode,
            row.at_once,
            row.firewall,
            row.transfers,
            row.syns_again,
            row.held,
            row.on_two_cpus,
            row.rate,
            spread(&row.set_up),
            spread(&row.usable),
        );
    }
    text
}

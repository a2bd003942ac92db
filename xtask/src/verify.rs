//! `cargo xtask verify`: what each program costs the verifiers of several kernels, held against
//! the record in `docs/verifier.tsv`.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;

use crate::{
    build, cargo_json,
    ctx::Ctx,
    harness::Lab,
    setup::{self, Series},
    vm::{self, Job},
};

const RECORD: &str = "docs/verifier.tsv";
const COLUMNS: &str = "kernel\tprogram\tas\tinstructions\tstates\tstack\n";
/// In percent; what grows by more has to be recorded on purpose.
const GROWTH: u64 = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask verify            this kernel, then 6.1 and 6.12 in virtual machines
  cargo xtask verify --here     this kernel alone
  cargo xtask verify --write    the same as the first, recorded in docs/verifier.tsv

Whatever grew by more than 10 % is an error until it is recorded with --write. A kernel
series without a record is told, and is no error.")]
pub(crate) struct Args {
    /// Leave the virtual machines out.
    #[arg(long)]
    here: bool,

    /// Record what is found.
    #[arg(long)]
    write: bool,
}

/// On this machine's kernel, then on those of the virtual machines.
pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<()> {
    let ebpf = setup::ebpf(ctx)?;
    build::object(ctx, &ebpf)?;
    let mut found = here(ctx)?;
    if !args.here {
        found.extend(machines(ctx, Series::value_variants())?);
    }
    if args.write {
        return write(ctx, found);
    }
    judge(ctx, &found)
}

/// In virtual machines alone.
pub(crate) fn on_machines(ctx: &Ctx, kernels: &[Series]) -> Result<()> {
    judge(ctx, &machines(ctx, kernels)?)
}

/// A program as it is loaded, on the kernels of one series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    kernel: Kernel,
    program: String,
    /// The subcommand that loads it so.
    way: String,
}

/// A series: `6.12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kernel(u32, u32);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cost {
    instructions: u64,
    states: u64,
    /// Bytes that each function uses, the program's own first, joined by `+`.
    stack: String,
}

type Costs = BTreeMap<Subject, Cost>;

fn here(ctx: &Ctx) -> Result<Costs> {
    let program = cargo_json::binary(ctx, vm::GUEST, false)?;
    let lab = Lab::new(ctx, &program);
    let mut command = lab.command(ctx, &program)?;
    ctx.status("Verifying", "on this machine's kernel");
    let said = ctx.capture(command.arg(Job::Verify.name()))?;
    let lines: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix(vm::MARK))
        .collect();
    costs(&lines)
}

fn machines(ctx: &Ctx, kernels: &[Series]) -> Result<Costs> {
    let mut found = Costs::new();
    for series in kernels {
        let lines = vm::lines(ctx, *series, Job::Verify)?;
        let lines = lines.with_context(|| format!("not verified on {}", series.name()))?;
        found.extend(costs(&lines)?);
    }
    Ok(found)
}

/// What the guest program said: its kernel, then one line for each program.
fn costs(lines: &[impl AsRef<str>]) -> Result<Costs> {
    let mut kernel = None;
    let mut found = Costs::new();
    for line in lines.iter().map(AsRef::as_ref) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["kernel", release] => kernel = Kernel::of(release),
            ["verified", program, way, cost @ ..] => {
                let kernel = kernel.context("no kernel was named")?;
                let cost = Cost::parse(cost).with_context(|| format!("not a cost: {line}"))?;
                let (program, way) = ((*program).to_owned(), (*way).to_owned());
                let subject = Subject {
                    kernel,
                    program,
                    way,
                };
                found.insert(subject, cost);
            }
            _ => {}
        }
    }
    if found.is_empty() {
        bail!("the guest program named no program");
    }
    Ok(found)
}

impl Kernel {
    /// `6.12.117+deb12-cloud-amd64` is of the series 6.12.
    fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self(next()?, next()?))
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}.{}", self.0, self.1))
    }
}

impl Cost {
    fn parse(words: &[&str]) -> Option<Self> {
        let [instructions, states, stack] = words else {
            return None;
        };
        Some(Self {
            instructions: instructions.parse().ok()?,
            states: states.parse().ok()?,
            stack: (*stack).to_owned(),
        })
    }

    /// The largest that a function uses.
    fn deepest(&self) -> u64 {
        let depths = self.stack.split('+').filter_map(|depth| depth.parse().ok());
        depths.max().unwrap_or(0)
    }

    /// What grew by more than it may.
    fn outgrows(&self, recorded: &Self) -> Vec<Growth> {
        let figures = [
            ("instructions", self.instructions, recorded.instructions),
            ("states", self.states, recorded.states),
            ("stack", self.deepest(), recorded.deepest()),
        ];
        let growths = figures.map(|(what, now, then)| Growth { what, then, now });
        let too_much = |growth: &Growth| growth.now * 100 > growth.then * (100 + GROWTH);
        growths.into_iter().filter(too_much).collect()
    }
}

/// One figure of a program, recorded and found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Growth {
    what: &'static str,
    then: u64,
    now: u64,
}

impl std::fmt::Display for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, then, now } = self;
        write!(f, "{what} {then} -> {now} ({})", percent(*now, *then))
    }
}

fn percent(now: u64, then: u64) -> String {
    format!("{:+.1} %", (now as f64 / then as f64 - 1.0) * 100.0)
}

/// Prints all, and fails if something grew.
fn judge(ctx: &Ctx, found: &Costs) -> Result<()> {
    let record = ctx.root().join(RECORD);
    let recorded = match fs::read_to_string(&record) {
        Ok(text) => parse(&text).with_context(|| record.display().to_string())?,
        Err(_) => Costs::new(),
    };
    // The verifier tells what each function uses, not what a chain of calls does.
    println!("instructions verified, states, and the largest stack of one function in bytes:");
    println!(
        "{:<6} {:<16} {:<5} {:>12} {:>9} {:>7}  {:>5}  record",
        "kernel", "program", "as", "instructions", "change", "states", "stack"
    );
    let mut grown = Vec::new();
    for (subject, cost) in found {
        let growths = recorded
            .get(subject)
            .map_or(Vec::new(), |then| cost.outgrows(then));
        let (change, verdict) = compare(cost, recorded.get(subject), &growths);
        if !growths.is_empty() {
            grown.push(complaint(subject, &growths));
        }
        let Subject {
            kernel,
            program,
            way,
        } = subject;
        let Cost {
            instructions,
            states,
            ..
        } = cost;
        let stack = cost.deepest();
        println!(
            "{kernel:<6} {program:<16} {way:<5} {instructions:>12} {change:>9} {states:>7} \
             {stack:>5}  {verdict}"
        );
    }
    if !grown.is_empty() {
        bail!(
            "{} of {} grew by more than {GROWTH} % over {RECORD}:\n  {}\nmake them smaller, or record \
             them with `cargo xtask verify --write`",
            grown.len(),
            found.len(),
            grown.join("\n  ")
        );
    }
    Ok(())
}

/// `pinhole_egress on 6.1 (run): states 100 -> 120 (+20.0 %)`.
fn complaint(subject: &Subject, growths: &[Growth]) -> String {
    let Subject {
        kernel,
        program,
        way,
    } = subject;
    let growths: Vec<String> = growths.iter().map(ToString::to_string).collect();
    format!("{program} on {kernel} ({way}): {}", growths.join(", "))
}

/// The change of the instructions, and what it comes to.
fn compare(cost: &Cost, recorded: Option<&Cost>, growths: &[Growth]) -> (String, String) {
    let Some(recorded) = recorded else {
        return (String::new(), "new".into());
    };
    let names: Vec<&str> = growths.iter().map(|growth| growth.what).collect();
    let verdict = if names.is_empty() {
        "ok".into()
    } else {
        format!("GREW: {}", names.join(", "))
    };
    (percent(cost.instructions, recorded.instructions), verdict)
}

/// Replaces the records of the kernels that were looked at.
fn write(ctx: &Ctx, found: Costs) -> Result<()> {
    let record = ctx.root().join(RECORD);
    let mut all = match fs::read_to_string(&record) {
        Ok(text) => parse(&text).with_context(|| record.display().to_string())?,
        Err(_) => Costs::new(),
    };
    let count = found.len();
    all.retain(|subject, _| found.keys().all(|known| known.kernel != subject.kernel));
    all.extend(found);
    ctx.write(&record, render(&all))?;
    ctx.status("Recorded", format!("{count} programs in {RECORD}"));
    Ok(())
}

fn render(costs: &Costs) -> String {
    let rows = costs.iter().map(|(subject, cost)| {
        format!(
            "{}\t{}\t{}\t{}\t{}\t{}\n",
            subject.kernel,
            subject.program,
            subject.way,
            cost.instructions,
            cost.states,
            cost.stack
        )
    });
    rows.fold(COLUMNS.to_owned(), |text, row| text + &row)
}

fn parse(record: &str) -> Result<Costs> {
    let rows = record.lines().skip(1).map(|line| {
        let row = || {
            let words: Vec<&str> = line.split('\t').collect();
            let [kernel, program, way, cost @ ..] = words.as_slice() else {
                return None;
            };
            let subject = Subject {
                kernel: Kernel::of(kernel)?,
                program: (*program).to_owned(),
                way: (*way).to_owned(),
            };
            Some((subject, Cost::parse(cost)?))
        };
        row().with_context(|| format!("not a row of the record: {line}"))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: [&str; 4] = [
        "kernel 6.12.117+deb12-cloud-amd64",
        "verified pinhole_egress run 1100 55 352+0+16",
        "verified pinhole_ctl run 10 1 8",
        "passed",
    ];

    #[test]
    fn what_is_recorded_is_read_again() -> Result<()> {
        let found = costs(&SAID)?;
        let text = render(&found);
        assert!(text.contains("6.12\tpinhole_egress\trun\t1100\t55\t352+0+16\n"));
        assert_eq!(parse(&text)?, found);
        assert!(parse("kernel\nnonsense\n").is_err());
        assert!(costs(&["passed"]).is_err());
        Ok(())
    }

    #[test]
    fn more_than_a_tenth_is_growth() {
        let cost = |instructions, states, stack: &str| Cost {
            instructions,
            states,
            stack: stack.into(),
        };
        let recorded = cost(1000, 100, "200+16");
        let grown = |now: Cost| now.outgrows(&recorded);
        let names = |now| grown(now).iter().map(|g| g.what).collect::<Vec<_>>();
        assert!(grown(cost(1100, 110, "220+99")).is_empty());
        assert_eq!(names(cost(1101, 10, "8")), ["instructions"]);
        assert_eq!(names(cost(10, 111, "8+221")), ["states", "stack"]);
        assert_eq!(compare(&recorded, None, &[]).1, "new");
        let smaller = compare(&cost(900, 1, "0"), Some(&recorded), &[]);
        assert_eq!(smaller, ("-10.0 %".into(), "ok".into()));
    }

    #[test]
    fn growth_is_told_with_program_kernel_and_both_figures() -> Result<()> {
        let found = costs(&SAID)?;
        let (subject, then) = found.iter().next_back().context("none")?;
        let now = Cost {
            instructions: 1320,
            ..then.clone()
        };
        assert_eq!(
            complaint(subject, &now.outgrows(then)),
            "pinhole_egress on 6.12 (run): instructions 1100 -> 1320 (+20.0 %)"
        );
        Ok(())
    }
}

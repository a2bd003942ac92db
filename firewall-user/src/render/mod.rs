//! Entries as tables for people and as JSON for programs.
//!
//! Each list has a view type here ([`FlowView`], [`ExpectView`], [`SessionView`],
//! [`StatsView`]): its fields are the JSON, stable, and the table is drawn from
//! the same view. Lists are arrays of objects. Addresses are text, numbers are
//! numbers, durations are seconds with a fraction under a name that ends in
//! `_s`, and what does not apply is `null`.

mod event;
mod expect;
mod explain;
mod fast;
mod flow;
mod journal;
mod now;
mod refusals;
mod session;
mod shadow;
mod stats;
mod table;
mod tables;
mod text;
mod why;

use std::{
    borrow::Borrow,
    io::{self, BufWriter, IsTerminal as _, Write},
};

use serde::{Serialize, Serializer as _, ser::SerializeSeq as _};
use serde_json::{Serializer, ser::PrettyFormatter};

pub use event::{EvictedView, FlowEventView, Line, LostView};
pub use expect::{ExpectView, ParentView};
pub use explain::{DataFateView, ExplainView, HappenedView, RemedyView};
pub use fast::{FastView, KeptView, fast};
pub(crate) use flow::state_name;
pub use flow::{FlowView, OriginalView, ReplyView, ZonesView};
pub use journal::{DataView, JournalView};
pub use now::Now;
pub use refusals::{RefusalView, refusals};
pub use session::{DropView, SessionView, SessionZonesView};
pub use shadow::{
    ConnectionView, DisagreementView, EndsView, KernelView, RefusedView, ShadowView, TalkerView,
};
pub use stats::{EventView, ReasonView, RuleView, StatsView};
pub use table::{Ink, Paint, Table};
pub use tables::{CollectorView, TableView, WitnessView, tables};
use text::{Put, endpoint, rfc3339, short_bytes, short_time};
pub use why::{DecidedView, HeadersView, WhyView, summary};

use crate::cli::args::Output;

/// A row of a list.
pub trait Row: Serialize {
    /// What the list is of, in the plural: "no flows".
    const NOUN: &str;
    /// Column headings; those that start with `>` are aligned to the right.
    const COLUMNS: &[&str];

    /// Adds the row to a table of [`Row::COLUMNS`].
    fn draw(&self, table: &mut Table);
}

/// Rows of a table that are laid out together: all of them but in a long list, whose
/// columns may become wider further down.
const BLOCK: usize = 4096;

/// Prints a list in the format asked for.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn list<R: Row>(rows: &[R], output: Output) -> anyhow::Result<()> {
    each::<R, _>(rows, output)
}

/// As [`list`], of rows that are made on the way: a long list is never held as a whole.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn each<R, I>(rows: I, output: Output) -> anyhow::Result<()>
where
    R: Row,
    I: IntoIterator<Item: Borrow<R>>,
{
    match output {
        Output::Json => json_each(rows.into_iter()),
        Output::Table => table_each(rows.into_iter()),
    }
}

fn table_each<R: Row>(rows: impl Iterator<Item: Borrow<R>>) -> anyhow::Result<()> {
    let (ink, mut table) = (Ink::of_stdout(), Table::new(R::COLUMNS));
    let (mut text, mut count) = (String::new(), 0_usize);
    for row in rows {
        row.borrow().draw(&mut table);
        count += 1;
        if count.is_multiple_of(BLOCK) {
            table.render_next(ink, &mut text);
            if !print_to_reader(&text)? {
                return Ok(());
            }
            text.clear();
        }
    }
    if count == 0 {
        eprintln!("no {}", R::NOUN);
        return Ok(());
    }
    table.render_next(ink, &mut text);
    print(&text)
}

fn json_each<R: Row>(rows: impl Iterator<Item: Borrow<R>>) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let done = write_json(rows, &mut out);
    let done = done.and_then(|()| out.write_all(b"\n").and_then(|()| out.flush()));
    is_read(done).map(drop)
}

/// An array as [`json`] has it.
fn write_json<R: Row>(
    rows: impl Iterator<Item: Borrow<R>>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut to = Serializer::with_formatter(out, PrettyFormatter::new());
    let mut array = to.serialize_seq(None)?;
    for row in rows {
        array.serialize_element(row.borrow())?;
    }
    Ok(array.end()?)
}

/// Prints one JSON document.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Writes to standard output; a reader that has gone (`| head`) is no error.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_to_reader(text).map(|_| ())
}

/// Writes to standard output at once, no part of it later; false if nobody reads
/// it any more.
///
/// # Errors
/// Those of standard output, but for a closed pipe.
pub fn print_to_reader(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    is_read(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Is there still somebody who reads what was written?
fn is_read(done: io::Result<()>) -> anyhow::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Ink {
    /// Colour on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    #[must_use]
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !refused {
            Self::Colour
        } else {
            Self::Plain
        }
    }
}

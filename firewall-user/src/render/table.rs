//! Aligned columns.

/// Colour or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Text alone.
    Plain,
    /// ANSI colours.
    Colour,
}

/// What a cell wants to say by its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paint {
    /// Nothing.
    #[default]
    None,
    /// As it should be.
    Good,
    /// Worth a look.
    Notice,
    /// Refused, dropped or gone.
    Bad,
    /// Of less importance.
    Dim,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Good => "\x1b[32m",
            Self::Notice => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
        }
    }
}

impl Ink {
    /// `text` with the colour of `paint`.
    #[must_use]
    pub fn paint(self, text: &str, paint: Paint) -> String {
        let mut out = String::new();
        painted(text, paint.code(), self, &mut out);
        out
    }
}

const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";
const GAP: &str = "  ";

/// A table under construction. What is in the cells stands in one text, one after another.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    text: String,
    cells: Vec<Cell>,
    has_headings: bool,
}

#[derive(Debug)]
struct Column {
    heading: String,
    right: bool,
    /// Of the widest cell so far.
    width: usize,
}

/// A piece of the text.
#[derive(Clone, Copy, Debug)]
struct Cell {
    bytes: u32,
    paint: Paint,
    /// Its column; [`NOTE`] for free text under a row.
    column: u8,
}

const NOTE: u8 = u8::MAX;

impl Table {
    /// A table with these headings; those that start with `>` are aligned to the right.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let column = |heading: &&str| {
            let name = heading.trim_start_matches('>');
            Column {
                heading: name.to_owned(),
                right: heading.starts_with('>'),
                width: width(name),
            }
        };
        Self {
            columns: headings.iter().map(column).collect(),
            text: String::new(),
            cells: Vec::new(),
            has_headings: false,
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = (String, Paint)>) {
        for (column, (text, paint)) in cells.into_iter().enumerate() {
            self.cell(column, paint, |out| out.push_str(&text));
        }
    }

    /// Adds a cell of a row, whose cells come in the order of the columns, from 0, and none
    /// is left out but at the end.
    pub fn cell(&mut self, column: usize, paint: Paint, put: impl FnOnce(&mut String)) {
        let from = self.text.len();
        put(&mut self.text);
        let text = self.text.get(from..).unwrap_or_default();
        if let Some(column) = self.columns.get_mut(column) {
            column.width = column.width.max(width(text));
        }
        self.push(from, paint, column as u8);
    }

    /// Adds a line of free text under the last row.
    pub fn note(&mut self, text: impl Into<String>, paint: Paint) {
        let from = self.text.len();
        self.text.push_str(&text.into());
        self.push(from, paint, NOTE);
    }

    fn push(&mut self, from: usize, paint: Paint, column: u8) {
        self.cells.push(Cell {
            bytes: (self.text.len() - from) as u32,
            paint,
            column,
        });
    }

    /// The text, headings first, each line ended.
    #[must_use]
    pub fn render(&self, ink: Ink) -> String {
        let mut out = String::new();
        self.put_headings(ink, &mut out);
        self.put_lines(ink, &mut out);
        out
    }

    /// Puts what was added since the last time behind `out`, the first time behind the
    /// headings, and forgets it. No column becomes narrower.
    pub fn render_next(&mut self, ink: Ink, out: &mut String) {
        if !self.has_headings {
            self.has_headings = true;
            self.put_headings(ink, out);
        }
        self.put_lines(ink, out);
        self.text.clear();
        self.cells.clear();
    }

    fn put_headings(&self, ink: Ink, out: &mut String) {
        let mut line = Line::begin(out, ink);
        for column in &self.columns {
            line.cell(column, &column.heading, BOLD);
        }
        line.end();
    }

    fn put_lines(&self, ink: Ink, out: &mut String) {
        let (mut rest, mut cells) = (self.text.as_str(), self.cells.iter().peekable());
        while let Some(cell) = cells.next() {
            let mut line = Line::begin(out, ink);
            let mut next = Some(cell);
            while let Some(cell) = next {
                let text;
                (text, rest) = rest.split_at(cell.bytes as usize);
                match self.columns.get(usize::from(cell.column)) {
                    Some(column) => line.cell(column, text, cell.paint.code()),
                    None => line.note(text, cell.paint.code()),
                }
                next = cells.next_if(|next| next.column != 0 && next.column != NOTE);
            }
            line.end();
        }
    }
}

/// A line behind a text.
struct Line<'a> {
    out: &'a mut String,
    ink: Ink,
    start: usize,
}

impl<'a> Line<'a> {
    const fn begin(out: &'a mut String, ink: Ink) -> Self {
        let start = out.len();
        Self { out, ink, start }
    }

    fn cell(&mut self, column: &Column, text: &str, code: &str) {
        if self.out.len() > self.start {
            self.out.push_str(GAP);
        }
        let padding = column.width.saturating_sub(width(text));
        if column.right {
            pad(self.out, padding);
        }
        painted(text, code, self.ink, self.out);
        if !column.right {
            pad(self.out, padding);
        }
    }

    fn note(&mut self, text: &str, code: &str) {
        self.out.push_str("    ");
        painted(text, code, self.ink, self.out);
    }

    fn end(self) {
        let line = self.out.get(self.start..).unwrap_or_default();
        let length = line.trim_end_matches(' ').len();
        self.out.truncate(self.start + length);
        self.out.push('\n');
    }
}

fn pad(out: &mut String, mut padding: usize) {
    const SPACES: &str = "                                ";
    while padding > 0 {
        let now = padding.min(SPACES.len());
        out.push_str(&SPACES[..now]);
        padding -= now;
    }
}

fn painted(text: &str, code: &str, ink: Ink, out: &mut String) {
    if ink == Ink::Plain || code.is_empty() || text.is_empty() {
        out.push_str(text);
    } else {
        out.extend([code, text, RESET]);
    }
}

fn width(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", ">PACKETS", "WHY"]);
        table.row([
            ("web".into(), Paint::None),
            ("7".into(), Paint::None),
            (String::new(), Paint::Bad),
        ]);
        table.note("a note", Paint::Dim);
        table.row([
            ("long-name".into(), Paint::Good),
            ("12345678".into(), Paint::None),
            ("→".into(), Paint::None),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_end_clean() {
        assert_eq!(
            table().render(Ink::Plain),
            "NAME        PACKETS  WHY\n\
             web               7\n    a note\n\
             long-name  12345678  →\n"
        );
    }

    #[test]
    fn a_long_table_goes_on_with_columns_that_only_become_wider() {
        let mut table = Table::new(&["NAME", ">N"]);
        let mut out = String::new();
        for (name, n) in [("a", "1"), ("long", "22"), ("b", "3")] {
            table.cell(0, Paint::None, |out| out.push_str(name));
            table.cell(1, Paint::None, |out| out.push_str(n));
            table.render_next(Ink::Plain, &mut out);
        }
        assert_eq!(out, "NAME  N\na     1\nlong  22\nb      3\n");
    }

    #[test]
    fn colour_changes_no_column() {
        let mut bare = table().render(Ink::Colour);
        assert!(bare.contains("\x1b[32mlong-name\x1b[0m"));
        for code in [BOLD, RESET, "\x1b[32m", "\x1b[2m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, table().render(Ink::Plain));
    }
}

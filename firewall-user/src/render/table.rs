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

/// A table under construction.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Column {
    heading: String,
    right: bool,
}

#[derive(Debug)]
enum Line {
    Cells(Vec<(String, Paint)>),
    /// Free text under a row.
    Note(String, Paint),
}

impl Table {
    /// A table with these headings; those that start with `>` are aligned to the right.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let column = |heading: &&str| Column {
            heading: heading.trim_start_matches('>').to_owned(),
            right: heading.starts_with('>'),
        };
        Self {
            columns: headings.iter().map(column).collect(),
            lines: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = (String, Paint)>) {
        self.lines.push(Line::Cells(cells.into_iter().collect()));
    }

    /// Adds a line of free text under the last row.
    pub fn note(&mut self, text: impl Into<String>, paint: Paint) {
        self.lines.push(Line::Note(text.into(), paint));
    }

    /// The text, headings first, each line ended.
    #[must_use]
    pub fn render(&self, ink: Ink) -> String {
        let widths = self.widths();
        let headings = self.columns.iter().map(|c| (c.heading.as_str(), BOLD));
        let mut out = String::new();
        self.line(headings, &widths, ink, &mut out);
        for line in &self.lines {
            match line {
                Line::Cells(cells) => {
                    let cells = cells
                        .iter()
                        .map(|(text, paint)| (text.as_str(), paint.code()));
                    self.line(cells, &widths, ink, &mut out);
                }
                Line::Note(text, paint) => {
                    out.push_str("    ");
                    painted(text, paint.code(), ink, &mut out);
                    out.push('\n');
                }
            }
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| width(&c.heading)).collect();
        for line in &self.lines {
            if let Line::Cells(cells) = line {
                for (widest, (text, _)) in widths.iter_mut().zip(cells) {
                    *widest = (*widest).max(width(text));
                }
            }
        }
        widths
    }

    fn line<'a>(
        &self,
        cells: impl Iterator<Item = (&'a str, &'a str)>,
        widths: &[usize],
        ink: Ink,
        out: &mut String,
    ) {
        let start = out.len();
        for ((column, widest), (text, code)) in self.columns.iter().zip(widths).zip(cells) {
            if out.len() > start {
                out.push_str(GAP);
            }
            let padding = " ".repeat(widest.saturating_sub(width(text)));
            if column.right {
                out.push_str(&padding);
                painted(text, code, ink, out);
            } else {
                painted(text, code, ink, out);
                out.push_str(&padding);
            }
        }
        out.truncate(start + out.get(start..).unwrap_or_default().trim_end().len());
        out.push('\n');
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
    fn colour_changes_no_column() {
        let mut bare = table().render(Ink::Colour);
        assert!(bare.contains("\x1b[32mlong-name\x1b[0m"));
        for code in [BOLD, RESET, "\x1b[32m", "\x1b[2m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, table().render(Ink::Plain));
    }
}

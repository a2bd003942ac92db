//! What is wrong with a configuration: where, what, and what to do.

use std::{fmt, ops::Range};

/// A configuration that cannot be used. Prints as
///
/// ```text
/// fw.toml:12:8: unknown zone `ouside`
///    |
/// 12 | from = "ouside"
///    |        ^^^^^^^^
///    = help: use one of: outside, host, any
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    place: Option<Place>,
    message: String,
    help: Option<String>,
}

impl std::error::Error for Error {}

/// Where in a file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    file: String,
    line: usize,
    /// In characters.
    column: usize,
    /// The offending line.
    text: String,
    /// Characters of it that are meant.
    width: usize,
}

impl Error {
    /// An error of no one line.
    pub(super) fn general(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            place: None,
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// Line and column, counted from 1, where there are any.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        let place = self.place.as_ref()?;
        Some((place.line, place.column))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut margin = 2;
        if let Some(place) = &self.place {
            write!(f, "{}:{}:{}: ", place.file, place.line, place.column)?;
            margin = place.line.to_string().len();
        }
        f.write_str(&self.message)?;
        if let Some(place) = &self.place {
            let (line, text) = (place.line, &place.text);
            let indent = " ".repeat(place.column - 1);
            let marks = "^".repeat(place.width);
            write!(f, "\n{:margin$} |\n{line} | {text}", "")?;
            write!(f, "\n{:margin$} | {indent}{marks}", "")?;
        }
        match &self.help {
            Some(help) => write!(f, "\n{:margin$} = help: {help}", ""),
            None => Ok(()),
        }
    }
}

/// A file's text, to point into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// An error at the bytes of `span`.
    pub(super) fn error(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Error {
        Error {
            place: Some(self.place(span)),
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// What the TOML parser or a type of [`super::value`] found.
    pub(super) fn parse_error(&self, error: &toml::de::Error) -> Error {
        let (message, help) = match error.message().split_once('\n') {
            Some((message, help)) => (message, Some(help)),
            None => (error.message(), general_help(error.message())),
        };
        Error {
            place: error.span().map(|span| self.place(span)),
            message: message.to_owned(),
            help: help.map(str::to_owned),
        }
    }

    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = self.text.get(line_start..).unwrap_or_default();
        let text = rest.lines().next().unwrap_or_default();
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        let meant = self.text.get(span).unwrap_or_default();
        let meant = meant.lines().next().unwrap_or_default().chars().count();
        Place {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            text: text.to_owned(),
            width: meant.max(1),
        }
    }
}

/// The remedy for what serde itself reports.
fn general_help(message: &str) -> Option<&'static str> {
    if message.starts_with("unknown field") {
        Some("correct the key, or remove the line")
    } else if message.starts_with("missing field") {
        Some("add the key to this table")
    } else if message.starts_with("duplicate") {
        Some("keep one of the two")
    } else if message.starts_with("invalid type") || message.starts_with("wanted ") {
        Some("give a value of the expected type; text needs quotes, numbers must not have them")
    } else if message.starts_with("unknown variant") {
        Some("use one of the expected values")
    } else {
        None
    }
}

/// A message with its remedy, as the types of [`super::value`] hand it through
/// serde, whose errors have one text only.
pub(super) fn complaint(message: impl fmt::Display, help: impl fmt::Display) -> String {
    format!("{message}\n{help}")
}

//! The beginning of a line, to be told of.

use std::fmt::{self, Write as _};

use firewall_common::abi::JOURNAL_LINE;

use super::Side;

/// Commands whose argument is a secret (RFC 959; ADAT: RFC 2228).
const SECRET: [&str; 3] = ["PASS", "ACCT", "ADAT"];

/// The beginning of a line as it came, without secrets. Prints with control
/// characters escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excerpt {
    bytes: Vec<u8>,
    cut: bool,
}

impl Excerpt {
    /// Of a line of `side`, without its end.
    #[must_use]
    pub fn of(side: Side, line: &[u8]) -> Self {
        // Servers are not strict in what ends a verb.
        let start = line.trim_ascii_start();
        let end = start.iter().position(|b| !b.is_ascii_alphabetic());
        let verb = start.get(..end.unwrap_or(start.len())).unwrap_or_default();
        let is = |secret: &&str| verb.eq_ignore_ascii_case(secret.as_bytes());
        match SECRET.into_iter().find(is) {
            Some(secret) if side == Side::Client => Self::text(&format!("{secret} ***")),
            _ => Self::bounded(line, false),
        }
    }

    /// Of our own words.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::bounded(text.as_bytes(), false)
    }

    /// What a record of the journal holds.
    #[must_use]
    pub fn bounded(line: &[u8], cut: bool) -> Self {
        let kept = line.get(..JOURNAL_LINE).unwrap_or(line);
        Self {
            bytes: kept.to_vec(),
            cut: cut || kept.len() < line.len(),
        }
    }

    /// The bytes, at most [`JOURNAL_LINE`].
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Did the line go on?
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                // It stands between quotes.
                if c.is_control() || matches!(c, '\\' | '"') {
                    write!(f, "{}", c.escape_default())?;
                } else if is_invisible(c) {
                    write!(f, "{}", c.escape_unicode())?;
                } else {
                    f.write_char(c)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if self.cut { f.write_str("…") } else { Ok(()) }
    }
}

/// Characters that turn the direction of what follows, that have no width, or that
/// change another one: a terminal would show something else than what was said.
fn is_invisible(c: char) -> bool {
    // Fillers, which Unicode has among the letters.
    let filler = matches!(c, '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}');
    filler || (c != '\'' && c.escape_debug().len() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_reaches_the_terminal_as_a_control() {
        let line = b"PORT \x1b[2J\x07\xff\\ \xc2\x9b \xe2\x80\xae x";
        let shown = Excerpt::of(Side::Client, line).to_string();
        assert_eq!(shown, r"PORT \u{1b}[2J\u{7}\xff\\ \u{9b} \u{202e} x");
    }

    #[test]
    fn nothing_is_hidden_and_nobody_speaks_in_our_name() {
        let shown = |text: &str| Excerpt::of(Side::Server, text.as_bytes()).to_string();
        // A bidirectional mark, a soft hyphen, a filler, a tag, a variation selector.
        for hidden in [
            '\u{61c}',
            '\u{ad}',
            '\u{3164}',
            '\u{e0041}',
            '\u{fe0f}',
            '\u{180e}',
        ] {
            assert_eq!(
                shown(&format!("a{hidden}b")),
                format!("a\\u{{{:x}}}b", u32::from(hidden))
            );
        }
        assert_eq!(shown("550 ü 文 é"), "550 ü 文 é");
        assert_eq!(shown(r#"550 x" (allowed)"#), r#"550 x\" (allowed)"#);
    }

    #[test]
    fn a_long_line_is_cut_and_a_password_is_not_told() {
        let long = vec![b'a'; 5000];
        let cut = Excerpt::of(Side::Server, &long);
        assert_eq!((cut.bytes().len(), cut.is_cut()), (JOURNAL_LINE, true));
        assert!(cut.to_string().ends_with("a…"));
        for line in [
            "PASS hunter2",
            "pass hunter2",
            "ACCT hunter2",
            "PASS\thunter2",
            " PASS hunter2",
            "PASS\rhunter2",
        ] {
            let shown = Excerpt::of(Side::Client, line.as_bytes()).to_string();
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}

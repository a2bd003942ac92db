//! Lines out of a byte stream.
//!
//! A line ends in LF; a CR before it belongs to the end, but is not asked for.
//! Telnet commands (RFC 854) are taken out: RFC 959 runs FTP over the telnet
//! protocol, and RFC 1123, section 4.1.2.12, makes both sides expect them.

/// Longest line that is kept, without its end. Memory is bounded by it. Short
/// under a fuzzer, which then often goes beyond it.
pub const MAX_LINE: usize = if cfg!(fuzzing) { 128 } else { 4096 };

const IAC: u8 = 0xff;
/// DM, IP, AO and so on: two bytes with IAC. SB and SE are among them because
/// they follow an agreed option only, and FTP agrees on none.
const FIRST_COMMAND: u8 = 240;
/// WILL, WONT, DO, DONT: three bytes with IAC.
const FIRST_OPTION: u8 = 251;

/// What a [`LineReader`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole line, without its end and without telnet commands.
    Line(&'a [u8]),
    /// The line grew beyond [`MAX_LINE`]: its head; what is left of it is skipped.
    TooLong(&'a [u8]),
    /// A byte that no FTP line holds.
    Binary,
}

impl<'a> Event<'a> {
    /// What there is of the line.
    #[must_use]
    pub const fn text(&self) -> &'a [u8] {
        match self {
            Self::Line(line) | Self::TooLong(line) => line,
            Self::Binary => b"",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telnet {
    Data,
    Iac,
    Option,
}

/// Splits one direction of a control connection into lines, however it is segmented.
#[derive(Debug)]
pub struct LineReader {
    line: Vec<u8>,
    telnet: Telnet,
    skipping: bool,
    /// The last event handed out `line`, which the next call clears.
    delivered: bool,
    /// Bytes read so far; wraps.
    read: u32,
    /// How many had been read when the present line began.
    begin: u32,
}

impl Default for LineReader {
    fn default() -> Self {
        Self::new()
    }
}

impl LineReader {
    /// A reader at the beginning of a line.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            line: Vec::new(),
            telnet: Telnet::Data,
            skipping: false,
            delivered: false,
            read: 0,
            begin: 0,
        }
    }

    /// A reader somewhere in a line: the rest of it is skipped.
    #[must_use]
    pub fn within_a_line() -> Self {
        Self {
            skipping: true,
            ..Self::new()
        }
    }

    /// Bytes of the stream, telnet commands included, since the last line's end.
    #[must_use]
    pub const fn pending(&self) -> u32 {
        self.read.wrapping_sub(self.begin)
    }

    /// Bytes read so far, telnet commands included; wraps.
    #[must_use]
    pub const fn read(&self) -> u32 {
        self.read
    }

    /// Memory of the unfinished line, in bytes.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.line.capacity()
    }

    /// Takes bytes off `input` up to the next event; `None` when `input` is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Event<'_>> {
        self.next_at(input).map(|(_, event)| event)
    }

    /// As [`Self::next`], with what [`Self::read`] was when the event's line began.
    pub fn next_at(&mut self, input: &mut &[u8]) -> Option<(u32, Event<'_>)> {
        if core::mem::take(&mut self.delivered) {
            self.line.clear();
        }
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            let begin = self.begin;
            self.read = self.read.wrapping_add(1);
            match self.byte(byte) {
                Step::More => {}
                Step::TooLong => {
                    self.delivered = true;
                    return Some((begin, Event::TooLong(&self.line)));
                }
                Step::Binary => return Some((begin, Event::Binary)),
                Step::Line => {
                    self.delivered = true;
                    return Some((begin, Event::Line(&self.line)));
                }
            }
        }
        None
    }

    fn byte(&mut self, byte: u8) -> Step {
        match self.telnet {
            Telnet::Data if byte == IAC => {
                self.telnet = Telnet::Iac;
                Step::More
            }
            Telnet::Data => self.data(byte),
            Telnet::Iac => {
                self.telnet = Telnet::Data;
                match byte {
                    IAC => self.data(IAC),
                    FIRST_OPTION.. => {
                        self.telnet = Telnet::Option;
                        Step::More
                    }
                    FIRST_COMMAND.. => Step::More,
                    // Not telnet: a client that sends 0xff in a file name undoubled.
                    _ => match self.data(IAC) {
                        Step::TooLong if byte == b'\n' => {
                            self.end();
                            Step::TooLong
                        }
                        Step::More => self.data(byte),
                        other => other,
                    },
                }
            }
            Telnet::Option => {
                self.telnet = Telnet::Data;
                Step::More
            }
        }
    }

    fn data(&mut self, byte: u8) -> Step {
        match byte {
            b'\n' => self.end(),
            // CR NUL is a CR within a line (RFC 2640, section 3.1).
            0 if self.skipping || self.line.last() == Some(&b'\r') => Step::More,
            _ if is_binary(byte) => Step::Binary,
            _ if self.skipping => Step::More,
            _ if self.line.len() == MAX_LINE => {
                self.skipping = true;
                Step::TooLong
            }
            _ => {
                self.line.push(byte);
                Step::More
            }
        }
    }

    fn end(&mut self) -> Step {
        self.begin = self.read;
        if core::mem::take(&mut self.skipping) {
            return Step::More;
        }
        while self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Step::Line
    }
}

enum Step {
    More,
    Line,
    TooLong,
    Binary,
}

/// Control characters that neither a path nor a banner holds. Tab, the other
/// format effectors, bell and escape do occur.
const fn is_binary(byte: u8) -> bool {
    byte < 0x20 && !matches!(byte, 0x07..=0x0d | 0x1b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(chunks: &[&[u8]]) -> Vec<String> {
        let mut reader = LineReader::new();
        let mut out = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(event) = reader.next(&mut input) {
                out.push(match event {
                    Event::Line(line) => String::from_utf8_lossy(line).into_owned(),
                    Event::TooLong(head) => format!("<{} and more>", head.len()),
                    Event::Binary => "<binary>".into(),
                });
            }
        }
        out
    }

    #[test]
    fn ends_in_lf_with_or_without_cr() {
        assert_eq!(
            events(&[b"USER a\r\nPASS b\nNOOP\r\r\n\r\n"]),
            ["USER a", "PASS b", "NOOP", ""]
        );
    }

    #[test]
    fn a_line_may_be_split_anywhere() {
        assert_eq!(
            events(&[b"PORT 10,0,0,1,1", b"95,1", b"55\r", b"\n"]),
            ["PORT 10,0,0,1,195,155"]
        );
    }

    #[test]
    fn telnet_commands_are_taken_out() {
        assert_eq!(
            events(&[
                b"\xff\xf4\xff",
                b"\xf2ABOR\r\n",
                b"\xff\xfb\x01NO\xff",
                b"\xf1OP\n"
            ]),
            ["ABOR", "NOOP"]
        );
        let mut reader = LineReader::new();
        let mut input: &[u8] = b"a\xff\xffb\xffc\n";
        assert_eq!(
            reader.next(&mut input),
            Some(Event::Line(b"a\xffb\xffc".as_slice()))
        );
    }

    #[test]
    fn an_over_long_line_is_skipped_to_its_end() {
        let mut bytes = vec![b'x'; 10 << 20];
        bytes.extend_from_slice(b"\r\nPASV\r\n");
        assert_eq!(events(&[&bytes]), ["<4096 and more>", "PASV"]);
        let mut exact = vec![b'x'; MAX_LINE];
        exact.extend_from_slice(b"\nNOOP\n");
        assert_eq!(events(&[&exact])[1], "NOOP");
    }

    #[test]
    fn memory_is_bounded() {
        let mut reader = LineReader::new();
        for _ in 0..1000 {
            let mut input: &[u8] = &[b'x'; 1000];
            while reader.next(&mut input).is_some() {}
        }
        assert!(reader.line.capacity() <= 2 * MAX_LINE);
    }

    #[test]
    fn binary_bytes_are_seen_at_once() {
        assert_eq!(
            events(&[b"\x16\x03\x01"]),
            ["<binary>", "<binary>", "<binary>"]
        );
        assert_eq!(events(&[b"a\0\n"]), ["<binary>", "a"]);
        assert_eq!(events(&[b"a\r\0b\n"]), ["a\rb"]);
    }

    #[test]
    fn starting_within_a_line_skips_its_rest() {
        let mut reader = LineReader::within_a_line();
        let mut input: &[u8] = b"V\r\nPASV\r\n";
        assert_eq!(
            reader.next(&mut input),
            Some(Event::Line(b"PASV".as_slice()))
        );
    }

    #[test]
    fn pending_counts_stream_bytes_of_the_unfinished_line() {
        let mut reader = LineReader::new();
        let mut input: &[u8] = b"NOOP\r\n\xff\xf1PA";
        while reader.next(&mut input).is_some() {}
        assert_eq!(reader.pending(), 4);
    }

    proptest! {
        #[test]
        fn segmentation_does_not_matter(
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(0xff), Just(0xfb), Just(0), any::<u8>()],
                0..300,
            ),
            cuts in proptest::collection::vec(0_usize..300, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(events(&parts), events(&[&bytes]));
        }
    }
}

//! Replies: what a server's line says (RFC 959, section 4.2; RFC 1639; RFC 2428).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    command::{extended_address, is_delimiter, long_address, number, port_number, sextuple},
    refusal::Refusal,
};

/// A line that begins like a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head<'a> {
    code: u16,
    more: bool,
    text: &'a [u8],
}

impl<'a> Head<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (code, rest) = line.split_at_checked(3)?;
        let (Ok(code), []) = number(code, 3, 699)? else {
            return None;
        };
        let (more, text) = match rest {
            [] => (false, rest),
            [b' ', text @ ..] => (false, text),
            [b'-', text @ ..] => (true, text),
            _ => return None,
        };
        // 6yz replies are protected ones (RFC 2228).
        let code = u16::try_from(code).ok().filter(|code| *code >= 100)?;
        Some(Self { code, more, text })
    }
}

/// What a server's line adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The only or last line of a reply: its code, and the text after the code.
    Reply(u16, &'a [u8]),
    /// Part of a reply that is not complete.
    Partial,
    /// No part of any reply.
    Stray,
}

/// Puts multi-line replies together: `NNN-` to the line `NNN `, whatever stands between.
#[derive(Debug, Default)]
pub struct ReplyReader {
    /// Code of the open reply, and where in the stream it began.
    open: Option<(u16, u32)>,
}

impl ReplyReader {
    /// Reads the next line, which began at `at` in the stream.
    pub fn next<'a>(&mut self, line: &'a [u8], at: u32) -> Line<'a> {
        let head = Head::parse(line);
        match (self.open, head) {
            (Some((code, _)), Some(head)) if head.code == code && !head.more => {
                self.open = None;
                Line::Reply(code, head.text)
            }
            (None, Some(head)) if !head.more => Line::Reply(head.code, head.text),
            (None, Some(head)) => {
                self.open = Some((head.code, at));
                Line::Partial
            }
            (Some(_), _) => Line::Partial,
            (None, None) => Line::Stray,
        }
    }

    /// Where in the stream the unfinished reply began, if there is one.
    #[must_use]
    pub const fn begin(&self) -> Option<u32> {
        match self.open {
            Some((_, at)) => Some(at),
            None => None,
        }
    }
}

/// The one value that all of `found` agree on.
fn unanimous<T: PartialEq + Copy>(
    found: impl Iterator<Item = Result<T, Refusal>>,
) -> Option<Result<T, Refusal>> {
    found.fold(None, |seen, next| match seen {
        None => Some(next),
        Some(seen) if seen == next => Some(seen),
        Some(_) => Some(Err(Refusal::Ambiguous)),
    })
}

/// The address and port in the text of a 227.
///
/// RFC 959 does not say where they stand, so clients look for the numbers (RFC
/// 1123, section 4.1.2.6): with parentheses, without them, after `=`. They are
/// taken wherever six numbers stand, if they stand there once.
///
/// # Errors
/// [`Refusal::Malformed`], [`Refusal::BadNumber`] or [`Refusal::Ambiguous`].
pub fn passive(text: &[u8]) -> Result<SocketAddr, Refusal> {
    numbers(text, sextuple)
}

/// The address and port in the text of a 227 over IPv6, which RFC 959 does not know.
///
/// Servers put the address before the port, `(fd99::1,195,155)` (pyftpdlib), or what
/// stands behind its last colon, `(1,195,155)` (proftpd). An IPv4 address is read, too.
///
/// # Errors
/// As [`passive`], and [`Refusal::ForeignAddress`] where what stands for the address
/// is no part of `server`'s.
pub fn passive_v6(text: &[u8], server: Ipv6Addr) -> Result<SocketAddr, Refusal> {
    let after_parenthesis = (1..=text.len()).filter(|at| text.get(at - 1) == Some(&b'('));
    let found = after_parenthesis.filter_map(|at| triple(text.get(at..)?, server));
    unanimous(found).unwrap_or_else(|| passive(text))
}

/// `address,p1,p2)`; the address whole, or its last group.
fn triple(text: &[u8], server: Ipv6Addr) -> Option<Result<SocketAddr, Refusal>> {
    let inside = text.get(..text.iter().take(LONGEST).position(|b| *b == b')')?)?;
    let mut parts = inside.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    let (address, hi, lo) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let address = match std::str::from_utf8(address).ok()? {
        whole if whole.contains(':') => extended_address(b"2", address).ok()?,
        group if is_last_group(group, server) => IpAddr::V6(server),
        _ => return Some(Err(Refusal::ForeignAddress)),
    };
    let byte = |text| match number(text, 3, 255)? {
        (value, []) => Some(value),
        _ => None,
    };
    let (hi, lo) = (byte(hi)?, byte(lo)?);
    let port = hi.and_then(|hi| lo.map(|lo| hi << 8 | lo));
    let port = port.and_then(|port| u16::try_from(port).map_err(|_| Refusal::BadNumber));
    Some(port.map(|port| SocketAddr::new(address, port)))
}

/// Is `text` what stands behind the last colon of `address`?
fn is_last_group(text: &str, address: Ipv6Addr) -> bool {
    let [.., last] = address.segments();
    let plain = text.len() <= 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match text {
        "" => last == 0,
        _ => plain && u16::from_str_radix(text, 16) == Ok(last),
    }
}

/// The address and port in the text of a 228 (RFC 1639, section 4), wherever they stand.
///
/// # Errors
/// As [`passive`].
pub fn long_passive(text: &[u8]) -> Result<SocketAddr, Refusal> {
    numbers(text, long_address)
}

/// Reads a list of numbers at the head of a text, and what follows it.
type List = fn(&[u8]) -> Option<(Result<SocketAddr, Refusal>, &[u8])>;

/// The address that a list of numbers in `text` gives, if one alone does.
fn numbers(text: &[u8], list: List) -> Result<SocketAddr, Refusal> {
    let starts = (0..text.len()).filter_map(|at| {
        let (head, tail) = text.split_at_checked(at)?;
        let before = head.last().copied().unwrap_or(b' ');
        let begins_number = tail.first()?.is_ascii_digit() && !before.is_ascii_digit();
        if !begins_number || head.trim_ascii_end().last() == Some(&b',') {
            return None;
        }
        let (address, rest) = list(tail)?;
        // Another number: then nobody can say which of them are meant.
        if rest.first() == Some(&b',') {
            return None;
        }
        let signed = matches!(before, b'+' | b'-');
        Some(address.and_then(|a| {
            if signed {
                Err(Refusal::BadNumber)
            } else {
                Ok(a)
            }
        }))
    });
    unanimous(starts).unwrap_or(Err(Refusal::Malformed))
}

/// The port in the text of a 229, and the address where one is given, which RFC
/// 2428 allows nobody but some servers do.
///
/// # Errors
/// As [`passive`].
pub fn extended_passive(text: &[u8]) -> Result<(Option<IpAddr>, u16), Refusal> {
    let after_parenthesis = (1..=text.len()).filter(|at| text.get(at - 1) == Some(&b'('));
    let bracketed = unanimous(after_parenthesis.filter_map(|at| bracketed(text.get(at..)?)));
    // Without parentheses only the bare `|||port|` is plain enough.
    bracketed
        .or_else(|| unanimous((0..text.len()).filter_map(|at| bare(text, at))))
        .unwrap_or(Err(Refusal::Malformed))
}

/// Longer than any `|2|` address `|` port `|`: what bounds the search.
const LONGEST: usize = 64;

/// `|family|address|port|)`, the first two usually empty.
fn bracketed(text: &[u8]) -> Option<Result<(Option<IpAddr>, u16), Refusal>> {
    let delimiter = *text.first().filter(|b| is_delimiter(**b))?;
    let inside = text.get(..text.iter().take(LONGEST).position(|b| *b == b')')?)?;
    let mut parts = inside.split(|b| *b == delimiter);
    let fields = [(); 5].map(|()| parts.next());
    let (&[Some([]), Some(family), Some(address), Some(port), Some([])], None) =
        (&fields, parts.next())
    else {
        return None;
    };
    let address = match (family, address) {
        (_, []) => None,
        _ => match extended_address(family, address) {
            Ok(address) => Some(address),
            Err(refusal) => return Some(Err(refusal)),
        },
    };
    Some(port_number(port).map(|port| (address, port)))
}

fn bare(text: &[u8], at: usize) -> Option<Result<(Option<IpAddr>, u16), Refusal>> {
    let tail = text.get(at..)?;
    let delimiter = *tail.first().filter(|b| b.is_ascii_punctuation())?;
    let before = at.checked_sub(1).and_then(|i| text.get(i));
    if before == Some(&delimiter) {
        return None;
    }
    let rest = tail.strip_prefix(&[delimiter; 3])?;
    let end = rest.iter().take(LONGEST).position(|b| *b == delimiter)?;
    let port = rest.get(..end).filter(|port| !port.is_empty())?;
    port.iter()
        .all(u8::is_ascii_digit)
        .then(|| port_number(port).map(|port| (None, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_227_is_read_in_every_unambiguous_form() {
        let want: SocketAddr = "10.0.0.1:50075".parse().unwrap();
        for text in [
            "Entering Passive Mode (10,0,0,1,195,155).",
            "Entering Passive Mode 10,0,0,1,195,155",
            "=10,0,0,1,195,155",
            "Entering Passive Mode (10, 0, 0, 1, 195, 155)",
            "Data 2 use (10,0,0,1,195,155)",
            "Mode 1: 10,0,0,1,195,155",
            "(10,0,0,1,195,155) I say (10,0,0,1,195,155)",
        ] {
            assert_eq!(passive(text.as_bytes()), Ok(want), "{text}");
        }
    }

    #[test]
    fn a_227_is_refused_where_it_is_not_plain() {
        for (text, want) in [
            ("(10,0,0,1,256,22)", Refusal::BadNumber),
            ("(10,0,0,1,-1,22)", Refusal::Malformed),
            ("(-10,0,0,1,1,22)", Refusal::BadNumber),
            ("(10,0,0,1,1)", Refusal::Malformed),
            ("(10,0,0,1,1,22,7)", Refusal::Malformed),
            ("(1,195,155)", Refusal::Malformed),
            ("(fd99::1,196,221)", Refusal::Malformed),
            ("", Refusal::Malformed),
            ("(10,0,0,1,1,22) (10,0,0,1,1,23)", Refusal::Ambiguous),
        ] {
            assert_eq!(passive(text.as_bytes()), Err(want), "{text}");
        }
    }

    #[test]
    fn a_227_over_ipv6_is_read_as_servers_write_it() {
        let read = |text: &str, server: &str| passive_v6(text.as_bytes(), server.parse().unwrap());
        for (text, server) in [
            ("Entering Passive Mode (1,195,155).", "fd99::1"),
            ("Entering passive mode (fd99::1,195,155).", "fd99::1"),
            ("(FD99:0::1%eth0, 195, 155)", "fd99::1"),
            ("(ab1c,195,155)", "fd99::ab1c"),
            ("(,195,155)", "fd99::"),
        ] {
            let want = SocketAddr::new(server.parse().unwrap(), 50_075);
            assert_eq!(read(text, server), Ok(want), "{text}");
        }
        let foreign: SocketAddr = "[fd99::2]:50075".parse().unwrap();
        assert_eq!(read("(fd99::2,195,155)", "fd99::1"), Ok(foreign));
        let v4: SocketAddr = "10.0.0.1:50075".parse().unwrap();
        assert_eq!(read("(10,0,0,1,195,155)", "fd99::1"), Ok(v4));
        for (text, want) in [
            ("(2,195,155)", Refusal::ForeignAddress),
            ("(+1,195,155)", Refusal::ForeignAddress),
            ("(1,256,1)", Refusal::BadNumber),
            ("(1,195)", Refusal::Malformed),
            ("1,195,155", Refusal::Malformed),
            ("(1,195,155) (1,195,156)", Refusal::Ambiguous),
        ] {
            assert_eq!(read(text, "fd99::1"), Err(want), "{text}");
        }
    }

    #[test]
    fn a_228_is_read_where_it_is_plain() {
        let v4 = "Entering Long Passive Mode (4, 4, 10, 0, 0, 1, 2, 195, 133)";
        let want = Ok("10.0.0.1:50053".parse().unwrap());
        assert_eq!(long_passive(v4.as_bytes()), want);
        let v6 = "Mode (6,16,253,153,0,0,0,0,0,0,0,0,0,0,0,0,0,1,2,195,133).";
        let want = Ok("[fd99::1]:50053".parse().unwrap());
        assert_eq!(long_passive(v6.as_bytes()), want);
        for (text, refusal) in [
            ("(4,4,10,0,0,300,2,195,133)", Refusal::BadNumber),
            ("(4,4,10,0,0,1,2,195,133,7)", Refusal::Malformed),
            ("(10,0,0,1,195,133)", Refusal::Malformed),
            (
                "(4,4,10,0,0,1,2,1,2) (4,4,10,0,0,1,2,1,3)",
                Refusal::Ambiguous,
            ),
        ] {
            assert_eq!(long_passive(text.as_bytes()), Err(refusal), "{text}");
        }
    }

    #[test]
    fn a_229_is_read_in_every_unambiguous_form() {
        for text in [
            "Entering Extended Passive Mode (|||50053|)",
            "Entering Extended Passive Mode (!!!50053!).",
            "Entering Extended Passive Mode |||50053|",
            "(see |) ok |||50053|",
            "Entering Extended Passive Mode (|||50053|",
        ] {
            assert_eq!(
                extended_passive(text.as_bytes()),
                Ok((None, 50053)),
                "{text}"
            );
        }
        let given = extended_passive(b"Extended (|1|10.0.0.1|50053|)");
        assert_eq!(given, Ok((Some("10.0.0.1".parse().unwrap()), 50053)));
    }

    #[test]
    fn a_229_is_refused_where_it_is_not_plain() {
        for (text, want) in [
            ("(|||65558|)", Refusal::BadNumber),
            ("(|||-22|)", Refusal::BadNumber),
            ("(|||50053)", Refusal::Malformed),
            ("(||||50053|)", Refusal::Malformed),
            ("50053", Refusal::Malformed),
            ("(|||50053|) (|||50054|)", Refusal::Ambiguous),
        ] {
            assert_eq!(extended_passive(text.as_bytes()), Err(want), "{text}");
        }
    }

    #[test]
    fn replies_are_put_together() {
        let mut reader = ReplyReader::default();
        assert_eq!(reader.next(b"220 hi", 0), Line::Reply(220, b"hi"));
        assert_eq!(reader.next(b"211-Features:", 8), Line::Partial);
        assert_eq!(
            reader.next(b"227 Entering Passive Mode (10,0,0,1,195,155)", 23),
            Line::Partial
        );
        assert_eq!(reader.next(b" CCC", 69), Line::Partial);
        assert_eq!(reader.next(b"211-still", 75), Line::Partial);
        assert_eq!(reader.begin(), Some(8));
        assert_eq!(reader.next(b"211 End", 86), Line::Reply(211, b"End"));
        assert_eq!(reader.begin(), None);
        assert_eq!(reader.next(b"200", 95), Line::Reply(200, b""));
        for stray in [
            b"SSH-2.0-x".as_slice(),
            b"2200 x",
            b"22",
            b"099 x",
            b"700 x",
            b"+27 x",
        ] {
            assert_eq!(reader.next(stray, 0), Line::Stray);
        }
    }
}

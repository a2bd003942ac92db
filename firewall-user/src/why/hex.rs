//! A packet written in hexadecimal.

use super::{FORMS, Link};
use crate::error::Usage;

const ETHERTYPE: usize = 12;
const ETHERNET_LEN: usize = 14;

/// The bytes of `text`: pairs of digits, with blanks, line ends or colons
/// between them, `0x` before them, as it pleases.
///
/// # Errors
///
/// [`Usage`], with the place of what is wrong.
pub fn parse(text: &str) -> Result<Vec<u8>, Usage> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    let mut half = None;
    for (at, c) in digits.chars().enumerate() {
        if c.is_ascii_whitespace() || c == ':' {
            continue;
        }
        let digit = c.to_digit(16).ok_or_else(|| {
            wrong(&format!(
                "`{c}` at place {} is no hexadecimal digit",
                at + 1
            ))
        })? as u8;
        half = match half {
            None => Some(digit << 4),
            Some(high) => {
                bytes.push(high | digit);
                None
            }
        };
    }
    if half.is_some() {
        return Err(wrong("an odd number of hexadecimal digits"));
    }
    if bytes.is_empty() {
        return Err(wrong("no bytes"));
    }
    Ok(bytes)
}

/// Does the packet begin with an Ethernet header or with an IP header?
///
/// An IP header is known by its version together with a length that is just
/// that of the packet; Ethernet by a type behind the addresses.
#[must_use]
pub fn link_of(bytes: &[u8]) -> Link {
    let field = |at: usize| match bytes.get(at..at + 2) {
        Some(&[a, b]) => Some(usize::from(u16::from_be_bytes([a, b]))),
        _ => None,
    };
    let version = bytes.first().map(|byte| byte >> 4);
    let whole = match version {
        Some(4) => field(2) == Some(bytes.len()),
        Some(6) => field(4) == bytes.len().checked_sub(40),
        _ => false,
    };
    let typed = matches!(
        field(ETHERTYPE),
        Some(0x0800 | 0x0806 | 0x8100 | 0x86dd | 0x88a8)
    );
    match (whole, typed, version) {
        (true, ..) => Link::Ip,
        (_, true, _) => Link::Ethernet,
        (_, _, Some(4 | 6)) if bytes.len() > ETHERNET_LEN => Link::Ip,
        _ => Link::Ethernet,
    }
}

fn wrong(what: &str) -> Usage {
    Usage::new(format!("--hex: {what}\n{FORMS}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::why::tuple::{Detail, Tuple};

    #[test]
    fn digits_come_in_many_dresses() {
        for text in ["4500ff", "0x4500FF", "45 00 ff", "45:00:ff", "4500\n ff\n"] {
            assert_eq!(parse(text).unwrap(), [0x45, 0, 0xff], "{text}");
        }
    }

    #[test]
    fn what_is_no_packet_is_said() {
        for (bad, says) in [
            ("45zz", "`z` at place 3"),
            ("450", "odd number"),
            ("", "no bytes"),
            ("0x", "no bytes"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(
                error.contains(says) && error.contains("--hex 4500"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_first_header_is_told_by_its_shape() {
        let detail = Detail {
            flags: 2,
            ..Detail::default()
        };
        for (src, dst, kind) in [
            ("192.0.2.1:1", "192.0.2.2:2", [0x08, 0x00]),
            ("[2001:db8::1]:1", "[2001:db8::2]:2", [0x86, 0xdd]),
        ] {
            let ip = Tuple::parse("tcp", src, dst).unwrap().packet(&detail);
            assert_eq!(link_of(&ip), Link::Ip);
            // Two addresses that look like the begin of an IP header.
            for address in [0x45, 0x60, 0x02] {
                let mut frame = vec![address; 12];
                frame.extend(kind);
                frame.extend(&ip);
                assert_eq!(link_of(&frame), Link::Ethernet);
            }
        }
        assert_eq!(link_of(&[]), Link::Ethernet);
    }
}

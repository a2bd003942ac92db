//! Names of IP protocols, for the command line and for lists.

use std::borrow::Cow;

/// Number and name, the name to print first.
const NAMES: [(u8, &str); 11] = [
    (1, "icmp"),
    (4, "ipip"),
    (6, "tcp"),
    (17, "udp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmpv6"),
    (132, "sctp"),
    (136, "udplite"),
];

/// Other names for the same, which `/etc/protocols` and `conntrack` know.
const ALIASES: [(u8, &str); 3] = [(58, "ipv6-icmp"), (58, "icmp6"), (4, "ipencap")];

/// The name, or the number as text.
#[must_use]
pub fn name(number: u8) -> Cow<'static, str> {
    match NAMES.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => (*name).into(),
        None => number.to_string().into(),
    }
}

/// The number of a protocol given by name or number.
///
/// # Errors
/// A sentence that names what can be written.
pub fn number(text: &str) -> Result<u8, String> {
    let lower = text.to_ascii_lowercase();
    let known = NAMES
        .iter()
        .chain(&ALIASES)
        .find(|(_, name)| *name == lower);
    known
        .map(|(number, _)| *number)
        .or_else(|| lower.parse().ok())
        .ok_or_else(|| {
            "use tcp, udp, icmp, icmpv6, gre, esp, sctp, or the protocol's number, 0 to 255".into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, wanted) in [
            ("tcp", 6),
            ("GRE", 47),
            ("ipv6-icmp", 58),
            ("89", 89),
            ("0", 0),
        ] {
            assert_eq!(number(text), Ok(wanted), "{text}");
        }
        for bad in ["", "tpc", "256", "-1", "tcp,udp", "6.0"] {
            let error = number(bad).unwrap_err();
            assert!(error.contains("tcp, udp"), "{bad}: {error}");
        }
        assert_eq!((name(47), name(89)), ("gre".into(), "89".into()));
    }

    #[test]
    fn every_name_leads_back_to_its_number() {
        for (number_of, text) in NAMES {
            assert_eq!(number(text), Ok(number_of));
            assert_eq!(name(number_of), text);
        }
    }
}

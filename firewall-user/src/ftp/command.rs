//! Commands: what a client's line says (RFC 959, RFC 1639, RFC 2228, RFC 2428, RFC 4217).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::refusal::Refusal;

/// A client's line, as far as the helper cares. Anything else is [`Command::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// PORT with its address, or why that cannot be used.
    Port(Result<SocketAddr, Refusal>),
    /// EPRT, likewise.
    Eprt(Result<SocketAddr, Refusal>),
    /// LPRT, likewise.
    Lprt(Result<SocketAddr, Refusal>),
    /// PASV.
    Pasv,
    /// EPSV, and whether it asks for IPv4 or IPv6 by number.
    Epsv {
        /// `EPSV 1` is IPv4, `EPSV 2` is IPv6; `None` without a number.
        v4: Option<bool>,
    },
    /// LPSV.
    Lpsv,
    /// EPSV ALL: announces that nothing but EPSV will come (RFC 2428, section 4).
    EpsvAll,
    /// AUTH; does the mechanism turn the connection into TLS?
    Auth {
        /// TLS, TLS-C, SSL or TLS-P.
        tls: bool,
    },
    /// CCC in clear text: without TLS it has no effect.
    Ccc,
    /// USER, PASS or ACCT.
    LogIn,
    /// QUIT.
    Quit,
    /// REIN.
    Rein,
    /// ABOR.
    Abor,
    /// HOST (RFC 7151): answered by 220, which is no new greeting.
    Host,
    /// FEAT.
    Feat,
    /// NOOP, or an empty line: some servers leave both unanswered.
    Idle,
    /// An HTTP method, or a request line with whatever method.
    Http,
    /// A header line, of HTTP, mail or the like: no verb of FTP has a colon.
    Header,
    /// Text that looks like a 227, 228 or 229.
    ReplyLike,
    /// Another command of FTP.
    Known,
    /// Any other line.
    Other,
}

const HTTP_METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI",
];

/// Commands that have no variant of their own: RFC 959, 775, 2228, 2389, 2640,
/// 3659, and what servers in use add to them.
const KNOWN: [&str; 60] = [
    "ADAT", "ALLO", "APPE", "AVBL", "CDUP", "CLNT", "COMB", "CONF", "CSID", "CWD", "DELE", "DSIZ",
    "ENC", "HASH", "HELP", "LANG", "LIST", "MD5", "MDTM", "MFCT", "MFF", "MFMT", "MIC", "MKD",
    "MLSD", "MLST", "MMD5", "MODE", "NLST", "OPTS", "PBSZ", "PROT", "PWD", "RANG", "REST", "RETR",
    "RMD", "RMDA", "RNFR", "RNTO", "SITE", "SIZE", "SMNT", "STAT", "STOR", "STOU", "STRU", "SYST",
    "THMB", "TYPE", "XCRC", "XCUP", "XCWD", "XMD5", "XMKD", "XPWD", "XRMD", "XSHA", "XSHA1",
    "XSHA256",
];

impl Command {
    /// Reads a line without its end.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let (verb, argument) = split_verb(line);
        let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("PORT") => Self::Port(host_port(argument)),
            () if is("EPRT") => Self::Eprt(extended_port(argument)),
            () if is("LPRT") => Self::Lprt(long_port(argument)),
            () if is("PASV") => Self::Pasv,
            () if is("LPSV") => Self::Lpsv,
            () if is("EPSV") && argument.eq_ignore_ascii_case(b"ALL") => Self::EpsvAll,
            () if is("EPSV") => Self::Epsv {
                v4: match argument {
                    b"1" => Some(true),
                    b"2" => Some(false),
                    _ => None,
                },
            },
            () if is("AUTH") => Self::Auth {
                tls: is_tls_mechanism(argument),
            },
            () if is("CCC") => Self::Ccc,
            () if is("USER") || is("PASS") || is("ACCT") => Self::LogIn,
            () if is("QUIT") => Self::Quit,
            () if is("REIN") => Self::Rein,
            () if is("ABOR") => Self::Abor,
            () if is("HOST") => Self::Host,
            () if is("FEAT") => Self::Feat,
            () if is("NOOP") || line.is_empty() => Self::Idle,
            () if is("227") || is("228") || is("229") => Self::ReplyLike,
            () if HTTP_METHODS.iter().any(|method| is(method)) => Self::Http,
            () if KNOWN.iter().any(|known| is(known)) => Self::Known,
            () if verb.contains(&b':') => Self::Header,
            () if is_request_line(line) => Self::Http,
            () => Self::Other,
        }
    }
}

/// The verb, and its argument without the spaces around it.
fn split_verb(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let (verb, argument) = line.split_at(end);
    (verb, argument.trim_ascii())
}

/// Does a line end in the name of a protocol and its version, as a request of HTTP
/// (RFC 9112, section 3), RTSP or SIP does? Whoever can have a browser send a request
/// chooses the method.
fn is_request_line(line: &[u8]) -> bool {
    let last = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    ["HTTP/", "RTSP/", "SIP/"].iter().any(|name| {
        let version = last.strip_prefix(name.as_bytes());
        version
            .and_then(<[u8]>::first)
            .is_some_and(u8::is_ascii_digit)
    })
}

/// RFC 4217, section 2: `TLS-C` is `TLS`, and `TLS-P` is the older `SSL`.
fn is_tls_mechanism(name: &[u8]) -> bool {
    ["TLS", "TLS-C", "SSL", "TLS-P"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// A decimal number of at most `digits` digits at the head of `text`, and what follows it.
///
/// No sign, no space, no wrap: `None` without a digit, `Err` beyond the bounds.
pub(super) fn number(
    text: &[u8],
    digits: usize,
    max: u32,
) -> Option<(Result<u32, Refusal>, &[u8])> {
    let len = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if len == 0 {
        return None;
    }
    let (head, tail) = text.split_at_checked(len)?;
    // Ten digits could wrap; no caller asks for more than five.
    let value = if len <= digits {
        head.iter().fold(0, |n, b| n * 10 + u32::from(b - b'0'))
    } else {
        u32::MAX
    };
    let bounded = if value <= max {
        Ok(value)
    } else {
        Err(Refusal::BadNumber)
    };
    Some((bounded, tail))
}

/// `h1,h2,h3,h4,p1,p2` at the head of `text`, spaces allowed after commas, and
/// what follows it. `None` if `text` does not have that shape.
pub(super) fn sextuple(text: &[u8]) -> Option<(Result<SocketAddr, Refusal>, &[u8])> {
    let mut rest = text;
    let mut parts = [0_u8; 6];
    let mut bad = None;
    for (i, part) in parts.iter_mut().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(b",")?.trim_ascii_start();
        }
        let (value, tail) = number(rest, 3, 255)?;
        match value.map(u8::try_from) {
            Ok(Ok(value)) => *part = value,
            _ => bad = Some(Refusal::BadNumber),
        }
        rest = tail;
    }
    let [a, b, c, d, hi, lo] = parts;
    let port = u16::from_be_bytes([hi, lo]);
    let address = SocketAddr::from((Ipv4Addr::new(a, b, c, d), port));
    Some((bad.map_or(Ok(address), Err), rest))
}

/// The argument of PORT (RFC 959, section 4.1.2).
fn host_port(text: &[u8]) -> Result<SocketAddr, Refusal> {
    match sextuple(text) {
        Some((address, [])) => address,
        _ if has_signed_number(text) => Err(Refusal::BadNumber),
        _ => Err(Refusal::Malformed),
    }
}

/// `af,hal,h1,…,hn,pal,p1,p2` at the head of `text`, spaces allowed after commas,
/// and what follows it (RFC 1639, section 3). `None` if `text` does not have that
/// shape: address family 4 with 4 bytes of address, or 6 with 16, and 2 of port.
pub(super) fn long_address(text: &[u8]) -> Option<(Result<SocketAddr, Refusal>, &[u8])> {
    let mut rest = text;
    let mut bad = None;
    let mut first = true;
    let mut next = || -> Option<u8> {
        if !std::mem::take(&mut first) {
            rest = rest.strip_prefix(b",")?.trim_ascii_start();
        }
        let (value, tail) = number(rest, 3, 255)?;
        rest = tail;
        if let Ok(Ok(byte)) = value.map(u8::try_from) {
            return Some(byte);
        }
        bad = Some(Refusal::BadNumber);
        Some(0)
    };
    let ip = match (next()?, next()?) {
        (4, 4) => IpAddr::from(bytes::<4>(&mut next)?),
        (6, 16) => IpAddr::from(bytes::<16>(&mut next)?),
        _ => return None,
    };
    let 2 = next()? else {
        return None;
    };
    let port = u16::from_be_bytes(bytes(&mut next)?);
    let address = SocketAddr::new(ip, port);
    Some((bad.map_or(Ok(address), Err), rest))
}

/// The next `N` bytes of a list.
fn bytes<const N: usize>(next: &mut impl FnMut() -> Option<u8>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for byte in &mut bytes {
        *byte = next()?;
    }
    Some(bytes)
}

/// The argument of LPRT (RFC 1639, section 4).
fn long_port(text: &[u8]) -> Result<SocketAddr, Refusal> {
    match long_address(text) {
        Some((address, [])) => address,
        _ if has_signed_number(text) => Err(Refusal::BadNumber),
        _ => Err(Refusal::Malformed),
    }
}

fn has_signed_number(text: &[u8]) -> bool {
    text.windows(2)
        .any(|w| matches!(w, [b'+' | b'-', digit] if digit.is_ascii_digit()))
}

/// A delimiter of RFC 2428: printable, and no digit, or nothing could be read.
pub(super) const fn is_delimiter(byte: u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_digit()
}

/// A port number of RFC 2428, all of `text`.
pub(super) fn port_number(text: &[u8]) -> Result<u16, Refusal> {
    match number(text, 5, 65_535) {
        Some((Ok(value), [])) => u16::try_from(value).map_err(|_| Refusal::BadNumber),
        Some((Err(refusal), [])) => Err(refusal),
        _ if has_signed_number(text) => Err(Refusal::BadNumber),
        _ => Err(Refusal::Malformed),
    }
}

/// The address of RFC 2428 for protocol `family` (1 is IPv4, 2 is IPv6).
pub(super) fn extended_address(family: &[u8], text: &[u8]) -> Result<IpAddr, Refusal> {
    let text = std::str::from_utf8(text).map_err(|_| Refusal::Malformed)?;
    match family {
        b"1" => text.parse::<Ipv4Addr>().map(IpAddr::V4),
        // A zone (RFC 4007) means something on the client's machine only.
        b"2" => text
            .split('%')
            .next()
            .unwrap_or_default()
            .parse::<Ipv6Addr>()
            .map(IpAddr::V6),
        _ => return Err(Refusal::WrongFamily),
    }
    .map_err(|_| Refusal::Malformed)
}

/// The argument of EPRT: `|1|132.235.1.2|6275|` (RFC 2428, section 2).
fn extended_port(text: &[u8]) -> Result<SocketAddr, Refusal> {
    let delimiter = *text.first().ok_or(Refusal::Malformed)?;
    if !is_delimiter(delimiter) {
        return Err(Refusal::Malformed);
    }
    let mut parts = text.split(|b| *b == delimiter);
    let fields = [(); 5].map(|()| parts.next());
    let (&[Some([]), Some(family), Some(address), Some(port), Some([])], None) =
        (&fields, parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    let port = port_number(port)?;
    Ok(SocketAddr::new(extended_address(family, address)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(line: &str) -> Result<String, Refusal> {
        match Command::parse(line.as_bytes()) {
            Command::Port(result) | Command::Eprt(result) | Command::Lprt(result) => {
                result.map(|a| a.to_string())
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn port_is_read_where_its_meaning_is_unambiguous() {
        let want = Ok("10.0.0.1:50075".to_owned());
        for line in [
            "PORT 10,0,0,1,195,155",
            "port 10,0,0,1,195,155",
            "PORT  10,0,0,1,195,155 ",
            "PORT 10, 0, 0, 1, 195, 155",
        ] {
            assert_eq!(port(line), want, "{line}");
        }
    }

    #[test]
    fn numbers_are_bounded() {
        for line in [
            "PORT 10,0,0,1,256,22",
            "PORT 10,0,0,1,0195,155",
            "PORT 10,0,0,1,4294967295,22",
            "PORT 10,0,0,1,-1,22",
            "PORT 10,0,0,1,+1,22",
            "EPRT |1|10.0.0.1|65558|",
            "EPRT |1|10.0.0.1|-22|",
            "EPRT |1|10.0.0.1|050053|",
        ] {
            assert_eq!(port(line), Err(Refusal::BadNumber), "{line}");
        }
    }

    #[test]
    fn other_shapes_are_malformed() {
        for line in [
            "PORT",
            "PORT 10,0,0,1,195",
            "PORT 10,0,0,1,195,155,7",
            "PORT 10.0.0.1,195,155",
            "PORT 10,0,0,1,195,155x",
            "PORT (10,0,0,1,195,155)",
            "EPRT",
            "EPRT |1|10.0.0.1|50053",
            "EPRT |1|10.0.0.1|50053||",
            "EPRT 1|10.0.0.1|50053|",
            "EPRT |1|fd99::1|50053|",
            "EPRT |1|010.0.0.1|50053|",
        ] {
            assert_eq!(port(line), Err(Refusal::Malformed), "{line}");
        }
        assert_eq!(port("EPRT |3|10.0.0.1|50053|"), Err(Refusal::WrongFamily));
    }

    #[test]
    fn eprt_takes_both_families_and_any_delimiter() {
        assert_eq!(port("EPRT |1|10.0.0.1|50053|"), Ok("10.0.0.1:50053".into()));
        assert_eq!(port("EPRT !2!fd99::1!50053!"), Ok("[fd99::1]:50053".into()));
        assert_eq!(
            port("EPRT |2|fe80::1%eth0|1024|"),
            Ok("[fe80::1]:1024".into())
        );
    }

    #[test]
    fn lprt_takes_both_families_and_nothing_else() {
        let v6 = "253,153,0,0,0,0,0,0,0,0,0,0,0,0,0,1";
        assert_eq!(
            port("LPRT 4,4,10,0,0,1,2,195,133"),
            Ok("10.0.0.1:50053".into())
        );
        assert_eq!(
            port(&format!("lprt 6,16,{v6},2,195,133")),
            Ok("[fd99::1]:50053".into())
        );
        for (line, refusal) in [
            ("LPRT 4,4,10,0,0,256,2,195,133", Refusal::BadNumber),
            ("LPRT 4,4,10,0,0,-1,2,195,133", Refusal::BadNumber),
            ("LPRT 4,4,10,0,0,1,2,195", Refusal::Malformed),
            ("LPRT 4,4,10,0,0,1,2,195,133,7", Refusal::Malformed),
            ("LPRT 4,16,10,0,0,1,2,195,133", Refusal::Malformed),
            ("LPRT 4,4,10,0,0,1,4,0,0,195,133", Refusal::Malformed),
            ("LPRT 10,0,0,1,195,133", Refusal::Malformed),
            ("LPRT", Refusal::Malformed),
        ] {
            assert_eq!(port(line), Err(refusal), "{line}");
        }
    }

    #[test]
    fn verbs_are_told_apart() {
        for (line, want) in [
            ("PASV", Command::Pasv),
            ("pasv ", Command::Pasv),
            ("EPSV", Command::Epsv { v4: None }),
            ("EPSV 1", Command::Epsv { v4: Some(true) }),
            ("EPSV 2", Command::Epsv { v4: Some(false) }),
            ("EPSV ALL", Command::EpsvAll),
            ("LPSV", Command::Lpsv),
            ("AUTH TLS", Command::Auth { tls: true }),
            ("AUTH tls-p", Command::Auth { tls: true }),
            ("AUTH GSSAPI", Command::Auth { tls: false }),
            ("PASVX", Command::Other),
            ("XCRC PORT 10,0,0,1,195,155", Command::Known),
            ("list -a", Command::Known),
            ("Host: example.org", Command::Header),
            ("PROPFIND / HTTP/1.1", Command::Http),
            ("FOO HTTP/", Command::Other),
            (" PASV", Command::Other),
            ("POST / HTTP/1.1", Command::Http),
            (
                "227 Entering Passive Mode (10,0,0,1,195,155)",
                Command::ReplyLike,
            ),
            ("", Command::Idle),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), want, "{line}");
        }
    }
}

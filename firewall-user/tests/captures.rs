//! Sessions of real clients and servers, read from captures: exactly the data
//! connections that they made are expected, each before its SYN.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be read fails the test"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use firewall_common::abi::SessionPhase;
use firewall_user::{
    ftp::{Action, Config, Conversation, Opening, Side},
    helper::reassembly::{BUDGET, Reassembler},
};

/// A TCP segment of a capture.
struct Segment {
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
    syn: bool,
    ack: bool,
    payload: Vec<u8>,
}

/// Reads a pcap file (little endian, Ethernet): 24 bytes of file header, then
/// 16 bytes before each frame, of which bytes 8 to 11 are its length.
fn segments(path: &Path) -> Vec<Segment> {
    let bytes = fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "{}", path.display());
    let mut at = 24;
    let mut out = Vec::new();
    while at < bytes.len() {
        let len = word(at + 8);
        out.extend(segment(&bytes[at + 16..at + 16 + len]));
        at += 16 + len;
    }
    out
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        NetSlice::Arp(_) => return None,
    };
    let TransportSlice::Tcp(tcp) = packet.transport? else {
        return None;
    };
    Some(Segment {
        src: SocketAddr::new(src, tcp.source_port()),
        dst: SocketAddr::new(dst, tcp.destination_port()),
        seq: tcp.sequence_number(),
        syn: tcp.syn(),
        ack: tcp.ack(),
        payload: tcp.payload().to_vec(),
    })
}

/// A control connection of a capture.
struct Control {
    talk: Conversation,
    streams: [Reassembler; 2],
}

/// What following a capture showed.
#[derive(Debug, Default)]
struct Seen {
    /// Every opening, in order: `"EPSV 50053"`.
    opened: Vec<String>,
    /// Data connections that were expected when their SYN came.
    expected: usize,
    /// Data connections that were not.
    unexpected: usize,
    refused: Vec<&'static str>,
    phase: Option<SessionPhase>,
    went_tls: bool,
}

fn follow(segments: &[Segment]) -> Seen {
    let mut seen = Seen::default();
    let mut controls: HashMap<SocketAddr, Control> = HashMap::new();
    let mut open: Vec<Opening> = Vec::new();
    for segment in segments {
        if segment.dst.port() != 21 && segment.src.port() != 21 {
            if segment.syn && !segment.ack {
                let fits = |o: &Opening| {
                    o.src == segment.src.ip() && SocketAddr::new(o.dst, o.port.get()) == segment.dst
                };
                match open.iter().position(fits) {
                    Some(index) => {
                        open.remove(index);
                        seen.expected += 1;
                    }
                    None => seen.unexpected += 1,
                }
            }
            continue;
        }
        let (side, client, server) = if segment.dst.port() == 21 {
            (Side::Client, segment.src, segment.dst)
        } else {
            (Side::Server, segment.dst, segment.src)
        };
        let control = controls.entry(client).or_insert_with(|| Control {
            talk: Conversation::new(client.ip(), server.ip(), Config::default()),
            streams: [(); 2].map(|()| Reassembler::anywhere()),
        });
        if segment.syn {
            control.streams[side.index()] = Reassembler::at(segment.seq.wrapping_add(1));
        }
        let mut actions = Vec::new();
        let talk = &mut control.talk;
        control.streams[side.index()].push(segment.seq, &segment.payload, BUDGET, |bytes| {
            talk.feed(side, bytes, &mut actions);
        });
        for action in actions {
            seen.act(action, &mut open);
        }
    }
    seen
}

impl Seen {
    fn act(&mut self, action: Action, open: &mut Vec<Opening>) {
        match action {
            Action::Open(opening) => {
                self.opened
                    .push(format!("{} {}", opening.via.name(), opening.port.get()));
                open.push(opening);
            }
            Action::Withdraw(opening) => open.retain(|o| *o != opening),
            Action::CloseAll => open.clear(),
            Action::Phase(phase) => {
                self.went_tls |= phase == SessionPhase::Tls;
                self.phase = Some(phase);
            }
            Action::Refused(refusal) => self.refused.push(refusal.name()),
        }
    }
}

/// The captures, by name.
fn captures() -> BTreeMap<String, Vec<Segment>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ftp");
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "pcap"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, segments(&path))
        })
        .collect()
}

/// What a capture must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// One pinhole, this one; the session's one data connection used it.
    Uses(&'static str),
    /// Encrypted to its end: no pinhole for its one data connection.
    Blind,
    /// Neither a pinhole nor a data connection: the client gave up before.
    Nothing,
}
use Shows::{Blind, Nothing, Uses};

/// Sessions in clear.
const CLEAR: [(&str, Shows); 26] = [
    ("curl-active-v4", Uses("EPRT 45637")),
    ("curl-active-v6", Uses("EPRT 44509")),
    ("curl-v4", Uses("EPSV 50009")),
    ("curl-v6", Uses("EPSV 50019")),
    ("ftpssl-v4", Uses("PORT 50159")),
    ("ftpssl-v6", Uses("EPRT 48995")),
    ("inet-p-v4", Uses("PASV 50048")),
    ("inet-p-v6", Uses("EPSV 50047")),
    ("inet-v4", Uses("PORT 56395")),
    ("inet-v6", Uses("EPRT 43853")),
    ("lftp-active-v4", Uses("PORT 45389")),
    ("lftp-active-v6", Uses("EPRT 50635")),
    ("lftp-v4", Uses("PASV 50041")),
    ("lftp-v6", Uses("EPSV 50021")),
    ("ncftp-E-v4", Nothing),
    ("ncftp-v4", Nothing),
    ("pylib-v4", Uses("PASV 50060")),
    ("pylib-v6", Uses("EPSV 50039")),
    ("tnftp-active-v4", Uses("EPRT 46969")),
    ("tnftp-active-v6", Uses("EPRT 34847")),
    ("tnftp-v4", Uses("EPSV 50007")),
    ("tnftp-v6", Uses("EPSV 50058")),
    ("wget-active-v4", Uses("PORT 34059")),
    ("wget-active-v6", Uses("EPRT 36291")),
    ("wget-v4", Uses("PASV 50098")),
    ("wget-v6", Uses("EPSV 50017")),
];

/// Sessions with AUTH TLS, and CCC where it is named.
const ENCRYPTED: [(&str, Shows); 21] = [
    ("curl-proftpd-ccc-active", Uses("EPSV 50091")),
    ("curl-proftpd-ccc-activeftp", Uses("EPRT 58307")),
    ("curl-proftpd-ccc-activeftp-ctlonly", Uses("EPRT 57015")),
    (
        "curl-proftpd-ccc-activeftp-disable-eprt",
        Uses("PORT 51845"),
    ),
    ("curl-proftpd-ccc-activeftp-v6", Uses("EPRT 40307")),
    ("curl-proftpd-ccc-disable-epsv", Uses("PASV 50012")),
    ("curl-proftpd-ccc-passive", Uses("EPSV 50053")),
    ("curl-proftpd-ccc-passive-tls12", Uses("EPSV 50065")),
    ("curl-proftpd-ccc-v6", Uses("EPSV 50030")),
    ("curl-proftpd-noccc-activeftp", Blind),
    ("curl-pureftpd-ccc", Nothing),
    ("curl-pureftpd-ccc-activemode", Uses("PASV 50180")),
    ("ftpssl-tls-v4", Blind),
    ("ftpssl-tls-v6", Blind),
    ("lftp-proftpd-ccc", Nothing),
    ("lftp-proftpd-ccc-tls12", Nothing),
    ("lftp-pureftpd-ccc", Nothing),
    ("pyftplib-proftpd-ccc-pasv", Uses("PASV 50024")),
    ("pyftplib-proftpd-ccc-pasvtls12", Uses("PASV 50088")),
    ("pyftplib-proftpd-ccc-port", Uses("PORT 39191")),
    ("pyftplib-pureftpd-ccc", Uses("PASV 50126")),
];

#[test]
fn no_capture_is_left_out() {
    let told = CLEAR.iter().chain(&ENCRYPTED).map(|(name, _)| *name);
    let told: BTreeSet<&str> = told.collect();
    let captures = captures();
    let there: BTreeSet<&str> = captures.keys().map(String::as_str).collect();
    assert_eq!(told, there);
}

/// Holds a capture against what it must show.
fn holds(name: &str, shows: Shows) -> Seen {
    let seen = follow(&captures()[name]);
    let (opened, expected, unexpected) = match shows {
        Uses(opening) => (vec![opening], 1, 0),
        Blind => (vec![], 0, 1),
        Nothing => (vec![], 0, 0),
    };
    assert_eq!(seen.opened, opened, "{name}");
    let connections = (seen.expected, seen.unexpected);
    assert_eq!(connections, (expected, unexpected), "{name}");
    // After CCC this client goes on with records, which no line holds. It fails
    // without any firewall, too.
    let records = name.starts_with("lftp-proftpd-ccc");
    let refused: &[&str] = if records { &["binary-bytes"] } else { &[] };
    assert_eq!(seen.refused, refused, "{name}");
    seen
}

#[test]
fn clear_sessions_open_what_their_clients_use() {
    for (name, shows) in CLEAR {
        assert!(!holds(name, shows).went_tls, "{name}");
    }
}

#[test]
fn h13_sessions_that_go_clear_with_ccc_open_what_their_clients_use() {
    for (name, shows) in ENCRYPTED.iter().filter(|(_, shows)| *shows != Blind) {
        assert!(holds(name, *shows).went_tls, "{name}");
    }
}

#[test]
fn h12_an_encrypted_session_opens_nothing() {
    for (name, shows) in ENCRYPTED.iter().filter(|(_, shows)| *shows == Blind) {
        let phase = holds(name, *shows).phase;
        assert_eq!(phase, Some(SessionPhase::Tls), "{name}");
    }
}

#[test]
fn the_segmentation_of_a_capture_does_not_matter() {
    for (name, segments) in captures() {
        let whole = follow(&segments).opened;
        let cut: Vec<_> = segments.into_iter().flat_map(bytewise).collect();
        assert_eq!(follow(&cut).opened, whole, "{name}");
    }
}

/// The segment in pieces of one byte, each behind one that follows it.
fn bytewise(segment: Segment) -> Vec<Segment> {
    if segment.payload.is_empty() {
        return vec![segment];
    }
    let piece = |(offset, byte): (u32, &u8)| Segment {
        seq: segment.seq.wrapping_add(offset),
        payload: vec![*byte],
        ..segment
    };
    let mut pieces: Vec<_> = (0..).zip(&segment.payload).map(piece).collect();
    for pair in pieces.chunks_mut(2) {
        pair.reverse();
    }
    pieces
}

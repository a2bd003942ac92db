//! Sessions of real clients and servers, read from captures: exactly the data
//! connections that they made are expected, each before its SYN.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be read fails the test"
)]

use std::{
    collections::HashMap,
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

fn fixture(name: &str) -> Seen {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ftp");
    follow(&segments(&dir.join(name).with_extension("pcap")))
}

/// The one data connection of each capture was expected, and nothing else.
fn expects(name: &str, opening: &str) -> Seen {
    let seen = fixture(name);
    assert_eq!(seen.opened, [opening], "{name}");
    assert_eq!((seen.expected, seen.unexpected), (1, 0), "{name}");
    assert!(seen.refused.is_empty(), "{name}: {:?}", seen.refused);
    seen
}

#[test]
fn clear_sessions_open_what_their_clients_use() {
    for (name, opening) in [
        ("curl-active-v6", "EPRT 44509"),
        ("curl-v4", "EPSV 50009"),
        ("wget-v4", "PASV 50098"),
        ("inet-v4", "PORT 56395"),
        ("inet-p-v6", "EPSV 50047"),
        ("lftp-v4", "PASV 50041"),
        ("pylib-v4", "PASV 50060"),
        ("tnftp-active-v4", "EPRT 46969"),
    ] {
        assert!(!expects(name, opening).went_tls, "{name}");
    }
}

#[test]
fn h13_sessions_that_go_clear_with_ccc_open_what_their_clients_use() {
    for (name, opening) in [
        ("curl-proftpd-ccc-passive", "EPSV 50053"),
        ("curl-proftpd-ccc-passive-tls12", "EPSV 50065"),
        ("curl-proftpd-ccc-activeftp-v6", "EPRT 40307"),
        ("curl-pureftpd-ccc-activemode", "PASV 50180"),
        ("pyftplib-proftpd-ccc-pasv", "PASV 50024"),
        ("pyftplib-proftpd-ccc-port", "PORT 39191"),
    ] {
        assert!(expects(name, opening).went_tls, "{name}");
    }
}

#[test]
fn h12_an_encrypted_session_opens_nothing() {
    let seen = fixture("ftpssl-tls-v4");
    assert!(seen.opened.is_empty() && seen.refused.is_empty());
    assert_eq!((seen.expected, seen.unexpected), (0, 1));
    assert_eq!(seen.phase, Some(SessionPhase::Tls));
}

#[test]
fn sessions_without_a_data_connection_open_nothing() {
    for name in ["ncftp-v4", "curl-pureftpd-ccc", "lftp-proftpd-ccc-tls12"] {
        let seen = fixture(name);
        assert!(seen.opened.is_empty(), "{name}");
        assert_eq!((seen.expected, seen.unexpected), (0, 0), "{name}");
    }
}

#[test]
fn the_segmentation_of_a_capture_does_not_matter() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ftp");
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "pcap") {
            continue;
        }
        let whole = follow(&segments(&path));
        let cut: Vec<_> = segments(&path).into_iter().flat_map(bytewise).collect();
        assert_eq!(follow(&cut).opened, whole.opened, "{}", path.display());
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

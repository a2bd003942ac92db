//! Bytes of the fuzzer as things that clients and servers say, or nearly.

use std::{io::Write as _, net::IpAddr};

use crate::{Hosts, ftp::Side};

/// The fuzzer's bytes, in order; zeros after their end.
#[derive(Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    fn bytes(&mut self, count: u8) -> &'a [u8] {
        let (head, rest) = self.0.split_at(usize::from(count).min(self.0.len()));
        self.0 = rest;
        head
    }
}

/// What one side says before the other may speak again.
#[derive(Debug)]
pub(crate) struct Burst {
    pub(crate) side: Side,
    pub(crate) bytes: Vec<u8>,
    /// Nothing but whole TLS records?
    pub(crate) is_records: bool,
}

/// Things said in one burst, at most.
const MOST: usize = 6;

impl Burst {
    pub(crate) fn read(input: &mut Input<'_>, hosts: &Hosts) -> Self {
        let mut what = input.byte();
        let side = if what & 1 == 0 {
            Side::Client
        } else {
            Side::Server
        };
        let mut burst = Self {
            side,
            bytes: Vec::new(),
            is_records: true,
        };
        for _ in 0..MOST {
            burst.say(what, input, hosts);
            // The highest bit: and in the same breath.
            if what & 0x80 == 0 || input.is_empty() {
                break;
            }
            what = input.byte();
        }
        burst
    }

    fn say(&mut self, what: u8, input: &mut Input<'_>, hosts: &Hosts) {
        let kind = what >> 1 & 0x3f;
        if let 60.. = kind {
            let body = input.byte();
            return self.record(kind, body, hosts);
        }
        self.is_records = false;
        if let 56..60 = kind {
            let count = input.byte();
            return self.other(kind, count, input);
        }
        match self.side {
            Side::Client => self.command(kind, input, hosts),
            Side::Server => self.reply(kind, input, hosts),
        }
        let end: &[u8] = match input.byte() & 7 {
            0 => b"",
            1 => b"\n",
            2 => b"\r",
            _ => b"\r\n",
        };
        self.bytes.extend_from_slice(end);
    }

    /// A TLS record: a handshake's, an alert, or data that looks like lines.
    fn record(&mut self, kind: u8, body: u8, hosts: &Hosts) {
        let (kind, mut inside) = match kind {
            60 => (22, vec![body; usize::from(body)]),
            61 => (21, vec![1, 0]),
            _ => (23, vec![b'\n']),
        };
        if kind == 23 && body & 1 != 0 {
            line(&mut inside, "PORT ", hosts.client, 50_075);
            inside.extend_from_slice(b"\r\nPASV\r\n");
            line(&mut inside, "227 ", hosts.server, 50_075);
            inside.extend_from_slice(b"\r\n");
        }
        self.bytes.extend_from_slice(&[kind, 3, 3]);
        let len = u16::try_from(inside.len()).expect("a short record");
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.append(&mut inside);
    }

    /// Raw bytes, long lines, many lines, and nothing.
    fn other(&mut self, kind: u8, count: u8, input: &mut Input<'_>) {
        match kind {
            56 => self.bytes.extend_from_slice(input.bytes(count & 31)),
            57 => self
                .bytes
                .resize(self.bytes.len() + usize::from(count), b'x'),
            58 => {
                for _ in 0..count & 63 {
                    self.bytes.extend_from_slice(match self.side {
                        Side::Client => b"STAT\r\n",
                        Side::Server => b"200 \r\n",
                    });
                }
            }
            _ => {}
        }
    }

    fn command(&mut self, kind: u8, input: &mut Input<'_>, hosts: &Hosts) {
        const PLAIN: [&[u8]; 28] = [
            b"PASV",
            b"EPSV",
            b"LPSV",
            b"EPSV ALL",
            b"EPSV 1",
            b"EPSV 2",
            b"USER a",
            b"PASS b",
            b"ACCT c",
            b"NOOP",
            b"",
            b"QUIT",
            b"REIN",
            b"ABOR",
            b"\xff\xf4\xff\xf2ABOR",
            b"HOST h",
            b"FEAT",
            b"AUTH TLS",
            b"AUTH SSL",
            b"AUTH GSSAPI",
            b"CCC",
            b"LIST",
            b"RETR f",
            b"XCRC PASV",
            b"GET / HTTP/1.1",
            b"Host: h",
            b"227 (192,0,2,7,195,155)",
            b"pas\xff\xf1v",
        ];
        let verb = match kind {
            30..36 => "PORT ",
            36..42 => "EPRT ",
            42..46 => "LPRT ",
            _ => {
                let plain = PLAIN[usize::from(kind) % PLAIN.len()];
                return self.bytes.extend_from_slice(plain);
            }
        };
        let (host, port) = address(kind, hosts, Side::Client, input);
        line(&mut self.bytes, verb, host, port);
    }

    fn reply(&mut self, kind: u8, input: &mut Input<'_>, hosts: &Hosts) {
        const PLAIN: [&[u8]; 28] = [
            b"220 hi",
            b"230 in",
            b"200 ok",
            b"234 go",
            b"334 go",
            b"331 pw",
            b"202 so",
            b"232 in",
            b"150 data",
            b"226 done",
            b"221 bye",
            b"421 bye",
            b"425 no",
            b"500 no",
            b"502 no",
            b"530 no",
            b"220-hi",
            b"211-a",
            b"211 b",
            b" 227 in between",
            b"227-no",
            b"229-no",
            b"227",
            b"229",
            b"228",
            b"631 x",
            b"HTTP/1.1 200 OK",
            b"hello",
        ];
        let verb = match kind {
            30..34 => "227 Passive (",
            34..36 => "227 =",
            36..38 => "227 ",
            38..42 => "229 Extended (",
            42..44 => "229 ",
            44..47 => "228 Long (",
            _ => {
                let plain = PLAIN[usize::from(kind) % PLAIN.len()];
                return self.bytes.extend_from_slice(plain);
            }
        };
        let (host, port) = address(kind, hosts, Side::Server, input);
        line(&mut self.bytes, verb, host, port);
    }
}

/// What is announced: mostly the speaker's own address, and some port.
fn address(kind: u8, hosts: &Hosts, speaker: Side, input: &mut Input<'_>) -> (IpAddr, u16) {
    let port = u16::from_be_bytes([input.byte(), input.byte()]);
    let host = if kind % 4 == 3 {
        hosts.of(speaker.other())
    } else {
        hosts.of(speaker)
    };
    (host, port)
}

/// `verb` with an address in the form that goes with it.
fn line(out: &mut Vec<u8>, verb: &str, host: IpAddr, port: u16) {
    let octets = match host {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (hi, lo) = (port >> 8, port & 0xff);
    let list = octets
        .iter()
        .fold(String::new(), |all, o| all + &format!("{o},"));
    let long = if host.is_ipv4() { "4,4" } else { "6,16" };
    let family = if host.is_ipv4() { 1 } else { 2 };
    let close = if verb.ends_with('(') { ")" } else { "" };
    let done = match verb.get(..3) {
        Some("EPR") => write!(out, "{verb}|{family}|{host}|{port}|"),
        Some("229") => write!(out, "{verb}|||{port}|{close}"),
        Some("LPR" | "228") => write!(out, "{verb}{long},{list}2,{hi},{lo}{close}"),
        _ => write!(out, "{verb}{list}{hi},{lo}{close}"),
    };
    done.expect("memory");
}

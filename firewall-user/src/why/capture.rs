//! Captures of packets: pcap and pcapng.
//!
//! pcap (<https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>) in both byte
//! orders, with microseconds or nanoseconds; of pcapng
//! (<https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/>) sections,
//! interfaces, enhanced and simple packet blocks.

use std::time::Duration;

use super::Link;

/// A packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Time of day, since 1970; zero where the capture has no times.
    pub at: Duration,
    /// What it begins with.
    pub link: Link,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// How long it was.
    pub len: usize,
}

/// Why a capture cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither format.
    #[error("not a capture: a pcap or pcapng file is expected, as `tcpdump -w FILE` makes it")]
    Format,
    /// Ends within something.
    #[error(
        "cut short after {packets} packets, at byte {at}: capture again, or repair it with \
         `editcap FILE NEW`"
    )]
    Truncated {
        /// Whole packets before.
        packets: usize,
        /// Where in the file.
        at: usize,
    },
    /// A length that cannot be.
    #[error("damaged after {packets} packets, at byte {at}: {what}")]
    Damaged {
        /// Whole packets before.
        packets: usize,
        /// Where in the file.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A link header that is not known here.
    #[error(
        "packets of link type {0} cannot be judged: Ethernet, raw IP and Linux cooked captures \
         can; capture on the guarded interface itself, or on `any`"
    )]
    LinkType(u32),
    /// A pcapng block of another kind that holds packets.
    #[error("an obsolete pcapng packet block at byte {at}: convert with `tcpdump -r FILE -w NEW`")]
    Obsolete {
        /// Where in the file.
        at: usize,
    },
}

const MICROS: u32 = 0xa1b2_c3d4;
const NANOS: u32 = 0xa1b2_3c4d;
const SECTION: u32 = 0x0a0d_0d0a;
const ORDER: u32 = 0x1a2b_3c4d;

/// Longest record that `tcpdump` or the kernel makes (`MAXIMUM_SNAPLEN`).
const LONGEST: usize = 262_144;

/// The packets of a file, in order.
///
/// # Errors
///
/// [`Error`], also after whole packets: half an answer would look like one.
pub fn read(file: &[u8]) -> Result<Vec<Record<'_>>, Error> {
    let first = file.first_chunk::<4>().ok_or(Error::Format)?;
    for big in [false, true] {
        let bytes = Bytes { file, big };
        match bytes.word_of(*first) {
            MICROS => return pcap(bytes, 1000),
            NANOS => return pcap(bytes, 1),
            SECTION => return Sections::default().read(file),
            _ => {}
        }
    }
    Err(Error::Format)
}

/// A file and the byte order of its numbers.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    file: &'a [u8],
    big: bool,
}

impl<'a> Bytes<'a> {
    const fn word_of(self, bytes: [u8; 4]) -> u32 {
        if self.big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    }

    fn word(self, at: usize) -> Option<u32> {
        self.take(at, 4)?.first_chunk().map(|b| self.word_of(*b))
    }

    fn half(self, at: usize) -> Option<u16> {
        let bytes = self.take(at, 2)?.first_chunk()?;
        Some(if self.big {
            u16::from_be_bytes(*bytes)
        } else {
            u16::from_le_bytes(*bytes)
        })
    }

    fn len(self, at: usize) -> Option<usize> {
        self.word(at).and_then(|word| usize::try_from(word).ok())
    }

    fn take(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.file.get(at..at.checked_add(len)?)
    }
}

/// `LINKTYPE_*` (<https://www.tcpdump.org/linktypes.html>).
const fn link(number: u32) -> Result<Link, Error> {
    match number {
        1 => Ok(Link::Ethernet),
        // Raw IP has had other numbers on other systems.
        12 | 14 | 101 | 228 | 229 => Ok(Link::Ip),
        113 => Ok(Link::Cooked),
        276 => Ok(Link::Cooked2),
        other => Err(Error::LinkType(other)),
    }
}

fn pcap(bytes: Bytes<'_>, unit_ns: u32) -> Result<Vec<Record<'_>>, Error> {
    const HEADER: usize = 24;
    const RECORD: usize = 16;
    let cut = |packets, at| Error::Truncated { packets, at };
    // The upper half is about a frame check sequence.
    let link = link(bytes.word(20).ok_or(cut(0, 20))? & 0xffff)?;
    let mut records = Vec::new();
    let mut at = HEADER;
    while at < bytes.file.len() {
        let head = || {
            let seconds = bytes.word(at)?;
            let fraction = bytes.word(at + 4)?;
            Some((seconds, fraction, bytes.len(at + 8)?, bytes.len(at + 12)?))
        };
        let (seconds, fraction, captured, len) = head().ok_or(cut(records.len(), at))?;
        if captured > LONGEST || captured > len {
            return Err(Error::Damaged {
                packets: records.len(),
                at,
                what: "a packet longer than it can be",
            });
        }
        let packet = bytes.take(at + RECORD, captured);
        let fraction = u64::from(fraction) * u64::from(unit_ns);
        records.push(Record {
            at: Duration::from_secs(seconds.into()) + Duration::from_nanos(fraction),
            link,
            bytes: packet.ok_or(cut(records.len(), at))?,
            len,
        });
        at += RECORD + captured;
    }
    Ok(records)
}

/// An interface of a pcapng section.
struct Interface {
    link: u32,
    /// Units of time in a second.
    per_second: u64,
    snaplen: usize,
}

#[derive(Default)]
struct Sections<'a> {
    big: bool,
    interfaces: Vec<Interface>,
    records: Vec<Record<'a>>,
}

impl<'a> Sections<'a> {
    fn read(mut self, file: &'a [u8]) -> Result<Vec<Record<'a>>, Error> {
        let mut at = 0;
        while at < file.len() {
            let mut bytes = Bytes {
                file,
                big: self.big,
            };
            let cut = Error::Truncated {
                packets: self.records.len(),
                at,
            };
            let kind = bytes.word(at).ok_or(cut)?;
            if kind == SECTION {
                if bytes.word(at + 8).ok_or(cut)? != ORDER {
                    self.big = !self.big;
                    bytes.big = self.big;
                }
                if bytes.word(at + 8) != Some(ORDER) {
                    return Err(self.damaged(at, "a section without its byte order"));
                }
                self.interfaces.clear();
            }
            let len = bytes.len(at + 4).ok_or(cut)?;
            if len < 12 || len % 4 != 0 {
                return Err(self.damaged(at, "a block of an impossible length"));
            }
            let block = bytes.take(at, len).ok_or(cut)?;
            let block = Bytes {
                file: block,
                big: self.big,
            };
            self.block(kind, block, at)?;
            at += len;
        }
        Ok(self.records)
    }

    fn block(&mut self, kind: u32, block: Bytes<'a>, at: usize) -> Result<(), Error> {
        const INTERFACE: u32 = 1;
        const PACKET: u32 = 2;
        const SIMPLE: u32 = 3;
        const ENHANCED: u32 = 6;
        let done = match kind {
            INTERFACE => self.interface(block),
            ENHANCED => return self.enhanced(block, at),
            SIMPLE => return self.simple(block, at),
            PACKET => return Err(Error::Obsolete { at }),
            _ => Some(()),
        };
        done.ok_or_else(|| self.damaged(at, "a block that is too short"))
    }

    fn interface(&mut self, block: Bytes<'_>) -> Option<()> {
        const TSRESOL: u16 = 9;
        let mut per_second = 1_000_000;
        // Options: code, length, value padded to four bytes.
        let mut at = 16;
        while let (Some(code), Some(len)) = (block.half(at), block.half(at + 2)) {
            if code == 0 || at + 4 > block.file.len() - 4 {
                break;
            }
            if code == TSRESOL {
                let value = *block.file.get(at + 4)?;
                per_second = match (value & 0x80, u32::from(value & 0x7f)) {
                    (0, power) => 10_u64.checked_pow(power)?,
                    (_, power) => 1_u64.checked_shl(power)?,
                };
            }
            at += 4 + usize::from(len).next_multiple_of(4);
        }
        self.interfaces.push(Interface {
            link: u32::from(block.half(8)?),
            per_second,
            snaplen: block.len(12)?,
        });
        Some(())
    }

    fn enhanced(&mut self, block: Bytes<'a>, at: usize) -> Result<(), Error> {
        let head = || {
            let stamp = u64::from(block.word(12)?) << 32 | u64::from(block.word(16)?);
            Some((block.len(8)?, stamp, block.len(20)?, block.len(24)?))
        };
        let short = "a packet that does not fit its block";
        let (on, stamp, captured, len) = head().ok_or_else(|| self.damaged(at, short))?;
        let on = self.on(on, at)?;
        let record = Record {
            at: on.time(stamp),
            link: link(on.link)?,
            bytes: block
                .take(28, captured)
                .filter(|_| captured <= len && 32 + captured <= block.file.len())
                .ok_or_else(|| self.damaged(at, short))?,
            len,
        };
        self.records.push(record);
        Ok(())
    }

    /// No time, no interface: it is of the first.
    fn simple(&mut self, block: Bytes<'a>, at: usize) -> Result<(), Error> {
        let short = "a packet that does not fit its block";
        let len = block.len(8).ok_or_else(|| self.damaged(at, short))?;
        let on = self.on(0, at)?;
        let captured = match on.snaplen {
            0 => len,
            limit => len.min(limit),
        };
        let record = Record {
            at: Duration::ZERO,
            link: link(on.link)?,
            bytes: block
                .take(12, captured)
                .ok_or_else(|| self.damaged(at, short))?,
            len,
        };
        self.records.push(record);
        Ok(())
    }

    fn on(&self, interface: usize, at: usize) -> Result<&Interface, Error> {
        self.interfaces
            .get(interface)
            .ok_or_else(|| self.damaged(at, "a packet of an interface that is not described"))
    }

    const fn damaged(&self, at: usize, what: &'static str) -> Error {
        Error::Damaged {
            packets: self.records.len(),
            at,
            what,
        }
    }
}

impl Interface {
    fn time(&self, stamp: u64) -> Duration {
        let fraction = u128::from(stamp % self.per_second) * 1_000_000_000;
        let nanos = fraction / u128::from(self.per_second);
        Duration::from_secs(stamp / self.per_second)
            + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 20] = [7; 20];

    fn word(big: bool, value: u32) -> [u8; 4] {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    }

    /// One packet of 20 bytes (60 on the wire) at 5.25 s.
    fn classic(big: bool, magic: u32, link: u32) -> Vec<u8> {
        let fraction = if magic == NANOS { 250_000_000 } else { 250_000 };
        let words = [magic, 0x0004_0002, 0, 0, 65535, link, 5, fraction, 20, 60];
        let mut file: Vec<u8> = words.iter().flat_map(|w| word(big, *w)).collect();
        file.extend(FRAME);
        file
    }

    fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
        let len = 12 + body.len().next_multiple_of(4) as u32;
        let mut out = [word(big, kind), word(big, len)].concat();
        out.extend(body);
        out.resize(8 + body.len().next_multiple_of(4), 0);
        out.extend(word(big, len));
        out
    }

    /// The same packet with nanoseconds, by an enhanced and by a simple block.
    fn next_generation(big: bool, packets: bool) -> Vec<u8> {
        let half = |value: u16| {
            if big {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let mut section = word(big, ORDER).to_vec();
        section.extend([0; 12]);
        let mut out = block(big, SECTION, &section);
        let mut interface = half(1).to_vec();
        interface.extend([0, 0]);
        interface.extend(word(big, 20));
        // if_name "lo", if_tsresol 9, end.
        interface.extend([half(2), half(2)].concat());
        interface.extend(*b"lo\0\0");
        interface.extend([half(9), half(1)].concat());
        interface.extend([9, 0, 0, 0]);
        interface.extend([0; 4]);
        out.extend(block(big, 1, &interface));
        // A name resolution block is passed over.
        out.extend(block(big, 4, &[0; 4]));
        if packets {
            let stamp: u64 = 5_250_000_000;
            let head = [0, (stamp >> 32) as u32, stamp as u32, 20, 60];
            let mut enhanced: Vec<u8> = head.iter().flat_map(|w| word(big, *w)).collect();
            enhanced.extend(FRAME);
            out.extend(block(big, 6, &enhanced));
            let mut simple = word(big, 60).to_vec();
            simple.extend(FRAME);
            out.extend(block(big, 3, &simple));
        }
        out
    }

    #[test]
    fn both_orders_and_both_units_are_read() {
        for big in [false, true] {
            for magic in [MICROS, NANOS] {
                let file = classic(big, magic, 1);
                let wanted = Record {
                    at: Duration::from_millis(5250),
                    link: Link::Ethernet,
                    bytes: &FRAME,
                    len: 60,
                };
                assert_eq!(read(&file).unwrap(), [wanted], "{big} {magic:x}");
            }
        }
    }

    #[test]
    fn the_next_generation_is_read() {
        for big in [false, true] {
            let file = next_generation(big, true);
            let records = read(&file).unwrap();
            assert_eq!(records.len(), 2);
            assert_eq!(records[0].at, Duration::from_millis(5250));
            assert!(records.iter().all(|r| r.bytes == FRAME && r.len == 60));
            assert_eq!(read(&next_generation(big, false)).unwrap(), []);
            // A second section may have the other byte order.
            let mut two = file;
            two.extend(next_generation(!big, true));
            assert_eq!(read(&two).unwrap().len(), 4);
        }
    }

    #[test]
    fn link_types_are_told_apart() {
        for (number, wanted) in [
            (101, Link::Ip),
            (228, Link::Ip),
            (113, Link::Cooked),
            (276, Link::Cooked2),
            // A frame check sequence of four bytes.
            (0x4400_0001 | 1 << 31, Link::Ethernet),
        ] {
            assert_eq!(
                read(&classic(false, MICROS, number)).unwrap()[0].link,
                wanted
            );
        }
        let wifi = read(&classic(false, MICROS, 105)).unwrap_err();
        assert_eq!(wifi, Error::LinkType(105));
        assert!(wifi.to_string().contains("Linux cooked"), "{wifi}");
    }

    #[test]
    fn whatever_is_cut_off_is_noticed() {
        for whole in [classic(true, NANOS, 1), next_generation(false, true)] {
            let packets = read(&whole).unwrap().len();
            for len in 0..whole.len() {
                match read(&whole[..len]) {
                    // Between two packets there is nothing to notice.
                    Ok(read) => assert!(read.len() < packets, "{len}"),
                    Err(Error::Format) => assert!(len < 4),
                    Err(error) => assert!(matches!(error, Error::Truncated { .. }), "{error}"),
                }
            }
        }
    }

    #[test]
    fn lies_are_noticed() {
        let mut longer = classic(false, MICROS, 1);
        longer[32] = 61;
        assert!(matches!(read(&longer), Err(Error::Damaged { .. })));
        let mut endless = next_generation(false, true);
        endless[4] = 0;
        assert!(matches!(read(&endless), Err(Error::Damaged { .. })));
        let none = [next_generation(false, false), block(false, 6, &[0; 28])].concat();
        assert_eq!(read(&none).unwrap().len(), 1, "an empty packet is one");
        let mut foreign = vec![0; 28];
        foreign[0] = 9;
        let foreign = [next_generation(false, false), block(false, 6, &foreign)].concat();
        assert!(matches!(read(&foreign), Err(Error::Damaged { .. })));
        let obsolete = [next_generation(false, false), block(false, 2, &[0; 28])].concat();
        let error = read(&obsolete).unwrap_err().to_string();
        assert!(error.contains("tcpdump -r"), "{error}");
    }

    #[test]
    fn other_files_are_no_captures() {
        for file in [&b""[..], b"abc", b"\x7fELF\x02\x01\x01", b"192.0.2.1:21"] {
            assert_eq!(read(file), Err(Error::Format));
        }
    }
}

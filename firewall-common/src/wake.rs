//! Which control payload the agent is woken for.
//!
//! To wake it costs more than all else that a line does, and most lines matter to
//! nobody's next packet: they wait on the ring until one comes that does. What is
//! here is a guess and needs to be no more: if it is wrong, a data connection's SYN comes
//! while something is unread, so it is held, and that wakes the agent.

use crate::abi::{EVENT_CLASSES, EventHeader, EventKind, event_flags};

/// Bytes of a segment that are looked at.
pub const LOOKED_AT: usize = 4;

/// A TLS record of the handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Is the record with this header to be read at once? Of payload, `first` are its first
/// bytes, as [`word`] makes them.
///
/// Later are only lines by which [`is_urgent`] says no, and reports of SYNs that were let
/// through, or that lead where a pinhole does and are nobody's.
#[inline(always)]
#[must_use]
pub fn is_now(header: &EventHeader, first: u32) -> bool {
    // Of a SYN that was refused the agent hears at once: if a line that waits on the ring has
    // announced it, its pinhole is to be there when it comes again.
    const LATER: [u16; 2] = [EventKind::SynPassed as u16, EventKind::SynStray as u16];
    if header.kind == EventKind::Payload as u16 {
        // What is beyond the size of a line is none.
        let is_line = header.len >= LOOKED_AT as u32 && header.len <= EVENT_CLASSES[0] as u32;
        !is_line || is_urgent(first, header.flags & event_flags::REPLY != 0)
    } else {
        !LATER.contains(&header.kind)
    }
}

/// Can a segment that begins like this open or close a pinhole, or change how its session is
/// read? `first` is as [`word`] makes it.
///
/// Of a client those are PORT, EPRT and LPRT. Of a server all replies but the
/// preliminary and intermediate ones, and those to transfers (226, 250), to the log-in (230) and
/// to directories (257).
#[inline(always)]
#[must_use]
pub const fn is_urgent(first: u32, from_server: bool) -> bool {
    let [kind, ..] = first.to_be_bytes();
    if kind == TLS_HANDSHAKE {
        return true;
    }
    if !from_server {
        let lower = first | 0x2020_2020;
        return lower == word(*b"port") || lower == word(*b"eprt") || lower == word(*b"lprt");
    }
    let code = first >> 8;
    match kind {
        b'2' => {
            code != code_of(*b"226")
                && code != code_of(*b"250")
                && code != code_of(*b"230")
                && code != code_of(*b"257")
        }
        b'4' | b'5' => true,
        _ => false,
    }
}

/// The first bytes of a segment as one number.
#[inline(always)]
#[must_use]
pub const fn word(bytes: [u8; LOOKED_AT]) -> u32 {
    u32::from_be_bytes(bytes)
}

const fn code_of([a, b, c]: [u8; 3]) -> u32 {
    word([0, a, b, c])
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn what_is_no_line_and_what_is_no_report_is_read_now() {
        let now = |kind: EventKind, len, flags, first: &[u8; LOOKED_AT]| {
            let header = EventHeader {
                kind: kind as u16,
                len,
                flags,
                ..EventHeader::zeroed()
            };
            is_now(&header, word(*first))
        };
        let line = |len, flags, first| now(EventKind::Payload, len, flags, first);
        let largest = EVENT_CLASSES[0] as u32;
        assert!(!line(30, 0, b"RETR"));
        assert!(!line(largest, 0, b"RETR"));
        assert!(line(largest + 1, 0, b"RETR"));
        assert!(line(3, 0, b"RET\0"));
        assert!(line(30, 0, b"PORT"));
        // Whose line it is decides.
        assert!(!line(30, 0, b"227 "));
        assert!(line(30, event_flags::REPLY, b"227 "));
        assert!(!line(30, event_flags::REPLY, b"150 "));
        for kind in [EventKind::SynPassed, EventKind::SynStray] {
            assert!(!now(kind, 0, 0, &[0; 4]), "{kind:?}");
        }
        for kind in [
            EventKind::Open,
            EventKind::Fin,
            EventKind::Rst,
            EventKind::SynDropped,
            EventKind::SynHeld,
        ] {
            assert!(now(kind, 0, 0, &[0; 4]), "{kind:?}");
        }
    }

    fn urgent(line: &[u8], from_server: bool) -> bool {
        is_urgent(word(line[..LOOKED_AT].try_into().unwrap()), from_server)
    }

    #[test]
    fn what_opens_closes_or_changes_wakes() {
        for reply in [
            "227 Entering Passive Mode (192,0,2,7,195,155).",
            "227-",
            "228 ",
            "229 Entering Extended Passive Mode (|||50053|)",
            "200 PORT command successful.",
            "234 AUTH TLS successful.",
            "221 Goodbye.",
            "220 ready",
            "421 Timeout.",
            "425 Can't build data connection.",
            "500 Illegal PORT command.",
            "530 Login incorrect.",
            "\x16\x03\x03\x00",
        ] {
            assert!(urgent(reply.as_bytes(), true), "{reply}");
        }
        for command in [
            "PORT 192,0,2,2,4,1",
            "port ",
            "ePrT |1|",
            "LPRT 4,",
            "\x16\x03\x01\x02",
        ] {
            assert!(urgent(command.as_bytes(), false), "{command}");
        }
    }

    #[test]
    fn the_rest_waits() {
        for reply in [
            "150 Opening",
            "125 ",
            "331 password",
            "350 ",
            "226 done",
            "230 in",
            "250 ",
            "257 ",
            "\x17\x03\x03\x00",
            " cont",
        ] {
            assert!(!urgent(reply.as_bytes(), true), "{reply}");
        }
        for command in [
            "PASV",
            "EPSV",
            "RETR file",
            "227 (1,2",
            "PASS secret",
            "\x17\x03\x03\x00",
        ] {
            assert!(!urgent(command.as_bytes(), false), "{command}");
        }
    }
}

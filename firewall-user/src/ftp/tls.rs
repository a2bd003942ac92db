//! TLS record framing (RFC 8446, section 5.1; RFC 5246, section 6.2.1).
//!
//! Nothing inside a record is looked at. What matters is where records end: a
//! session goes back to clear text (CCC, RFC 4217, section 6) at a record
//! boundary, and the byte that follows tells. Record types are 20 to 24, which
//! no FTP line begins with.

const HEADER: usize = 5;
/// 2^14 bytes of plain text and what TLS 1.2 lets a cipher add.
const MAX_RECORD: usize = (1 << 14) + 2048;

const CHANGE_CIPHER_SPEC: u8 = 20;
/// The type of a handshake record: the first byte of implicit TLS.
pub const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const HEARTBEAT: u8 = 24;

/// Can a record begin with this byte? No line of FTP does.
#[must_use]
pub const fn begins_record(byte: u8) -> bool {
    matches!(byte, CHANGE_CIPHER_SPEC..=HEARTBEAT)
}

/// What ended a run of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At a record boundary stands a byte that begins no record. It was not taken.
    NotTls,
    /// The framing cannot be followed any more; everything is taken from here on.
    Lost,
}

/// Follows the records of one direction.
#[derive(Debug, Default)]
pub struct Framer {
    header: [u8; HEADER],
    have: usize,
    body: usize,
    carried_data: bool,
    lost: bool,
}

impl Framer {
    /// A framer at a record boundary.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A framer that does not know where the records begin, and never will.
    #[must_use]
    pub fn lost() -> Self {
        Self {
            lost: true,
            ..Self::default()
        }
    }

    /// Did this direction carry application data, as it does once the handshake is over?
    #[must_use]
    pub const fn carried_data(&self) -> bool {
        self.carried_data
    }

    /// Takes records off `input`; `None` when it is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<End> {
        while let Some(&first) = input.first() {
            if self.lost {
                *input = &[];
                return None;
            }
            if self.body > 0 {
                let n = self.body.min(input.len());
                self.body -= n;
                *input = input.get(n..).unwrap_or_default();
                continue;
            }
            if self.have == 0 && !begins_record(first) {
                return Some(End::NotTls);
            }
            *input = input.get(1..).unwrap_or_default();
            if let Some(slot) = self.header.get_mut(self.have) {
                *slot = first;
            }
            self.have += 1;
            if self.have == HEADER && !self.begin_record() {
                self.lost = true;
                *input = &[];
                return Some(End::Lost);
            }
        }
        None
    }

    fn begin_record(&mut self) -> bool {
        let [kind, major, minor, hi, lo] = self.header;
        let len = usize::from(u16::from_be_bytes([hi, lo]));
        self.have = 0;
        self.body = len;
        self.carried_data |= kind == APPLICATION_DATA;
        major == 3 && minor <= 4 && len <= MAX_RECORD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![kind, 3, 3];
        bytes.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        bytes.resize(HEADER + len, b'\n');
        bytes
    }

    #[test]
    fn clear_text_is_found_at_a_boundary_in_any_segmentation() {
        let mut bytes = record(HANDSHAKE, 300);
        bytes.extend(record(APPLICATION_DATA, 19));
        bytes.extend_from_slice(b"PASV\r\n");
        for size in [1, 2, 7, 400] {
            let mut framer = Framer::new();
            let mut rest = Vec::new();
            for chunk in bytes.chunks(size) {
                let mut input = chunk;
                if !rest.is_empty() {
                    rest.extend_from_slice(input);
                    continue;
                }
                if framer.next(&mut input) == Some(End::NotTls) {
                    rest.extend_from_slice(input);
                }
            }
            assert_eq!(rest, b"PASV\r\n");
            assert!(framer.carried_data());
        }
    }

    #[test]
    fn what_a_record_holds_is_not_looked_at() {
        let mut bytes = vec![APPLICATION_DATA, 3, 3, 0, 30];
        bytes.extend_from_slice(b"\r\n227 (10,0,0,1,195,155)\r\n    ");
        let mut framer = Framer::new();
        let mut input = bytes.get(..35).unwrap();
        assert_eq!(framer.next(&mut input), None);
        assert!(input.is_empty());
    }

    #[test]
    fn nonsense_after_a_type_byte_is_lost_for_good() {
        for bad in [[22, 9, 1, 0, 1], [22, 3, 9, 0, 1], [22, 3, 3, 0xff, 0xff]] {
            let mut framer = Framer::new();
            let mut input: &[u8] = &bad;
            assert_eq!(framer.next(&mut input), Some(End::Lost));
            let mut more: &[u8] = b"PASV\r\n";
            assert_eq!(framer.next(&mut more), None);
            assert!(more.is_empty());
        }
    }
}

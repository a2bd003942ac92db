//! TCP options (RFC 9293, section 3.1): window scale, SACK permitted, SACK.

use crate::wire::Headers;

/// Bytes that hold the options of any segment, and a length byte behind each of
/// them; a power of two, so that an index is bounded by a mask.
pub const OPTIONS_ROOM: usize = 64;
/// The most that a header has of them.
pub const OPTIONS_MAX: usize = 40;
/// Options of a segment that carries a timestamp and nothing else, as every
/// stack aligns it (RFC 7323, appendix A).
pub const TIMESTAMP_ONLY: [u8; 4] = [1, 1, 8, 10];
/// Their length.
pub const TIMESTAMP_ONLY_LEN: usize = 12;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
/// RFC 7323, section 2.3: a larger one counts as this.
const MAX_SCALE: u8 = 14;

/// Reads the first `len` bytes of `options` into `h`: the highest edge in its
/// SACK, and of a SYN its window scale and whether it permits SACK.
///
/// False if an option is cut short or has a length that cannot be. What came
/// before it counts.
///
/// `forget` returns its argument; in the kernel so that the verifier loses sight
/// of it, or it would follow each way through all options.
#[inline(always)]
#[must_use]
pub fn parse(
    options: &[u8; OPTIONS_ROOM],
    len: usize,
    syn: bool,
    h: &mut Headers,
    mut forget: impl FnMut(usize) -> usize,
) -> bool {
    let byte = |at: usize| options[at & (OPTIONS_ROOM - 1)];
    let mut at = 0;
    // Each turn takes a byte at least.
    for _ in 0..OPTIONS_MAX {
        at = forget(at);
        if at >= len {
            return true;
        }
        let kind = byte(at);
        match kind {
            END => return true,
            NO_OPERATION => {
                at += 1;
                continue;
            }
            _ => {}
        }
        if len - at < 2 {
            return false;
        }
        let size = byte(at + 1) as usize;
        if size < 2 || size > len - at {
            return false;
        }
        match (kind, size) {
            (WINDOW_SCALE, 3) if syn => h.scale = byte(at + 2).min(MAX_SCALE),
            (SACK_PERMITTED, 2) if syn => h.sack_permitted = true,
            // There is one at most.
            (SACK, 10 | 18 | 26 | 34) if h.sack == h.ack => highest_edge(options, at, size, h),
            _ => {}
        }
        at += size;
    }
    true
}

/// Raises `h.sack` to the highest right edge of the blocks in the SACK option at `at`.
#[inline(always)]
fn highest_edge(options: &[u8; OPTIONS_ROOM], at: usize, size: usize, h: &mut Headers) {
    let byte = |at: usize| options[at & (OPTIONS_ROOM - 1)];
    for block in 0..4 {
        // Two bytes of head; in each block of eight the second word.
        let edge = at + 2 + block * 8 + 4;
        if 2 + block * 8 >= size {
            return;
        }
        let right =
            u32::from_be_bytes([byte(edge), byte(edge + 1), byte(edge + 2), byte(edge + 3)]);
        if super::after(right, h.sack) {
            h.sack = right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::flow_flags::NO_SCALE;

    fn read(bytes: &[u8], syn: bool) -> (bool, Headers) {
        let mut options = [0xff; OPTIONS_ROOM];
        options[..bytes.len()].copy_from_slice(bytes);
        let mut h = Headers {
            ack: 1000,
            sack: 1000,
            ..Headers::ZERO
        };
        (parse(&options, bytes.len(), syn, &mut h, |at| at), h)
    }

    #[test]
    fn a_syn_tells_its_scale_and_whether_it_permits_sack() {
        let (whole, h) = read(&[2, 4, 5, 180, 4, 2, 1, 3, 3, 7], true);
        assert!(whole);
        assert_eq!((h.scale, h.sack_permitted), (7, true));
        let (_, h) = read(&[3, 3, 200], true);
        assert_eq!(h.scale, 14, "RFC 7323, section 2.3");
        let (_, h) = read(&[], true);
        assert_eq!((h.scale, h.sack_permitted), (NO_SCALE, false));
    }

    #[test]
    fn the_highest_edge_counts() {
        let mut bytes = vec![1, 1, 5, 18];
        for edge in [2000_u32, 3000, 5000, 4000] {
            bytes.extend(edge.to_be_bytes());
        }
        assert_eq!(
            read(&bytes, false).1.sack,
            4000,
            "right edges are 3000 and 4000"
        );
        bytes[3] = 17;
        assert_eq!(read(&bytes, false).1.sack, 1000, "no whole blocks");
    }

    #[test]
    fn lengths_that_cannot_be_end_the_list() {
        for bad in [&[3, 0, 7][..], &[3, 1, 7], &[3, 4, 7], &[1, 1, 3]] {
            let (whole, h) = read(bad, true);
            assert!(!whole, "{bad:?}");
            assert_eq!(h.scale, NO_SCALE, "{bad:?}");
        }
        assert!(read(&[0, 3, 0], true).0, "nothing counts behind the end");
        assert!(read(&[1; 40], true).0);
        assert!(!read(&[4, 2, 4], true).0 && read(&[4, 2, 4], true).1.sack_permitted);
    }
}

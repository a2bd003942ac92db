//! The Internet checksum (RFC 1071), to complete a packet that was copied
//! before its sender's device would have done so.

/// Ones' complement sum of `bytes` in 16-bit words, on top of `sum`, not folded.
#[must_use]
pub fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        if let [a, b] = pair {
            sum += u32::from(u16::from_be_bytes([*a, *b]));
        }
    }
    if let [last] = pairs.remainder() {
        sum += u32::from(u16::from_be_bytes([*last, 0]));
    }
    sum
}

/// Folds a sum to 16 bits.
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The pseudo-header's sum for TCP or UDP: addresses (4 or 16 bytes each), protocol, length.
#[must_use]
pub fn pseudo_header(src: &[u8], dst: &[u8], proto: u8, len: u32) -> u32 {
    let sum = add(add(0, src), dst);
    sum + u32::from(proto) + (len & 0xffff) + (len >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
    }

    #[test]
    fn an_odd_byte_is_padded_with_zero() {
        assert_eq!(fold(add(0, &[0x12])), 0x1200);
    }
}

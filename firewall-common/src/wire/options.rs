//! Options of an IPv4 header (RFC 791, section 3.1).

use super::{Family, Headers, Parsed};
use crate::verdict::DropReason;

const HEADER: u32 = 20;
/// The longest header has 60 bytes.
const MAX: usize = 40;

const END: u8 = 0;
const NOTHING: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;

/// Room for the options of a header, a power of two.
pub type Options = [u8; 64];

/// Offset of the options in the frame and their length; the length is 0 if
/// there are none.
#[inline(always)]
#[must_use]
pub const fn options_of(h: &Headers) -> (u32, u32) {
    let at = h.l3_offset as u32 + HEADER;
    match h.family {
        Family::V4 => (at, (h.l4_offset as u32).wrapping_sub(at)),
        Family::V6 => (at, 0),
    }
}

/// Walks the first `len` bytes of `options`. A source route would take the
/// packet elsewhere than to the destination that it is judged by (RFC 7126,
/// sections 4.3 and 4.4).
///
/// # Errors
/// An option of length 0 or 1, or one that ends beyond the header; a source route.
#[inline(always)]
pub const fn check_options(options: &Options, len: u32) -> Parsed<()> {
    const MASK: usize = size_of::<Options>() - 1;
    let len = len as usize;
    let mut at = 0;
    let mut steps = 0;
    while steps < MAX {
        steps += 1;
        // The masks change nothing. They have the verifier see the same state
        // whichever way the last option was left behind.
        at &= MASK;
        if at >= len {
            break;
        }
        match options[at] {
            END => break,
            NOTHING => at += 1,
            LOOSE_ROUTE | STRICT_ROUTE => return Err(DropReason::SourceRoute),
            _ => {
                let size = options[(at + 1) & MASK] as usize;
                if at + 1 == len || size < 2 || at + size > len {
                    return Err(DropReason::MalformedIpv4);
                }
                at += size;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(options: &[u8]) -> Parsed<()> {
        // What lies behind the options must not matter.
        let mut room = [0xff; 64];
        room[..options.len()].copy_from_slice(options);
        check_options(&room, options.len() as u32)
    }

    #[test]
    fn options_of_common_use_pass() {
        assert_eq!(walk(&[]), Ok(()));
        assert_eq!(walk(&[148, 4, 0, 0]), Ok(()), "router alert (RFC 2113)");
        assert_eq!(walk(&[1; 40]), Ok(()));
        let mut route = [0; 40];
        route[..3].copy_from_slice(&[7, 39, 4]);
        assert_eq!(walk(&route), Ok(()), "record route");
        // What follows the end means nothing.
        assert_eq!(walk(&[0, 131, 0, 0]), Ok(()));
    }

    #[test]
    fn lengths_that_lead_nowhere() {
        for bad in [
            [148, 0, 0, 0],
            [148, 1, 0, 0],
            [148, 5, 0, 0],
            [1, 1, 1, 148],
        ] {
            assert_eq!(walk(&bad), Err(DropReason::MalformedIpv4), "{bad:?}");
        }
    }

    #[test]
    fn a_source_route_anywhere_is_found() {
        for kind in [131, 137] {
            for before in 0..36 {
                let mut options = vec![1; before];
                options.extend([kind, 4, 4, 0]);
                options.resize(options.len().next_multiple_of(4), 0);
                assert_eq!(walk(&options), Err(DropReason::SourceRoute), "{before}");
            }
        }
    }

    #[test]
    fn only_ipv4_has_them() {
        let of = |family, l4_offset| {
            options_of(&Headers {
                family,
                l3_offset: 14,
                l4_offset,
                ..Headers::ZERO
            })
        };
        assert_eq!(of(Family::V4, 34), (34, 0));
        assert_eq!(of(Family::V4, 74), (34, 40));
        assert_eq!(of(Family::V6, 62).1, 0);
    }
}

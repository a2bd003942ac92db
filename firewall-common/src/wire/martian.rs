//! Addresses that can stand in no packet from the wire, whatever the network's plan.
//!
//! Private and shared addresses (RFC 1918, RFC 6598, RFC 4193) are as good as any
//! others here: which of them come from where is for the rules and zones.

use super::{Family, Headers, proto};
use crate::{key::is_v4_mapped, verdict::DropReason};

/// 255.255.255.255 (RFC 919).
const BROADCAST: u32 = u32::MAX;

/// Why a packet with these addresses is dropped, if it is.
#[inline(always)]
pub(super) fn check(h: &Headers) -> Option<DropReason> {
    // Sent to its own source, it would have a host answer itself ("land").
    if same(&h.src, &h.dst) {
        return Some(DropReason::Land);
    }
    let martian = if h.family as u8 == Family::V4 as u8 {
        is_martian4(u32::from_be(h.src[3]), u32::from_be(h.dst[3]), h.proto)
    } else {
        is_martian6(h)
    };
    martian.then_some(DropReason::Martian)
}

/// RFC 1122, section 3.2.1.3; RFC 6890, table of section 2.2.2.
#[inline(always)]
const fn is_martian4(src: u32, dst: u32, protocol: u8) -> bool {
    let to_many = dst == BROADCAST || dst >> 28 == 0xe;
    // "This network" and loopback either way; multicast, reserved and broadcast
    // as a source, reserved as a destination. 0.0.0.0 is who has no address yet
    // (DHCP, IGMP), and speaks to many.
    (src >> 24 == 0 && !(src == 0 && to_many))
        || dst >> 24 == 0
        || src >> 24 == 127
        || dst >> 24 == 127
        || src >> 29 == 7
        || (dst >> 28 == 0xf && dst != BROADCAST)
        // A connection has two ends (RFC 1122, section 4.2.3.10).
        || (to_many && protocol == proto::TCP)
}

/// RFC 4291, sections 2.5 to 2.7.
#[inline(always)]
fn is_martian6(h: &Headers) -> bool {
    let to_many = u32::from_be(h.dst[0]) >> 24 == 0xff;
    // The scope of a multicast address: 0 is reserved, 1 stays in the host.
    let never_sent = to_many && (u32::from_be(h.dst[0]) >> 16) & 0xf <= 1;
    never_sent
        // The unspecified address, loopback, and what is left of the
        // IPv4-compatible ones. `::` is who has no address yet.
        || is_compatible(&h.dst)
        || (is_compatible(&h.src) && !(h.src[3] == 0 && to_many))
        || u32::from_be(h.src[0]) >> 24 == 0xff
        // IPv4-mapped addresses would meet IPv4 flows where both families share
        // a map.
        || is_v4_mapped(&h.src)
        || is_v4_mapped(&h.dst)
        || (to_many && h.proto == proto::TCP)
}

/// In `::/96`.
#[inline(always)]
const fn is_compatible(a: &[u32; 4]) -> bool {
    a[0] == 0 && a[1] == 0 && a[2] == 0
}

#[inline(always)]
const fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::key::map_v4;

    fn judge(src: &str, dst: &str, protocol: u8) -> Option<DropReason> {
        let words = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(a) => (Family::V4, map_v4(u32::from_ne_bytes(a.octets()))),
            IpAddr::V6(a) => (Family::V6, bytemuck::cast(a.octets())),
        };
        let (family, src) = words(src);
        check(&Headers {
            family,
            src,
            dst: words(dst).1,
            proto: protocol,
            ..Headers::ZERO
        })
    }

    #[test]
    fn addresses_that_are_never_sent() {
        let good = Ipv4Addr::new(192, 168, 1, 1).to_string();
        let good6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).to_string();
        let sources = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1"];
        for src in sources {
            assert_eq!(judge(src, &good, 17), Some(DropReason::Martian), "{src}");
        }
        for dst in ["0.0.0.0", "0.1.2.3", "127.9.9.9", "240.0.0.1"] {
            assert_eq!(judge(&good, dst, 17), Some(DropReason::Martian), "{dst}");
        }
        for src in ["::", "::1", "::192.0.2.1", "ff02::1", "::ffff:10.0.0.1"] {
            assert_eq!(judge(src, &good6, 17), Some(DropReason::Martian), "{src}");
        }
        for dst in [
            "::",
            "::1",
            "::9.9.9.9",
            "ff00::1",
            "ff01::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(judge(&good6, dst, 17), Some(DropReason::Martian), "{dst}");
        }
    }

    #[test]
    fn private_shared_and_link_local_addresses_are_none_of_our_business() {
        let good = "198.51.100.1";
        for other in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.1.1",
        ] {
            assert_eq!(judge(other, good, 6), None, "{other}");
            assert_eq!(judge(good, other, 6), None, "{other}");
        }
        for other in ["fd00::1", "fe80::1", "2001:db8::1"] {
            assert_eq!(judge(other, "2001:db8::2", 6), None, "{other}");
        }
    }

    #[test]
    fn who_has_no_address_yet_speaks_to_many() {
        assert_eq!(judge("0.0.0.0", "255.255.255.255", 17), None, "DHCP");
        assert_eq!(judge("0.0.0.0", "224.0.0.22", 2), None, "IGMP");
        assert_eq!(judge("::", "ff02::1:ff00:1", 58), None, "address detection");
    }

    #[test]
    fn no_connection_with_many_or_with_oneself() {
        for dst in ["255.255.255.255", "224.0.0.1"] {
            assert_eq!(judge("10.0.0.1", dst, 6), Some(DropReason::Martian));
            assert_eq!(judge("10.0.0.1", dst, 17), None);
        }
        assert_eq!(judge("fd00::1", "ff02::1", 6), Some(DropReason::Martian));
        for one in ["10.0.0.1", "fd00::1"] {
            assert_eq!(judge(one, one, 6), Some(DropReason::Land));
            assert_eq!(judge(one, one, 17), Some(DropReason::Land));
        }
    }
}

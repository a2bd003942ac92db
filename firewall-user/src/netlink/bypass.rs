//! What the kernel would do to forwarded packets beside routing them, and what its
//! devices can do: all that a packet misses which XDP sends on.

use std::{io, os::fd::AsRawFd as _, os::fd::BorrowedFd};

use super::{Message, Socket, array, attr, attrs, nested, read_u32, whole};
use crate::bpf::text;

const IFLA_ADDRESS: u16 = 1;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFINFOMSG: usize = 16;
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const FIB_RULE_HDR: usize = 12;
/// `FIB_RULE_INVERT` of `linux/fib_rules.h`.
const FIB_RULE_INVERT: u32 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
/// `XFRM_MSG_NEWPOLICY` and `XFRM_MSG_GETPOLICY` of `linux/xfrm.h`.
const XFRM_NEWPOLICY: u16 = 0x13;
const XFRM_GETPOLICY: u16 = 0x15;
/// Bytes of `struct xfrm_userpolicy_id`.
const XFRM_POLICY_ID: usize = 64;
/// `GENL_ID_CTRL`, and of its commands and attributes those that find a family.
const GENL_CTRL: u16 = 16;
const CTRL_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Bytes of `struct genlmsghdr`.
const GENLMSGHDR: usize = 4;
const NETDEV_DEV_GET: u8 = 1;
const NETDEV_DEV_IFINDEX: u16 = 1;
const NETDEV_DEV_XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`: the device sends what is redirected to it.
const XDP_ACT_NDO_XMIT: u64 = 1 << 2;
const RTMSG: usize = 12;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;
/// Routes that are looked through: each survey does it.
const ROUTES: usize = 4096;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;

/// An interface, as far as the fast path asks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Hardware address; `None` for another length than Ethernet's.
    pub mac: Option<[u8; 6]>,
    /// Is it part of another (a bridge, a bond, a VRF)?
    pub port: bool,
    /// Index of its other end, if it is a veth, and the kernel's number here for that
    /// one's namespace, if it is another.
    pub link: Option<(u32, Option<i32>)>,
    /// Does it carry a `virtio_net_hdr` before each frame? Only of tap devices.
    pub vnet_header: bool,
}

impl Device {
    fn parse(payload: &[u8]) -> Option<Self> {
        let attributes = payload.get(IFINFOMSG..)?;
        let word = |kind| attr(attributes, kind).and_then(|value| read_u32(value, 0));
        let tun = nested(
            attributes,
            &[IFLA_LINKINFO, IFLA_INFO_DATA, IFLA_TUN_VNET_HDR],
        );
        Some(Self {
            index: read_u32(payload, 4)?,
            mac: attr(attributes, IFLA_ADDRESS)
                .filter(|value| value.len() == 6)
                .and_then(|value| array(value, 0)),
            port: word(IFLA_MASTER).is_some_and(|master| master != 0),
            link: word(IFLA_LINK).map(|link| (link, word(IFLA_LINK_NETNSID).map(u32::cast_signed))),
            vnet_header: tun.and_then(|value| value.first()) == Some(&1),
        })
    }
}

/// All interfaces of this network namespace.
///
/// # Errors
///
/// What the kernel says.
pub fn devices() -> io::Result<Vec<Device>> {
    whole(dump_devices)
}

fn dump_devices() -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    let request = Message::dump(libc::RTM_GETLINK, &[0; IFINFOMSG]);
    Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        if kind == libc::RTM_NEWLINK {
            devices.extend(Device::parse(payload));
        }
    })?;
    Ok(devices)
}

/// The queueing disciplines of an interface, by kind.
///
/// # Errors
///
/// What the kernel says.
pub fn qdiscs(ifindex: u32) -> io::Result<Vec<String>> {
    whole(|| dump_qdiscs(ifindex))
}

fn dump_qdiscs(ifindex: u32) -> io::Result<Vec<String>> {
    let mut kinds = Vec::new();
    let mut header = [0; TCMSG];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let request = Message::dump(libc::RTM_GETQDISC, &header);
    Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        // The kernel lists those of all interfaces.
        if kind == libc::RTM_NEWQDISC && read_u32(payload, 4) == Some(ifindex) {
            let attributes = payload.get(TCMSG..).unwrap_or_default();
            kinds.extend(attr(attributes, TCA_KIND).map(text));
        }
    })?;
    Ok(kinds)
}

/// What routing rules look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The mark of packets.
    pub marks: bool,
    /// Their ports.
    pub ports: bool,
    /// Anything else but their destination.
    pub others: bool,
}

impl Rules {
    /// What one rule looks at, from its `struct fib_rule_hdr` on.
    fn parse(payload: &[u8]) -> Self {
        let attributes = payload.get(FIB_RULE_HDR..).unwrap_or_default();
        let family = payload.first().map_or(0, |family| i32::from(*family));
        let any = |kinds: [u16; 2]| kinds.iter().any(|kind| attr(attributes, *kind).is_some());
        let marks = any([FRA_FWMARK, FRA_FWMASK]);
        let ports = any([FRA_SPORT_RANGE, FRA_DPORT_RANGE]);
        // Length of the source's prefix, and type of service.
        let selects = payload.get(2..4) != Some(&[0, 0]);
        let inverted = read_u32(payload, 8).is_none_or(|flags| flags & FIB_RULE_INVERT != 0);
        let harmless = |kind: u16| {
            matches!(
                kind,
                0 | FRA_PRIORITY
                    | FRA_SUPPRESS_IFGROUP
                    | FRA_SUPPRESS_PREFIXLEN
                    | FRA_TABLE
                    | FRA_PROTOCOL
            )
        };
        let unknown = attrs(attributes).any(|(kind, _)| !harmless(kind));
        Self {
            marks,
            ports,
            // Those of other families are for multicast.
            others: matches!(family, libc::AF_INET | libc::AF_INET6)
                && (selects || inverted || unknown),
        }
    }
}

/// What the routing rules of this network namespace look at.
///
/// # Errors
///
/// What the kernel says.
pub fn rules() -> io::Result<Rules> {
    whole(dump_rules)
}

fn dump_rules() -> io::Result<Rules> {
    let mut found = Rules::default();
    let request = Message::dump(libc::RTM_GETRULE, &[0; FIB_RULE_HDR]);
    Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        if kind == libc::RTM_NEWRULE {
            let one = Rules::parse(payload);
            found.marks |= one.marks;
            found.ports |= one.ports;
            found.others |= one.others;
        }
    })?;
    Ok(found)
}

/// Do the routes of this network namespace depend on nothing but the destination (and the
/// type of service), as far as they are their own affair: none with several paths, and
/// none for some sources only? Of more than some thousands it is not known, so not so.
///
/// # Errors
///
/// What the kernel says.
pub fn routes_are_plain() -> io::Result<bool> {
    whole(plain_routes)
}

fn plain_routes() -> io::Result<bool> {
    let (mut plain, mut left) = (true, ROUTES);
    let request = Message::dump(libc::RTM_GETROUTE, &[0; RTMSG]);
    Socket::open(libc::NETLINK_ROUTE)?.ask_while(request, |kind, payload| {
        if kind == libc::RTM_NEWROUTE {
            left = left.saturating_sub(1);
            plain = left > 0 && is_plain(payload);
        }
        plain
    })?;
    Ok(plain)
}

/// Is a route one path for everybody? From its `struct rtmsg` on.
fn is_plain(payload: &[u8]) -> bool {
    let attributes = payload.get(RTMSG..).unwrap_or_default();
    // Length of the source's prefix.
    payload.get(2) == Some(&0)
        && attr(attributes, RTA_MULTIPATH).is_none()
        && attr(attributes, RTA_NH_ID).is_none()
}

/// Are there IPsec policies? A kernel without IPsec has none.
///
/// # Errors
///
/// What the kernel says.
pub fn has_ipsec() -> io::Result<bool> {
    whole(dump_ipsec)
}

fn dump_ipsec() -> io::Result<bool> {
    let Ok(mut socket) = Socket::open(libc::NETLINK_XFRM) else {
        return Ok(false);
    };
    let mut found = false;
    let request = Message::dump(XFRM_GETPOLICY, &[0; XFRM_POLICY_ID]);
    socket.ask(request, |kind, _| found |= kind == XFRM_NEWPOLICY)?;
    Ok(found)
}

/// What the kernel says of devices and XDP.
pub struct XdpFeatures {
    socket: Socket,
    family: u16,
}

impl XdpFeatures {
    /// `None` if it does not say: before kernel 6.3.
    ///
    /// # Errors
    ///
    /// What the kernel says to the question.
    pub fn open() -> io::Result<Option<Self>> {
        let mut socket = Socket::open(libc::NETLINK_GENERIC)?;
        let mut family = None;
        let request = Message::request(GENL_CTRL, &[CTRL_GETFAMILY, 1, 0, 0])
            .attr(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
        let asked = socket.ask(request, |_, payload| {
            let attributes = payload.get(GENLMSGHDR..).unwrap_or_default();
            let id = attr(attributes, CTRL_ATTR_FAMILY_ID);
            family = id.and_then(|value| array(value, 0)).map(u16::from_ne_bytes);
        });
        match asked {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(|()| family.map(|family| Self { socket, family })),
        }
    }

    /// Does the device send what is redirected to it?
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn takes_redirects(&mut self, ifindex: u32) -> io::Result<bool> {
        let mut features = 0;
        let request = Message::request(self.family, &[NETDEV_DEV_GET, 1, 0, 0])
            .attr(NETDEV_DEV_IFINDEX, &ifindex.to_ne_bytes());
        self.socket.ask(request, |_, payload| {
            let attributes = payload.get(GENLMSGHDR..).unwrap_or_default();
            let value = attr(attributes, NETDEV_DEV_XDP_FEATURES);
            features = value
                .and_then(|value| array(value, 0))
                .map_or(0, u64::from_ne_bytes);
        })?;
        Ok(features & XDP_ACT_NDO_XMIT != 0)
    }
}

/// The kernel's number, in this network namespace, for another; `None` if it has given it none.
///
/// # Errors
///
/// What the kernel says.
pub fn number_of(namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut number = None;
    // struct rtgenmsg, padded.
    let request = Message::request(RTM_GETNSID, &[0; 4]).attr(
        NETNSA_FD,
        &namespace.as_raw_fd().cast_unsigned().to_ne_bytes(),
    );
    Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        if kind == RTM_NEWNSID {
            let value = payload.get(4..).and_then(|rest| attr(rest, NETNSA_NSID));
            number = value.and_then(|value| read_u32(value, 0));
        }
    })?;
    Ok(number.map(u32::cast_signed).filter(|number| *number >= 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_a_device_of_its_own() {
        let devices = devices().unwrap();
        let lo = devices.iter().find(|device| device.index == 1).unwrap();
        assert_eq!(lo.mac, Some([0; 6]));
        assert!(!lo.port && !lo.vnet_header);
        assert_eq!(lo.link, None);
    }

    #[test]
    fn the_kernel_answers_every_question() {
        assert!(qdiscs(1).is_ok());
        assert!(rules().is_ok());
        if let Some(mut features) = XdpFeatures::open().unwrap() {
            assert!(!features.takes_redirects(1).unwrap(), "not loopback");
            assert!(features.takes_redirects(u32::MAX / 2).is_err());
        }
    }

    #[test]
    fn a_rule_is_plain_if_it_looks_at_the_destination_alone() {
        // Of `main`: priority 32766, table 254, as the kernel sends it.
        let mut main = vec![2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
        main.extend([8, 0, 15, 0, 254, 0, 0, 0, 8, 0, 14, 0, 255, 255, 255, 255]);
        main.extend([8, 0, 6, 0, 254, 127, 0, 0]);
        let others = |change: fn(&mut Vec<u8>)| {
            let mut rule = main.clone();
            change(&mut rule);
            Rules::parse(&rule).others
        };
        assert!(!others(|_| {}));
        assert!(!others(|rule| rule[1] = 24), "to a prefix");
        assert!(others(|rule| rule[2] = 24), "from a prefix");
        assert!(others(|rule| rule[3] = 8), "a type of service");
        assert!(others(|rule| rule[8] = 2), "not");
        let iif: fn(&mut Vec<u8>) = |rule| rule.extend([6, 0, 3, 0, b'a', 0, 0, 0]);
        assert!(others(iif), "an interface");
        assert!(others(|rule| rule.truncate(4)));
        assert!(
            !others(|rule| {
                rule[0] = 128;
                rule[2] = 24;
            }),
            "of multicast"
        );
    }

    #[test]
    fn a_route_is_plain_if_it_is_one_path() {
        let mut route = vec![2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        route.extend([8, 0, 4, 0, 7, 0, 0, 0]);
        assert!(is_plain(&route));
        let mut several = route.clone();
        several.extend([4, 0, 9, 0]);
        assert!(!is_plain(&several));
        let mut group = route.clone();
        group.extend([8, 0, 30, 0, 1, 0, 0, 0]);
        assert!(!is_plain(&group));
        route[2] = 64;
        assert!(!is_plain(&route), "for some sources");
        assert!(!is_plain(&[]));
        assert!(routes_are_plain().is_ok());
    }

    #[test]
    fn a_device_message_is_read() {
        // A veth whose other end, of index 6, is in namespace 3, in a bridge.
        let mut payload = vec![0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([10, 0, 1, 0, 2, 0, 0, 0, 0, 9, 0, 0]);
        payload.extend([8, 0, 5, 0, 6, 0, 0, 0]);
        payload.extend([8, 0, 37, 0, 3, 0, 0, 0]);
        payload.extend([8, 0, 10, 0, 5, 0, 0, 0]);
        let device = Device::parse(&payload).unwrap();
        assert_eq!(
            device,
            Device {
                index: 7,
                mac: Some([2, 0, 0, 0, 0, 9]),
                port: true,
                link: Some((6, Some(3))),
                vnet_header: false,
            }
        );
        // A tap device with IFF_VNET_HDR.
        payload.truncate(16);
        payload.extend([16, 0, 18, 0, 12, 0, 2, 0, 5, 0, 5, 0, 1, 0, 0, 0]);
        let device = Device::parse(&payload).unwrap();
        assert!(device.vnet_header && device.link.is_none() && !device.port);
        assert_eq!(Device::parse(&payload[..12]), None);
    }
}

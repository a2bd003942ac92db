//! rtnetlink: interfaces, routes, and the filters of the clsact qdisc.

use std::{
    io::{self, Read as _},
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::{Message, Socket, attr, nested, read_u16, read_u32, whole};
use crate::bpf::{sys, text};

const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_EXPECTED_FD: u16 = 8;
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_REPLACE: u32 = 1 << 4;
const XDP_ATTACHED_NONE: u8 = 0;
const XDP_ATTACHED_DRV: u8 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFINFOMSG: usize = 16;
const TCMSG: usize = 20;
const RTMSG: usize = 12;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTN_LOCAL: u8 = 2;

const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
const TC_CLSACT: u32 = 0xffff_0000;
const TC_PARENT_CLSACT: u32 = 0xffff_fff1;
const TC_PARENT_INGRESS: u32 = 0xffff_fff2;
const TC_PARENT_EGRESS: u32 = 0xffff_fff3;

/// `ARPHRD_ETHER` of `linux/if_arp.h`: the link has Ethernet headers.
pub const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_PPP`.
const ARPHRD_PPP: u16 = 512;
/// `ARPHRD_RAWIP`: modems.
const ARPHRD_RAWIP: u16 = 519;
/// `ARPHRD_TUNNEL`: IPIP.
const ARPHRD_TUNNEL: u16 = 768;
/// `ARPHRD_TUNNEL6`: ip6tnl.
const ARPHRD_TUNNEL6: u16 = 769;
/// `ARPHRD_SIT`: IPv6 in IPv4.
const ARPHRD_SIT: u16 = 776;
/// `ARPHRD_NONE`: tun, WireGuard and the like.
pub const ARPHRD_NONE: u16 = 0xfffe;

/// What a packet of an interface begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkHeader {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    None,
}

/// A network interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `ARPHRD_*`, the kind of link header.
    pub hardware: u16,
    /// Kind of a virtual interface ("veth", "bridge", …).
    pub kind: Option<String>,
    /// Index of the other end of a veth, if it is in this namespace too.
    pub peer: Option<u32>,
    /// Index of the interface that a VLAN is on, if that is in this namespace too.
    pub vlan_of: Option<u32>,
    /// The XDP program that is attached.
    pub xdp: Option<XdpState>,
}

/// What runs on an interface's XDP hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpState {
    /// In the driver, not in the generic hook.
    pub native: bool,
    /// Id of the program; 0 if there are several.
    pub program: u32,
}

impl Link {
    /// What its packets begin with, where XDP and TC see them; `None` for a link
    /// that cannot be guarded.
    ///
    /// Since kernel 5.14 the drivers of the types below let the link header of a
    /// received packet be empty. GRE may keep the outer IP header there, and what
    /// IPsec hands to its own interfaces has that of the interface below.
    #[must_use]
    pub fn header(&self) -> Option<LinkHeader> {
        if matches!(self.kind.as_deref(), Some("xfrm" | "vti" | "vti6")) {
            return None;
        }
        match self.hardware {
            ARPHRD_ETHER => Some(LinkHeader::Ethernet),
            ARPHRD_NONE | ARPHRD_PPP | ARPHRD_RAWIP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6
            | ARPHRD_SIT => Some(LinkHeader::None),
            _ => None,
        }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let attributes = payload.get(IFINFOMSG..)?;
        let kind = nested(attributes, &[IFLA_LINKINFO, IFLA_INFO_KIND]).map(text);
        // A link in another namespace has an index of that one.
        let link = attr(attributes, IFLA_LINK_NETNSID)
            .is_none()
            .then(|| attr(attributes, IFLA_LINK).and_then(|v| read_u32(v, 0)))
            .flatten();
        let link_of = |wanted| link.filter(|_| kind.as_deref() == Some(wanted));
        let (peer, vlan_of) = (link_of("veth"), link_of("vlan"));
        Some(Self {
            index: read_u32(payload, 4)?,
            name: text(attr(attributes, IFLA_IFNAME)?),
            hardware: read_u16(payload, 2)?,
            kind,
            peer,
            vlan_of,
            xdp: xdp(attributes),
        })
    }
}

/// Why the driver of an interface takes no native XDP program, in its own words. bpf(2) has just
/// refused this one with a number alone, so it is asked once more by netlink; should it take
/// the program now, that is off again at once, and there are no words.
///
/// # Errors
///
/// What the kernel says.
pub fn xdp_refusal(index: u32, program: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let fd = program.as_raw_fd();
    let mut socket = Socket::open(libc::NETLINK_ROUTE)?;
    let flags = XDP_FLAGS_UPDATE_IF_NOEXIST | XDP_FLAGS_DRV_MODE;
    match socket.demand(set_xdp(index, fd, flags, None)) {
        Err(refusal) => Ok(refusal.words),
        Ok(()) => {
            let flags = XDP_FLAGS_REPLACE | XDP_FLAGS_DRV_MODE;
            let off = socket.demand(set_xdp(index, -1, flags, Some(fd)));
            off.map(|()| None).map_err(|refusal| refusal.cause)
        }
    }
}

fn set_xdp(index: u32, program: i32, flags: u32, expected: Option<i32>) -> Message {
    let mut interface = [0; IFINFOMSG];
    interface[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut xdp = Message::attributes()
        .attr(IFLA_XDP_FD, &program.to_ne_bytes())
        .attr(IFLA_XDP_FLAGS, &flags.to_ne_bytes());
    if let Some(fd) = expected {
        xdp = xdp.attr(IFLA_XDP_EXPECTED_FD, &fd.to_ne_bytes());
    }
    let nested = IFLA_XDP | libc::NLA_F_NESTED as u16;
    Message::request(libc::RTM_SETLINK, &interface).attr(nested, &xdp.0)
}

fn xdp(attributes: &[u8]) -> Option<XdpState> {
    let xdp = attr(attributes, IFLA_XDP)?;
    let attached = *attr(xdp, IFLA_XDP_ATTACHED)?.first()?;
    (attached != XDP_ATTACHED_NONE).then(|| XdpState {
        native: attached == XDP_ATTACHED_DRV,
        // With programs in several modes there is no single id.
        program: attr(xdp, IFLA_XDP_PROG_ID)
            .and_then(|v| read_u32(v, 0))
            .unwrap_or(0),
    })
}

/// All interfaces of this network namespace.
///
/// # Errors
///
/// What the kernel says.
pub fn links() -> io::Result<Vec<Link>> {
    whole(dump_links)
}

/// The interface with this index, if there is one in this network namespace.
///
/// # Errors
///
/// What the kernel says.
pub fn link(index: u32) -> io::Result<Option<Link>> {
    let mut interface = [0; IFINFOMSG];
    interface[4..8].copy_from_slice(&index.to_ne_bytes());
    let request = Message::request(libc::RTM_GETLINK, &interface)
        .attr(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut link = None;
    let asked = Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        if kind == libc::RTM_NEWLINK {
            link = Link::parse(payload);
        }
    });
    match asked {
        Ok(()) => link.map(Some).ok_or(io::ErrorKind::InvalidData.into()),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

fn dump_links() -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    let request = Message::dump(libc::RTM_GETLINK, &[0; IFINFOMSG])
        .attr(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        if kind == libc::RTM_NEWLINK {
            links.extend(Link::parse(payload));
        }
    })?;
    Ok(links)
}

/// News of the interfaces of this network namespace.
#[derive(Debug)]
pub struct LinkNews(RawSocket);

impl LinkNews {
    /// From now on.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let socket = RawSocket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.nonblocking(),
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )?;
        sys::join_netlink(&socket, libc::RTMGRP_LINK.cast_unsigned())?;
        Ok(Self(socket))
    }

    /// Has any appeared, changed or gone since this was asked last? What is not known for
    /// sure counts as a change.
    #[must_use]
    pub fn any(&mut self) -> bool {
        let (mut any, mut buffer) = (false, [0; 512]);
        // Bounded: interfaces that change without end are a change.
        for _ in 0..1024 {
            match self.0.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Among the errors: more has happened than there was room for.
                Ok(_) | Err(_) => any = true,
            }
        }
        any
    }
}

/// Where a packet to some address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this machine.
    Local,
    /// Out of the interface with this index.
    Out(u32),
    /// Nowhere.
    None,
}

/// Looks up routes.
pub struct Routes(Socket);

impl Routes {
    /// Opens a socket for look-ups.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        Socket::open(libc::NETLINK_ROUTE).map(Self)
    }

    /// The route to `address`.
    ///
    /// # Errors
    ///
    /// What the kernel says, except that there is no route.
    pub fn to(&mut self, address: IpAddr) -> io::Result<Route> {
        let mut header = [0; RTMSG];
        let octets = match address {
            IpAddr::V4(v4) => {
                header[0] = libc::AF_INET as u8;
                header[1] = 32;
                v4.octets().to_vec()
            }
            IpAddr::V6(v6) => {
                header[0] = libc::AF_INET6 as u8;
                header[1] = 128;
                v6.octets().to_vec()
            }
        };
        let mut route = Route::None;
        let request = Message::request(libc::RTM_GETROUTE, &header).attr(RTA_DST, &octets);
        let asked = self.0.ask(request, |kind, payload| {
            if kind == libc::RTM_NEWROUTE {
                route = parse_route(payload).unwrap_or(Route::None);
            }
        });
        match asked {
            Ok(()) => Ok(route),
            Err(e) if is_no_route(&e) => Ok(Route::None),
            Err(e) => Err(e),
        }
    }
}

fn is_no_route(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let kind = *payload.get(7)?;
    let attributes = payload.get(RTMSG..)?;
    if kind == RTN_LOCAL {
        return Some(Route::Local);
    }
    let out = attr(attributes, RTA_OIF).and_then(|v| read_u32(v, 0))?;
    Some(Route::Out(out))
}

/// A BPF filter of the clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Priority.
    pub priority: u16,
    /// Handle.
    pub handle: u32,
    /// Name that its owner gave it.
    pub name: String,
    /// Id of its program.
    pub program: u32,
}

impl Filter {
    fn parse(payload: &[u8]) -> Option<Self> {
        let options = attr(payload.get(TCMSG..)?, TCA_OPTIONS)?;
        Some(Self {
            priority: (read_u32(payload, 16)? >> 16) as u16,
            handle: read_u32(payload, 8)?,
            name: text(attr(options, TCA_BPF_NAME)?),
            program: attr(options, TCA_BPF_ID).and_then(|v| read_u32(v, 0))?,
        })
    }
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes
}

/// The BPF filters at the egress of an interface.
///
/// # Errors
///
/// What the kernel says; there being no clsact qdisc is not an error.
pub fn egress_filters(ifindex: u32) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    dump_filters(ifindex, TC_PARENT_EGRESS, |payload| {
        filters.extend(Filter::parse(payload));
    })?;
    Ok(filters)
}

/// Removes the clsact qdisc of an interface, unless somebody's filter is in it.
/// Returns whether it is gone.
///
/// # Errors
///
/// What the kernel says.
pub fn remove_empty_clsact(ifindex: u32) -> io::Result<bool> {
    let mut used = false;
    for parent in [TC_PARENT_INGRESS, TC_PARENT_EGRESS] {
        dump_filters(ifindex, parent, |_| used = true)?;
    }
    if used {
        return Ok(false);
    }
    let request = Message::request(
        libc::RTM_DELQDISC,
        &tcmsg(ifindex, TC_CLSACT, TC_PARENT_CLSACT),
    );
    match Socket::open(libc::NETLINK_ROUTE)?.ask(request, |_, _| {}) {
        Ok(()) => Ok(true),
        Err(e) if is_absent(&e) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Priority and handle of every filter at the ingress or the egress of an interface.
///
/// # Errors
///
/// What the kernel says; there being no clsact qdisc is not an error.
pub fn filters(ifindex: u32, egress: bool) -> io::Result<Vec<(u16, u32)>> {
    let parent = if egress {
        TC_PARENT_EGRESS
    } else {
        TC_PARENT_INGRESS
    };
    let mut filters = Vec::new();
    dump_filters(ifindex, parent, |payload| {
        let words = read_u32(payload, 16).zip(read_u32(payload, 8));
        filters.extend(words.map(|(info, handle)| ((info >> 16) as u16, handle)));
    })?;
    Ok(filters)
}

fn dump_filters(ifindex: u32, parent: u32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let request = Message::dump(libc::RTM_GETTFILTER, &tcmsg(ifindex, 0, parent));
    let asked = Socket::open(libc::NETLINK_ROUTE)?.ask(request, |kind, payload| {
        if kind == libc::RTM_NEWTFILTER {
            each(payload);
        }
    });
    match asked {
        Err(e) if is_absent(&e) => Ok(()),
        other => other,
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_index() {
        let found = link(1).unwrap().unwrap();
        assert_eq!((found.index, found.name.as_str()), (1, "lo"));
        assert_eq!(links().unwrap().first(), Some(&found));
        assert_eq!(link(i32::MAX.cast_unsigned()).unwrap(), None);
    }

    #[test]
    fn the_loopback_interface_is_listed() {
        let links = links().unwrap();
        let lo = links.iter().find(|l| l.name == "lo").unwrap();
        assert_eq!(lo.index, 1);
        assert_eq!(lo.header(), None);
        assert_eq!(lo.xdp, None);
    }

    #[test]
    fn nothing_is_news_twice() {
        let mut news = LinkNews::open().unwrap();
        // Other tests may make interfaces in this namespace meanwhile.
        let quiet = (0..100).any(|_| !news.any());
        assert!(quiet);
    }

    #[test]
    fn the_loopback_address_is_local() {
        let mut routes = Routes::open().unwrap();
        let lo = routes.to("127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(lo, Route::Local);
    }

    #[test]
    fn an_interface_without_clsact_has_no_filters() {
        assert_eq!(egress_filters(1).unwrap(), []);
    }

    #[test]
    fn a_link_message_is_read() {
        // `ip link` of one end of a veth pair with generic XDP, its other end
        // in the same namespace; attributes that are not read are left out.
        let mut payload = vec![0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([9, 0, 3, 0, b'v', b'e', b't', b'0', 0, 0, 0, 0]);
        payload.extend([8, 0, 5, 0, 6, 0, 0, 0]);
        payload.extend([16, 0, 18, 0, 9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0]);
        payload.extend([
            20, 0, 43, 0x80, 5, 0, 2, 0, 2, 0, 0, 0, 8, 0, 4, 0, 0x2a, 0, 0, 0,
        ]);
        let link = Link::parse(&payload).unwrap();
        assert_eq!(
            link,
            Link {
                index: 7,
                name: "vet0".into(),
                hardware: ARPHRD_ETHER,
                kind: Some("veth".into()),
                peer: Some(6),
                vlan_of: None,
                xdp: Some(XdpState {
                    native: false,
                    program: 42,
                }),
            }
        );
        assert_eq!(Link::parse(&payload[..20]), None);
    }

    #[test]
    fn the_link_type_tells_what_packets_begin_with() {
        let header = |hardware, kind: Option<&str>| {
            let link = Link {
                index: 1,
                name: "x".into(),
                hardware,
                kind: kind.map(Into::into),
                peer: None,
                vlan_of: None,
                xdp: None,
            };
            link.header()
        };
        assert_eq!(header(ARPHRD_ETHER, None), Some(LinkHeader::Ethernet));
        for hardware in [ARPHRD_NONE, ARPHRD_PPP, ARPHRD_TUNNEL6] {
            assert_eq!(header(hardware, Some("tun")), Some(LinkHeader::None));
        }
        // GRE, the loopback interface, InfiniBand.
        for hardware in [778, 772, 32] {
            assert_eq!(header(hardware, None), None);
        }
        assert_eq!(header(ARPHRD_NONE, Some("xfrm")), None);
        assert_eq!(header(ARPHRD_TUNNEL, Some("vti")), None);
    }

    #[test]
    fn a_vlan_names_what_it_is_on_unless_that_is_elsewhere() {
        let mut payload = vec![0, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend([9, 0, 3, 0, b'v', b'.', b'1', b'0', 0, 0, 0, 0]);
        payload.extend([8, 0, 5, 0, 6, 0, 0, 0]);
        payload.extend([16, 0, 18, 0, 9, 0, 1, 0, b'v', b'l', b'a', b'n', 0, 0, 0, 0]);
        let link = Link::parse(&payload).unwrap();
        assert_eq!((link.vlan_of, link.peer), (Some(6), None));
        payload.extend([8, 0, 37, 0, 1, 0, 0, 0]);
        assert_eq!(Link::parse(&payload).unwrap().vlan_of, None);
    }
}

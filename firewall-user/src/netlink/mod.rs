//! A small netlink client: requests, dumps and attributes.
//!
//! Covers just what pinhole asks the kernel: links, routes and filters
//! ([`route`]), what a packet that is not routed by the kernel would bypass ([`bypass`]), sockets ([`diag`]), tracked connections ([`conntrack`]) and NAT
//! chains ([`nftables`]). Parsing is over slices and never panics.

pub mod bypass;
pub mod conntrack;
pub mod diag;
pub mod nftables;
pub mod route;

use std::io::{self, Read, Write};

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use crate::bpf::sys;

/// Of `linux/netlink.h`.
const NLM_F_DUMP_INTR: i32 = 0x10;
const NLM_F_CAPPED: i32 = 0x100;
const NLM_F_ACK_TLVS: i32 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why the kernel does not do something.
#[derive(Debug)]
pub struct Refusal {
    /// The error number.
    pub cause: io::Error,
    /// What it says beside that.
    pub words: Option<String>,
}

/// A dump that changes meanwhile is asked for as often.
const DUMPS: usize = 16;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct nlattr`.
const ATTR_HEADER: usize = 4;
/// A dump never sends more than 32 kB at once (`netlink_dump`).
const RECEIVE: usize = 64 * 1024;

const fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A request under construction.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A request of type `kind` that asks for an acknowledgement.
    pub(crate) fn request(kind: u16, fixed: &[u8]) -> Self {
        Self::new(kind, libc::NLM_F_REQUEST | libc::NLM_F_ACK, fixed)
    }

    /// A request for everything of type `kind`.
    pub(crate) fn dump(kind: u16, fixed: &[u8]) -> Self {
        Self::new(kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, fixed)
    }

    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        bytes.resize(align(bytes.len()), 0);
        Self(bytes)
    }

    /// Attributes alone, to nest them in one of a request.
    pub(crate) const fn attributes() -> Self {
        Self(Vec::new())
    }

    /// The same request with one more attribute.
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let len = (ATTR_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// A netlink socket of one protocol.
pub(crate) struct Socket(RawSocket);

impl Socket {
    /// Opens a socket of `protocol` (`NETLINK_*`).
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        let socket = RawSocket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(protocol)),
        )?;
        // The kernel answers at once; a hang would be a hang at attach.
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        Ok(Self(socket))
    }

    /// Sends `message`, which asks for nothing but its acknowledgement. Why the kernel refuses
    /// it, in its own words if it has any.
    pub(crate) fn demand(&mut self, message: Message) -> Result<(), Refusal> {
        self.demanded(message).unwrap_or_else(|cause| {
            let words = None;
            Err(Refusal { cause, words })
        })
    }

    fn demanded(&mut self, message: Message) -> io::Result<Result<(), Refusal>> {
        sys::extended_acks(&self.0)?;
        self.0.write_all(&message.finish())?;
        let mut buffer = vec![0; RECEIVE];
        let received = self.0.read(&mut buffer)?;
        let answer = buffer.get(..received).unwrap_or_default();
        let (_, payload) = messages(answer)
            .next()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(status(payload).map_err(|cause| Refusal {
            cause,
            words: words(answer),
        }))
    }

    /// Sends `message` and hands every answer (type, payload) to `each`, until
    /// the acknowledgement or the end of the dump. A dump of what changed meanwhile may
    /// lack what was there all the time: [`io::ErrorKind::Interrupted`], see [`whole`].
    pub(crate) fn ask(
        &mut self,
        message: Message,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.ask_while(message, |kind, payload| {
            each(kind, payload);
            true
        })
    }

    /// As [`Socket::ask`], until `each` says that it has heard enough: then the socket,
    /// which may have more to say, is of no further use.
    pub(crate) fn ask_while(
        &mut self,
        message: Message,
        mut each: impl FnMut(u16, &[u8]) -> bool,
    ) -> io::Result<()> {
        self.0.write_all(&message.finish())?;
        let mut buffer = vec![0; RECEIVE];
        let mut is_whole = true;
        loop {
            let received = self.0.read(&mut buffer)?;
            is_whole &= !is_interrupted(&buffer[..received]);
            for (kind, payload) in messages(&buffer[..received]) {
                match i32::from(kind) {
                    libc::NLMSG_DONE if !is_whole => {
                        return status(payload)
                            .and_then(|()| Err(io::ErrorKind::Interrupted.into()));
                    }
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return status(payload),
                    libc::NLMSG_NOOP => {}
                    _ if each(kind, payload) => {}
                    _ => return Ok(()),
                }
            }
        }
    }
}

/// What `dump` returns, begun anew as long as what it lists changes meanwhile.
///
/// # Errors
///
/// Those of `dump`; [`io::ErrorKind::Interrupted`] if it never holds still.
pub(crate) fn whole<T>(mut dump: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..DUMPS {
        match dump() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    dump()
}

/// Is a message of the datagram of a dump that something changed under
/// (`nl_dump_check_consistent` of include/net/netlink.h)?
fn is_interrupted(datagram: &[u8]) -> bool {
    headers(datagram).any(|header| {
        let flags = read_u16(header, 6).unwrap_or(0);
        i32::from(flags) & NLM_F_DUMP_INTR != 0
    })
}

/// The kernel's words in the extended acknowledgement of a request: the first datagram with
/// its answer.
///
/// The error number is followed by the header of the request, by the rest of the request
/// unless that is left out (`NLM_F_CAPPED`), and by attributes
/// (`netlink_ack` of net/netlink/af_netlink.c).
fn words(datagram: &[u8]) -> Option<String> {
    let len = read_u32(datagram, 0)? as usize;
    let (kind, flags) = (read_u16(datagram, 4)?, read_u16(datagram, 6)?);
    if i32::from(kind) != libc::NLMSG_ERROR || i32::from(flags) & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let payload = datagram.get(HEADER..len)?;
    let echoed = match i32::from(flags) & NLM_F_CAPPED {
        0 => align(read_u32(payload, 4)? as usize),
        _ => HEADER,
    };
    attr(payload.get(4 + echoed..)?, NLMSGERR_ATTR_MSG).map(crate::bpf::text)
}

/// The error number at the front of an acknowledgement or of the end of a dump.
fn status(payload: &[u8]) -> io::Result<()> {
    match read_u32(payload, 0).unwrap_or(0) as i32 {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

/// The messages in one datagram: type and payload.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    headers(datagram).filter_map(|message| Some((read_u16(message, 4)?, message.get(HEADER..)?)))
}

/// The messages in one datagram, each with its header.
fn headers(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = read_u32(bytes, 0)? as usize;
        let message = bytes.get(..len).filter(|_| len >= HEADER)?;
        bytes = bytes.get(align(len)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes in `bytes`: type without its flag bits, and value.
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = read_u16(bytes, 0)? as usize;
        let kind = read_u16(bytes, 2)? & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(ATTR_HEADER..len)?;
        bytes = bytes.get(align(len)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute `kind` in `bytes`.
pub(crate) fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// The value of the attribute at the end of a path of nested ones.
pub(crate) fn nested<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |inner, kind| attr(inner, *kind))
}

/// Two bytes at `offset`, host order.
pub(crate) fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(array(bytes, offset)?))
}

/// Four bytes at `offset`, host order.
pub(crate) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(array(bytes, offset)?))
}

/// Two bytes at `offset`, network order.
pub(crate) fn read_be16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(array(bytes, offset)?))
}

/// `N` bytes at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes from hexadecimal digits.
    pub(crate) fn bytes(hex: &str) -> Vec<u8> {
        let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
        hex.as_bytes()
            .chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect()
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = Message::dump(18, &[0; 5]).attr(3, b"eth0\0").finish();
        assert_eq!(bytes.len(), 16 + 8 + 4 + 8);
        assert_eq!(read_u32(&bytes, 0), Some(bytes.len() as u32));
        assert_eq!(read_u16(&bytes, 4), Some(18));
        let found: Vec<_> = attrs(&bytes[24..]).collect();
        assert_eq!(found, [(3, b"eth0\0".as_slice())]);
        assert_eq!(crate::bpf::text(found[0].1), "eth0");
    }

    /// A kernel that answers one dump with a link and its end, with these flags.
    fn dumped(flags: [i32; 2]) -> io::Result<usize> {
        let (ours, kernel) = RawSocket::pair(Domain::UNIX, Type::DGRAM, None)?;
        let link = Message::new(libc::RTM_NEWLINK, flags[0], &[0; 16]).finish();
        let done = Message::new(libc::NLMSG_DONE as u16, flags[1], &[0; 4]).finish();
        kernel.send(&[link.clone(), link].concat())?;
        kernel.send(&done)?;
        let mut links = 0;
        let request = Message::dump(libc::RTM_GETLINK, &[]);
        Socket(ours).ask(request, |_, _| links += 1)?;
        Ok(links)
    }

    #[test]
    fn a_dump_of_what_changed_meanwhile_is_none() {
        assert_eq!(dumped([libc::NLM_F_MULTI; 2]).unwrap(), 2);
        let changed = libc::NLM_F_MULTI | NLM_F_DUMP_INTR;
        for flags in [[changed, libc::NLM_F_MULTI], [libc::NLM_F_MULTI, changed]] {
            let error = dumped(flags).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
    }

    #[test]
    fn a_dump_is_begun_anew_until_it_is_whole() {
        let mut results = vec![dumped([0, 0]), dumped([0, NLM_F_DUMP_INTR])];
        assert_eq!(whole(|| results.pop().unwrap()).unwrap(), 2);
        let mut times = 0;
        let never = whole(|| {
            times += 1;
            dumped([NLM_F_DUMP_INTR; 2])
        });
        assert_eq!(never.unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(times, DUMPS);
    }

    #[test]
    fn cut_off_bytes_end_the_iteration() {
        assert_eq!(attrs(&[8, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attrs(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[15, 0, 0, 0, 1, 0, 0, 0]).count(), 0);
        assert_eq!(messages(&[0xff; 16]).count(), 0);
    }

    #[test]
    fn an_error_number_becomes_an_error() {
        assert!(status(&0_i32.to_ne_bytes()).is_ok());
        let error = status(&(-libc::EPERM).to_ne_bytes()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(status(&i32::MIN.to_ne_bytes()).is_err());
    }

    #[test]
    fn the_kernels_words_are_found_behind_what_it_refuses() {
        let answer = |flags: i32, echoed: usize| {
            let mut payload = (-libc::ERANGE).to_ne_bytes().to_vec();
            payload.extend(40_u32.to_ne_bytes());
            payload.resize(4 + echoed, 0);
            let mut message = Message::new(libc::NLMSG_ERROR as u16, flags, &payload);
            message = message.attr(NLMSGERR_ATTR_MSG, b"Peer MTU is too large\0");
            message.finish()
        };
        let words_of = |flags, echoed| words(&answer(flags, echoed));
        let wanted = Some("Peer MTU is too large".to_owned());
        assert_eq!(words_of(NLM_F_ACK_TLVS, 40), wanted);
        assert_eq!(words_of(NLM_F_ACK_TLVS | NLM_F_CAPPED, HEADER), wanted);
        assert_eq!(words_of(0, 40), None);
        assert_eq!(words(&answer(NLM_F_ACK_TLVS, 40)[..40]), None);
    }

    #[test]
    fn nested_attributes_are_followed() {
        let inner = Message::request(0, &[]).attr(7, &[1, 2, 3, 4]).0;
        let outer = Message::request(0, &[])
            .attr(2 | libc::NLA_F_NESTED as u16, &inner[HEADER..])
            .0;
        assert_eq!(
            nested(&outer[HEADER..], &[2, 7]),
            Some([1, 2, 3, 4].as_slice())
        );
        assert_eq!(nested(&outer[HEADER..], &[2, 8]), None);
    }
}

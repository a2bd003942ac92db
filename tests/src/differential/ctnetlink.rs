//! The state of one connection of nf_conntrack, over netlink.

use std::io::{self, Read as _, Write as _};

use anyhow::{Context, Result, bail};
use firewall_common::tcp::State;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::segment::{Ends, Side};
use crate::lab::Family;

/// `NFNL_SUBSYS_CTNETLINK << 8` and `IPCTNL_MSG_CT_*`.
const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;

const NLMSG_HEADER: usize = 16;
const NFGENMSG: usize = 4;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const TYPE_MASK: u16 = libc::NLA_TYPE_MASK as u16;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4: [u16; 2] = [1, 2];
const CTA_IP_V6: [u16; 2] = [3, 4];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_PORTS: [u16; 2] = [2, 3];
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const IPS_ASSURED: u32 = 1 << 2;

/// What nf_conntrack holds of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// TCP state.
    pub state: State,
    /// `IPS_ASSURED`.
    pub assured: bool,
}

/// A ctnetlink socket in the network namespace of the thread that opened it.
pub struct Ctnetlink {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Ctnetlink {
    /// Opens the socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(libc::NETLINK_NETFILTER)),
        )
        .context("open a netfilter netlink socket")?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        Ok(Self {
            socket,
            buffer: vec![0; 4096],
        })
    }

    /// The connection between `ends`, whichever began it.
    ///
    /// # Errors
    /// What the kernel says, but for that there is none.
    pub fn get(&mut self, ends: &Ends) -> Result<Option<Tracked>> {
        match self.ask(&request(CT_GET, 0, ends))? {
            Answer::Error(0) => bail!("ctnetlink acknowledged a question"),
            Answer::Error(libc::ENOENT) => Ok(None),
            Answer::Error(error) => {
                Err(io::Error::from_raw_os_error(error)).context("get a connection")
            }
            Answer::Message(payload) => Ok(Some(
                parse(payload).context("a connection without a TCP state")?,
            )),
        }
    }

    /// Deletes the connection between `ends`, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&mut self, ends: &Ends) -> Result<()> {
        match self.ask(&request(CT_DELETE, libc::NLM_F_ACK, ends))? {
            Answer::Error(0 | libc::ENOENT) => Ok(()),
            Answer::Error(error) => {
                Err(io::Error::from_raw_os_error(error)).context("delete a connection")
            }
            Answer::Message(_) => bail!("ctnetlink answers a deletion with a connection"),
        }
    }

    fn ask(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.socket.write_all(request)?;
        let len = self.socket.read(&mut self.buffer).context("ctnetlink")?;
        let message = &self.buffer[..len];
        let kind = u16::from_ne_bytes(array(message, 4).context("a short netlink message")?);
        match kind {
            CT_NEW => Ok(Answer::Message(
                message
                    .get(NLMSG_HEADER + NFGENMSG..)
                    .context("a short ctnetlink message")?,
            )),
            kind if i32::from(kind) == libc::NLMSG_ERROR => {
                let error = array(message, NLMSG_HEADER).context("a short netlink error")?;
                Ok(Answer::Error(-i32::from_ne_bytes(error)))
            }
            other => bail!("ctnetlink answers with a message of type {other:#x}"),
        }
    }
}

enum Answer<'a> {
    /// The attributes of a connection.
    Message(&'a [u8]),
    /// An error number, 0 for done.
    Error(i32),
}

fn request(kind: u16, flags: i32, ends: &Ends) -> Vec<u8> {
    let (family, addresses) = match ends.family {
        Family::V4 => (libc::AF_INET, CTA_IP_V4),
        Family::V6 => (libc::AF_INET6, CTA_IP_V6),
    };
    let mut ip = Vec::new();
    let mut l4 = Vec::new();
    attribute(&mut l4, CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]);
    for (at, side) in Side::BOTH.into_iter().enumerate() {
        let end = ends.of(side);
        attribute(&mut ip, addresses[at], &end.address[..ends.address_len()]);
        attribute(&mut l4, CTA_PROTO_PORTS[at], &end.port.to_be_bytes());
    }
    let mut tuple = Vec::new();
    attribute(&mut tuple, CTA_TUPLE_IP | NESTED, &ip);
    attribute(&mut tuple, CTA_TUPLE_PROTO | NESTED, &l4);

    let mut message = vec![0; NLMSG_HEADER];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend([family as u8, 0, 0, 0]);
    attribute(&mut message, CTA_TUPLE_ORIG | NESTED, &tuple);
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((4 + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn parse(payload: &[u8]) -> Option<Tracked> {
    let tcp = find(find(payload, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
    let state = *find(tcp, CTA_PROTOINFO_TCP_STATE)?.first()?;
    let status = u32::from_be_bytes(array(find(payload, CTA_STATUS)?, 0)?);
    Some(Tracked {
        state: State::try_from(state).ok()?,
        assured: status & IPS_ASSURED != 0,
    })
}

/// The value of the first attribute `kind` in `bytes`.
fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
        let found = u16::from_ne_bytes(array(bytes, 2)?) & TYPE_MASK;
        let value = bytes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

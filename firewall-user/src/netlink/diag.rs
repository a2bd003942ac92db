//! sock_diag: the connections of this machine's own sockets.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Message, Socket, array, read_be16};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// State of a socket, `TCP_*` of `net/tcp_states.h`.
pub mod state {
    /// Established; for UDP, connected.
    pub const ESTABLISHED: u8 = 1;
    /// Our FIN is sent, not acknowledged.
    pub const FIN_WAIT1: u8 = 4;
    /// Our FIN is acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// The peer's FIN is received.
    pub const CLOSE_WAIT: u8 = 8;
    /// Both FINs are sent, the peer's first.
    pub const LAST_ACK: u8 = 9;
    /// Accepts connections.
    pub const LISTEN: u8 = 10;
    /// Both FINs are sent at once.
    pub const CLOSING: u8 = 11;
}

/// States in which a connection can still carry something. A half-open one
/// sends its SYN again, one in TIME_WAIT has nothing left to lose.
const WANTED: u32 = 1 << state::ESTABLISHED
    | 1 << state::FIN_WAIT1
    | 1 << state::FIN_WAIT2
    | 1 << state::CLOSE_WAIT
    | 1 << state::LAST_ACK
    | 1 << state::LISTEN
    | 1 << state::CLOSING;

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// [`state`].
    pub state: u8,
    /// This machine's end. IPv4 over an IPv6 socket stands as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Did this machine begin it? It did not if the local port accepts connections.
    pub from_here: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    state: u8,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Kernels load these modules by themselves when asked for sockets; one that may
/// load none (`kernel.modules_disabled`) says ENOENT.
fn explain(error: io::Error, module: &str) -> io::Error {
    if error.raw_os_error() != Some(libc::ENOENT) {
        return error;
    }
    let text = format!(
        "the kernel cannot list its sockets without module {module}: \
         load it with `sudo modprobe {module}`"
    );
    io::Error::new(error.kind(), text)
}

/// All connected TCP and UDP sockets of this network namespace.
///
/// # Errors
///
/// What the kernel says.
pub fn connections() -> io::Result<Vec<Connection>> {
    let mut connections = tcp()?;
    connections.extend(udp()?);
    Ok(connections)
}

fn tcp() -> io::Result<Vec<Connection>> {
    let entries =
        dump(libc::IPPROTO_TCP as u8, WANTED).map_err(|error| explain(error, "tcp_diag"))?;
    let listening: HashSet<u16> = entries
        .iter()
        .filter(|e| e.state == state::LISTEN)
        .map(|e| e.local.port())
        .collect();
    Ok(entries
        .iter()
        .filter(|e| e.state != state::LISTEN)
        .map(|e| Connection {
            protocol: libc::IPPROTO_TCP as u8,
            state: e.state,
            local: e.local,
            remote: e.remote,
            from_here: !listening.contains(&e.local.port()),
        })
        .collect())
}

fn udp() -> io::Result<Vec<Connection>> {
    let entries = dump(libc::IPPROTO_UDP as u8, 1 << state::ESTABLISHED)
        .map_err(|error| explain(error, "udp_diag"))?;
    Ok(entries
        .iter()
        .map(|e| Connection {
            protocol: libc::IPPROTO_UDP as u8,
            state: e.state,
            local: e.local,
            remote: e.remote,
            // A connected UDP socket names its peer: it speaks first, or could have.
            from_here: true,
        })
        .collect())
}

fn dump(protocol: u8, states: u32) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; REQUEST];
        request[0] = family as u8;
        request[1] = protocol;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        let request = Message::dump(SOCK_DIAG_BY_FAMILY, &request);
        Socket::open(libc::NETLINK_SOCK_DIAG)?.ask(request, |kind, payload| {
            if kind == SOCK_DIAG_BY_FAMILY {
                entries.extend(parse(payload));
            }
        })?;
    }
    Ok(entries)
}

/// Reads a `struct inet_diag_msg`.
fn parse(payload: &[u8]) -> Option<Entry> {
    let family = i32::from(*payload.first()?);
    let address = |offset| -> Option<IpAddr> {
        if family == libc::AF_INET {
            return Some(Ipv4Addr::from(array::<4>(payload, offset)?).into());
        }
        let v6 = Ipv6Addr::from(array::<16>(payload, offset)?);
        Some(IpAddr::V6(v6).to_canonical())
    };
    Some(Entry {
        state: *payload.get(1)?,
        local: SocketAddr::new(address(8)?, read_be16(payload, 4)?),
        remote: SocketAddr::new(address(24)?, read_be16(payload, 6)?),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn both_ends_of_a_connection_are_found_with_its_originator() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let all = connections().unwrap();
        let find = |local: SocketAddr| all.iter().find(|c| c.local == local && c.protocol == 6);
        let ours = find(client.local_addr().unwrap()).unwrap();
        assert!(ours.from_here);
        assert_eq!(ours.state, state::ESTABLISHED);
        assert_eq!(ours.remote, client.peer_addr().unwrap());
        let theirs = find(server.local_addr().unwrap()).unwrap();
        assert!(!theirs.from_here);
    }

    #[test]
    fn ipv4_over_an_ipv6_socket_counts_as_ipv4() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _accepted = listener.accept().unwrap();
        let all = connections().unwrap();
        let server = all
            .iter()
            .find(|c| c.remote == client.local_addr().unwrap())
            .unwrap();
        assert!(server.local.is_ipv4());
        assert!(!server.from_here);
    }

    #[test]
    fn connected_udp_sockets_are_found() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        let all = connections().unwrap();
        assert!(all.iter().any(|c| c.protocol == 17
            && c.local == a.local_addr().unwrap()
            && c.remote == b.local_addr().unwrap()));
    }

    #[test]
    fn a_short_message_is_no_entry() {
        assert_eq!(parse(&[2, 1, 0, 0, 0, 21]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn a_missing_module_is_named() {
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert!(
            explain(missing, "udp_diag")
                .to_string()
                .contains("modprobe udp_diag")
        );
        let other = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(explain(other, "udp_diag").raw_os_error(), Some(libc::EPERM));
    }
}

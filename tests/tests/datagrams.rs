//! ICMP and fragments through the firewall: on a host, on a gateway, and on a
//! gateway whose kernel tracks connections too.

use std::{
    io::Write as _,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    datagram::{self, Pair, Probe},
    kernel,
    pinhole::{Attach, Firewall, config},
    process,
};

const LIMIT: Duration = Duration::from_secs(2);

/// Where the firewall stands: in front of the client in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Host,
    Gateway,
    TrackingGateway,
}

impl Stand {
    const ALL: [Self; 3] = [Self::Host, Self::Gateway, Self::TrackingGateway];

    fn guard(self, lab: &Lab, more: &str) -> Result<Firewall> {
        let (node, text) = match self {
            Self::Host => (Node::Client, config::client_host(false)),
            _ => (Node::FwA, config::open_gateway()),
        };
        if self == Self::TrackingGateway {
            kernel::track(lab.ns(node))?;
        }
        let text = format!("{more}{text}");
        Firewall::start(lab, node, Some(&text), Attach::default())
    }
}

#[test]
fn ping_and_traceroute_work_outwards_and_not_inwards() -> Result<()> {
    let lab = Lab::line()?;
    for stand in [Stand::Host, Stand::Gateway] {
        let _firewall = stand.guard(&lab, "")?;
        let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
        for family in Family::BOTH {
            let (near, far) = (lab.client_ip(family), lab.server_ip(family));
            for len in [56, 8000] {
                ensure!(
                    datagram::ping(client, far, len)?,
                    "{stand:?} {family:?} {len}"
                );
            }
            ensure!(
                !datagram::ping(server, near, 56)?,
                "{stand:?}: a ping came in"
            );
            for probe in [Probe::Udp, Probe::Echo] {
                let hops = datagram::trace(client, far, probe)?;
                ensure!(
                    hops == route(family, far)?,
                    "{stand:?} {family:?} {probe:?}: {hops:?}"
                );
            }
        }
    }
    Ok(())
}

/// The routers between client and server, and the server.
fn route(family: Family, far: IpAddr) -> Result<Vec<Option<IpAddr>>> {
    let routers = match family {
        Family::V4 => ["192.0.2.1", "198.51.100.2", "198.51.100.5"],
        Family::V6 => ["2001:db8:a::1", "2001:db8:1::2", "2001:db8:2::1"],
    };
    let mut hops = Vec::new();
    for router in routers {
        hops.push(Some(router.parse()?));
    }
    hops.push(Some(far));
    Ok(hops)
}

/// A link in the middle takes less than the others; its router says so, to the
/// sender, past the firewall. Without that the transfer hangs.
#[test]
fn path_mtu_discovery_works_through_the_firewall() -> Result<()> {
    for stand in [Stand::Host, Stand::Gateway] {
        // A new one each time: what the client learns of a path it remembers.
        let lab = Lab::line()?;
        narrow(&lab)?;
        for errors_pass in [false, true] {
            let more = format!("[essentials]\npath-mtu = {errors_pass}\n");
            let _firewall = stand.guard(&lab, &more)?;
            for family in Family::BOTH {
                let (near, far) = connection(&lab, family)?;
                let arrived = arrives(near, far)?;
                ensure!(
                    arrived == errors_pass,
                    "{stand:?} {family:?}: arrived {arrived}, errors pass {errors_pass}"
                );
            }
        }
    }
    Ok(())
}

/// A sender that does not discover the path's MTU: a router cuts its segments.
#[test]
fn a_transfer_in_fragments_arrives() -> Result<()> {
    let lab = Lab::line()?;
    narrow(&lab)?;
    lab.ns(Node::Server)
        .sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    for stand in [Stand::Host, Stand::Gateway] {
        let firewall = stand.guard(&lab, "")?;
        let (near, far) = connection(&lab, Family::V4)?;
        ensure!(arrives(far, near)?, "{stand:?}");
        let tails = firewall.stats()?.passed("fragment-tail");
        ensure!(tails > 100, "{stand:?}: {tails} fragments only");
    }
    Ok(())
}

fn narrow(lab: &Lab) -> Result<()> {
    lab.ns(Node::Net).ip("link set b0 mtu 1300")?;
    lab.ns(Node::FwB).ip("link set out0 mtu 1300")
}

/// A connection from client to server: its ends.
fn connection(lab: &Lab, family: Family) -> Result<(TcpStream, TcpStream)> {
    let at = SocketAddr::new(lab.server_ip(family), 0);
    let listener = lab.ns(Node::Server).listen(at)?;
    let to = listener.local_addr()?;
    let near = lab
        .ns(Node::Client)
        .connect(to, LIMIT)?
        .context("connect")?;
    Ok((near, listener.accept()?.0))
}

/// Do 400 kB arrive within their time?
fn arrives(mut from: TcpStream, to: TcpStream) -> Result<bool> {
    const LEN: usize = 400_000;
    let reader = thread::spawn(move || datagram::read_all(to));
    from.set_write_timeout(Some(LIMIT))?;
    // It fits the socket's buffers, or it does not: what counts is what arrives.
    let sent = from
        .write_all(&vec![7; LEN])
        .and_then(|()| from.shutdown(Shutdown::Write));
    let read = reader.join().ok().context("the reader panicked")?;
    Ok(sent.is_ok() && read.is_ok_and(|len| len == LEN))
}

#[test]
fn an_error_that_nobody_asked_for_is_dropped_and_counted() -> Result<()> {
    let lab = Lab::line()?;
    for stand in [Stand::Host, Stand::Gateway] {
        let firewall = stand.guard(&lab, "")?;
        for family in Family::BOTH {
            let before = firewall.stats()?.dropped("icmp-unrelated");
            let about = SocketAddr::new(lab.server_ip(family), 53);
            let to = lab.client_ip(family);
            datagram::send_unsolicited_error(lab.ns(Node::Stranger), to, about)?;
            process::await_some("the drop is counted", LIMIT, || {
                let after = firewall.stats().ok()?.dropped("icmp-unrelated");
                (after == before + 1).then_some(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_datagram_of_60_kilobytes_passes_both_ways_and_in_reverse_order() -> Result<()> {
    let lab = Lab::line()?;
    let payload: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
    for (n, stand) in (1..).zip(Stand::ALL) {
        let firewall = stand.guard(&lab, "")?;
        for family in Family::BOTH {
            let near = SocketAddr::new(lab.client_ip(family), 40_000 + n);
            let far = SocketAddr::new(lab.server_ip(family), 5300);
            let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
            let pair = Pair::bind((client, near), (server, far))?;
            let at = || format!("{stand:?} {family:?}");
            pair.there_and_back(&payload).with_context(at)?;
            datagram::send_reversed(client, near, far, &payload, n.into())?;
            pair.arrives(true, &payload).with_context(at)?;
            datagram::send_reversed(server, far, near, &payload, n.into())?;
            pair.arrives(false, &payload).with_context(at)?;
        }
        let stats = firewall.stats()?;
        ensure!(stats.dropped("fragment-overlap") == 0);
        ensure!(stats.dropped("fragment-orphan") == 0);
        let ahead = stats.passed("fragment-ahead");
        ensure!(ahead > 0, "{stand:?}: none came ahead of its first");
    }
    Ok(())
}

/// Nobody asked for it: its first fragment is refused, and so nothing arrives.
#[test]
fn an_uninvited_datagram_in_fragments_does_not_arrive() -> Result<()> {
    let lab = Lab::line()?;
    for stand in Stand::ALL {
        let firewall = stand.guard(&lab, "")?;
        for family in Family::BOTH {
            let near = SocketAddr::new(lab.client_ip(family), 5301);
            let far = SocketAddr::new(lab.server_ip(family), 5300);
            let (client, server) = (lab.ns(Node::Client), lab.ns(Node::Server));
            let pair = Pair::bind((client, near), (server, far))?;
            datagram::send_reversed(server, far, near, &[7; 8000], 9)?;
            ensure!(pair.is_silent(Duration::from_millis(500))?, "{stand:?}");
        }
        ensure!(firewall.stats()?.dropped("policy") >= 2, "{stand:?}");
    }
    Ok(())
}

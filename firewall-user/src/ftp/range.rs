//! Session ranges: what an operator opens for encrypted sessions, whose ports
//! nobody can read.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Side;

/// While an encrypted session between one of these clients and one of these
/// servers lives, new data connections between exactly its two hosts are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRange {
    /// Clients of the control connection.
    pub clients: Vec<IpNet>,
    /// Servers of the control connection.
    pub servers: Vec<IpNet>,
    /// Lowest and highest port of the listener, host byte order.
    pub ports: [u16; 2],
    /// May the server connect to the client, too?
    pub active: bool,
    /// Data connections of a session at once.
    pub max: usize,
    /// New data connections of a session within any minute.
    pub per_minute: usize,
}

impl SessionRange {
    /// Is a data connection to `port` of `listener` meant, in a session of these hosts?
    #[must_use]
    pub fn admits(&self, client: IpAddr, server: IpAddr, listener: Side, port: u16) -> bool {
        let [low, high] = self.ports;
        let within = |nets: &[IpNet], host: IpAddr| nets.iter().any(|net| net.contains(&host));
        (listener == Side::Server || self.active)
            && (low..=high).contains(&port)
            && within(&self.clients, client)
            && within(&self.servers, server)
    }

    /// Are sessions of these hosts meant?
    #[must_use]
    pub fn is_for(&self, client: IpAddr, server: IpAddr) -> bool {
        self.admits(client, server, Side::Server, self.ports[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_and_direction_count() {
        let nets = |text: &str| vec![text.parse().unwrap()];
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut range = SessionRange {
            clients: nets("10.0.0.0/24"),
            servers: nets("192.0.2.7/32"),
            ports: [50_000, 50_100],
            active: false,
            max: 1,
            per_minute: 1,
        };
        let (client, server) = (ip("10.0.0.2"), ip("192.0.2.7"));
        for port in [50_000, 50_100] {
            assert!(range.admits(client, server, Side::Server, port));
            assert!(!range.admits(client, server, Side::Client, port));
        }
        assert!(!range.admits(client, server, Side::Server, 49_999));
        assert!(!range.admits(client, server, Side::Server, 50_101));
        assert!(!range.admits(ip("10.0.1.2"), server, Side::Server, 50_000));
        assert!(!range.admits(client, ip("192.0.2.8"), Side::Server, 50_000));
        assert!(!range.admits(server, client, Side::Server, 50_000));
        range.active = true;
        assert!(range.admits(client, server, Side::Client, 50_000));
    }
}

//! How many sessions or expectations each client has, so that none has all.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

/// Of all sessions, a client may have one in this many.
const SHARE: usize = 8;
/// But always this many: more than a mirroring client opens at a time.
const ALWAYS: usize = 16;

/// Sessions that one client may have, out of `max` in all.
pub(super) const fn limit(max: usize) -> usize {
    let share = max / SHARE;
    if share > ALWAYS { share } else { ALWAYS }
}

/// Sessions, or expectations, by client. Addresses of one IPv6 /64 are one client, since its
/// hosts choose among them at will (RFC 8981).
#[derive(Debug, Default)]
pub(super) struct Crowd(HashMap<IpAddr, usize>);

impl Crowd {
    pub(super) fn count(&self, client: IpAddr) -> usize {
        self.0.get(&network(client)).copied().unwrap_or(0)
    }

    pub(super) fn enter(&mut self, client: IpAddr) {
        *self.0.entry(network(client)).or_default() += 1;
    }

    pub(super) fn leave(&mut self, client: IpAddr) {
        let client = network(client);
        if let Some(count) = self.0.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&client);
            }
        }
    }
}

/// Whom a client counts as.
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            let upper_half = !u128::from(u64::MAX);
            Ipv6Addr::from_bits(address.to_bits() & upper_half).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_share() {
        assert_eq!(limit(4096), 512);
        assert_eq!(limit(64), 16);
        assert_eq!(limit(1), 16);
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut crowd = Crowd::default();
        crowd.enter(ip("10.0.0.2"));
        crowd.enter(ip("2001:db8::1"));
        crowd.enter(ip("2001:db8::ffff:0:0:1"));
        assert_eq!(crowd.count(ip("10.0.0.2")), 1);
        assert_eq!(crowd.count(ip("10.0.0.3")), 0);
        assert_eq!(crowd.count(ip("2001:db8::2")), 2);
        assert_eq!(crowd.count(ip("2001:db8:0:1::1")), 0);
        crowd.leave(ip("2001:db8::3"));
        crowd.leave(ip("2001:db8::4"));
        crowd.leave(ip("10.0.0.2"));
        assert!(crowd.0.is_empty());
    }
}

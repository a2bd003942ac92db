//! Rules to run under.

use bytemuck::Zeroable;
use firewall_common::abi::{Rule, ZONE_ANY, action, rule_flags};

/// A rule that accepts everything the host sends, FTP with the helper first.
pub(crate) fn outward_rules() -> Vec<Rule> {
    let ftp = Rule {
        proto: 6,
        dport: [21, 21],
        flags: rule_flags::PORTS | rule_flags::HELPER_FTP,
        ..accept(0, ZONE_ANY)
    };
    vec![
        ftp,
        Rule {
            id: 1,
            ..accept(0, ZONE_ANY)
        },
    ]
}

/// Accepts everything between two zones.
pub(crate) fn accept(from_zone: u8, to_zone: u8) -> Rule {
    Rule {
        from_zone,
        to_zone,
        action: action::ACCEPT,
        sport: [0, u16::MAX],
        dport: [0, u16::MAX],
        ..Zeroable::zeroed()
    }
}

/// Accepts TCP to one port.
pub(crate) fn accept_port(from_zone: u8, to_zone: u8, port: u16) -> Rule {
    Rule {
        proto: 6,
        dport: [port, port],
        flags: rule_flags::PORTS,
        ..accept(from_zone, to_zone)
    }
}

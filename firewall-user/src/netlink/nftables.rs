//! nfnetlink: base chains of nf_tables that translate addresses, and those on the
//! way of forwarded packets.

use std::io;

use super::{Message, Socket, array, attr, nested, whole};
use crate::bpf::text;

const NFT_GETCHAIN: u16 = (10 << 8) | 4;
const NFT_NEWCHAIN: u16 = (10 << 8) | 3;
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_CHAIN_TYPE: u16 = 7;

/// A chain's policy, `linux/netfilter.h`.
const NF_DROP: u32 = 0;

/// A chain that translates addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatChain {
    /// Family as `nft` writes it: "ip", "ip6", "inet".
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Rules in it.
    pub rules: u32,
}

/// A base chain on the way of forwarded packets that decides something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardChain {
    /// Family as `nft` writes it.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its hook as `nft` writes it.
    pub hook: &'static str,
    /// Rules in it; 0 if it is its policy alone that drops.
    pub rules: u32,
}

/// The base chains of type "nat" that hold a rule, in this namespace. None if
/// the kernel has no nf_tables.
///
/// # Errors
///
/// What the kernel says.
pub fn nat_chains() -> io::Result<Vec<NatChain>> {
    chains(parse)
}

/// The base chains that forwarded packets pass and that hold a rule or drop by their
/// policy, in this namespace. None if the kernel has no nf_tables.
///
/// # Errors
///
/// What the kernel says.
pub fn forward_chains() -> io::Result<Vec<ForwardChain>> {
    chains(parse_forward)
}

fn chains<T>(parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    whole(|| dump_chains(&parse))
}

fn dump_chains<T>(parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let Ok(mut socket) = Socket::open(libc::NETLINK_NETFILTER) else {
        return Ok(Vec::new());
    };
    let mut chains = Vec::new();
    let request = Message::dump(NFT_GETCHAIN, &[libc::AF_UNSPEC as u8, 0, 0, 0]);
    let asked = socket.ask(request, |kind, payload| {
        if kind == NFT_NEWCHAIN {
            chains.extend(parse(payload));
        }
    });
    match asked {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        other => other.map(|()| chains),
    }
}

fn parse_forward(payload: &[u8]) -> Option<ForwardChain> {
    let attributes = payload.get(NFGENMSG..)?;
    let number = nested(attributes, &[NFTA_CHAIN_HOOK, NFTA_HOOK_HOOKNUM])?;
    let (family, hook) = hook(*payload.first()?, u32::from_be_bytes(array(number, 0)?))?;
    let rules = u32::from_be_bytes(array(attr(attributes, NFTA_CHAIN_USE)?, 0)?);
    let policy = attr(attributes, NFTA_CHAIN_POLICY).and_then(|value| array(value, 0));
    let drops = policy.map(u32::from_be_bytes) == Some(NF_DROP);
    (rules > 0 || drops).then_some(ForwardChain {
        family,
        table: text(attr(attributes, NFTA_CHAIN_TABLE)?),
        chain: text(attr(attributes, NFTA_CHAIN_NAME)?),
        hook,
        rules,
    })
}

/// Family and hook, of hooks on the way of forwarded packets: `NFPROTO_*` with
/// `NF_INET_*` or `NF_NETDEV_*`.
const fn hook(family_number: u8, number: u32) -> Option<(&'static str, &'static str)> {
    let hook = match (family_number, number) {
        (1 | 2 | 10, 0) => "prerouting",
        (1 | 2 | 10, 2) => "forward",
        (1 | 2 | 10, 4) => "postrouting",
        (1, 5) | (5, 0) => "ingress",
        (5, 1) => "egress",
        _ => return None,
    };
    let family = if family_number == 5 {
        "netdev"
    } else {
        family(family_number)
    };
    Some((family, hook))
}

fn parse(payload: &[u8]) -> Option<NatChain> {
    let attributes = payload.get(NFGENMSG..)?;
    // Only a base chain has a hook and a type.
    attr(attributes, NFTA_CHAIN_HOOK)?;
    if text(attr(attributes, NFTA_CHAIN_TYPE)?) != "nat" {
        return None;
    }
    let rules = u32::from_be_bytes(array(attr(attributes, NFTA_CHAIN_USE)?, 0)?);
    (rules > 0).then_some(NatChain {
        family: family(*payload.first()?),
        table: text(attr(attributes, NFTA_CHAIN_TABLE)?),
        chain: text(attr(attributes, NFTA_CHAIN_NAME)?),
        rules,
    })
}

/// `NFPROTO_*` as `nft` writes it.
const fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::bytes;

    // As the kernel sent them for `table ip t { chain c }` and `table inet web`.
    const FILTER: &str = "02000008060001007400000006000300630000000c0002000000000000000001\
         140004000800010000000003080002000000000008000500000000010b000700\
         66696c746572000008000a00000000010800060000000001";
    const NAT: &str = "01000008080001007765620008000300707265000c0002000000000000000001\
         14000400080001000000000008000200ffffff9c080005000000000108000700\
         6e61740008000a00000000010800060000000001";
    const NAT_WITHOUT_RULES: &str = "0100000808000100776562000a000300656d7074790000000c00020000000000\
         0000000314000400080001000000000408000200000000640800050000000001\
         080007006e61740008000a00000000010800060000000000";

    #[test]
    fn a_nat_chain_with_a_rule_is_named() {
        let found = parse(&bytes(NAT));
        assert_eq!(
            found,
            Some(NatChain {
                family: "inet",
                table: "web".into(),
                chain: "pre".into(),
                rules: 1,
            })
        );
    }

    #[test]
    fn a_chain_on_the_way_counts_if_it_decides() {
        let found = parse_forward(&bytes(NAT)).unwrap();
        assert_eq!((found.hook, found.rules), ("prerouting", 1));
        assert_eq!(found.table, "web");
        // Without a rule, and with the policy accept.
        assert_eq!(parse_forward(&bytes(NAT_WITHOUT_RULES)), None);
        // An input chain (hook 1), whatever it holds.
        assert_eq!(hook(2, 1), None);
        let mut dropping = bytes(NAT_WITHOUT_RULES);
        let policy = [8, 0, 5, 0, 0, 0, 0, 1];
        let at = dropping.windows(8).position(|w| w == policy).unwrap();
        dropping[at + 7] = 0;
        let found = parse_forward(&dropping).unwrap();
        assert_eq!((found.hook, found.rules), ("postrouting", 0));
        assert_eq!(parse_forward(&bytes(NAT)[..40]), None);
    }

    #[test]
    fn filters_and_empty_chains_translate_nothing() {
        assert_eq!(parse(&bytes(FILTER)), None);
        assert_eq!(parse(&bytes(NAT_WITHOUT_RULES)), None);
        assert_eq!(parse(&bytes(&NAT[..40])), None);
    }
}

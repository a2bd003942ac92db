//! nfnetlink: base chains of nf_tables that translate addresses.

use std::io;

use super::{Message, Socket, array, attr};
use crate::bpf::text;

const NFT_GETCHAIN: u16 = (10 << 8) | 4;
const NFT_NEWCHAIN: u16 = (10 << 8) | 3;
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_CHAIN_TYPE: u16 = 7;

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

/// The base chains of type "nat" that hold a rule, in this namespace. None if
/// the kernel has no nf_tables.
///
/// # Errors
///
/// What the kernel says.
pub fn nat_chains() -> io::Result<Vec<NatChain>> {
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
    fn filters_and_empty_chains_translate_nothing() {
        assert_eq!(parse(&bytes(FILTER)), None);
        assert_eq!(parse(&bytes(NAT_WITHOUT_RULES)), None);
        assert_eq!(parse(&bytes(&NAT[..40])), None);
    }
}

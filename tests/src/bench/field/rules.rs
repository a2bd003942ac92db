//! What the firewalls are told.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Mode, wire};
use crate::lab::{Netns, process};

/// Seconds: no flow ends for want of packets.
const LIFE: u32 = 7200;

/// The usual `ct state` rules. The checksums of all packets are right, and a NIC would
/// have said so: the kernel is not to compute them here.
pub(super) fn peer(middle: &Netns, mode: Mode) -> Result<()> {
    let helper = if mode == Mode::NftFtp {
        "ct helper ftp-std { type \"ftp\" protocol tcp; }\n\
         chain attach { type filter hook prerouting priority filter; policy accept;\n\
         tcp dport 21 ct helper set \"ftp-std\"\n}\n"
    } else {
        ""
    };
    let (table, offload) = if mode == Mode::Flowtable {
        (
            "flowtable fast { hook ingress priority filter; devices = { in0, out0 }; }\n\
             counter slow {}\n",
            "ip protocol { tcp, udp } flow add @fast\ncounter name \"slow\"\n",
        )
    } else {
        ("", "")
    };
    let hook = if mode.is_host() { "input" } else { "forward" };
    let text = format!(
        "table inet guard {{\n{table}{helper}chain guard {{\n\
         type filter hook {hook} priority filter; policy drop;\n\
         {offload}ct state established,related accept\n\
         iifname \"in0\" ct state new accept\n}}\n}}\n"
    );
    process::check_with_input(middle.command("nft").args(["-f", "-"]), &text)?;
    let life = LIFE.to_string();
    for (key, value) in [
        ("nf_conntrack_checksum", "0"),
        ("nf_conntrack_udp_timeout_stream", &life),
        ("nf_conntrack_tcp_timeout_max_retrans", &life),
        ("nf_conntrack_tcp_timeout_unacknowledged", &life),
    ] {
        middle.sysctl(&format!("net/netfilter/{key}"), value)?;
    }
    Ok(())
}

/// Packets that a named counter of nftables has counted.
pub(super) fn counted(node: &Netns, table: &str, name: &str) -> Result<u64> {
    let mut nft = node.command("nft");
    nft.args(["-j", "list", "counter", "inet", table, name]);
    let counter: Value = serde_json::from_str(&process::check(&mut nft)?)?;
    let counters = counter["nftables"].as_array().into_iter().flatten();
    let mut packets = counters.filter_map(|entry| entry["counter"]["packets"].as_u64());
    packets.next().context("no counter")
}

/// In host mode, packets are counted and dropped when the host has accepted them: of the
/// peer's, those of established flows.
pub(super) fn sink(middle: &Netns, mode: Mode) -> Result<()> {
    let state = if mode == Mode::HostNft {
        "ct state established "
    } else {
        ""
    };
    let text = format!(
        "table inet bench {{\ncounter seen {{}}\nchain sink {{\n\
         type filter hook input priority 10; policy accept;\n\
         {state}udp dport {} counter name \"seen\" drop\n}}\n}}\n",
        wire::PORT
    );
    process::check_with_input(middle.command("nft").args(["-f", "-"]), &text)
}

/// pinhole's, which says the same as the kernel's rules; after so many that match nothing.
/// Its tables have the sizes that they have by default, or room for so many `flows`.
/// `complete`: nobody at the ends leaves a checksum to its network card.
pub(crate) fn policy(mode: Mode, flows: u32, fillers: u32, complete: bool) -> String {
    let mut text = if mode.is_host() {
        "[zones.outside]\ninterfaces = [\"in0\"]\n"
    } else {
        "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
         [zones.outside]\ninterfaces = [\"out0\"]\n"
    }
    .to_owned();
    for at in 0..fillers {
        // Of the network that is set aside for benchmarks (RFC 2544).
        let address = Ipv4Addr::from(0xc612_0000 + at);
        let _ = writeln!(
            text,
            "[[rule]]\nname = \"filler-{at}\"\nproto = \"udp\"\ndst = \"{address}\"\n\
             dport = {}\naction = \"accept\"",
            wire::PORT
        );
    }
    if mode.is_host() {
        for proto in ["tcp", "udp"] {
            let _ = writeln!(
                text,
                "[[rule]]\nname = \"in-{proto}\"\nfrom = \"outside\"\nto = \"host\"\n\
                 proto = \"{proto}\"\ndport = {}\naction = \"accept\"",
                wire::PORT
            );
        }
        text.push_str("[[rule]]\nname = \"out\"\nfrom = \"host\"\naction = \"accept\"\n");
    } else {
        text.push_str("[[rule]]\nname = \"out\"\nfrom = \"inside\"\naction = \"accept\"\n");
    }
    let sizes = if flows == 0 {
        String::new()
    } else {
        // A quarter of the table is for what is not TCP.
        let table = (flows * 4).next_power_of_two().max(1 << 16);
        let half_open = flows.next_power_of_two().max(1 << 16);
        format!("[tables]\nflows = {table}\nhalf-open = {half_open}\n")
    };
    let fast = mode == Mode::Fast;
    let complete = if fast && complete {
        "complete-checksums = [\"in0\", \"out0\"]\n"
    } else {
        ""
    };
    let _ = write!(
        text,
        "[timeouts]\nudp-stream = {LIFE}\ntcp-unacknowledged = {LIFE}\n\
         {sizes}\
         [fast-path]\nenabled = {fast}\n{complete}"
    );
    text
}

//! The kernel's own stateful firewall, with its own FTP helper: the peer that
//! pinhole is held against.

use std::process::Command;

use anyhow::Result;

use super::{
    Netns, netns, process,
    server::{FTP, FTPS},
};

/// nftables with connection tracking on a forwarding node.
#[derive(Debug)]
pub struct NftFirewall {
    ns: String,
}

impl NftFirewall {
    /// Accepts ports 21 and 990 and what belongs to a tracked flow, drops the rest;
    /// `helper` attaches nf_conntrack_ftp, which since Linux 6.0 has to be done by a rule.
    ///
    /// # Errors
    /// The kernel lacks nftables or nf_conntrack_ftp.
    pub fn start(ns: &Netns, helper: bool) -> Result<Self> {
        let attach = if helper {
            format!(
                "ct helper ftp-std {{ type \"ftp\" protocol tcp; }}\n\
             chain attach {{\n\
               type filter hook prerouting priority filter; policy accept;\n\
               tcp dport {{ {FTP}, {FTPS} }} ct helper set \"ftp-std\"\n\
             }}\n"
            )
        } else {
            String::new()
        };
        let rules = format!(
            "table inet lab {{\n{attach}\
             chain guard {{\n\
               type filter hook forward priority filter; policy drop;\n\
               ct state established,related accept\n\
               tcp dport {{ {FTP}, {FTPS} }} ct state new accept\n\
               counter comment \"dropped\"\n\
             }}\n}}\n"
        );
        process::check_with_input(ns.command("nft").args(["-f", "-"]), &rules)?;
        Ok(Self {
            ns: ns.name().to_owned(),
        })
    }
}

/// Makes the kernel track what a node forwards, and nothing else.
///
/// # Errors
/// The kernel lacks nftables or connection tracking.
pub fn track(ns: &Netns) -> Result<()> {
    process::check_with_input(
        ns.command("nft").args(["-f", "-"]),
        "table inet track {\n\
           chain forwarded {\n\
             type filter hook forward priority filter; policy accept;\n\
             ct state established counter\n\
           }\n\
         }\n",
    )
}

impl Drop for NftFirewall {
    fn drop(&mut self) {
        let mut nft = Command::new("nsenter");
        nft.arg(format!("--net={}/{}", netns::DIR, self.ns));
        nft.args(["--", "nft", "delete", "table", "inet", "lab"]);
        let _ = process::run(&mut nft, process::SHORT);
    }
}

//! The servers, clients and tools of the lab, in a cache of the workspace.
//!
//! The FTP servers conflict with one another as packages, and installing one
//! starts it on port 21 of an ordinary host. So they are unpacked, with the
//! libraries that this machine lacks, into `target/lab/root`, and run from there;
//! and so are the clients, of which most machines have few.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::apt::{self, Tool};
use crate::ctx::Ctx;

const PURPOSE: &str = "the lab of the end-to-end tests";

/// Tools that the lab calls by name.
const TOOLS: &[Tool] = &[
    Tool {
        command: "ip",
        package: "iproute2",
    },
    Tool {
        command: "tc",
        package: "iproute2",
    },
    Tool {
        command: "bpftool",
        package: "bpftool",
    },
    Tool {
        command: "nft",
        package: "nftables",
    },
    Tool {
        command: "conntrack",
        package: "conntrack",
    },
    Tool {
        command: "ethtool",
        package: "ethtool",
    },
    Tool {
        command: "nsenter",
        package: "util-linux",
    },
    Tool {
        command: "curl",
        package: "curl",
    },
    Tool {
        command: "openssl",
        package: "openssl",
    },
];

/// What is unpacked. pyftpdlib comes from the distribution too: built for the
/// distribution's Python, signed, and with no second package manager at work.
const UNPACKED: &[&str] = &[
    "vsftpd",
    "proftpd-core",
    "proftpd-mod-crypto",
    "pure-ftpd",
    "inetutils-ftpd",
    "python3-pyftpdlib",
    "python3-openssl",
    "lftp",
    "wget",
    "tnftp",
    "inetutils-ftp",
];

/// Names what a cache was made of; one of another set-up is made anew.
const STAMP: &str = ".packages";

pub(crate) fn ensure(ctx: &Ctx) -> Result<()> {
    apt::tools(ctx, TOOLS, PURPOSE)?;
    if !Path::new("/usr/bin/python3").exists() {
        // Not "any python3": the unpacked modules are built for the distribution's.
        apt::packages(ctx, &["python3"], PURPOSE)?;
    }
    let root = ctx.lab().join("root");
    let wanted = UNPACKED.join("\n");
    if fs::read_to_string(root.join(STAMP)).is_ok_and(|made_of| made_of == wanted) {
        return Ok(());
    }
    ctx.create_dir(&ctx.lab())?;
    apt::lists(ctx, UNPACKED, PURPOSE)?;
    let packages = with_libraries(ctx)?;
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    ctx.publish(&root, |partial| {
        apt::unpack(ctx, &names, partial, PURPOSE)?;
        ctx.write(&partial.join(STAMP), &wanted)
    })
}

/// The servers and clients, and what apt would install with them on this machine.
fn with_libraries(ctx: &Ctx) -> Result<BTreeSet<String>> {
    let mut packages: BTreeSet<String> = UNPACKED.iter().map(|&s| s.to_owned()).collect();
    for package in UNPACKED {
        // One at a time: together they conflict.
        let mut simulation = ctx.user("apt-get");
        simulation.args(["--simulate", "--no-install-recommends", "install", package]);
        let plan = ctx
            .capture(&mut simulation)
            .with_context(|| format!("apt offers no {package}, which the lab needs"))?;
        packages.extend(planned(&plan).map(str::to_owned));
    }
    Ok(packages)
}

/// Packages that an `apt-get --simulate install` would unpack.
fn planned(plan: &str) -> impl Iterator<Item = &str> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|rest| rest.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::planned;

    #[test]
    fn a_plan_names_new_and_upgraded_packages() {
        let plan = "Reading package lists...\n\
                    Inst libwrap0 (7.6.q-32 Debian:12.15/oldstable [amd64])\n\
                    Inst libpcre2-8-0 [10.42-1] (10.42-2 Debian-Security:12 [amd64])\n\
                    Conf libwrap0 (7.6.q-32 Debian:12.15/oldstable [amd64])\n";
        let names: Vec<&str> = planned(plan).collect();
        assert_eq!(names, ["libwrap0", "libpcre2-8-0"]);
    }
}

//! The servers, clients and tools of the lab, in a cache of the workspace.

use anyhow::Result;

use super::apt::{self, Tool};
use crate::ctx::Ctx;

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
        command: "nft",
        package: "nftables",
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
        command: "python3",
        package: "python3",
    },
];

pub(crate) fn ensure(ctx: &Ctx) -> Result<()> {
    apt::tools(ctx, TOOLS, "the lab of the end-to-end tests")?;
    ctx.create_dir(&ctx.lab())
}

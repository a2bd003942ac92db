//! `pinhole flows`.

mod delete;
mod own;
mod watch;

use std::process::ExitCode;

use anyhow::bail;
use firewall_common::{
    abi::FlowKey6,
    key::FlowKey as _,
    wire::{self, Headers, proto},
};

use super::{
    args::Output,
    flow_args::{FlowsCommand, GetArgs, ListedArgs},
};
use crate::{
    bpf::{Instance, maps::Pinned, words},
    render::{self, FlowView, Now},
};

/// Does what the command says.
///
/// # Errors
/// Nothing attached, wrong filters, or the maps cannot be read.
pub(super) fn run(instance: &Instance, command: &FlowsCommand) -> anyhow::Result<ExitCode> {
    match command {
        FlowsCommand::List(args) => list(instance, args)?,
        FlowsCommand::Get(args) => get(instance, args)?,
        FlowsCommand::Count(args) => count(instance, args)?,
        FlowsCommand::Watch(args) => watch::run(instance, args)?,
        FlowsCommand::Delete(args) => delete::delete(instance, args)?,
        FlowsCommand::Flush(args) => delete::flush(instance, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(instance: &Instance, args: &ListedArgs) -> anyhow::Result<()> {
    let pinned = Pinned::open(instance)?;
    let filter = args.filter.resolve(&pinned)?;
    let (flows, names) = (
        pinned.flows_where(|row| filter.matches(row))?,
        pinned.names()?,
    );
    let now = Now::read();
    let parents = pinned.parents(&flows)?;
    let view = |row| FlowView::new(row, &names, now).with_parent(parents.of(row));
    render::each(flows.iter().map(view), args.list.output)
}

fn count(instance: &Instance, args: &ListedArgs) -> anyhow::Result<()> {
    let pinned = Pinned::open(instance)?;
    let filter = args.filter.resolve(&pinned)?;
    let mut count: u64 = 0;
    pinned.each_flow(|row| count += u64::from(filter.matches(row)))?;
    match args.list.output {
        Output::Json => render::json(&serde_json::json!({ "count": count })),
        Output::Table => render::print(&format!("{count}\n")),
    }
}

fn get(instance: &Instance, args: &GetArgs) -> anyhow::Result<()> {
    let (sport, dport) = args.ports()?;
    let pinned = Pinned::open(instance)?;
    let Some(row) = pinned.flow(&key(args, sport, dport))? else {
        bail!(
            "no such flow; `{}` shows what there is",
            instance.command("flows list")
        );
    };
    let parents = pinned.parents(&[row])?;
    let view = FlowView::new(&row, &pinned.names()?, Now::read()).with_parent(parents.of(&row));
    match args.list.output {
        Output::Json => render::json(&view),
        table => render::list(&[view], table),
    }
}

/// The key of the flow that a packet from `src` to `dst` belongs to.
fn key(args: &GetArgs, sport: u16, dport: u16) -> FlowKey6 {
    let v4 = args.src.is_ipv4();
    let headers = Headers {
        family: if v4 {
            wire::Family::V4
        } else {
            wire::Family::V6
        },
        proto: args.proto,
        src: words(args.src),
        dst: words(args.dst),
        sport,
        dport,
        // As of an echo request: its source is the originator.
        icmp_type: if args.proto == proto::ICMP { 8 } else { 128 },
        ..Headers::ZERO
    };
    FlowKey6::of(&headers).0
}

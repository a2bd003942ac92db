//! `ftp explain`.

use std::process::ExitCode;

use anyhow::bail;

use crate::{
    bpf::{Instance, journal::Journal, maps::Pinned},
    cli::{
        args::Output,
        ftp_args::{ExplainArgs, WhichArgs},
    },
    explain::{Account, accounts, remedies::remedies},
    render::{self, ExplainView, Now},
};

/// Says what became of sessions, and what would help.
///
/// # Errors
/// Nothing attached, the journal cannot be read, or there is no such session.
pub(super) fn run(instance: &Instance, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let pinned = Pinned::open(instance)?;
    let names = pinned.names()?;
    let told = Journal::open(instance)?.take()?.told;
    let told = told.into_iter().collect::<Result<Vec<_>, _>>()?;
    let now = Now::read();
    let all = accounts(&told, &pinned.sessions()?, now.monotonic_ns);
    let which = args.which.map(WhichArgs::from).unwrap_or_default();
    let mut chosen: Vec<&Account> = all
        .iter()
        .filter(|account| which.takes(account.client, account.server))
        .collect();
    if chosen.is_empty() && args.which.is_some() {
        bail!(
            "no such session: neither live nor in the journal, which holds the last 4096 events; \
             `{}` lists the live ones",
            instance.command("ftp list")
        );
    }
    let known = chosen.len();
    if args.which.is_none() {
        chosen.retain(|account| account.is_trouble());
    }
    let views: Vec<_> = chosen
        .iter()
        .map(|account| ExplainView::new(account, remedies(account, &all, &names), now))
        .collect();
    if args.list.output == Output::Json {
        render::json(&views)?;
        return Ok(ExitCode::SUCCESS);
    }
    let texts: Vec<_> = views.iter().map(|view| view.text(now)).collect();
    render::print(&texts.join("\n"))?;
    match known - chosen.len() {
        0 if known == 0 => eprintln!(
            "no FTP session: none lives, and the journal holds none; a rule with `helper = \"ftp\"` \
             makes its connections known"
        ),
        0 => {}
        1 => eprintln!("1 session without trouble; name it to see it"),
        fine => eprintln!("{fine} sessions without trouble; name one to see it"),
    }
    Ok(ExitCode::SUCCESS)
}

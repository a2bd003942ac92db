//! Debian's packages: installed where a tool is missing, or only unpacked into a cache.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{account::find_program, ctx::Ctx};

const LISTS: &str = "/var/lib/apt/lists";
/// Older package lists name versions that the archive may no longer hold.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);
const QUIET: [(&str, &str); 1] = [("DEBIAN_FRONTEND", "noninteractive")];

/// A program that must be there, and the Debian package that holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) command: &'static str,
    pub(crate) package: &'static str,
}

/// Installs the packages of those tools that are not in `PATH`. `purpose` completes "needed
/// for …".
pub(crate) fn tools(ctx: &Ctx, tools: &[Tool], purpose: &str) -> Result<()> {
    let missing = tools
        .iter()
        .filter(|tool| find_program(tool.command).is_none());
    let mut packages: Vec<&str> = missing.map(|tool| tool.package).collect();
    packages.dedup();
    install(ctx, &packages, purpose)
}

/// Installs those packages that are not installed.
pub(crate) fn packages(ctx: &Ctx, packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|name| !installed(ctx, name))
        .collect();
    install(ctx, &missing, purpose)
}

/// As `packages`, where the packages are a matter of Debian's own make; elsewhere nothing.
pub(crate) fn packages_on_debian(ctx: &Ctx, packages: &[&str], purpose: &str) -> Result<()> {
    if find_program("dpkg-query").is_none() {
        return Ok(());
    }
    self::packages(ctx, packages, purpose)
}

/// Downloads packages, with nothing that they depend on, and unpacks them below `into`.
/// Nothing is installed, no maintainer script runs, no service starts. Runs unprivileged once
/// the package lists are there.
pub(crate) fn unpack(ctx: &Ctx, packages: &[&str], into: &Path, purpose: &str) -> Result<()> {
    lists(ctx, packages, purpose)?;
    let archives = into.join(".archives");
    ctx.create_dir(&archives)?;
    let mut download = ctx.user("apt-get");
    download
        .arg("download")
        .args(packages)
        .current_dir(&archives);
    let what = format!(
        "{} for {purpose} (unpacked, not installed)",
        packages.join(" ")
    );
    ctx.run_logged("Downloading", &what, &mut download)?;
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        ctx.run(
            ctx.user("dpkg-deb")
                .arg("--extract")
                .args([archive.as_path(), into]),
        )?;
    }
    crate::ctx::remove(&archives)
}

/// True when the archive offers the package.
pub(crate) fn available(ctx: &Ctx, package: &str) -> bool {
    let policy = ctx.capture(ctx.user("apt-cache").args(["policy", package]));
    policy.is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
}

fn install(ctx: &Ctx, packages: &[&str], purpose: &str) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    lists(ctx, packages, purpose)?;
    let mut command = apt_get(ctx, packages, purpose)?;
    // What the user has installed stays: a package that conflicts with it is an error.
    command
        .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
        .args(packages);
    let what = format!("{} (apt), for {purpose}", packages.join(" "));
    ctx.run_logged("Installing", &what, &mut command)
        .with_context(|| by_hand(packages, purpose))
}

fn installed(ctx: &Ctx, package: &str) -> bool {
    let query = ["--show", "--showformat=${db:Status-Status}", package];
    ctx.capture(ctx.user("dpkg-query").args(query))
        .is_ok_and(|status| status == "installed")
}

fn demand_debian(packages: &[&str], purpose: &str) -> Result<()> {
    if find_program("apt-get").is_none() || find_program("dpkg-query").is_none() {
        bail!("no apt-get here. {}", by_hand(packages, purpose));
    }
    Ok(())
}

fn by_hand(packages: &[&str], purpose: &str) -> String {
    format!(
        "needed for {purpose}: what Debian's package{} {} hold{}. On Debian: sudo apt-get install {}",
        if packages.len() == 1 { "" } else { "s" },
        packages.join(", "),
        if packages.len() == 1 { "s" } else { "" },
        packages.join(" "),
    )
}

fn apt_get(ctx: &Ctx, packages: &[&str], purpose: &str) -> Result<std::process::Command> {
    ctx.authenticate("install packages")
        .with_context(|| by_hand(packages, purpose))?;
    let environment = QUIET.map(|(name, value)| (name, OsStr::new(value)));
    ctx.superuser("apt-get", &environment, "install packages")
        .with_context(|| by_hand(packages, purpose))
}

/// Fetches the package lists when there are none or when they are old. `packages` and `purpose`
/// are for the message when that cannot be.
pub(crate) fn lists(ctx: &Ctx, packages: &[&str], purpose: &str) -> Result<()> {
    demand_debian(packages, purpose)?;
    if lists_age().is_some_and(|age| age < LISTS_AGE) {
        return Ok(());
    }
    let mut command = apt_get(ctx, packages, purpose)?;
    command.arg("update");
    ctx.run_logged("Updating", "apt's package lists", &mut command)
}

/// How long ago the newest package list was fetched; `None` when there is none. Its modification
/// time is the archive's, its change time is ours.
fn lists_age() -> Option<Duration> {
    let entries = fs::read_dir(LISTS).ok()?.flatten();
    let lists = entries.filter(|entry| entry.file_name().to_string_lossy().contains("_dists_"));
    let newest = lists
        .filter_map(|entry| Some(entry.metadata().ok()?.ctime()))
        .max()?;
    let fetched = SystemTime::UNIX_EPOCH + Duration::from_secs(newest.try_into().ok()?);
    SystemTime::now().duration_since(fetched).ok()
}

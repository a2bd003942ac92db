//! Debian's kernels for virtual machines, unpacked into `target/vm/SERIES`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::apt::{self, Tool};
use crate::ctx::Ctx;

const PURPOSE: &str = "virtual machines";

const QEMU: Tool = Tool {
    command: "qemu-system-x86_64",
    package: "qemu-system-x86",
};

/// Packages of which one depends on the newest kernel of a series. Which series
/// the first of them means differs from release to release of Debian.
const METAPACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-SERIES-cloud-amd64"];

/// Names the package that a cache was made of.
const STAMP: &str = ".package";

/// A kernel series that pinhole supports, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's: the oldest that is supported.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// Refused by it means refused to be supported.
    pub(crate) const OLDEST: Self = Self::V6_1;

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// An unpacked kernel package.
pub(crate) struct Kernel {
    /// What is booted.
    pub(crate) image: PathBuf,
    /// Where it is unpacked, modules and all.
    pub(crate) root: PathBuf,
}

/// QEMU, and a kernel.
pub(super) fn ensure(ctx: &Ctx, series: Series) -> Result<Kernel> {
    if env::consts::ARCH != "x86_64" {
        bail!(
            "virtual machines are made on x86-64 only, this is {}",
            env::consts::ARCH
        );
    }
    apt::tools(ctx, &[QEMU], PURPOSE)?;
    let cache = ctx.vm().join(series.name());
    if !cache.join(STAMP).exists() {
        ctx.create_dir(&ctx.vm())?;
        apt::lists(ctx, &METAPACKAGES[..1], PURPOSE)?;
        let package = package(ctx, series)?;
        ctx.publish(&cache, |partial| {
            apt::unpack(ctx, &[&package], partial, PURPOSE)?;
            image(partial)?;
            ctx.write(&partial.join(STAMP), &package)
        })?;
    }
    Ok(Kernel {
        image: image(&cache)?,
        root: cache,
    })
}

/// The package that holds the series' newest kernel.
fn package(ctx: &Ctx, series: Series) -> Result<String> {
    for metapackage in METAPACKAGES {
        let name = metapackage.replace("SERIES", series.name());
        let mut query = ctx.user("apt-cache");
        query.args(["depends", &name]);
        // A name that this archive does not know is an error to apt-cache.
        let depends = ctx.capture(&mut query).unwrap_or_default();
        if let Some(package) = image_of(&depends, series.name()) {
            return Ok(package.to_owned());
        }
    }
    bail!(
        "apt offers no cloud kernel {} here; Debian 12 has both 6.1 and 6.12",
        series.name()
    )
}

/// The kernel package of a series among what `apt-cache depends` lists.
fn image_of<'a>(depends: &'a str, series: &str) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(&prefix))
}

fn image(unpacked: &Path) -> Result<PathBuf> {
    let boot = unpacked.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("no {}", boot.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("/vmlinuz-"))
        .with_context(|| format!("no kernel image in {}", boot.display()))
}

#[cfg(test)]
mod tests {
    use super::image_of;

    #[test]
    fn the_metapackage_names_the_kernel() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            image_of(depends, "6.1"),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(image_of(depends, "6.12"), None);
        let depends = "  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(image_of(depends, "6.1"), None);
    }
}

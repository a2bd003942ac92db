//! The programs of package firewall-tests, run as root.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use crate::ctx::{Ctx, show};

/// Completes "root is needed to …".
pub(crate) const PURPOSE: &str = "make network namespaces and load eBPF programs";

/// Where the tests and the demo find what was built.
pub(crate) struct Lab {
    environment: Vec<(&'static str, OsString)>,
}

impl Lab {
    pub(crate) fn new(ctx: &Ctx, pinhole: &Path) -> Self {
        let mut environment = vec![
            ("PINHOLE_BIN", pinhole.into()),
            ("PINHOLE_LAB", ctx.lab().into()),
        ];
        for name in ["RUST_BACKTRACE", "RUST_LOG", "CI", "TERM"] {
            environment.extend(std::env::var_os(name).map(|value| (name, value)));
        }
        Self { environment }
    }

    /// With further variables in the environment of what runs.
    pub(crate) fn with(mut self, more: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let more = more.into_iter().map(|(name, value)| (name, value.into()));
        self.environment.extend(more);
        self
    }

    /// A program of the tests package, as root, in that package's directory like cargo's own.
    pub(crate) fn command(&self, ctx: &Ctx, program: &Path) -> Result<Command> {
        let environment: Vec<(&str, &OsStr)> = self
            .environment
            .iter()
            .map(|(name, value)| (*name, value.as_os_str()))
            .collect();
        let mut command = ctx.superuser(program, &environment, PURPOSE)?;
        command.current_dir(ctx.root().join("tests"));
        Ok(command)
    }
}

/// Runs a command with its output shown; true when it succeeded.
pub(crate) fn passes(command: &mut Command) -> Result<bool> {
    let status = command.status();
    let status = status.with_context(|| format!("cannot run `{}`", show(command)))?;
    Ok(status.success())
}

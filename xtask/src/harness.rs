//! The programs of package firewall-tests, run as root.

use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    build, cargo_json,
    ctx::{Ctx, show},
    setup::{self, Ebpf},
};

/// Completes "root is needed to …".
pub(crate) const PURPOSE: &str = "make network namespaces and load eBPF programs";

/// Where the tests and the demo find what was built.
pub(crate) struct Lab {
    environment: Vec<(&'static str, OsString)>,
}

impl Lab {
    /// With everything that programs of the tests package need on a new machine. Asks for the
    /// right to be root before what takes long.
    pub(crate) fn set_up(ctx: &Ctx, ebpf: &Ebpf, release: bool) -> Result<Self> {
        ctx.authenticate(PURPOSE)?;
        setup::lab(ctx)?;
        build::object(ctx, ebpf)?;
        Ok(Self::new(ctx, &build::pinhole(ctx, release)?))
    }

    /// Becomes the program of this name, so that its exit code is the task's, and Ctrl-C finds
    /// nobody but the program, which takes its namespaces down before it ends.
    pub(crate) fn become_program(
        &self,
        ctx: &Ctx,
        name: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Infallible> {
        let program = cargo_json::binary(ctx, name, false)?;
        let mut command = self.command(ctx, &program)?;
        let error = command.args(arguments).exec();
        Err(error).with_context(|| format!("cannot run `{}`", show(&command)))
    }

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

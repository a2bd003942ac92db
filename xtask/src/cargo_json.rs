//! Which executables cargo built, and where it put them.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::ctx::{Ctx, show};

/// An executable that cargo built or found fresh.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Name of the target: of the binary, of the library, or of the test file.
    pub(crate) name: String,
    /// cargo's kind of the target: `bin`, `lib`, `test`.
    pub(crate) kind: String,
    /// Directory of its package, in which cargo would run it.
    pub(crate) package: PathBuf,
    /// True when it holds the test harness.
    pub(crate) test: bool,
    pub(crate) path: PathBuf,
}

impl Artifact {
    /// As a person tells it from others: `firewall-user lib`, `tests/ftp`.
    pub(crate) fn label(&self) -> String {
        let package = self.package.file_name().unwrap_or_default();
        let package = package.to_string_lossy();
        match self.kind.as_str() {
            "test" => format!("{package}/{}", self.name),
            "lib" => format!("{package} lib"),
            _ => format!("{package} {} {}", self.kind, self.name),
        }
    }
}

#[derive(Deserialize)]
struct Message {
    target: Target,
    profile: Profile,
    manifest_path: PathBuf,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Runs a build command of cargo with its diagnostics shown.
pub(crate) fn executables(ctx: &Ctx, cargo: &mut std::process::Command) -> Result<Vec<Artifact>> {
    cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("cannot run `{}`", show(cargo)))?;
    ctx.give_back(&ctx.target())?;
    if !output.status.success() {
        bail!("`{}` failed ({})", show(cargo), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(artifact)
        .collect())
}

fn artifact(line: &str) -> Option<Artifact> {
    let message: Message = serde_json::from_str(line).ok()?;
    Some(Artifact {
        name: message.target.name,
        kind: message.target.kind.into_iter().next()?,
        package: message.manifest_path.parent()?.to_owned(),
        test: message.profile.test,
        path: message.executable?,
    })
}

/// Builds one binary of the workspace and says where it is. The whole workspace is selected so
/// that every build settles on the same features, and none is built twice.
pub(crate) fn binary(ctx: &Ctx, name: &str, release: bool) -> Result<PathBuf> {
    let mut cargo = ctx.cargo();
    cargo.args(["build", "--workspace", "--bin", name]);
    if release {
        cargo.arg("--release");
    }
    let built = executables(ctx, &mut cargo)?;
    let binary = built.into_iter().find(|artifact| artifact.name == name);
    Ok(binary
        .with_context(|| format!("cargo built no binary named {name}"))?
        .path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_taken_from_its_message() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml",
            "target":{"kind":["test"],"name":"ftp"},"profile":{"test":true},
            "executable":"/t/ftp-1"}"#;
        let artifact = artifact(line).unwrap();
        assert_eq!(artifact.label(), "tests/ftp");
        assert!(artifact.test);
        assert_eq!(artifact.path, PathBuf::from("/t/ftp-1"));
    }

    #[test]
    fn other_messages_are_passed_over() {
        assert_eq!(
            artifact(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        let library = r#"{"manifest_path":"/w/x/Cargo.toml","target":{"kind":["lib"],"name":"x"},
            "profile":{"test":false},"executable":null}"#;
        assert_eq!(artifact(library), None);
        assert_eq!(artifact("warning: something"), None);
    }
}

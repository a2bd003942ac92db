//! Which executables cargo built, and where it put them.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::ctx::{Ctx, show};

/// An executable that cargo built or found fresh.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Name of the target: of the binary, or of the test file.
    pub(crate) name: String,
    /// cargo's kind of the target: `bin`, `lib`, `test`.
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
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
    let target = message.target?;
    Some(Artifact {
        name: target.name,
        kind: target.kind.into_iter().next()?,
        path: message.executable?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_taken_from_its_message() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"ftp"},
                       "executable":"/t/ftp-1"}"#;
        let expected = Artifact {
            name: "ftp".into(),
            kind: "test".into(),
            path: "/t/ftp-1".into(),
        };
        assert_eq!(artifact(line), Some(expected));
    }

    #[test]
    fn other_messages_are_passed_over() {
        assert_eq!(
            artifact(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        let library = r#"{"target":{"kind":["lib"],"name":"x"},"executable":null}"#;
        assert_eq!(artifact(library), None);
        assert_eq!(artifact("warning: something"), None);
    }
}

//! How a failure becomes an exit code.

use std::process::ExitCode;

use crate::config;

/// Exit code of wrong usage or configuration.
pub const USAGE: u8 = 2;
/// Exit code of every other failure.
pub const FAILURE: u8 = 1;

/// A mistake on the command line that clap cannot see: exit code 2.
///
/// Put it anywhere in an `anyhow` chain: `return Err(Usage::new("…").into())`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

impl Usage {
    /// What is wrong, and what to do.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Prints `error` for the operator and gives the exit code that it stands for.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code(error))
}

/// 2 if the operator's input is at fault, else 1.
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    let usage = error
        .chain()
        .any(|cause| cause.is::<Usage>() || cause.is::<config::Error>());
    if usage { USAGE } else { FAILURE }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn usage_is_found_under_context() {
        let wrapped = Err::<(), _>(Usage::new("--iface eth9: no such interface"))
            .context("attaching")
            .unwrap_err();
        assert_eq!(code(&wrapped), USAGE);
        assert_eq!(code(&anyhow::anyhow!("EPERM")), FAILURE);
    }
}

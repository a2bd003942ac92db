//! The `pinhole` binary: see [`firewall_user::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    firewall_user::cli::main()
}

//! Somebody else's XDP program.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Netns, id, process, server::python};

/// An XDP program that is not pinhole's, attached to an interface.
#[derive(Debug)]
pub struct ForeignXdp {
    pins: String,
}

impl ForeignXdp {
    /// Attaches one that passes everything to `interface`; `name` is unique on the machine.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(ns: &Netns, interface: &str, name: String) -> Result<Self> {
        let dir = Path::new(id::PINS).join(&name);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let foreign = Self { pins: name };
        let pin = dir.join("pass").to_string_lossy().into_owned();
        let load = include_str!("foreign_xdp.py");
        process::check(ns.command(python()).args(["-c", load, &pin]))?;
        process::check(
            ns.command("ip")
                .args(["link", "set", "dev", interface, "xdp", "pinned", &pin]),
        )?;
        Ok(foreign)
    }
}

impl Drop for ForeignXdp {
    fn drop(&mut self) {
        id::unpin(&self.pins);
    }
}

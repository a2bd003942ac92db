//! Programs that are not pinhole's, of a few instructions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Netns, id, process, server::python};

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
const XDP: u32 = 6;

/// An eBPF instruction, as the kernel reads it.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    value: i32,
}

impl Instruction {
    /// Ends the program with what is in register 0.
    pub const EXIT: Self = Self::new(0x95, 0, 0, 0);

    const fn new(code: u8, to: u8, from: u8, value: i32) -> Self {
        Self {
            code,
            to,
            from,
            value,
        }
    }

    /// Puts `value` into register `to`.
    #[must_use]
    pub const fn set(to: u8, value: i32) -> Self {
        Self::new(0xb7, to, 0, value)
    }

    /// Copies register `from` to register `to`.
    #[must_use]
    pub const fn copy(to: u8, from: u8) -> Self {
        Self::new(0xbf, to, from, 0)
    }

    /// Calls a helper, by its number, with registers 1 to 5.
    #[must_use]
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, helper)
    }

    fn hex(self) -> String {
        let value = self.value.to_le_bytes();
        let head = [self.code, self.from << 4 | self.to, 0, 0];
        let bytes = head.into_iter().chain(value);
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Programs below a pin directory of their own, which goes with the handle.
#[derive(Debug)]
pub struct Pinned {
    name: String,
}

impl Pinned {
    /// A directory; `name` is unique on the machine.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: String) -> Result<Self> {
        let dir = Path::new(id::PINS).join(&name);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { name })
    }

    /// Loads a TC program, and gives its pin.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn classifier(&self, name: &str, program: &[Instruction]) -> Result<PathBuf> {
        self.load(name, SCHED_CLS, program)
    }

    fn load(&self, name: &str, kind: u32, program: &[Instruction]) -> Result<PathBuf> {
        let pin = Path::new(id::PINS).join(&self.name).join(name);
        let code: String = program.iter().map(|one| one.hex()).collect();
        let script = include_str!("load_program.py");
        let mut load = std::process::Command::new(python());
        load.args(["-c", script]).arg(&pin);
        process::check(load.args([kind.to_string(), code]))?;
        Ok(pin)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        id::unpin(&self.name);
    }
}

/// An XDP program that is not pinhole's, attached to an interface.
#[derive(Debug)]
pub struct ForeignXdp {
    _pins: Pinned,
}

impl ForeignXdp {
    /// Attaches one that passes everything to `interface`; `name` is unique on the machine.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(ns: &Netns, interface: &str, name: String) -> Result<Self> {
        const XDP_PASS: i32 = 2;
        let pins = Pinned::new(name)?;
        let pin = pins.load(
            "pass",
            XDP,
            &[Instruction::set(0, XDP_PASS), Instruction::EXIT],
        )?;
        let mut set = ns.command("ip");
        set.args(["link", "set", "dev", interface, "xdp", "pinned"]);
        process::check(set.arg(&pin))?;
        Ok(Self { _pins: pins })
    }
}

//! What frames need to know of an interface.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Netns, process};

/// An Ethernet interface.
#[derive(Clone, Copy, Debug)]
pub struct Ether {
    /// Its index.
    pub index: u32,
    /// Its address.
    pub mac: [u8; 6],
}

impl Ether {
    /// The address as `ip` writes it.
    #[must_use]
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

impl Netns {
    /// An interface of the namespace.
    ///
    /// # Errors
    /// There is none of this name, or it is no Ethernet.
    pub fn ether(&self, interface: &str) -> Result<Ether> {
        let mut ip = self.command("ip");
        let text = process::check(ip.args(["-j", "link", "show", "dev", interface]))?;
        let value: Value = serde_json::from_str(&text)?;
        let known = |what: &str| format!("no {what} of {interface} in {text}");
        let index = value[0]["ifindex"].as_u64();
        let mac = value[0]["address"].as_str().unwrap_or_default();
        let mac: Vec<u8> = mac
            .split(':')
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        Ok(Ether {
            index: u32::try_from(index.with_context(|| known("index"))?)?,
            mac: mac.try_into().ok().with_context(|| known("address"))?,
        })
    }
}

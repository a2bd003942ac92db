//! The two modes of FTP.

/// Who opens the data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The client, when it has read the answer to PASV or EPSV.
    Passive,
    /// The server, when it has read PORT or EPRT.
    Active,
}

impl Mode {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Passive, Self::Active];

    /// `passive` or `active`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passive => "passive",
            Self::Active => "active",
        }
    }
}

//! What stands in the middle.

/// What stands in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// An XDP program that redirects, and nothing else.
    Ceiling,
    /// One that puts an entry for the packet into an LRU hash, and redirects: what new
    /// flows cost at least.
    Insert,
    /// One that looks an entry for the packet up in that hash, and redirects: what packets
    /// of known flows cost at least.
    Lookup,
    /// The kernel forwards.
    Forward,
    /// The kernel forwards, behind an XDP program that does nothing. (Where the ends are a
    /// generator and a sink, that is [`Mode::Forward`].)
    Open,
    /// The kernel forwards, nftables with `ct state` rules.
    Nft,
    /// Likewise, with nf_conntrack_ftp attached for port 21.
    NftFtp,
    /// The kernel forwards, established flows by nftables' flow table.
    Flowtable,
    /// pinhole, its packets forwarded by the kernel.
    Pass,
    /// pinhole, packets of established flows forwarded in XDP where it does that.
    Fast,
    /// The packets are for the host itself: no firewall.
    HostOpen,
    /// For the host itself: nftables with `ct state` rules.
    HostNft,
    /// For the host itself: pinhole.
    HostPinhole,
}

impl Mode {
    /// Short name, part of ids.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Insert => "insert",
            Self::Lookup => "lookup",
            Self::Forward => "forward",
            Self::Open => "open",
            Self::Nft => "nft",
            Self::NftFtp => "nft_ftp",
            Self::Flowtable => "flowtable",
            Self::Pass => "pass",
            Self::Fast => "fwd",
            Self::HostOpen => "host_open",
            Self::HostNft => "host_nft",
            Self::HostPinhole => "host",
        }
    }

    /// In words.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Ceiling => "redirect, no tracking",
            Self::Insert => "redirect, one LRU insertion",
            Self::Lookup => "redirect, one LRU look-up",
            Self::Forward => "kernel forward",
            Self::Open => "kernel forward, an empty XDP program",
            Self::Nft => "kernel forward, nftables `ct state`",
            Self::NftFtp => "the same, nf_conntrack_ftp attached",
            Self::Flowtable => "the kernel's flow table",
            Self::Pass => "pinhole, kernel forward",
            Self::Fast => "pinhole, XDP forward",
            Self::HostOpen => "host, no firewall",
            Self::HostNft => "host, nftables `ct state`",
            Self::HostPinhole => "host, pinhole",
        }
    }

    /// Are the packets for the host in the middle?
    #[must_use]
    pub const fn is_host(self) -> bool {
        matches!(self, Self::HostOpen | Self::HostNft | Self::HostPinhole)
    }

    /// Is it pinhole?
    #[must_use]
    pub const fn is_pinhole(self) -> bool {
        matches!(self, Self::Pass | Self::Fast | Self::HostPinhole)
    }

    /// Does nf_conntrack keep track of flows?
    #[must_use]
    pub const fn is_tracked_by_kernel(self) -> bool {
        matches!(
            self,
            Self::Nft | Self::NftFtp | Self::HostNft | Self::Flowtable
        )
    }

    /// Does anybody?
    #[must_use]
    pub const fn is_stateful(self) -> bool {
        self.is_pinhole() || self.is_tracked_by_kernel()
    }
}

//! Why a driver takes no native XDP program, and what to do about it.

use std::{fmt, io};

/// A driver's refusal.
#[derive(Debug)]
pub struct NativeRefusal {
    cause: io::Error,
    words: Option<String>,
    remedy: &'static str,
}

/// A word that the kernel's refusal has, and what helps then: the first that it has counts.
/// Each driver has its own sentences; these stand in those of Linux 5.18 to 6.18.
const REMEDIES: [(&str, &str); 8] = [
    ("mtu", MTU),
    // What ena and nfp say: XDP sends from queues of its own.
    ("for allocating xdp queues", SPARE),
    ("number of tx rings", SPARE),
    ("queues", QUEUES),
    ("gro_hw", MERGING),
    ("lro", "turn LRO off (`ethtool -K IF lro off`)"),
    ("rsc", "turn LRO off (`ethtool -K IF lro off`)"),
    (
        "peer is detached",
        "give the veth its other end back, or guard another interface",
    ),
];

const MTU: &str =
    "make the MTU smaller (`ip link set dev IF mtu 1500`; of a veth, its other end's)";

const QUEUES: &str = "give it at least as many receive queues as the other end of a veth has \
                      transmit queues, as a NIC has CPUs (`ethtool -L IF rx N`, or fewer at the \
                      other end: `ethtool -L PEER tx N`)";

const MERGING: &str = "in a virtual machine give the NIC guest_csum=off,guest_tso4=off,\
                       guest_tso6=off,guest_ecn=off,guest_ufo=off on the host; elsewhere \
                       `ethtool -K IF rx-gro-hw off`";

const SPARE: &str = "use at most half of the queues that it has, and leave the others to XDP: \
                     `ethtool -l IF` shows how many there are, `ethtool -L IF combined N` sets how \
                     many are in use";

impl NativeRefusal {
    /// `words` are the kernel's own, if it has any beside the error number.
    #[must_use]
    pub fn new(cause: io::Error, words: Option<String>) -> Self {
        let said = words.as_deref().unwrap_or_default().to_lowercase();
        let by_words = REMEDIES.iter().find(|(word, _)| said.contains(word));
        let remedy = by_words.map_or_else(|| by_number(&cause), |(_, remedy)| *remedy);
        Self {
            cause,
            words,
            remedy,
        }
    }

    /// What helps, but for the generic mode, which always does.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        self.remedy
    }
}

/// For kernels and drivers that say no more than a number.
fn by_number(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP",
        Some(libc::ERANGE) => MTU,
        Some(libc::ENOSPC) => QUEUES,
        _ => {
            "the driver may need a smaller MTU, more or fewer queues, or LRO off, which some, as \
             gve, say in the kernel's log alone (`dmesg`)"
        }
    }
}

/// The kernel's words, the error, and the remedy.
impl fmt::Display for NativeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = &self.words {
            write!(f, "{words} ")?;
            write!(f, "({}); {}", self.cause, self.remedy)
        } else {
            write!(f, "{}; {}", self.cause, self.remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_is_told_by_the_kernels_words_and_else_by_its_number() {
        let of = |number, words: Option<&str>| {
            let cause = io::Error::from_raw_os_error(number);
            NativeRefusal::new(cause, words.map(str::to_owned)).remedy()
        };
        let veth = "veth: Peer MTU is too large to set XDP";
        assert_eq!(of(libc::ERANGE, Some(veth)), MTU);
        assert_eq!(of(libc::ERANGE, None), MTU);
        let veth = "veth: XDP expects number of rx queues not less than peer tx queues";
        assert_eq!(of(libc::ENOSPC, Some(veth)), QUEUES);
        assert_eq!(of(libc::ENOSPC, None), QUEUES);
        let virtio = "virtio_net: Can't set XDP while host is implementing GRO_HW/CSUM, disable \
                      GRO_HW/CSUM first";
        assert_eq!(of(libc::EOPNOTSUPP, Some(virtio)), MERGING);
        let virtio = "virtio_net: MTU too large to enable XDP";
        assert_eq!(of(libc::EINVAL, Some(virtio)), MTU);
        let ena = "ena: Failed to set xdp program, there is no enough space for allocating XDP \
                   queues, Check the dmesg for more info";
        let nfp = "nfp: Insufficient number of TX rings w/ XDP enabled";
        for few in [ena, nfp] {
            assert_eq!(of(libc::EINVAL, Some(few)), SPARE);
        }
        let core = "Underlying driver does not support XDP in native mode";
        assert!(of(libc::EOPNOTSUPP, Some(core)).contains("no native XDP"));
        assert!(of(libc::EINVAL, None).contains("may need"));
    }

    #[test]
    fn it_is_said_with_words_number_and_remedy() {
        let cause = || io::Error::from_raw_os_error(libc::ERANGE);
        let said = NativeRefusal::new(cause(), Some("Peer MTU is too large".into())).to_string();
        assert!(said.starts_with("Peer MTU is too large ("), "{said}");
        assert!(said.contains("mtu 1500"), "{said}");
        let said = NativeRefusal::new(cause(), None).to_string();
        assert!(said.contains("mtu 1500"), "{said}");
    }
}

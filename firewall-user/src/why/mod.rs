//! Why a packet passes or is dropped.
//!
//! The object is loaded once more, with tables of its own ([`private`]) that are
//! seeded with what the packets could meet ([`seeds`]), and the packets are run
//! through it in order. Nothing of the attached instance changes. The judgement
//! is that of the very programs that are attached: it is refused where they
//! differ from those of this binary.
//!
//! - [`mod@tuple`], [`hex`] and [`capture`] are the three forms of a question
//! - [`frame`] makes the frame of it that the programs take
//! - [`place`] finds where it would be seen
//! - [`judge`] asks
//! - [`condition`] says which numbers did not fit
//!
//! [`private`]: crate::bpf::private

pub mod capture;
pub mod condition;
pub mod frame;
pub mod hex;
pub mod judge;
pub mod place;
pub mod seeds;
pub mod tuple;

/// The forms of a question, for what is written wrong.
pub const FORMS: &str = "\
Forms:
  pinhole why tcp 192.0.2.1:40000 198.51.100.2:21 [--in|--out] [--flags SYN,ACK] [--seq N]
  pinhole why udp '[2001:db8::1]:5353' '[2001:db8::2]:53'
  pinhole why icmp 192.0.2.1 198.51.100.2 [--icmp-type 8]
  pinhole why --hex 4500003c… [--l3]
  pinhole why capture.pcap";

/// What a packet begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Ip,
    /// 16 bytes of a Linux cooked capture (`LINKTYPE_LINUX_SLL`).
    Cooked,
    /// 20 bytes of a Linux cooked capture, second version (`LINKTYPE_LINUX_SLL2`).
    Cooked2,
}

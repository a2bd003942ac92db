//! Every outcome has one stable name and number.
//!
//! Numbers are indices into the per-CPU `STATS` map and part of the interface:
//! they are never reused. Each outcome is counted exactly once a packet.

macro_rules! outcomes {
    (
        $(#[$meta:meta])*
        $name:ident: $base:literal..$end:literal {
            $( $variant:ident = $number:literal, $text:literal, $help:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $( #[doc = $help] $variant = $number, )*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $( Self::$variant => $help, )* }
            }

            /// Index into the `STATS` map.
            #[inline(always)]
            #[must_use]
            pub const fn index(self) -> u32 {
                $base + self as u32
            }
        }

        impl TryFrom<u8> for $name {
            type Error = u8;

            fn try_from(value: u8) -> Result<Self, u8> {
                match value {
                    $( $number => Ok(Self::$variant), )*
                    other => Err(other),
                }
            }
        }

        $( const _: () = assert!($base + $number < $end, $text); )*
    };
}

outcomes! {
    /// Why a packet passed.
    PassReason: 0..64 {
        Established = 1, "established", "Belongs to a tracked flow.";
        NewByRule = 2, "new", "Begins a flow that a rule accepts.";
        NewExpected = 3, "expected", "Begins a data connection that the FTP helper expects.";
        Related = 4, "related", "ICMP error about a tracked flow.";
        Arp = 5, "arp", "Essential: ARP.";
        NeighbourDiscovery = 6, "neighbour-discovery", "Essential: ICMPv6 neighbour and router discovery.";
        DhcpClient = 7, "dhcp-client", "Essential: DHCP for the host.";
        Dhcpv6Client = 8, "dhcpv6-client", "Essential: DHCPv6 for the host.";
        MulticastListener = 9, "multicast-listener", "Essential: IGMP and multicast listener discovery.";
        LinkControl = 10, "link-control", "Essential: LLDP, 802.1X, LACP, spanning tree.";
        FragmentTail = 11, "fragment-tail", "Later fragment of a datagram whose first fragment decides.";
        Ignored = 12, "ignored", "Fits its flow but changes nothing (a retransmitted SYN, say).";
        Unconfirmed = 13, "unconfirmed", "Nobody confirmed the attachment in time: everything passes.";
        Blind = 14, "blind", "Control payload that passed unread, because no agent lives.";
        Tracked = 15, "tracked-elsewhere", "Was judged when it came in through another guarded interface.";
        TcpOvershot = 16, "tcp-overshot", "More data than the receiver's window allows, by less than it is wide.";
        TcpOldData = 17, "tcp-old-data", "Data that was acknowledged long ago, sent again.";
        TcpOldAck = 18, "tcp-old-ack", "An acknowledgement that others have overtaken by far.";
        TcpChallenge = 19, "tcp-challenge", "The answer to a SYN out of turn: a challenge ACK (RFC 5961).";
        FragmentAhead = 20, "fragment-ahead", "Later fragment that came before its first, within the bound.";
        Untracked = 25, "untracked", "A rule accepts it, and the proved tier has no room for its flow (table-full = pass).";
    }
}

outcomes! {
    /// Why a packet was dropped.
    DropReason: 64..192 {
        MalformedEthernet = 1, "malformed-ethernet", "The Ethernet header is cut short.";
        UnsupportedEthertype = 2, "unsupported-ethertype", "Neither IP, ARP nor link control.";
        MalformedIpv4 = 3, "malformed-ipv4", "The IPv4 header is cut short or contradicts itself.";
        MalformedIpv6 = 4, "malformed-ipv6", "The IPv6 header or an extension header is cut short or contradicts itself.";
        MalformedTcp = 5, "malformed-tcp", "The TCP header or an option in it is cut short, or a length or a port in it is wrong.";
        MalformedUdp = 6, "malformed-udp", "The UDP header is cut short or its length is wrong.";
        MalformedIcmp = 7, "malformed-icmp", "The ICMP header is cut short.";
        Fragment = 8, "fragment", "A fragment that cannot be judged, or that would rewrite a header.";
        ExtensionHeaders = 9, "extension-headers", "More or other IPv6 extension headers than are followed.";
        Martian = 10, "martian", "An address that cannot be a source or a destination here.";
        TcpFlags = 11, "tcp-flags", "A combination of TCP flags that no stack sends.";
        TcpInvalid = 12, "tcp-invalid", "Does not fit the state of its TCP flow.";
        TcpHandshake = 13, "tcp-handshake", "The ACK does not acknowledge the SYN-ACK that was seen.";
        TcpNoFlow = 14, "tcp-no-flow", "TCP without SYN and without a flow.";
        Policy = 15, "policy", "No rule accepts it: the default is drop.";
        Rule = 16, "rule", "A rule drops it.";
        IcmpUnsolicited = 17, "icmp-unsolicited", "An echo reply without its request, or an ICMP type that is not tracked.";
        IcmpUnrelated = 18, "icmp-unrelated", "An ICMP error about no tracked flow.";
        ZoneMismatch = 19, "zone-mismatch", "Comes from another zone than its flow.";
        ExpectationTaken = 20, "expectation-taken", "The pinhole has served its one connection.";
        ExpectationOrphaned = 21, "expectation-orphaned", "The pinhole's control connection has ended.";
        ExpectationZone = 22, "expectation-zone", "The pinhole is for other zones.";
        RingFull = 23, "ring-full", "Control payload that could not be queued; TCP sends it again.";
        Held = 24, "held", "A data SYN held for the helper, which runs it again.";
        TableError = 25, "table-error", "The flow table refused an entry.";
        NoRoute = 26, "no-route", "A gateway without a route to its destination, or with one that encapsulates.";
        UnknownInterface = 27, "unknown-interface", "Seen on an interface without a zone.";
        TcpSeqOver = 28, "tcp-seq-over", "Data beyond what the receiver's window allows.";
        TcpAckOver = 29, "tcp-ack-over", "Acknowledges data that the other side has not sent.";
        TcpRst = 30, "tcp-rst", "An RST with a sequence number that was acknowledged long ago.";
        Moving = 31, "moving", "Met its TCP flow just while that moved to the proved tier; TCP sends it again.";
        IcmpSequence = 34, "icmp-sequence", "An ICMP error about data that its connection does not have on its way.";
        Land = 40, "land", "Source and destination are the same address.";
        SourceRoute = 41, "source-route", "An IPv4 source route, or an IPv6 routing header that leads elsewhere.";
        FragmentOverlap = 42, "fragment-overlap", "A fragment that overlaps another one, repeats it or contradicts it.";
        FragmentOrphan = 43, "fragment-orphan", "Later fragments without an accepted first one, beyond the bound.";
        VlanTags = 45, "vlan-tags", "More than two VLAN tags.";
        MalformedVlan = 46, "malformed-vlan", "A VLAN tag is cut short.";
        NotIp = 47, "not-ip", "Not IP, on an interface without Ethernet headers.";
        TierFull = 50, "tier-full", "Begins a flow for which the proved tier has no room (table-full = drop).";
        RefusedFlow = 55, "refused-flow", "Belongs to a flow that shadow mode let in although it was refused.";
        TcpSackOver = 56, "tcp-sack-over", "Acknowledges selectively farther ahead than any window is wide.";
    }
}

outcomes! {
    /// What happened beside the verdict.
    Event: 192..256 {
        FlowCreated = 1, "flow-created", "Half-open entries made.";
        FlowPromoted = 2, "flow-promoted", "Entries moved to the proved tier.";
        FlowExpired = 3, "flow-expired", "Expired entries deleted.";
        TableFull = 4, "table-full", "Promotions put off because the proved tier is at its limit.";
        Contention = 5, "contention", "Compare-and-swap given up after several losses.";
        CreateRaced = 6, "create-raced", "Another CPU made the same entry first.";
        CreateFailed = 7, "create-failed", "Entries that the map refused for another reason.";
        ControlQueued = 8, "control-queued", "Control records put on the ring.";
        ControlTooLong = 9, "control-too-long", "Control payload longer than any record.";
        SynReported = 10, "syn-reported", "Dropped data SYNs reported to the helper.";
        ExpectationUsed = 11, "expectation-used", "Pinholes taken by their connection.";
        Reinjected = 12, "reinjected", "Held SYNs run again.";
        TupleReused = 13, "tuple-reused", "A SYN replaced a closed flow of the same addresses and ports.";
        Recycled = 14, "recycled", "Entries that were reused for another flow while they were looked at.";
        TcpOptions = 15, "tcp-options", "TCP options cut short or without a length.";
        FragmentedDatagram = 20, "fragmented-datagram", "Fragmented datagrams begun.";
        FlowEventLost = 35, "flow-event-lost", "Events that a watcher of flows was not told: its ring was full.";
        FlowRefused = 40, "flow-refused", "Flows tracked in shadow mode although they would be refused.";
        FlowAdmitted = 41, "flow-admitted", "Refused flows of shadow mode that were admitted after all.";
    }
}

/// From the index of a drop to that of a packet that would have been dropped
/// for the same reason, and passed because of shadow mode.
pub const WOULD_DROP: u32 = 192;
/// Length of the `STATS` map.
pub const STATS_LEN: u32 = 384;

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Pass(PassReason),
    /// It ends here.
    Drop(DropReason),
}

impl Verdict {
    /// The indices below this one are those of [`PassReason`].
    pub const FIRST_DROP: u32 = 64;

    /// Index into the `STATS` map.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        match self {
            Self::Pass(reason) => reason.index(),
            Self::Drop(reason) => reason.index(),
        }
    }

    /// Is this index one of a drop? Anything is that is neither a known pass
    /// nor what [`Verdict::in_shadow`] makes.
    #[inline(always)]
    #[must_use]
    pub const fn is_drop(index: u32) -> bool {
        index >= Self::FIRST_DROP && index < Self::FIRST_DROP + WOULD_DROP
    }

    /// The index as which shadow mode counts what enforcing counts as `index`.
    #[inline(always)]
    #[must_use]
    pub const fn in_shadow(index: u32) -> u32 {
        if Self::is_drop(index) {
            index + WOULD_DROP
        } else {
            index
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_numbers_round_trip() {
        let mut names: Vec<&str> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.extend(PassReason::ALL.iter().map(|r| r.name()));
        names.extend(Event::ALL.iter().map(|r| r.name()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for reason in DropReason::ALL {
            assert_eq!(DropReason::try_from(*reason as u8), Ok(*reason));
        }
        assert!(DropReason::try_from(0).is_err());
    }

    #[test]
    fn in_shadow_nothing_is_dropped_and_every_reason_is_counted() {
        for reason in PassReason::ALL {
            assert_eq!(Verdict::in_shadow(reason.index()), reason.index());
            assert!(!Verdict::is_drop(reason.index()));
        }
        for reason in DropReason::ALL {
            assert!(Verdict::is_drop(reason.index()));
            let counted = Verdict::in_shadow(reason.index());
            assert!(!Verdict::is_drop(counted), "{}", reason.name());
            assert!((256..STATS_LEN).contains(&counted), "{}", reason.name());
        }
    }
}

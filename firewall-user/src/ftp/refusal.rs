//! Why a line of a control connection opened nothing.

macro_rules! refusals {
    ($( $variant:ident = $number:literal, $text:literal, $help:literal; )*) => {
        /// Why a line, or all that follows, opens nothing.
        ///
        /// Numbers and names are part of the interface and never reused; 0 in
        /// [`Session::last_refusal`](firewall_common::abi::Session::last_refusal)
        /// stands for none. The line itself is always forwarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Refusal {
            $( #[doc = $help] $variant = $number, )*
        }

        impl Refusal {
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
        }

        impl TryFrom<u8> for Refusal {
            type Error = u8;

            fn try_from(value: u8) -> Result<Self, u8> {
                match value {
                    $( $number => Ok(Self::$variant), )*
                    other => Err(other),
                }
            }
        }
    };
}

refusals! {
    BeforeGreeting = 1, "before-greeting", "Negotiated before the server's 220.";
    ForeignAddress = 2, "foreign-address", "The announced address is not the announcing host's own (bounce, or a NAT in between).";
    PrivilegedPort = 3, "privileged-port", "The announced port is below 1024.";
    BadNumber = 4, "bad-number", "A number is out of range or has a sign.";
    Malformed = 5, "malformed", "The address or port cannot be read.";
    WrongFamily = 6, "wrong-family", "The announced address is of the other family than the control connection.";
    Unsolicited = 7, "unsolicited", "A 227, 228 or 229 that answers no outstanding PASV, LPSV or EPSV.";
    Ambiguous = 8, "ambiguous", "The reply names more than one address or port.";
    DuringAuth = 9, "during-auth", "Negotiated while an AUTH was not answered yet.";
    TooManyOutstanding = 10, "too-many-outstanding", "More commands are unanswered than the helper keeps.";
    LineTooLong = 11, "line-too-long", "The line is longer than 4096 bytes.";
    HttpVerb = 12, "http-verb", "An HTTP method: not an FTP session, and never read again.";
    BinaryBytes = 13, "binary-bytes", "Bytes that no FTP line holds: never read again.";
    NotFtp = 14, "not-ftp", "What is spoken is not FTP: never read again.";
    WrongSide = 15, "wrong-side", "A 227, 228 or 229 from the client's side.";
    BytesMissed = 16, "bytes-missed", "Bytes passed that the helper did not see: never read again.";
    TableFull = 17, "table-full", "No room for another expectation.";
    CccRefused = 18, "ccc-refused", "The session went back to clear text (CCC), which the configuration refuses: never read again.";
    ClientFull = 19, "client-full", "The client's sessions have as many expectations as one client may have.";
    AfterEpsvAll = 20, "after-epsv-all", "Negotiated by another command than EPSV after an EPSV ALL that the server granted.";
    RangeFull = 21, "range-full", "The session has as many data connections as its session range allows at once.";
    RangeRate = 22, "range-rate", "The session has begun as many data connections within a minute as its session range allows.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_numbers_round_trip() {
        let mut names: Vec<&str> = Refusal::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::try_from(*refusal as u8), Ok(*refusal));
            assert!(refusal.help().ends_with('.'));
        }
        assert!(Refusal::try_from(0).is_err());
    }
}

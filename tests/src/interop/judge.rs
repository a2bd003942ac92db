//! What became of a session.

use std::fmt;

/// In the order of merit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The listing came, and the very file.
    Works,
    /// The log-in succeeded, and no data came.
    NoData,
    /// Anything else.
    Fails,
    /// Expected where client and server race with each other: now this, now that.
    Varies,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Works, Self::NoData, Self::Fails, Self::Varies];

    /// As in the table of what is expected.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::NoData => "no-data",
            Self::Fails => "fails",
            Self::Varies => "varies",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Judges by what the client said of the server's replies, and by what it has got.
#[must_use]
pub fn verdict(transcript: &str, bytes: u64, is_the_file: bool) -> Verdict {
    let complete = replies(transcript, "226 ");
    if is_the_file && complete >= 2 {
        Verdict::Works
    } else if replies(transcript, "230 ") > 0 && complete == 0 && bytes == 0 {
        Verdict::NoData
    } else {
        Verdict::Fails
    }
}

/// What the clients put before a reply when they show it.
const PREFIXES: [&str; 4] = ["", "< ", "<--- ", "*resp* '"];

/// How many lines are a reply that begins so.
fn replies(transcript: &str, with: &str) -> usize {
    let is = |line: &str| {
        PREFIXES
            .iter()
            .filter_map(|prefix| line.strip_prefix(prefix))
            .any(|reply| reply.starts_with(with))
    };
    // Python shows a reply of several lines in one, as it would be written in a program.
    let lines = transcript.lines().flat_map(|line| line.split("\\n"));
    lines.filter(|line| is(line)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_found_in_each_clients_transcript() {
        for line in ["230 in", "< 230 in", "<--- 230 in", "*resp* '230 in'"] {
            assert_eq!(verdict(line, 0, false), Verdict::NoData, "{line}");
        }
        let python = "*resp* '230-hello\\n230 in'";
        assert_eq!(verdict(python, 0, false), Verdict::NoData);
        for line in ["x 230 in", "2300 in", "> 230 in", "220 hello"] {
            assert_eq!(verdict(line, 0, false), Verdict::Fails, "{line}");
        }
    }

    #[test]
    fn a_file_without_a_listing_does_not_work() {
        let both = "230 in\n226 list\n226 file\n";
        assert_eq!(verdict(both, 9, true), Verdict::Works);
        assert_eq!(verdict(both, 9, false), Verdict::Fails);
        assert_eq!(verdict("230 in\n226 file\n", 9, true), Verdict::Fails);
        assert_eq!(verdict("230 in\n226 list\n", 0, false), Verdict::Fails);
    }
}

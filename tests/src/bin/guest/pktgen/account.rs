//! What pinhole counted of what was sent.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use firewall_tests::lab::pinhole::Firewall;

use super::Fate;

/// Emulated machines lag behind what was sent; nothing new for so long is the end.
const QUIET: Duration = Duration::from_secs(3);
/// Reasons to pass that no scenario's packets have: the two kernels' own talk.
const BESIDE: [&str; 5] = [
    "arp",
    "neighbour-discovery",
    "multicast-listener",
    "dhcp-client",
    "dhcpv6-client",
];

/// Packets by reason.
type Counts = BTreeMap<(Verdict, String), u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Passed,
    Dropped,
    Beside,
}

/// One scenario's.
#[derive(Debug)]
pub(super) struct Account {
    sent: u64,
    counts: Counts,
    took: Duration,
}

impl Account {
    pub(super) const HEADER: &str = "    sent   passed  dropped  by reason";

    /// Sends, and waits until no more arrives.
    pub(super) fn of(firewall: &Firewall, send: &dyn Fn() -> Result<u64>) -> Result<Self> {
        let before = counted(firewall)?;
        let begun = Instant::now();
        let sent = send()?;
        let took = begun.elapsed();
        let mut last = counted(firewall)?;
        let mut changed = Instant::now();
        let mut account = Self {
            sent,
            counts: since(&before, &last),
            took,
        };
        while account.sum() < sent && changed.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(100));
            let now = counted(firewall)?;
            if now != last {
                changed = Instant::now();
            }
            account.counts = since(&before, &now);
            last = now;
        }
        Ok(account)
    }

    /// Is each packet that was sent counted once?
    pub(super) fn balanced(&self) -> Result<()> {
        let sum = self.sum();
        ensure!(
            sum == self.sent,
            "{} were sent, {sum} are accounted for",
            self.sent
        );
        Ok(())
    }

    /// Did they meet what the scenario is about?
    pub(super) fn came_to(&self, fate: Fate) -> Result<()> {
        let count = |reason: &str| -> u64 {
            let of = self.counts.iter().filter(|((_, name), _)| name == reason);
            of.map(|(_, packets)| packets).sum()
        };
        let met = match fate {
            Fate::Refused => count("policy") == self.sent,
            Fate::Pass { flows } => {
                let new = count("new");
                let is_right = if flows == 0 { new == 0 } else { new >= flows };
                is_right && new + count("established") == self.sent
            }
        };
        if !met {
            bail!("{fate:?} was expected");
        }
        Ok(())
    }

    fn of_verdict(&self, verdict: Verdict) -> u64 {
        let of = self.counts.iter().filter(|((v, _), _)| *v == verdict);
        of.map(|(_, packets)| packets).sum()
    }

    fn sum(&self) -> u64 {
        self.of_verdict(Verdict::Passed) + self.of_verdict(Verdict::Dropped)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<String> = self
            .counts
            .iter()
            .map(|((verdict, reason), packets)| match verdict {
                Verdict::Beside => format!("({reason} {packets} beside)"),
                _ => format!("{reason} {packets}"),
            })
            .collect();
        write!(
            f,
            "{:>8} {:>8} {:>8}  {}; sent in {:.1} s",
            self.sent,
            self.of_verdict(Verdict::Passed),
            self.of_verdict(Verdict::Dropped),
            reasons.join(", "),
            self.took.as_secs_f64(),
        )
    }
}

fn counted(firewall: &Firewall) -> Result<Counts> {
    let stats = firewall.json(&["stats"])?;
    let of = |verdict: Verdict, key: &str| {
        let rows = stats[key].as_array().cloned().unwrap_or_default();
        rows.into_iter().filter_map(move |row| {
            let reason = row["reason"].as_str()?.to_owned();
            let beside = verdict == Verdict::Passed && BESIDE.contains(&reason.as_str());
            let verdict = if beside { Verdict::Beside } else { verdict };
            Some(((verdict, reason), row["packets"].as_u64()?))
        })
    };
    Ok(of(Verdict::Passed, "pass")
        .chain(of(Verdict::Dropped, "drop"))
        .collect())
}

fn since(before: &Counts, now: &Counts) -> Counts {
    let more = now.iter().map(|(reason, packets)| {
        let then = before.get(reason).copied().unwrap_or_default();
        (reason.clone(), packets.saturating_sub(then))
    });
    more.filter(|(_, packets)| *packets > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(sent: u64, counts: &[(Verdict, &str, u64)]) -> Account {
        Account {
            sent,
            counts: counts
                .iter()
                .map(|(verdict, reason, packets)| ((*verdict, (*reason).to_owned()), *packets))
                .collect(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn every_packet_is_accounted_for_or_told() {
        let rows = [
            (Verdict::Passed, "new", 2),
            (Verdict::Passed, "established", 7),
            (Verdict::Dropped, "policy", 1),
            (Verdict::Beside, "arp", 5),
        ];
        assert!(account(10, &rows).balanced().is_ok());
        assert!(account(11, &rows).balanced().is_err());
        assert!(account(9, &rows).balanced().is_err());
    }

    #[test]
    fn a_scenario_must_meet_what_it_is_about() {
        let pass = account(
            9,
            &[
                (Verdict::Passed, "new", 2),
                (Verdict::Passed, "established", 7),
            ],
        );
        assert!(pass.came_to(Fate::Pass { flows: 2 }).is_ok());
        assert!(pass.came_to(Fate::Pass { flows: 3 }).is_err());
        assert!(pass.came_to(Fate::Pass { flows: 0 }).is_err());
        assert!(pass.came_to(Fate::Refused).is_err());
        let refused = account(9, &[(Verdict::Dropped, "policy", 9)]);
        assert!(refused.came_to(Fate::Refused).is_ok());
        assert!(refused.came_to(Fate::Pass { flows: 0 }).is_err());
    }

    #[test]
    fn only_what_came_since_counts() {
        let reason = |name: &str, packets| ((Verdict::Passed, name.to_owned()), packets);
        let before = Counts::from([reason("new", 3), reason("arp", 1)]);
        let now = Counts::from([reason("new", 5), reason("arp", 1), reason("established", 4)]);
        let more = Counts::from([reason("new", 2), reason("established", 4)]);
        assert_eq!(since(&before, &now), more);
    }
}

//! Refused lines of FTP control connections, in `stats`.

use serde::Serialize;

use super::{Paint, Table};
use crate::ftp::Refusal;

/// How often lines were refused for a reason. They were forwarded all the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RefusalView {
    /// Name of the [`Refusal`].
    pub reason: &'static str,
    /// Times.
    pub count: u64,
    #[serde(skip)]
    help: &'static str,
}

impl RefusalView {
    /// From the counts by the reason's number; what is zero only if `all`.
    #[must_use]
    pub fn list(counts: &[u64], all: bool) -> Vec<Self> {
        let view = |refusal: &Refusal| Self {
            reason: refusal.name(),
            count: counts.get(*refusal as usize).copied().unwrap_or_default(),
            help: refusal.help(),
        };
        let views = Refusal::ALL.iter().map(view);
        views.filter(|view| all || view.count > 0).collect()
    }
}

/// A table of them.
#[must_use]
pub fn refusals(rows: &[RefusalView]) -> Table {
    let mut table = Table::new(&["FTP LINES REFUSED", ">COUNT", "MEANING"]);
    for row in rows {
        table.row([
            (row.reason.to_owned(), Paint::Notice),
            (row.count.to_string(), Paint::None),
            (row.help.to_owned(), Paint::Dim),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use firewall_common::abi::REFUSALS_LEN;

    use super::*;
    use crate::render::Ink;

    #[test]
    fn what_happened_is_listed_by_reason() {
        let mut counts = [0; REFUSALS_LEN];
        counts[Refusal::PrivilegedPort as usize] = 7;
        let views = RefusalView::list(&counts, false);
        let [view] = &views[..] else {
            panic!("{views:?}");
        };
        assert_eq!((view.reason, view.count), ("privileged-port", 7));
        let shown = refusals(&views).render(Ink::Plain);
        assert!(shown.contains("privileged-port"), "{shown}");
        assert_eq!(RefusalView::list(&counts, true).len(), Refusal::ALL.len());
    }

    #[test]
    fn every_reason_has_a_place() {
        assert!(Refusal::ALL.iter().all(|r| (*r as usize) < REFUSALS_LEN));
    }
}

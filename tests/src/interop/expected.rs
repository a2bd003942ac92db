//! What must come of each cell: `tests/interop/expected.tsv`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Cell, Column, Security, Verdict, run::Results};

/// For what must work, on a busy machine; the most that a cell may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what is expected not to work, which is waited for in vain.
const HOPELESS: Duration = Duration::from_secs(7);

/// In a column in which a cell is not run.
const NOT_RUN: &str = "-";

/// The verdict of each cell in each of its columns.
#[derive(Clone, Debug, Default)]
pub struct Table(HashMap<(Cell, Column), Verdict>);

impl Table {
    /// Where the committed one is.
    #[must_use]
    pub fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/expected.tsv")
    }

    /// The committed one.
    ///
    /// # Errors
    /// It cannot be read, or does not hold exactly the cells that there are.
    pub fn committed() -> Result<Self> {
        let path = Self::path();
        fs::read_to_string(&path)
            .map_err(Into::into)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rows: HashMap<String, Cell> = Cell::all()
            .into_iter()
            .map(|cell| (cell.to_string(), cell))
            .collect();
        let mut table = Self::default();
        for line in text.lines().filter(|line| *line != head()) {
            let fields: Vec<&str> = line.split('\t').collect();
            let key = fields.get(..5).unwrap_or_default().join("\t");
            let cell = rows
                .remove(&key)
                .with_context(|| format!("no such cell, or a second time: {line:?}"))?;
            let verdicts = fields.get(5..).unwrap_or_default();
            ensure!(verdicts.len() == Column::ALL.len(), "columns of {line:?}");
            for (column, &name) in Column::ALL.into_iter().zip(verdicts) {
                table.read(cell, column, name)?;
            }
        }
        if let Some(cell) = rows.keys().next() {
            bail!("{} cells are missing, among them {cell:?}", rows.len());
        }
        Ok(table)
    }

    fn read(&mut self, cell: Cell, column: Column, name: &str) -> Result<()> {
        let is_run = cell.security.columns().contains(&column);
        if !is_run && name == NOT_RUN {
            return Ok(());
        }
        let verdict = Verdict::ALL
            .into_iter()
            .find(|verdict| is_run && verdict.name() == name)
            .with_context(|| format!("{name:?} of {cell:?} in column {}", column.name()))?;
        self.0.insert((cell, column), verdict);
        Ok(())
    }

    /// These results instead of what was expected; what varies stays.
    #[must_use]
    pub fn with(mut self, results: &Results) -> Self {
        for (&at, trace) in results {
            let known = self.0.entry(at).or_insert(trace.verdict);
            if *known != Verdict::Varies {
                *known = trace.verdict;
            }
        }
        self
    }

    /// Is this verdict what is expected?
    #[must_use]
    pub fn expects(&self, cell: Cell, column: Column, verdict: Verdict) -> bool {
        let expected = self.verdict(cell, column);
        expected.is_some_and(|expected| expected == verdict || expected == Verdict::Varies)
    }

    /// As the file has it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = head() + "\n";
        for cell in Cell::all() {
            text += &cell.to_string();
            for column in Column::ALL {
                text.push('\t');
                text += self.verdict(cell, column).map_or(NOT_RUN, Verdict::name);
            }
            text.push('\n');
        }
        text
    }

    /// What must come of a cell, if it is run in that column.
    #[must_use]
    pub fn verdict(&self, cell: Cell, column: Column) -> Option<Verdict> {
        self.0.get(&(cell, column)).copied()
    }

    /// How long a cell is waited for.
    #[must_use]
    pub fn patience(&self, cell: Cell, column: Column) -> Duration {
        match self.verdict(cell, column) {
            Some(Verdict::NoData | Verdict::Fails | Verdict::Varies) => HOPELESS,
            Some(Verdict::Works) | None => PATIENCE,
        }
    }

    /// Where the table contradicts what pinhole claims: defects, if it is true.
    #[must_use]
    pub fn defects(&self) -> Vec<String> {
        let mut defects = Vec::new();
        for cell in Cell::all() {
            for &column in cell.security.columns() {
                let wanted = self.claimed(cell, column);
                let found = self.verdict(cell, column);
                if let (Some(wanted), Some(found)) = (wanted, found)
                    && (wanted == Verdict::Works) != (found == Verdict::Works)
                {
                    defects.push(format!("{cell}: {found} {}", column.name()));
                }
            }
        }
        defects
    }

    /// What pinhole claims, if it claims anything: whatever works without a firewall
    /// works, unless nobody can read what is negotiated; and nothing else does.
    fn claimed(&self, cell: Cell, column: Column) -> Option<Verdict> {
        let unguarded = self.verdict(cell, Column::Open)?;
        if unguarded == Verdict::Varies {
            return None;
        }
        match (column, cell.security) {
            (Column::Open | Column::Kernel, _) => None,
            (Column::Off, _) | (Column::Pinhole, Security::Explicit | Security::Implicit) => {
                Some(Verdict::NoData)
            }
            (Column::Pinhole, Security::Clear | Security::Ccc)
            | (Column::Fixed | Column::Session, _) => Some(unguarded),
        }
    }
}

fn head() -> String {
    let mut head = "security\tserver\tclient\tmode\tfamily".to_owned();
    for column in Column::ALL {
        head.push('\t');
        head += column.name();
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        interop::{Client, Program, Variant},
        lab::server::Kind,
    };

    fn committed() -> String {
        fs::read_to_string(Table::path()).unwrap()
    }

    #[test]
    fn the_committed_table_is_complete_and_shows_no_defect() {
        let table = Table::committed().unwrap();
        assert_eq!(table.defects(), Vec::<String>::new());
        assert_eq!(table.text(), committed());
    }

    #[test]
    fn a_defect_is_noticed() {
        let text = committed().replacen("works\tno-data\tworks", "works\tno-data\tno-data", 1);
        assert_eq!(Table::parse(&text).unwrap().defects().len(), 1);
        let text = committed().replacen("works\tno-data\tworks", "works\tworks\tworks", 1);
        assert_eq!(Table::parse(&text).unwrap().defects().len(), 1);
    }

    #[test]
    fn a_table_with_other_rows_is_refused() {
        let text = committed();
        let (first, rest) = text.split_once('\n').unwrap();
        let without = rest.split_once('\n').unwrap().1;
        assert!(Table::parse(&format!("{first}\n{without}")).is_err());
        assert!(Table::parse(&format!("{text}{rest}")).is_err());
    }

    /// Clients and servers of CCC that are known to work together.
    #[test]
    fn what_is_known_to_work_with_ccc_works() {
        let table = Table::committed().unwrap();
        let known = [
            (Kind::Proftpd, Program::Curl, Variant::Plain),
            (Kind::Proftpd, Program::Curl, Variant::CloseBoth),
            (Kind::Proftpd, Program::Curl, Variant::Tls12),
            (Kind::Proftpd, Program::Ftplib, Variant::Plain),
            (Kind::Proftpd, Program::Ftplib, Variant::Tls12),
            (Kind::PureFtpd, Program::Curl, Variant::CloseBoth),
            (Kind::PureFtpd, Program::Ftplib, Variant::Plain),
        ];
        for (server, program, variant) in known {
            let client = Client { program, variant };
            // curl with protected data hangs in active mode, whatever is between.
            let cells = Cell::all().into_iter().filter(|cell| {
                (cell.security, cell.server, cell.client) == (Security::Ccc, server, client)
                    && (program != Program::Curl || cell.mode == crate::lab::Mode::Passive)
            });
            let mut count = 0;
            for cell in cells {
                count += 1;
                let verdict = table.verdict(cell, Column::Pinhole);
                assert_eq!(verdict, Some(Verdict::Works), "{cell}");
            }
            assert!(count >= 2, "{server:?} {client}");
        }
    }

    /// Every client with every server, in clear.
    #[test]
    fn everything_works_in_clear() {
        let table = Table::committed().unwrap();
        let clear = Cell::all()
            .into_iter()
            .filter(|c| c.security == Security::Clear);
        let works = clear.filter(|&c| table.verdict(c, Column::Pinhole) == Some(Verdict::Works));
        assert_eq!(works.count(), 5 * 6 * 4);
    }
}

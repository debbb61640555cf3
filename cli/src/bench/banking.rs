//! The rows of an intent data set in two CSV files, `text,category`. A choice of them is written out for both sides, so
//! that both train on the same rows whatever each would have drawn.

use crate::exit::{Exit, Failure, Result};
use crate::stages::cannot;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Text and category.
pub type Row = (String, String);

/// Train and test rows of the first categories.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    pub train: Vec<Row>,
    pub test: Vec<Row>,
}

impl Rows {
    /// Reads `train.csv` and `test.csv` of a folder.
    ///
    /// # Errors
    /// When one is missing or has not the columns.
    pub fn read(dir: &Path) -> Result<Rows> {
        Ok(Rows { train: read(&dir.join("train.csv"))?, test: read(&dir.join("test.csv"))? })
    }

    /// The first `classes` categories in alphabetical order, of each the first `per_class` train rows and `test_per_class`
    /// test rows of the file. A row that occurs twice counts once, and a test row that is a train row is left out.
    pub fn choose(&self, classes: usize, per_class: usize, test_per_class: usize) -> Rows {
        let labels: BTreeSet<&String> = self.train.iter().map(|(_, label)| label).collect();
        let labels: BTreeSet<&String> = labels.into_iter().take(classes).collect();
        let mut seen = BTreeSet::new();
        let mut take = |rows: &[Row], most: usize| {
            let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
            let mut chosen = Vec::new();
            for row in rows.iter().filter(|(_, label)| labels.contains(label)) {
                if taken.get(row.1.as_str()).is_none_or(|n| *n < most) && seen.insert(row.clone()) {
                    *taken.entry(labels.get(&row.1).map_or("", |l| l.as_str())).or_default() += 1;
                    chosen.push(row.clone());
                }
            }
            chosen
        };
        Rows { train: take(&self.train, per_class), test: take(&self.test, test_per_class) }
    }

    /// Writes `train.csv` and `test.csv`.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (name, rows) in [("train.csv", &self.train), ("test.csv", &self.test)] {
            let mut csv = "text,category\n".to_owned();
            for (text, category) in rows {
                csv.push_str(&format!("{},{}\n", quoted(text), quoted(category)));
            }
            let path = dir.join(name);
            std::fs::write(&path, csv).map_err(|e| cannot("write", &path, &e))?;
        }
        Ok(())
    }

    /// The categories, sorted as Python sorts them.
    pub fn labels(&self) -> Vec<String> {
        self.train.iter().map(|(_, label)| label.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn quoted(field: &str) -> String {
    format!("\"{}\"", field.replace('"', "\"\""))
}

fn read(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        cannot("read", path, &e).help("--data names a folder with train.csv and test.csv, columns text,category")
    })?;
    let bad = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", path.display()));
    let mut records = limbeck_data_curation::csv::parse(&text).into_iter();
    let header = records.next().unwrap_or_default();
    let column = |name: &str| {
        header.iter().position(|c| c == name).ok_or_else(|| bad(format!("there is no column `{name}` in {header:?}")))
    };
    let (text, category) = (column("text")?, column("category")?);
    let field = |record: &[String], i: usize| record.get(i).map(|f| f.trim().to_owned()).filter(|f| !f.is_empty());
    records
        .enumerate()
        .map(|(i, record)| {
            field(&record, text)
                .zip(field(&record, category))
                .ok_or_else(|| bad(format!("row {} has no text or no category", i + 1)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_capped_without_duplicates_or_leaks_and_reads_back() {
        let row = |text: &str, label: &str| (text.to_owned(), label.to_owned());
        let rows = Rows {
            train: vec![
                row("1", "b"),
                row("1", "b"),
                row("2, \"x\"", "b"),
                row("3", "b"),
                row("4", "a"),
                row("5", "c"),
            ],
            test: vec![row("4", "a"), row("6", "a"), row("7", "c"), row("8", "b"), row("9", "b")],
        };
        let chosen = rows.choose(2, 2, 1);
        assert_eq!(chosen.train, [row("1", "b"), row("2, \"x\"", "b"), row("4", "a")]);
        assert_eq!(chosen.test, [row("6", "a"), row("8", "b")]);
        assert_eq!(chosen.labels(), ["a", "b"]);
        let dir = tempfile::tempdir().unwrap();
        chosen.write(dir.path()).unwrap();
        assert_eq!(Rows::read(dir.path()).unwrap(), chosen);
        std::fs::write(dir.path().join("test.csv"), "text,label\na,b\n").unwrap();
        assert!(Rows::read(dir.path()).unwrap_err().message.contains("no column `category`"));
    }
}

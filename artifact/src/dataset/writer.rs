//! Freezing row by row: memory holds an id a row and a name a group, however long the rows. Nothing shows under its name
//! until all promises of the format have been checked.

use super::{Curation, DatasetCard, Example, LabelSource, Split, SplitCard, Targets, card_digest, illegible};
use crate::digest::hex;
use crate::files::{AtomicFile, write_atomic};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A row as its file will hold it, checked by itself: the part of freezing that many threads can do.
pub struct Line(String);

impl Line {
    /// Errors where the row has not the id of its content or its weight is no weight.
    pub fn of(row: &Example) -> Result<Line> {
        if row.id != row.content_id() {
            return broken(Path::new("dataset.json"), format!("{} has not the id of its content", at(row)));
        }
        if !row.weight.is_finite() || row.weight < 0.0 {
            return broken(Path::new("dataset.json"), format!("{} has the weight {}", at(row), row.weight));
        }
        Ok(Line(serde_json::to_string(row).map_err(illegible(Path::new("dataset.json")))? + "\n"))
    }
}

fn at(row: &Example) -> String {
    format!("row {} ({}:{})", row.id, row.trace.file, row.trace.line)
}

fn broken<T>(path: &Path, reason: String) -> Result<T> {
    Err(Error::invalid(path, reason, "this is a defect of what froze the dataset"))
}

struct Out {
    path: PathBuf,
    file: AtomicFile,
    sha256: Sha256,
    card: SplitCard,
}

/// See the module; dropped before [`DatasetWriter::finish`], it leaves nothing.
pub struct DatasetWriter {
    path: PathBuf,
    card: DatasetCard,
    targets: Targets,
    out: BTreeMap<Split, Out>,
    ids: HashSet<[u8; 32]>,
    groups: HashMap<String, Split>,
}

impl DatasetWriter {
    /// `card` gives labels, sources and redactions; the rest comes from the rows and from the end.
    pub fn create(dir: &Path, card: DatasetCard) -> Result<DatasetWriter> {
        let mut card = DatasetCard { digest: String::new(), splits: BTreeMap::new(), ..card };
        card.labels.sort();
        card.labels.dedup();
        let mut out = BTreeMap::new();
        for split in Split::ALL {
            let path = dir.join(format!("{}.jsonl", split.name()));
            let file = AtomicFile::create(&path).map_err(Error::io("write the split", &path))?;
            let card = SplitCard { rows: 0, reviewed: 0, sha256: String::new(), labels: BTreeMap::new() };
            out.insert(split, Out { path, file, sha256: Sha256::new(), card });
        }
        let path = dir.join("dataset.json");
        let targets = Targets::of(&card)?;
        Ok(DatasetWriter { path, card, targets, out, ids: HashSet::new(), groups: HashMap::new() })
    }

    /// Appends a row to its split. Errors where its id occurred before, its target is none of the labels (where there
    /// are any) or not what the schema asks for, or its group is in another split.
    pub fn push(&mut self, split: Split, row: &Example, line: Line) -> Result<()> {
        if let Err(why) = self.targets.check(&row.target) {
            return broken(&self.path, format!("{} has {why}: {:?}", at(row), row.target));
        }
        let id: [u8; 32] = Sha256::digest(row.id.as_bytes()).into();
        if !self.ids.insert(id) {
            return broken(&self.path, format!("{} occurs twice", at(row)));
        }
        match self.groups.get(&row.group) {
            Some(other) if *other != split => {
                let (group, other) = (&row.group, other.name());
                return broken(&self.path, format!("group {group:?} is in both {other} and {}", split.name()));
            }
            Some(_) => {}
            None => {
                self.groups.insert(row.group.clone(), split);
            }
        }
        let Some(out) = self.out.get_mut(&split) else { return Ok(()) };
        out.file.write_all(line.0.as_bytes()).map_err(Error::io("write the split", &out.path))?;
        out.sha256.update(line.0.as_bytes());
        out.card.rows += 1;
        out.card.reviewed += u64::from(row.label_source == LabelSource::Human);
        let class = self.targets.class(&row.target);
        match out.card.labels.get_mut(class.as_ref()) {
            Some(n) => *n += 1,
            None => {
                out.card.labels.insert(class.into_owned(), 1);
            }
        }
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.ids.len() as u64
    }

    /// Puts the files in place, the card last. Errors where `traces_in` is not the rows plus what was left out.
    pub fn finish(
        mut self,
        traces_in: u64,
        left_out: BTreeMap<String, u64>,
        curation: Curation,
    ) -> Result<DatasetCard> {
        let accounted = self.rows() + left_out.values().sum::<u64>();
        if accounted != traces_in {
            let reason = format!("{traces_in} traces came in, but {accounted} are accounted for (rows + left out)");
            return broken(&self.path, reason);
        }
        (self.card.traces_in, self.card.left_out, self.card.curation) = (traces_in, left_out, curation);
        let mut files = Vec::new();
        for (split, out) in self.out {
            let sha256 = hex(&out.sha256.finalize());
            self.card.splits.insert(split, SplitCard { sha256, ..out.card });
            files.push((out.path, out.file));
        }
        self.card.digest = card_digest(&self.path, &self.card)?;
        let text = serde_json::to_string_pretty(&self.card).map_err(illegible(&self.path))? + "\n";
        for (path, file) in files {
            file.commit().map_err(Error::io("write the split", &path))?;
        }
        write_atomic(&self.path, text.as_bytes()).map_err(Error::io("write the dataset card", &self.path))?;
        Ok(self.card)
    }
}

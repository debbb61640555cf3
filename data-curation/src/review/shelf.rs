//! The queue's items as curate leaves them, ready to be shown: a desk that opens at a hundred thousand of them has no time to
//! read whole traces, put messages together and take digests. A plain file: blocks of items, of each its texts one after
//! another, lengths before them.

use super::queue::{Item, QueueReason, Source};
use crate::Error;
use limbeck_artifact::dataset::Split;
use limbeck_artifact::files::AtomicFile;
use rayon::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};

/// With the version of what it holds: an item tells what this program makes of a trace.
pub const FILE: &str = "queue.v1.bin";

const HEAD: &[u8] = b"limbeck queue 1\n";
/// Items a block: what a thread reads at a time.
const BLOCK: usize = 4096;
/// Stands for a length where there is no text.
const NONE: u32 = u32::MAX;

const REASONS: [QueueReason; 7] = [
    QueueReason::OutsideTaxonomy,
    QueueReason::Invalid,
    QueueReason::Disagreement,
    QueueReason::NotInMessage,
    QueueReason::NegativeFeedback,
    QueueReason::RareFields,
    QueueReason::Random,
];

/// Items in the order of the traces, before anything that needs all of them. Damage is the stage cache's to see: the file is
/// one of curate's outputs.
pub(crate) struct Shelf {
    file: AtomicFile,
    path: PathBuf,
}

impl Shelf {
    pub fn create(dir: &Path) -> Result<Shelf, Error> {
        let path = dir.join(FILE);
        let mut file = AtomicFile::create(&path).map_err(|e| Error::io("write", &path, e))?;
        file.write_all(HEAD).map_err(|e| Error::io("write", &path, e))?;
        Ok(Shelf { file, path })
    }

    pub fn add(&mut self, items: &[Item]) -> Result<(), Error> {
        let blocks: Vec<Vec<u8>> = items.par_chunks(BLOCK).map(block).collect();
        for block in blocks {
            self.file.write_all(&block).map_err(|e| Error::io("write", &self.path, e))?;
        }
        Ok(())
    }

    pub fn commit(self) -> Result<(), Error> {
        self.file.commit().map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Its length in bytes, how many items, the items.
fn block(items: &[Item]) -> Vec<u8> {
    let mut out = vec![0; 8];
    for item in items {
        put(&mut out, Some(item.id.as_str()));
        out.extend(code(item).to_le_bytes());
        for text in [&item.message, &item.answer, &item.shown_sha256] {
            put(&mut out, Some(text.as_str()));
        }
        for text in [&item.label, &item.detail, &item.feedback, &item.at] {
            put(&mut out, text.as_deref());
        }
        out.extend((item.rivals.len() as u32).to_le_bytes());
        item.rivals.iter().for_each(|rival| put(&mut out, Some(rival.as_str())));
    }
    let bytes = (out.len() - 8) as u32;
    out[..4].copy_from_slice(&bytes.to_le_bytes());
    out[4..8].copy_from_slice(&(items.len() as u32).to_le_bytes());
    out
}

fn put(out: &mut Vec<u8>, text: Option<&str>) {
    out.extend(text.map_or(NONE, |text| text.len() as u32).to_le_bytes());
    out.extend(text.unwrap_or_default().as_bytes());
}

/// Small numbers of an item in one.
fn code(item: &Item) -> u32 {
    let place = |found: Option<usize>| found.unwrap_or(0) as u32;
    let split = place(Split::ALL.iter().position(|s| *s == item.split));
    let reason = place(REASONS.iter().position(|r| *r == item.reason));
    let source = place(Source::ALL.iter().position(|s| *s == item.source));
    split | reason << 8 | source << 16
}

fn coded(code: u32) -> Option<(Split, QueueReason, Source)> {
    let at = |shift: u32| (code >> shift & 0xff) as usize;
    Some((*Split::ALL.get(at(0))?, *REASONS.get(at(8))?, *Source::ALL.get(at(16))?))
}

/// What lies there; none where an earlier version curated.
pub(super) fn load(dir: &Path) -> Result<Option<Vec<Item>>, Error> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| Error::io("read the queue", &path, e))?,
    };
    match items(&bytes) {
        Some(items) => Ok(Some(items)),
        None => Err(Error::BadStage { path, why: "it is no review queue, or a damaged one".to_string() }),
    }
}

fn items(bytes: &[u8]) -> Option<Vec<Item>> {
    let mut rest = Reader(bytes.strip_prefix(HEAD)?);
    let mut blocks = Vec::new();
    while !rest.0.is_empty() {
        let (length, n) = (rest.number()?, rest.number()?);
        blocks.push((rest.take(length as usize)?, n));
    }
    let read = |(bytes, n): (&[u8], u32)| {
        let mut reader = Reader(bytes);
        let items: Option<Vec<Item>> = (0..n).map(|_| reader.item()).collect();
        items.filter(|_| reader.0.is_empty())
    };
    let blocks: Vec<Vec<Item>> = blocks.into_par_iter().map(read).collect::<Option<_>>()?;
    Some(blocks.into_iter().flatten().collect())
}

/// What is still to be read.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, n: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn maybe(&mut self) -> Option<Option<String>> {
        Some(match self.number()? {
            NONE => None,
            n => Some(std::str::from_utf8(self.take(n as usize)?).ok()?.to_owned()),
        })
    }

    fn text(&mut self) -> Option<String> {
        self.maybe()?
    }

    fn item(&mut self) -> Option<Item> {
        let id = self.text()?;
        let (split, reason, source) = coded(self.number()?)?;
        let [message, answer, shown_sha256] = [self.text()?, self.text()?, self.text()?];
        let [label, detail, feedback, at] = [self.maybe()?, self.maybe()?, self.maybe()?, self.maybe()?];
        let rivals = (0..self.number()?).map(|_| self.text()).collect::<Option<_>>()?;
        Some(Item {
            id,
            split,
            message,
            answer,
            label,
            rivals,
            reason,
            detail,
            feedback,
            at,
            shown_sha256,
            source,
            hint: None,
            draw: None,
            copies: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(i: usize) -> Item {
        let reason = REASONS[i % REASONS.len()];
        Item {
            id: format!("t{i}"),
            split: Split::ALL[i % Split::ALL.len()],
            message: format!("user: {i}\nand \u{1b}[2J more"),
            answer: "{\"people\": 4}".into(),
            label: (!i.is_multiple_of(3)).then(|| "one".to_string()),
            rivals: (0..i % 3).map(|n| format!("rival \"{n}\"")).collect(),
            reason,
            detail: (!i.is_multiple_of(2)).then(|| "why".to_string()),
            feedback: (i % 4 > 1).then(|| "down".to_string()),
            at: (i % 5 > 1).then(|| "2025-02-03T03:41:01Z".to_string()),
            shown_sha256: format!("{i:064}"),
            source: Source::ALL[i % Source::ALL.len()],
            hint: None,
            draw: None,
            copies: 0,
        }
    }

    #[test]
    fn items_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for n in [0, 1, 60, BLOCK + 7] {
            let items: Vec<Item> = (0..n).map(item).collect();
            let mut shelf = Shelf::create(dir.path()).unwrap();
            items.chunks(2 * BLOCK).for_each(|piece| shelf.add(piece).unwrap());
            shelf.commit().unwrap();
            assert_eq!(load(dir.path()).unwrap().unwrap(), items);
        }
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_an_error_and_no_other_queue() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::create(dir.path()).unwrap();
        shelf.add(&(0..3).map(item).collect::<Vec<_>>()).unwrap();
        shelf.commit().unwrap();
        let whole = std::fs::read(dir.path().join(FILE)).unwrap();
        for end in HEAD.len() + 1..whole.len() {
            assert!(items(&whole[..end]).is_none(), "{end} of {} bytes", whole.len());
        }
        assert!(items(b"").is_none() && items(b"PAR1").is_none());
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            // A letter may become another one; lengths, numbers and UTF-8 may not, and nothing panics.
            items(&changed);
        }
        std::fs::write(dir.path().join(FILE), &whole[..40]).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains(FILE));
        assert_eq!(coded(7), None);
    }
}

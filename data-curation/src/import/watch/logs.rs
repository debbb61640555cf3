//! The logs of a watched folder: which of them is which after they were renamed, copied, cut or compressed, and how far each
//! was read.

use super::super::source::Compression;
use super::{SETTLED, Watched};
use limbeck_artifact::digest::sha256_hex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::time::SystemTime;

/// Files that are gone and still remembered, since their compressed copy may come.
const MAX_GONE: usize = 1000;

/// How far a file was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// As the traces call it.
    pub name: String,
    /// Its name in the folder when it was seen last.
    pub path: String,
    /// Device and inode, where the system has them.
    pub place: Option<(u64, u64)>,
    /// Of its content, uncompressed.
    pub offset: u64,
    pub lines: u64,
    /// SHA-256 of the first `head_bytes` bytes.
    pub head_bytes: u64,
    pub head_sha256: String,
    pub format: Option<String>,
    /// The file's length when it was read to its end.
    pub read_length: u64,
}

/// A log in the folder.
pub struct Present {
    pub path: PathBuf,
    pub name: String,
    pub length: u64,
    pub changed: Option<SystemTime>,
    pub place: Option<(u64, u64)>,
    pub compression: Compression,
}

impl Present {
    /// None for what is no log of lines: a table, a document.
    pub fn of(path: PathBuf, name: String, metadata: &fs::Metadata) -> io::Result<Option<Present>> {
        let mut magic = Vec::new();
        File::open(&path)?.take(4).read_to_end(&mut magic)?;
        let lower = name.to_lowercase();
        let table = [".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet"].iter().any(|end| lower.ends_with(end));
        if magic == b"PAR1" || table {
            return Ok(None);
        }
        Ok(Some(Present {
            path,
            name,
            length: metadata.len(),
            changed: metadata.modified().ok(),
            place: place(metadata),
            compression: Compression::of(&magic),
        }))
    }

    /// The content from `offset` on, uncompressed.
    pub fn content(&self, offset: u64) -> io::Result<Box<dyn BufRead>> {
        let mut file = File::open(&self.path)?;
        if self.compression == Compression::None {
            io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
            return self.compression.reader(file);
        }
        let mut from = self.compression.reader(file)?;
        io::copy(&mut from.by_ref().take(offset), &mut io::sink())?;
        Ok(from)
    }

    /// How many of the first `wanted` bytes there are, and their digest.
    pub fn head(&self, wanted: u64) -> io::Result<(u64, String)> {
        let mut head = Vec::new();
        self.content(0)?.take(wanted).read_to_end(&mut head)?;
        Ok((head.len() as u64, sha256_hex(&head)))
    }

    /// Whether this is the file that `tail` was read from, whatever it is called now.
    pub fn is(&self, tail: &Tail) -> bool {
        let long_enough = self.compression != Compression::None || self.length >= tail.offset;
        let head = || self.head(tail.head_bytes).is_ok_and(|head| head == (tail.head_bytes, tail.head_sha256.clone()));
        long_enough && tail.head_bytes > 0 && head()
    }

    /// A compressed file is written once; a plain one may hold a last line that was not taken yet.
    pub fn has_news(&self, tail: &Tail) -> bool {
        match self.compression {
            Compression::None => self.length != tail.offset,
            _ => self.length != tail.read_length,
        }
    }

    pub fn rested(&self) -> bool {
        let age = self.changed.and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_some_and(|age| age >= SETTLED)
    }
}

#[cfg(unix)]
fn place(metadata: &fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn place(_: &fs::Metadata) -> Option<(u64, u64)> {
    None
}

/// Which tail each file is, as indices into `state.files`; new files get a new one.
pub fn recognise(state: &mut Watched, present: &[Present]) -> Vec<usize> {
    let mut found: Vec<Option<usize>> = vec![None; present.len()];
    let mut claimed = BTreeSet::new();
    // First who is where it was, then who was renamed, then who was copied or compressed.
    type Same = fn(&Present, &Tail) -> bool;
    let ways: [Same; 3] = [
        |file, tail| file.place.is_some() && file.place == tail.place,
        |file, tail| file.name == tail.path,
        |_, _| true,
    ];
    for same in ways {
        for (i, file) in present.iter().enumerate().filter(|(i, _)| found[*i].is_none()).collect::<Vec<_>>() {
            let matches = |n: &usize| same(file, &state.files[*n]) && file.is(&state.files[*n]);
            if let Some(n) = (0..state.files.len()).filter(|n| !claimed.contains(n)).find(matches) {
                claimed.insert(n);
                found[i] = Some(n);
            }
        }
    }
    let mut tails = Vec::with_capacity(present.len());
    for (file, known) in present.iter().zip(found) {
        let n = known.unwrap_or_else(|| {
            // A file of which nothing was read yet has no head to be known by.
            let empty = |t: &Tail| t.head_bytes == 0 && t.path == file.name;
            if let Some(n) = (0..state.files.len()).find(|n| !claimed.contains(n) && empty(&state.files[*n])) {
                claimed.insert(n);
                return n;
            }
            let name = distinct(&file.name, &state.files);
            state.files.push(Tail { name, ..Tail::default() });
            claimed.insert(state.files.len() - 1);
            state.files.len() - 1
        });
        state.files[n].path.clone_from(&file.name);
        state.files[n].place = file.place;
        tails.push(n);
    }
    forget(state, &claimed, &mut tails);
    tails
}

/// Of the files that are gone, only the latest are remembered.
fn forget(state: &mut Watched, claimed: &BTreeSet<usize>, tails: &mut [usize]) {
    let gone = state.files.len() - claimed.len();
    let mut excess = gone.saturating_sub(MAX_GONE);
    let mut moved = vec![0usize; state.files.len()];
    let mut kept = Vec::new();
    for (n, tail) in std::mem::take(&mut state.files).into_iter().enumerate() {
        if excess > 0 && !claimed.contains(&n) {
            excess -= 1;
            continue;
        }
        moved[n] = kept.len();
        kept.push(tail);
    }
    state.files = kept;
    tails.iter_mut().for_each(|n| *n = moved[*n]);
}

fn distinct(own: &str, tails: &[Tail]) -> String {
    let taken = |name: &str| tails.iter().any(|t| t.name == name);
    let numbered = (2..).map(|n| format!("{own} ({n})"));
    std::iter::once(own.to_string()).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
}
